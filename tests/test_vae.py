"""Autoencoders by name: each class of diffusers encodes and decodes as its own pipelines do."""

from __future__ import annotations

import json

import diffusers
import pytest
import torch

from milo_restore.errors import WeightsError
from milo_restore.models.vae import load_vae

BLOCKS = {
    "block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip
QWEN = {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
BUILDS = {
    "sd": lambda: diffusers.AutoencoderKL(latent_channels=4, scaling_factor=0.18215, **BLOCKS),
    "flux": lambda: diffusers.AutoencoderKL(latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159, **BLOCKS),
    "tiny": lambda: diffusers.AutoencoderTiny(
        latent_channels=4, encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4
    ),
    "flux2": lambda: diffusers.AutoencoderKLFlux2(latent_channels=32, **BLOCKS),
    "qwen": lambda: diffusers.AutoencoderKLQwenImage(**QWEN),
    "wan": lambda: diffusers.AutoencoderKLWan(**QWEN),
}
EXPECTED = {"sd": (4, 0.18215, 0.0), "flux": (16, 0.3611, 0.1159), "tiny": (4, 1.0, 0.0), "flux2": (32, 1.0, 0.0)}


@pytest.mark.parametrize("kind", EXPECTED)
def test_images_become_the_latents_that_models_are_trained_on(kind, tmp_path):
    torch.manual_seed(0)
    vae = BUILDS[kind]().eval()
    vae.save_pretrained(tmp_path / "vae")
    codec = load_vae(tmp_path / "vae")
    channels, scaling, shift = EXPECTED[kind]
    assert (codec.channels, codec.scaling, codec.shift) == (channels, (scaling,), (shift,))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        said = vae.encode(images * 2 - 1)
        z = said.latents if kind == "tiny" else said.latent_dist.mean
        latents = codec.encode(images)
        torch.testing.assert_close(latents, (z - shift) * scaling)
        torch.testing.assert_close(codec.decode(latents), vae.decode(z).sample / 2 + 0.5, atol=1e-4, rtol=1e-4)
    assert load_vae(tmp_path).sha256 == codec.sha256  # a pipeline's folder
    assert not any(parameter.requires_grad for parameter in codec.vae.parameters())


@pytest.mark.parametrize("kind", ["qwen", "wan"])
def test_those_of_videos_take_an_image_as_a_frame_and_scale_each_channel(kind, tmp_path):
    torch.manual_seed(0)
    vae = BUILDS[kind]().eval()
    vae.save_pretrained(tmp_path)
    codec = load_vae(tmp_path)
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(vae.config[key]).view(1, 16, 1, 1, 1) for key in ("latents_mean", "latents_std"))
    with torch.no_grad():
        z = vae.encode(images[:, :, None] * 2 - 1).latent_dist.mode()
        latents = codec.encode(images)
        torch.testing.assert_close(latents, ((z - mean) / std)[:, :, 0])
        decoded = vae.decode(z).sample[:, :, 0] / 2 + 0.5
        torch.testing.assert_close(codec.decode(latents), decoded, atol=1e-4, rtol=1e-4)
    assert codec.channels == len(codec.scaling) == 16


def test_latents_have_gradients_through_the_decoder(tmp_path):
    BUILDS["tiny"]().save_pretrained(tmp_path)
    latents = torch.randn(1, 4, 4, 4, requires_grad=True)
    load_vae(tmp_path).decode(latents).sum().backward()
    assert latents.grad.abs().sum() > 0


def test_another_network_has_another_name(tmp_path):
    vae = BUILDS["sd"]()
    vae.save_pretrained(tmp_path / "one")
    with torch.no_grad():
        vae.quant_conv.bias += 1
    vae.save_pretrained(tmp_path / "other")
    assert load_vae(tmp_path / "one").sha256 != load_vae(tmp_path / "other").sha256


def test_what_is_no_autoencoder_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="nowhere: holds no readable VAE"):
        load_vae(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(WeightsError, match="holds a UNet2DModel, which is none of AutoencoderKL, AutoencoderTiny"):
        load_vae(tmp_path)
