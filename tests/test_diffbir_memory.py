"""What a training step keeps in memory, counted; and that checkpointing reaches a frozen network."""

from __future__ import annotations

import torch
from torch import nn

from milo_restore.models.diffbir.control import IRControlNet, predict
from milo_restore.models.diffbir.memory import saved_bytes
from milo_restore.models.tiny import tiny_unet
from milo_restore.train.memory import optimizer_bytes, weight_bytes


def test_a_pass_keeps_what_its_gradient_needs():
    layers = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    given = torch.rand(2, 5)
    assert saved_bytes(lambda: layers(given), [layers]) == (4 * (2 * 5 + 2 * 7), 0)  # its input, and the activation
    layers.requires_grad_(False)
    assert saved_bytes(lambda: layers(given), [layers]) == (0, 0)


def test_weights_gradients_and_averages_are_counted():
    layers = nn.Linear(9, 10)
    assert weight_bytes([layers]) == 0
    assert weight_bytes([layers.requires_grad_(False)], each=2) == 200
    layers.requires_grad_(True)
    assert optimizer_bytes(layers, "adamw", averaged=False) == {"weights": 400, "gradients": 400, "adamw": 800}
    found = optimizer_bytes(layers, "adamw8bit", averaged=True)
    assert found == {"weights": 400, "gradients": 400, "adamw8bit": 200, "averaged weights": 400}


def test_checkpointing_reaches_the_frozen_unet_in_eval_mode():
    """Before 0.32 diffusers passed it over there, and kept everything (findings D5)."""
    unet = tiny_unet().requires_grad_(False).eval()
    control = IRControlNet.from_unet(unet).requires_grad_(True)
    latent, context = torch.randn(1, 4, 16, 16), torch.randn(1, 4, 32)

    def run():
        return predict(unet, control, latent, torch.tensor([10]), context, latent)

    whole, _ = saved_bytes(run, (unet, control))
    control.enable_gradient_checkpointing()
    half, block = saved_bytes(run, (unet, control))
    unet.enable_gradient_checkpointing()
    least, other = saved_bytes(run, (unet, control))
    assert 0 < least < 0.6 * half < 0.6 * whole
    assert 0 < block <= other < whole
