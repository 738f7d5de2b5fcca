"""Pairs that show what denoisers see and leave behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from milo_restore.data.keys import SampleKey
from milo_restore.errors import ConfigError
from milo_restore.teach.denoising_errors import WithDenoisingErrors, denoising_error
from milo_restore.teach.pairs import DistortedPairs


def pairs() -> DistortedPairs:
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    return DistortedPairs([("one.png", smooth), ("two.png", smooth[::-1].copy())], square=64, seed=4)


def test_the_share_is_what_it_says_and_the_rest_is_kadids():
    plain = pairs()
    mixed = WithDenoisingErrors(plain, 0.4)
    keys = [SampleKey(1, index, index, 32) for index in range(150)]
    noisy = 0
    for key in keys:
        sample, kadid = mixed[key], plain[key]
        torch.testing.assert_close(sample["reference"], kadid["reference"], atol=0, rtol=0)
        if sample["name"] == kadid["name"]:
            torch.testing.assert_close(sample["image"], kadid["image"], atol=0, rtol=0)
        else:
            noisy += 1
            assert sample["name"].startswith(("one.png noise", "two.png noise"))
    assert 45 <= noisy <= 75  # 60 expected, standard deviation 6
    again = mixed[keys[3]]
    torch.testing.assert_close(again["image"], mixed[keys[3]]["image"], atol=0, rtol=0)


def test_denoising_leaves_less_error_than_the_noise():
    flat = np.full((48, 48, 3), 128, np.uint8)
    found = {"noise": [], "blurred": [], "denoised": []}
    for seed in range(60):
        image, what = denoising_error(flat, np.random.default_rng(seed))
        sigma = float(what.split()[1].rstrip(","))
        assert image.dtype == np.float32
        found[what.split()[-1] if "," in what else "noise"].append(float((image - 128 / 255).std()) * 255 / sigma)
    assert np.allclose(found["noise"], 1, atol=0.1)
    assert len(found["blurred"]) > 5
    assert max(found["blurred"]) < 0.9
    assert len(found["denoised"]) > 5
    assert max(found["denoised"]) < 0.9


def test_a_share_beyond_one_is_refused():
    with pytest.raises(ConfigError, match="between 0 and 1"):
        WithDenoisingErrors(pairs(), 1.5)
