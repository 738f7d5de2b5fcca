"""Gradient cosine of a diffusion loss with MSE, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from milo_restore.loss.diffusion import DiffusionLoss
from milo_restore.loss.parametrization import noised

TIMESTEPS = (50, 250, 500, 750, 900)


@torch.no_grad()
def gradient_cosines(
    loss: DiffusionLoss,
    predict: Callable[[Tensor, Tensor], Tensor],
    z0: Tensor,
    condition: Tensor | None = None,
    *,
    timesteps: Sequence[int] = TIMESTEPS,
    step: int | None = None,
    seed: int = 0,
) -> dict[int, float]:
    """`DiffusionLoss.cosine_with_mse` of a model's predictions at each timestep.

    Args:
        loss: the configured one.
        predict: noisy latents (N, 4, h, w) and their timesteps (N,) to the model's prediction.
        z0: clean latents, (N, 4, h, w), times the VAE's scaling factor.
        condition: the degraded (cleaned) input's latents, same shape, where the mask looks at them.
        timesteps: which.
        step: the training step, for a curriculum.
        seed: of the noise, another one at each timestep.

    Returns:
        The cosine over the batch, by timestep.

    Raises:
        DataError: as `DiffusionLoss.forward`.
        ConfigError: the same.
    """
    cosines = {}
    for time, (z_t, noise, times) in zip(timesteps, noised(loss.scheduler, z0, timesteps, seed)):
        said = predict(z_t, times)
        cosines[time] = float(loss.cosine_with_mse(said, z_t, z0, noise, times, step=step, condition=condition))
    return cosines


def cosine_line(cosines: Mapping[int, float]) -> str:
    """For a terminal: ``0.991 (t = 50), 0.990 (250), ...``."""
    parts = [f"{cosine:.3f} ({time})" for time, cosine in cosines.items()]
    return ", ".join(parts).replace("(", "(t = ", 1)
