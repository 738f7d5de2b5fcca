"""MILO as a training loss, in RGB and in latent space, with the paper's curriculum."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from milo_restore.loss.baselines import Reduction, RestorationLoss
from milo_restore.loss.curriculum import Curriculum, CurriculumKind
from milo_restore.metric import MILO, LatentMILO, MaskedError, WeightsInfo
from milo_restore.metric.checks import check_pair

M = TypeVar("M", bound=MaskedError)


class MaskedLoss(RestorationLoss, Generic[M]):
    """n_scales * mean(w * |prediction - target|), with w from MILO's mask and the curriculum's position.

    At position 1 (always, without a curriculum) it equals the metric's raw error. It trains nothing of its own: the
    metric's weights are buffers outside of parameters and state dict.

    Args:
        weights: ``official``, ``mini`` or a path; see `MILO.from_pretrained`.
        curriculum: ``constant``, ``linear`` or ``cosine``.
        total_steps: where the curriculum ends; required unless constant.
        start_step: where it starts.
        mask_gradient: True lets gradients flow through the mask too, as upstream; False takes the mask as a constant
            weight. These are two different losses (gradient cosine 0.15 on upstream's sample pair).
        normalize: divide w by its mean per image, so that every image pulls equally.
        compute_dtype: ``torch.bfloat16`` computes the mask network in bfloat16; best with ``mask_gradient=False``,
            see `MILO.from_pretrained`.
        loss_weight: factor on the result.
        reduction: ``mean``, ``sum`` or ``none`` (element-wise).
    """

    _metric: type[M]

    def __init__(
        self,
        weights: str | Path = "official",
        *,
        curriculum: CurriculumKind = "constant",
        total_steps: int | None = None,
        start_step: int = 0,
        mask_gradient: bool = True,
        normalize: bool = False,
        compute_dtype: torch.dtype = torch.float32,
        loss_weight: float = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(loss_weight, reduction)
        self.curriculum = Curriculum(curriculum, total_steps, start_step)
        self.mask_gradient = mask_gradient
        self.normalize = normalize
        self.metric: M = self._metric.from_pretrained(weights, compute_dtype=compute_dtype)

    @property
    def weights(self) -> WeightsInfo | None:
        """Which weights the loss uses; recipes write it into their run folder."""
        return self.metric.weights

    def forward(
        self, prediction: Tensor, target: Tensor, weight: Tensor | None = None, *, step: int | None = None
    ) -> Tensor:
        """The loss.

        Args:
            prediction: (N, C, H, W), may leave [0, 1]; NaN in gives NaN out, for the training loop to catch.
            target: the reference, same shape.
            weight: element-wise factor, broadcast to the shape.
            step: the training step, for the curriculum.

        Returns:
            A scalar, or (N, C, H, W) for ``reduction="none"``; float32.

        Raises:
            DataError: shapes, sizes or the target's values are wrong.
            ConfigError: a curriculum is on and ``step`` is missing.
        """
        check_pair(prediction, target, prediction.shape[1] if self._takes(prediction) else self.metric.channels)
        self.metric.check_values(target, target)
        mask = self.mask(prediction, target) / self.metric.n_scales
        w = self.curriculum.weights(mask, step)
        if self.normalize:
            w = w / w.mean((1, 2, 3), keepdim=True).clamp_min(1e-8)
        error = (prediction.float() - target.float()).abs()
        return self.reduce(self.metric.n_scales * w * error, weight)

    def mask(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The visibility mask in (0, 4), (N, 1, H, W), with or without its gradient as configured."""
        with nullcontext() if self.mask_gradient else torch.no_grad():
            return self.metric.predict_mask(prediction, target)

    def _takes(self, prediction: Tensor) -> bool:
        """Grey images are as good as RGB ones."""
        return self.metric.channels == 3 and prediction.ndim == 4 and prediction.shape[1] == 1


class MILOLoss(MaskedLoss[MILO]):
    """MILO as a loss on RGB (N, 3, H, W) or grey (N, 1, H, W) images in [0, 1]; arguments as in `MaskedLoss`."""

    _metric = MILO


class LatentMILOLoss(MaskedLoss[LatentMILO]):
    """MILO as a loss on latents (N, 4, h, w) times the VAE's scaling factor; arguments as in `MaskedLoss`."""

    _metric = LatentMILO
