"""MILO for torchmetrics: sums over batches and processes, in a ``MetricCollection``, in Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from milo_restore import metric
from milo_restore.loss.per_image import PerImage
from milo_restore.metric.masked import Reduction

__all__ = ["MILO"]


class MILO(Metric):
    """Mean MILO over all images seen, by all processes.

    ``metric(preds, target)`` takes RGB (N, 3, H, W) or grey (N, 1, H, W) in [0, 1], or videos (N, T, C, H, W) whose
    frames are images. What ``forward`` gives for one batch can be trained on; the mask is then a constant.

    Args:
        weights: as in `milo_restore.MILO`.
        reduction: of all images' scores: ``mean``, ``sum``, or ``none`` for one per image.
        mask_gradient: let gradients flow through the mask too.
        compute_dtype: as in `milo_restore.MILO`.
        **options: torchmetrics' own, such as ``sync_on_compute``.

    Raises:
        WeightsError: the weights can neither be found nor downloaded, or are damaged.
        ConfigError: another reduction or dtype.
    """

    is_differentiable = True
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0

    def __init__(
        self,
        weights: str | Path = "official",
        reduction: Reduction = "mean",
        *,
        mask_gradient: bool = False,
        compute_dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        milo = metric.MILO(weights, compute_dtype=compute_dtype, reduction=reduction)
        self.net, self.reduction = PerImage(milo, mask_gradient=mask_gradient), reduction
        # One number per image in place of a sum: no rounding that depends on batches and processes. A collection takes
        # metrics whose states are equal after one batch for one metric, and of identical images all MILOs' are: so the
        # state's name tells them apart.
        digest = "" if milo.weights is None else milo.weights.sha256[:8]
        self._scores = f"scores_{digest}_{str(compute_dtype).removeprefix('torch.')}"
        self.add_state(self._scores, default=[], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take a batch in.

        Raises:
            DataError: as `milo_restore.MILO` does.
        """
        getattr(self, self._scores).append(self.net(preds, target).flatten())

    def compute(self) -> Tensor:
        """A scalar, or (N,) without reduction; float32."""
        scores: Tensor = dim_zero_cat(getattr(self, self._scores))
        return scores if self.reduction == "none" else getattr(scores, self.reduction)()
