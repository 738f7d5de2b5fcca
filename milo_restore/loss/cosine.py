"""Gradient cosines of a loss with MSE: near 1, training with it is training with MSE."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from milo_restore.loss.baselines import RestorationLoss
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


def cosine_with_mse(loss: RestorationLoss, said: Tensor, target: Tensor, step: int) -> Tensor:
    """The cosine between a loss's gradient and MSE's, both with respect to what a network says.

    Args:
        loss: of ``said`` and ``target``.
        said: images or latents.
        target: of the same shape.
        step: the training step, for a curriculum.

    Returns:
        A scalar in [-1, 1].
    """
    with torch.enable_grad():
        here = said.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(here, target, step=step), here)
    cosine = F.cosine_similarity(gradient.flatten(), (here.detach() - target).flatten(), dim=0, eps=1e-30)
    return cosine.clamp(-1, 1)  # rounding takes equal ones beyond


def cosine_line(cosines: Mapping[int, float]) -> str:
    """For a terminal: ``0.991 (t = 50), 0.990 (250), ...``."""
    parts = [f"{cosine:.3f} ({time})" for time, cosine in cosines.items()]
    return ", ".join(parts).replace("(", "(t = ", 1)
