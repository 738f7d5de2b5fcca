"""Weights of LatentMILO name the latents they are for, and refuse those of another autoencoder."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from milo_restore import LatentMILO, LatentMILOLoss
from milo_restore.errors import ConfigError, DataError, WeightsError
from milo_restore.metric import LatentSpace

FLUX = LatentSpace(16, (0.3611,), (0.1159,), "a" * 64, "FLUX.1")


@pytest.fixture
def weights(tmp_path):
    """Random weights for FLUX.1's latents, as a training writes them."""
    torch.manual_seed(0)
    path = tmp_path / "flux.safetensors"
    save_file(LatentMILO.untrained(space=FLUX).state_dict(), path, {"format": "pt", **FLUX.to_metadata()})
    return path


def test_weights_bring_their_channels_and_their_space(weights):
    milo = LatentMILO.from_pretrained(weights)
    assert milo.space == FLUX
    assert milo.channels == 16
    latents = torch.randn(2, 16, 16, 24)
    assert milo(latents, latents).tolist() == [0, 0]
    assert milo.mask(latents, 0.9 * latents).shape == (2, 1, 16, 24)
    with pytest.raises(DataError, match=r"expected 16 channels \(N, 16, H, W\), got shape \(2, 4, 16, 24\)"):
        milo(latents[:, :4], latents[:, :4])
    with pytest.raises(DataError, match=r"Multiply by vae.config.scaling_factor \(0.3611\)"):
        milo(latents, 9 * latents)


def test_the_loss_takes_them_too(weights):
    loss = LatentMILOLoss(weights)
    prediction = torch.randn(1, 16, 16, 16, requires_grad=True)
    loss(prediction, torch.randn(1, 16, 16, 16)).backward()
    assert prediction.grad.abs().sum() > 0
    with pytest.raises(DataError, match="expected 16 channels"):
        loss(torch.zeros(1, 4, 16, 16), torch.zeros(1, 4, 16, 16))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (LatentSpace(4), "4 channels, not 16: these weights are for FLUX.1"),
        (LatentSpace(16, (1.5305,)), "a scaling factor of 1.5305, not 0.3611"),
        (LatentSpace(16, (0.3611,), (0.0609,)), "a shift of 0.0609, not 0.1159"),
        (LatentSpace(16, tuple([0.3611] * 15 + [0.5])), "a scaling factor of 0.3611, 0.3611, ..., not 0.3611"),
        (LatentSpace(16, (0.3611,), (0.1159,), "b" * 64), "a VAE of sha256 bbbbbbbbbbbb, not aaaaaaaaaaaa"),
    ],
)
def test_latents_of_another_autoencoder_are_refused(weights, given, message):
    with pytest.raises(ConfigError, match=message):
        LatentMILO(weights).check_space(given, "base")


@pytest.mark.parametrize(
    "given", [LatentSpace(16), FLUX, LatentSpace(16, (0.3611,) * 16), LatentSpace(16, vae="a" * 64)]
)
def test_what_cannot_be_told_apart_is_taken(weights, given):
    LatentMILO(weights).check_space(given)


def test_named_weights_know_their_spaces():
    mini = LatentMILO("mini")
    mini.check_space(LatentSpace(4, (0.88466,)))
    with pytest.raises(ConfigError, match=r"0\.18215, not 0\.88466: these weights are for the tiny world"):
        mini.check_space(LatentSpace(4, (0.18215,)))


def test_older_files_say_nothing_of_their_latents(tmp_path):
    save_file(LatentMILO.untrained().state_dict(), tmp_path / "old.safetensors")
    milo = LatentMILO(tmp_path / "old.safetensors")
    assert milo.space == LatentSpace(4)
    milo.check_space(LatentSpace(4, (0.18215,)))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"latent_channels": "32"}, r"does not fit LatentMILO: .*\(32, 33, 3, 3\) instead of \(32, 65, 3, 3\)"),
        ({}, r"does not fit LatentMILO: .*\(32, 33, 3, 3\) instead of \(32, 9, 3, 3\)"),
        ({"latent_scaling": "0.5, 1"}, "what it says of its latents is unreadable"),
        ({"latent_channels": "sixteen"}, "what it says of its latents is unreadable"),
        ({"latent_channels": "16", "latent_shift": "[1, 2, 3]"}, r"no shift of 16 channels: \[1.0, 2.0, 3.0\]"),
    ],
)
def test_files_that_contradict_themselves_are_refused(weights, tmp_path, said, message):
    path = tmp_path / "wrong.safetensors"
    save_file(LatentMILO.untrained(space=FLUX).state_dict(), path, said)
    with pytest.raises(WeightsError, match=message):
        LatentMILO(path)
