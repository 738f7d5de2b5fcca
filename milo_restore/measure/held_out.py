"""Diffusion losses on held-out latents: what an evaluation can afford where sampling is too slow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from milo_restore.loss import DiffusionLoss
from milo_restore.loss.parametrization import noised, prediction_target
from milo_restore.models.diffbir import predict


@torch.no_grad()
def held_out_loss(
    control: nn.Module,
    unet: Any,
    loss: DiffusionLoss,
    latents: Mapping[str, Tensor],
    context: Tensor,
    *,
    timesteps: Sequence[int] = (100, 300, 500, 700, 900),
    seed: int = 0,
) -> dict[str, float]:
    """The losses on held-out latents, at fixed timesteps with fixed noise: a few forward passes, no sampling.

    Args:
        control: an `IRControlNet`.
        unet: the frozen UNet.
        loss: the training's; it is taken where its curriculum ends.
        latents: ``mean``, the targets', and ``condition``, (N, 4, h, w) each, times the VAE's scaling factor.
        context: text embedding, (1, L, D).
        timesteps: of each latent; the noise is another one at each.
        seed: of the noise.

    Returns:
        ``loss``, and ``mse``, the plain mean square of the residual, which compares between kinds of loss.
    """
    z0, condition = latents["mean"], latents["condition"]
    last = loss.curriculum.end_step
    values: list[tuple[Tensor, Tensor]] = []
    for z_t, noise, times in noised(loss.scheduler, z0, timesteps, seed):
        prediction = predict(unet, control, z_t, times, context, condition)
        mse = (prediction.float() - prediction_target(loss.scheduler, z0, noise, times)).square().mean()
        value = loss(prediction, z_t, z0, noise, times, step=last, condition=condition)
        values.append((value, mse))
    return {name: torch.stack(parts).mean().item() for name, parts in zip(("loss", "mse"), zip(*values))}
