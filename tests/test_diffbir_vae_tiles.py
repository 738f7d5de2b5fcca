"""The VAE in tiles is the VAE on the whole image, in one pass."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from skimage.data import astronaut

from milo_restore.data import to_tensor
from milo_restore.errors import ConfigError
from milo_restore.models.diffbir.components import load_components
from milo_restore.models.diffbir.condition import decode, encode
from milo_restore.models.diffbir.vae_tiles import decode_in_tiles, encode_in_tiles

IMAGE = to_tensor(astronaut()[60:316, 100:292])[None]  # 256 x 192


def with_attention():
    """As Stable Diffusion's, with attention in the middle, and random weights that make much of everything."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16), layers_per_block=2, latent_channels=4, norm_num_groups=4,
    )  # fmt: skip
    with torch.no_grad():
        for name, value in vae.named_parameters():
            if "norm" in name:
                value.add_(torch.randn_like(value) * 0.3)
    return vae.eval()


@pytest.fixture(scope="module", params=["tiny", "attention"])
def vae(request):
    return load_components("tiny").vae if request.param == "tiny" else with_attention()


@pytest.mark.parametrize("tile", [64, 96])
def test_tiles_are_exact(vae, tile):
    """Finding D7: 2.2e-2 with two rounds of statistics, 1.1e-4 with eight."""
    images = torch.cat([IMAGE, IMAGE.flip(3) * 0.5])
    cell = 2 ** (len(vae.config.block_out_channels) - 1)
    with torch.no_grad():
        whole = encode(vae, images)
        assert whole.std() > 0.03
        assert (encode(vae, images, tile) - whole).abs().max() < 1e-4
        picture = decode(vae, whole)
        assert picture.std() > 0.05
        assert (decode(vae, whole, tile // cell) - picture).abs().max() < 1e-4


def test_each_layer_runs_once(vae):
    """One pass: every convolution sees each pixel once, and little more."""
    seen, sizes = {}, {}

    def count(module, arguments, output):
        seen[module] = seen.get(module, 0) + output[0, 0].numel()

    convolutions = [module for module in vae.modules() if isinstance(module, torch.nn.Conv2d)]
    for tile in (None, 128):
        seen.clear()
        hooks = [module.register_forward_hook(count) for module in convolutions]
        with torch.no_grad():
            encode(vae, IMAGE, tile)
        for hook in hooks:
            hook.remove()
        sizes[tile] = dict(seen)
    assert sizes[None].keys() == sizes[128].keys()
    assert all(sizes[128][module] < 1.6 * size for module, size in sizes[None].items())
    assert sum(sizes[128].values()) < 1.1 * sum(sizes[None].values())


def test_the_input_stays_as_it_is(vae):
    images = IMAGE * 2 - 1
    before = images.clone()
    latents = encode_in_tiles(vae, images, 64).chunk(2, 1)[0]
    kept = latents.clone()
    decode_in_tiles(vae, latents, 8)
    assert torch.equal(images, before)
    assert torch.equal(latents, kept)


def test_an_offloaded_vae_is_brought_back(vae):
    called = []
    vae._hf_hook = type("Hook", (), {"pre_forward": lambda self, module: called.append(module)})()
    try:
        encode_in_tiles(vae, IMAGE * 2 - 1, 64)
    finally:
        del vae._hf_hook
    assert called == [vae]


def test_layers_that_are_not_known():
    vae = with_attention()
    vae.decoder.up_blocks[0].resnets[1] = torch.nn.Identity()
    with pytest.raises(ConfigError, match="vae: has layers that cannot be computed in tiles: Identity"):
        decode_in_tiles(vae, torch.zeros(1, 4, 32, 32), 16)
