"""The step test: gradient steps on the latents of a distorted image, then what a metric of images says of the result.

A correlation tells how well a metric ranks images. A loss also has to point: this walks from a distorted image's
latents towards the reference's along a loss's gradient, a fixed way in fixed steps, decodes where it ends, and measures
how much of the visible error is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from milo_restore.metric import MILO, LatentMILO

Loss = Callable[[Tensor, Tensor], Tensor]
"""Latents and the reference's, (N, C, h, w), to one value per sample, (N,)."""


def latent_losses(metric: LatentMILO) -> dict[str, Loss]:
    """Losses by name: plain L1 and MSE in latents, and the same under LatentMILO's mask m in (0, 1), a constant.

    ``milo`` is the metric's own error, m |e|, as `LatentMILOLoss` has it; ``milo-mse`` is m e^2 and ``milo-mse-root``
    the square root of m times e^2, as `DiffusionLoss` has them (power 2, contrast 1 and 0.5).
    """

    def masked(power: int, contrast: float) -> Loss:
        def loss(latents: Tensor, reference: Tensor) -> Tensor:
            with torch.no_grad():
                weight = (metric.predict_mask(latents, reference) / metric.n_scales) ** contrast
            return (weight * (latents - reference).abs() ** power).mean((1, 2, 3))

        return loss

    return {
        "l1": lambda latents, reference: (latents - reference).abs().mean((1, 2, 3)),
        "mse": lambda latents, reference: (latents - reference).square().mean((1, 2, 3)),
        "milo": masked(1, 1.0),
        "milo-mse": masked(2, 1.0),
        "milo-mse-root": masked(2, 0.5),
    }


def walk(loss: Loss, latents: Tensor, reference: Tensor, *, share: float = 0.3, steps: int = 20) -> Tensor:
    """Latents after gradient steps of one length, together ``share`` of the distance to the reference.

    Args:
        loss: what is descended; only its gradient's direction counts.
        latents: of distorted images, (N, C, h, w).
        reference: of what they should be.
        share: length of the whole way, of the distance.
        steps: how many.
    """
    length = share * _norm(latents - reference) / steps
    for _ in range(steps):
        at = latents.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(at, reference).sum(), at)
        latents = at.detach() - length * gradient / _norm(gradient).clamp_min(1e-12)
    return latents


@torch.no_grad()
def left_over(
    losses: Mapping[str, Loss],
    latents: Tensor,
    reference: Tensor,
    image: Tensor,
    decode: Callable[[Tensor], Tensor],
    judge: MILO,
    *,
    share: float = 0.3,
    steps: int = 20,
) -> dict[str, Tensor]:
    """Error that is left after `walk`, by loss: the judge's raw error over the one before the first step, (N,).

    Args:
        losses: what is compared.
        latents: of distorted images, (N, C, h, w).
        reference: of their references.
        image: the references themselves, (N, 3, H, W) in [0, 1], to which decoded images are compared.
        decode: latents to images.
        judge: MILO on images.
        share: as in `walk`.
        steps: the same.
    """

    def error(where: Tensor) -> Tensor:
        return judge(decode(where).clamp(0, 1), reference=image)

    before = error(latents)
    found = {}
    for name, loss in losses.items():
        with torch.enable_grad():
            end = walk(loss, latents, reference, share=share, steps=steps)
        found[name] = error(end) / before
    return found


def _norm(values: Tensor) -> Tensor:
    return values.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
