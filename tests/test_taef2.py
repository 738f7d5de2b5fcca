"""TAEF2: the published files fill the network written from their shapes, and photographs survive it."""

from __future__ import annotations

import pytest
import skimage.data
import torch

from milo_restore.cli import main
from milo_restore.data import to_tensor
from milo_restore.errors import WeightsError
from milo_restore.models.taef2 import TAEF2, load_taef2

pytestmark = pytest.mark.golden


@pytest.fixture(scope="module")
def files(shared):
    return {half: shared / "weights" / "taef2" / f"taef2_{half}.pth" for half in ("encoder", "decoder")}


def test_photographs_go_into_latents_and_back(files):
    vae = load_taef2(**files)
    crops = [getattr(skimage.data, name)()[:256, :256] for name in ("astronaut", "coffee", "chelsea")]
    with torch.no_grad():
        for crop, floor in zip(crops, (31.5, 28.5, 31.0)):  # 31.8, 28.8 and 31.2 dB measured
            image = to_tensor(crop.copy())[None]
            latents = vae.encode(2 * image - 1).latents
            assert latents.shape == (1, 32, 32, 32)
            assert 0.5 < latents.square().mean().sqrt() < 1.2
            decoded = (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
            assert -10 * (decoded - image).square().mean().log10() > floor
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def test_loading_is_strict_and_leaves_random_numbers_alone(files):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert sum(parameter.numel() for parameter in load_taef2(**files).encoder.parameters()) == 1_338_528
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(WeightsError, match="taef2_decoder.pth: does not fit TAEF2's encoder"):
        load_taef2(encoder=files["decoder"], decoder=files["decoder"])
    with pytest.raises(WeightsError, match="taef2_encoder.pth: does not fit TAEF2's decoder"):
        load_taef2(encoder=files["encoder"], decoder=files["encoder"])


def test_it_travels_as_diffusers_models_do(files, tmp_path):
    vae = load_taef2(**files)
    vae.save_pretrained(tmp_path)
    again = TAEF2.from_pretrained(tmp_path)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in vae.state_dict().items())


def test_one_name_stands_for_both_halves(shared, monkeypatch, capsys):
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(shared))
    assert main(["assets", "verify", "taef2"]) == 0
    printed = capsys.readouterr().out
    assert "taef2-encoder: found" in printed
    assert "taef2-decoder: found" in printed
