"""The loss section of a recipe's configuration, and the loss it stands for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from milo_restore.errors import ConfigError
from milo_restore.loss.baselines import L1Loss, LPIPSLoss, MSELoss, RestorationLoss
from milo_restore.loss.curriculum import CurriculumKind
from milo_restore.loss.milo import LatentMILOLoss, MILOLoss
from milo_restore.metric import LatentSpace


@dataclass(frozen=True)
class LossSettings:
    """Which loss trains the network.

    Attributes:
        kind: ``mae``, ``mse``, ``lpips`` or ``milo``.
        weights: MILO's weights, ``official``, ``mini``, ``auto`` or a path, or on latents LatentMILO's; ignored by the
            others.
        curriculum: ``constant``, ``linear`` or ``cosine`` over the run's steps.
        mask_gradient: let gradients flow through MILO's mask; from random weights, training through it ended in a
            pattern that the mask does not see, at every scale this project tried: 20.1 dB, below its noisy input.
        normalize: divide MILO's weights by their mean per image, which keeps the loss at L1's scale; see `MILOLoss`.
        anchor: L1 with this factor is added to MILO; L1 + k MILO is anchor 1 / k and loss_weight k.
        bfloat16: compute MILO's mask network in bfloat16.
        lpips_net: LPIPS' backbone.
        loss_weight: factor on the loss.
    """

    kind: Literal["mae", "mse", "lpips", "milo"] = "milo"
    weights: str = "official"
    curriculum: CurriculumKind = "constant"
    mask_gradient: bool = False
    normalize: bool = False
    anchor: float = 0.0
    bfloat16: bool = False
    lpips_net: Literal["alex", "vgg"] = "alex"
    loss_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.kind != "milo" and self.curriculum != "constant":
            mend = "set loss.kind=milo or loss.curriculum=constant"
            raise ValueError(f"a {self.curriculum} curriculum needs MILO's mask, {self.kind} has none: {mend}")
        if self.kind != "milo" and self.anchor:
            raise ValueError(f"an anchor stands beside MILO: set loss.kind=milo, not {self.kind}, or loss.anchor=0")
        if not 0 < self.loss_weight < math.inf:
            raise ValueError(f"loss_weight must be a number above 0, got {self.loss_weight}: below, the loss grows")
        if not 0 <= self.anchor < math.inf:
            raise ValueError(f"anchor must be a number from 0, got {self.anchor}")

    @property
    def label(self) -> str:
        """The name used in tables: mae, mse, lpips, milo, milo-through, milo-linear, milo-cosine-anchor0.1, ..."""
        if self.kind != "milo":
            return self.kind
        parts = [
            self.kind,
            "" if self.curriculum == "constant" else self.curriculum,
            "through" if self.mask_gradient else "",
            "normalized" if self.normalize else "",
            f"anchor{self.anchor:g}" if self.anchor else "",
        ]
        return "-".join(part for part in parts if part)


def build_loss(settings: LossSettings, total_steps: int, *, latents: bool = False) -> RestorationLoss:
    """The loss that ``settings`` describe, its curriculum spread over ``total_steps``.

    Args:
        settings: which.
        total_steps: of the run.
        latents: it is for latents: ``milo`` is LatentMILO's.

    Raises:
        WeightsError: weights can neither be found nor downloaded.
        ConfigError: LPIPS on latents.
    """
    if settings.kind in ("mae", "mse"):
        return {"mae": L1Loss, "mse": MSELoss}[settings.kind](settings.loss_weight)
    if settings.kind == "lpips":
        if latents:
            raise ConfigError("LPIPS is of images, not of latents", where="loss.kind", mend="Take mse, mae or milo")
        return LPIPSLoss(settings.lpips_net, settings.loss_weight)
    return (LatentMILOLoss if latents else MILOLoss)(
        settings.weights,
        curriculum=settings.curriculum,
        total_steps=total_steps,
        mask_gradient=settings.mask_gradient,
        normalize=settings.normalize,
        anchor=settings.anchor,
        compute_dtype=torch.bfloat16 if settings.bfloat16 else torch.float32,
        loss_weight=settings.loss_weight,
    )


def latent_loss(settings: LossSettings, total_steps: int, space: LatentSpace, where: str) -> RestorationLoss:
    """`build_loss` for the latents of one space.

    Args:
        settings: which.
        total_steps: of the run.
        space: what is known of the latents.
        where: what they belong to, for the error.

    Raises:
        WeightsError: weights can neither be found nor downloaded.
        ConfigError: LPIPS on latents, or a LatentMILO that knows other ones.
    """
    loss = build_loss(settings, total_steps, latents=True)
    if isinstance(loss, LatentMILOLoss):
        loss.metric.check_space(space, where)
    return loss
