"""Degraded training pairs: crop, mirroring and degradation belong to the key."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.data import astronaut
from torch.utils.data import DataLoader

from milo_restore.data.degrade import DEGRADATIONS, RealESRGANSettings, build_degradation
from milo_restore.data.degrade.batch import degrade_batch
from milo_restore.data.degraded_patches import DegradedPairs
from milo_restore.data.keys import SampleKey, keyed_rng
from milo_restore.errors import ConfigError, DataError


def images(count: int = 5, height: int = 60, width: int = 72) -> list[tuple[str, np.ndarray]]:
    """Images whose pixels tell where they come from: red = row, green = column, blue = number of the image."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return [(f"{n}.png", np.dstack([rows, columns, np.full_like(rows, n)])) for n in range(count)]


def keys(steps: int, batch: int, patch: int = 32) -> list[SampleKey]:
    return [SampleKey(s, i, (s - 1) * batch + i, patch) for s in range(1, steps + 1) for i in range(batch)]


def pixels(target: torch.Tensor) -> np.ndarray:
    return (target * 255).round().long().numpy()


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_samples_are_pairs_of_one_place(name):
    data = DegradedPairs([("a.png", astronaut()[:200, 100:300])], name, seed=4)
    for key in keys(2, 3):
        sample = data[key]
        assert sample["name"] == "a.png"
        for side in ("input", "target"):
            assert sample[side].shape == (3, 32, 32)
            assert sample[side].dtype == torch.float32
        assert 0 <= sample["target"].min() <= sample["target"].max() <= 1
        assert not torch.equal(sample["input"], sample["target"])
        drift = (sample["input"] - sample["target"]).mean((1, 2)).abs().max()
        assert drift < 0.15  # the same place: its colours stay


def test_targets_are_mirrored_crops():
    data = DegradedPairs(images(), "noise", seed=1)
    mirrored, corners = [], set()
    for key in keys(20, 10):
        red, green, blue = pixels(data[key]["target"])
        assert (red == red[:, :1]).all()
        assert (np.diff(red[:, 0]) == 1).all()
        across = np.diff(green[0])
        assert (across == across[0]).all()
        assert abs(across[0]) == 1
        mirrored.append(across[0] == -1)
        corners.add((int(red.min()), int(green.min())))
        assert (blue == data.image_number(key.position)).all()
    assert 70 < sum(mirrored) < 130
    assert len(corners) > 150
    plain = DegradedPairs(images(), "noise", seed=1, flip=False)
    assert all((np.diff(pixels(plain[key]["target"])[1][0]) == 1).all() for key in keys(4, 5))


def test_an_epoch_visits_every_image_once():
    data = DegradedPairs(images(), "noise", seed=2)
    orders = [[data[key]["name"] for key in keys(4, 5)[5 * e : 5 * e + 5]] for e in range(4)]
    assert len(data) == 5
    for order in orders:
        assert sorted(order) == [f"{n}.png" for n in range(5)]
    assert len({tuple(order) for order in orders}) > 1


def test_the_key_and_the_seed_decide():
    picture = [("a.png", astronaut()[:80, 100:180])]
    for name in DEGRADATIONS:
        data, again = DegradedPairs(picture, name, seed=3), DegradedPairs(picture, name, seed=3)
        first = {key: data[key]["input"] for key in keys(2, 3)}
        for key in reversed(keys(2, 3)):
            assert torch.equal(again[tuple(key)]["input"], first[key])
        assert len({float(sample.sum()) for sample in first.values()}) == 6
        other = DegradedPairs(picture, name, seed=4)
        assert not any(torch.equal(other[key]["input"], sample) for key, sample in first.items())


def test_workers_change_nothing():
    data = DegradedPairs(images(), build_degradation("codeformer", downsample=(1, 3)), seed=6)
    wanted = keys(2, 4)
    loaded = DataLoader(data, sampler=wanted, batch_size=4, num_workers=2)
    inputs = torch.cat([batch["input"] for batch in loaded])
    assert torch.equal(inputs, torch.stack([data[key]["input"] for key in wanted]))


def test_the_input_is_the_degradation_of_the_target():
    degradation = build_degradation("face")
    sample = DegradedPairs(images(), degradation, seed=8)[SampleKey(5, 2, 17, 40)]
    clean = np.ascontiguousarray(sample["target"].numpy().transpose(1, 2, 0))
    expected, _ = degradation(clean, keyed_rng(8, "degrade", 5, 2))
    np.testing.assert_array_equal(sample["input"].numpy().transpose(1, 2, 0), expected)


def test_clean_patches_for_the_accelerator_have_the_same_draws():
    picture = [("a.png", astronaut()[:128, 130:258])]
    clean = DegradedPairs(picture, None, seed=7)
    wanted = keys(1, 6, patch=96)
    (batch,) = DataLoader(clean, sampler=wanted, batch_size=6)
    assert set(batch) == {"target", "key", "name"}
    assert batch["key"].tolist() == [[1, i] for i in range(6)]
    degraded, target = degrade_batch(batch["target"], batch["key"], RealESRGANSettings(), clean.seed)
    on_arrays = DegradedPairs(picture, "realesrgan", seed=7)
    for number, key in enumerate(wanted):
        sample = on_arrays[key]
        torch.testing.assert_close(target[number], sample["target"], atol=2e-4, rtol=0)
        errors = [
            float((side - sample["target"]).square().mean().sqrt()) for side in (degraded[number], sample["input"])
        ]
        assert errors[0] == pytest.approx(errors[1], rel=0.25)


def test_what_is_refused():
    with pytest.raises(DataError, match="no images"):
        DegradedPairs([], "noise")
    with pytest.raises(DataError, match=r"a.png: expected an \(H, W, 3\) uint8 array"):
        DegradedPairs([("a.png", np.zeros((8, 8), np.uint8))], "noise")
    with pytest.raises(ConfigError, match="no degradation 'blur'"):
        DegradedPairs(images(), "blur")
    with pytest.raises(ConfigError, match="seed"):
        DegradedPairs(images(), "noise", seed=2**63)
    data = DegradedPairs([*images(), ("small.png", np.zeros((20, 90, 3), np.uint8))], "noise")
    with pytest.raises(
        DataError, match=r"small.png: a patch of 32 pixels does not fit into 90x20. Cap the patches at 20"
    ):
        data[SampleKey(1, 0, 0, 32)]
    with pytest.raises(ConfigError, match="patch"):
        data[SampleKey(1, 0, 0, 0)]
