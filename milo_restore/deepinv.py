"""MILO for deepinv: a ``Metric``, for its trainer, and for ``deepinv.loss.SupLoss(metric=MILO())``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from deepinv.loss.metric import Metric
from torch import Tensor

from milo_restore import metric
from milo_restore.loss.per_image import PerImage

__all__ = ["MILO"]


class MILO(Metric):
    """MILO of reconstructions ``x_net`` and ground truth ``x``, (N, 3, H, W) or (N, 1, H, W) in [0, 1].

    Lower is better; (N,) unless ``reduction`` says otherwise. As a loss the mask is a constant. A reconstruction may
    leave [0, 1]; deepinv's ``norm_inputs="clip"`` clips it, and so its gradient.

    Args:
        weights: as in `milo_restore.MILO`.
        device: where it computes.
        mask_gradient: let gradients flow through the mask too.
        compute_dtype: as in `milo_restore.MILO`.
        **options: deepinv's own: ``reduction``, ``center_crop``, ``norm_inputs``, ``complex_abs``, ``train_loss``.

    Raises:
        WeightsError: the weights can neither be found nor downloaded, or are damaged.
    """

    def __init__(
        self,
        weights: str | Path = "official",
        *,
        device: torch.device | str | None = None,
        mask_gradient: bool = False,
        compute_dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        milo = metric.MILO(weights, compute_dtype=compute_dtype)
        self.net = PerImage(milo, mask_gradient=mask_gradient).to(device)
        self.lower_better = True

    def metric(self, x_net: Tensor, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """(N,), as `milo_restore.MILO`.

        Raises:
            DataError: as `milo_restore.MILO` does.
        """
        return self.net(x_net, x)
