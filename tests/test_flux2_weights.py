"""The shipped weights of LatentMILO for FLUX.2's latents: what their card says, and floors under what was measured."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from milo_restore import MILO, LatentMILO, LatentMILOLoss
from milo_restore.data import list_images, to_tensor
from milo_restore.errors import ConfigError, DataError
from milo_restore.metric import LatentSpace
from milo_restore.metric.weights import SHIPPED
from milo_restore.models.vae import load_vae
from milo_restore.teach.pairs import DistortedPairs
from milo_restore.teach.step_test import latent_losses, left_over

FILE = SHIPPED / "milo_latent_flux2_taef2.safetensors"


def test_the_card_names_the_file_and_the_file_its_latents():
    assert FILE.stat().st_size < 300_000
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() in (SHIPPED / "README.md").read_text()
    milo = LatentMILO.from_pretrained("flux2-taef2")
    assert (milo.channels, milo.space.scaling, milo.space.shift) == (32, (1.0,), (0.0,))
    assert "FLUX.2" in str(milo.space)
    latents = torch.randn(2, 32, 16, 16)
    assert milo(latents, latents).tolist() == [0, 0]
    with pytest.raises(DataError, match="expected 32 channels"):
        milo(latents[:, :16], latents[:, :16])
    with pytest.raises(ConfigError, match=r"16 channels, not 32: these weights are for FLUX\.2"):
        milo.check_space(LatentSpace(16, (0.3611,)))


@pytest.mark.filterwarnings("ignore:The weights flux2-taef2")  # says that they follow official roughly
def test_the_loss_has_a_gradient():
    prediction = torch.randn(1, 32, 16, 16, requires_grad=True)
    LatentMILOLoss("flux2-taef2")(prediction, torch.randn(1, 32, 16, 16)).backward()
    assert prediction.grad.abs().sum() > 0


@pytest.fixture(scope="module")
def world(shared):
    """TAEF2, the official MILO, and nine of BSDS500's validation photographs, which were not trained on."""
    torch.set_num_threads(1)
    codec = load_vae("taef2")
    return codec, MILO("official"), list_images(shared / "data" / "bsds500" / "val")[5::11]


@pytest.mark.golden
def test_it_is_for_the_autoencoder_that_it_names(world):
    codec = world[0]
    space = LatentSpace(codec.channels, codec.scaling, codec.shift, codec.sha256)
    LatentMILO("flux2-taef2").check_space(space)
    with pytest.raises(ConfigError, match="a VAE of sha256 000000000000"):
        LatentMILO("flux2-taef2").check_space(LatentSpace(32, vae=64 * "0"))


@pytest.mark.golden
def test_it_ranks_as_the_official_metric_does_on_decoded_images(world):
    codec, judge, images = world
    pairs = DistortedPairs(images, one_each=6, square=160, unscaled=True, seed=11)
    milo, scores = LatentMILO("flux2-taef2"), []
    with torch.no_grad():
        for number in range(len(images)):
            arrays = [pairs.images(pair) for pair in pairs.pairs_of(number)]
            image = torch.stack([to_tensor(array) for array, _ in arrays])
            reference = to_tensor(arrays[0][1])[None].expand_as(image)
            latents = codec.encode(image), codec.encode(reference[:1]).expand(len(image), -1, -1, -1)
            plain = (latents[0] - latents[1]).abs().mean((1, 2, 3))
            scores.append(torch.stack([milo(*latents), plain, judge(image, reference=reference)]))
    own, plain, wanted = torch.cat(scores, 1).numpy()
    assert spearmanr(own, wanted).statistic > FLOOR
    assert spearmanr(own, wanted).statistic > spearmanr(plain, wanted).statistic + 0.05


FLOOR = 0.93
"""This project's goal."""


@pytest.mark.golden
def test_its_mask_beside_the_square_leaves_less_visible_error_than_l1(world):
    codec, judge, images = world
    pairs = DistortedPairs(images, distortions=(1, 10, 11), one_each=True, square=160, unscaled=True, seed=11)
    losses = latent_losses(LatentMILO("flux2-taef2"))
    chosen = {name: losses[name] for name in ("l1", "mse", "milo", "milo-mse-root")}
    left = []
    for number in range(len(images)):
        image, reference = (to_tensor(array)[None] for array in pairs.images(pairs.pair(number)))
        ends = codec.encode(image), codec.encode(reference)
        found = left_over(chosen, *ends, reference, codec.decode, judge, steps=8)
        left.append([float(found[name].log()) for name in chosen])
    l1, mse, milo, root = np.mean(left, 0)
    assert max(l1, mse, milo, root) < 0
    assert root < l1 - 0.1
    assert root < mse
    assert milo < l1
