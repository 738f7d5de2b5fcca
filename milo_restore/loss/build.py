"""The loss section of a recipe's configuration, and the loss it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from milo_restore.loss.baselines import L1Loss, LPIPSLoss, RestorationLoss
from milo_restore.loss.curriculum import CurriculumKind
from milo_restore.loss.milo import MILOLoss


@dataclass(frozen=True)
class LossSettings:
    """Which loss trains the network.

    Attributes:
        kind: ``mae``, ``lpips`` or ``milo``.
        weights: MILO's weights, ``official``, ``mini`` or a path; ignored by the others.
        curriculum: ``constant``, ``linear`` or ``cosine`` over the run's steps.
        mask_gradient: let gradients flow through MILO's mask, as upstream.
        normalize: divide MILO's weights by their mean per image.
        bfloat16: compute MILO's mask network in bfloat16.
        lpips_net: LPIPS' backbone.
        loss_weight: factor on the loss.
    """

    kind: Literal["mae", "lpips", "milo"] = "milo"
    weights: str = "official"
    curriculum: CurriculumKind = "constant"
    mask_gradient: bool = True
    normalize: bool = False
    bfloat16: bool = False
    lpips_net: Literal["alex", "vgg"] = "alex"
    loss_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.kind != "milo" and self.curriculum != "constant":
            raise ValueError(f"a {self.curriculum} curriculum needs MILO's mask: set kind to milo, not {self.kind}")

    @property
    def label(self) -> str:
        """The name used in tables: mae, lpips, milo, milo-linear, milo-cosine; with -detached for a constant mask."""
        parts = [self.kind, self.curriculum, "" if self.mask_gradient else "detached"]
        return "-".join(part for part in parts if part not in ("", "constant"))


def build_loss(settings: LossSettings, total_steps: int) -> RestorationLoss:
    """The loss that ``settings`` describe, its curriculum spread over ``total_steps``.

    Raises:
        WeightsError: weights can neither be found nor downloaded.
    """
    if settings.kind == "mae":
        return L1Loss(settings.loss_weight)
    if settings.kind == "lpips":
        return LPIPSLoss(settings.lpips_net, settings.loss_weight)
    return MILOLoss(
        settings.weights,
        curriculum=settings.curriculum,
        total_steps=total_steps,
        mask_gradient=settings.mask_gradient,
        normalize=settings.normalize,
        compute_dtype=torch.bfloat16 if settings.bfloat16 else torch.float32,
        loss_weight=settings.loss_weight,
    )
