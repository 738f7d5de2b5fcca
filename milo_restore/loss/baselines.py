"""The losses MILO is compared with, in the same signature: L1 (the paper's MAE), MSE and LPIPS."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Literal
from urllib.error import URLError

import torch
from torch import Tensor, nn

from milo_restore.errors import ConfigError, DataError, WeightsError
from milo_restore.metric.freeze import freeze_into_buffers

Reduction = Literal["none", "mean", "sum"]


class RestorationLoss(nn.Module, ABC):
    """Base of every restoration loss: ``loss(prediction, target, weight=None, *, step=None)``, and `terms` beside it.

    Args:
        loss_weight: factor on the result.
        reduction: ``mean`` or ``sum`` over all elements, or ``none``.

    Raises:
        ConfigError: an unknown reduction.
    """

    def __init__(self, loss_weight: float = 1.0, reduction: Reduction = "mean") -> None:
        super().__init__()
        if reduction not in ("none", "mean", "sum"):
            raise ConfigError(f"{reduction!r} is not one of 'none', 'mean', 'sum'", where="reduction")
        self.loss_weight = float(loss_weight)
        self.reduction = reduction

    def forward(
        self, prediction: Tensor, target: Tensor, weight: Tensor | None = None, *, step: int | None = None
    ) -> Tensor:
        """The loss: the first of `terms`, with the same arguments and errors."""
        return self.terms(prediction, target, weight, step=step)[0]

    @abstractmethod
    def terms(
        self, prediction: Tensor, target: Tensor, weight: Tensor | None = None, *, step: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what to watch beside it, for a log; `milo_restore.train.fit` takes both from a recipe's step.

        Args:
            prediction: the network's output, in the shapes and range that the class names.
            target: the reference, same shape.
            weight: factor on the elements before the reduction, broadcast to the shape; the second result ignores it.
            step: the training step, a whole number, where a curriculum needs it.

        Returns:
            The loss, a float32 scalar (all elements for ``reduction="none"``); and scalars without gradients, left on
            the device: ``l1``, the mean absolute residual, and of a MILO loss ``milo``, the metric's raw error.
        """

    @staticmethod
    def check_shapes(prediction: Tensor, target: Tensor) -> None:
        """Refuse silent broadcasting.

        Raises:
            DataError: shapes differ.
        """
        if prediction.shape != target.shape:
            raise DataError(f"shapes differ: prediction {tuple(prediction.shape)}, target {tuple(target.shape)}")

    def reduce(self, elements: Tensor, weight: Tensor | None) -> Tensor:
        """Apply the caller's element-wise weight, the reduction and the loss weight."""
        if weight is not None:
            elements = elements * weight
        if self.reduction == "mean":
            elements = elements.mean()
        elif self.reduction == "sum":
            elements = elements.sum()
        return self.loss_weight * elements


class _ElementwiseLoss(RestorationLoss):
    """Base of losses that are a function of each element's absolute error. Any shape; ``step`` is ignored."""

    def terms(
        self, prediction: Tensor, target: Tensor, weight: Tensor | None = None, *, step: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `RestorationLoss.terms`. NaN in gives NaN out, for the training loop to catch.

        Raises:
            DataError: shapes differ.
        """
        self.check_shapes(prediction, target)
        error = (prediction.float() - target.float()).abs()
        return self.reduce(self._elements(error), weight), {"l1": error.detach().mean()}

    @abstractmethod
    def _elements(self, error: Tensor) -> Tensor:
        """The loss of each element from its absolute error."""


class L1Loss(_ElementwiseLoss):
    """Mean absolute error, the paper's MAE baseline. Any shape; ``step`` is ignored.

    Example:
        >>> import torch
        >>> from milo_restore import L1Loss
        >>> L1Loss()(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.5)).item()
        0.5
    """

    def _elements(self, error: Tensor) -> Tensor:
        return error


class MSELoss(_ElementwiseLoss):
    """Mean squared error, what diffusion models are trained with. Any shape; ``step`` is ignored.

    Example:
        >>> import torch
        >>> from milo_restore.loss import MSELoss
        >>> MSELoss()(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.5)).item()
        0.25
    """

    def _elements(self, error: Tensor) -> Tensor:
        return error.square()


class LPIPSLoss(RestorationLoss):
    """LPIPS v0.1 of the ``lpips`` package on RGB (N, 3, H, W) or grey (N, 1, H, W) images in [0, 1]; 0 = identical.

    Building it leaves torch's random state as it was.

    Args:
        net: backbone, ``alex`` (lpips' own default) or ``vgg``. torchvision downloads its ImageNet weights once
            (233 MB or 528 MB); offline they must lie in torch's cache.
        loss_weight: factor on the result.
        reduction: over images for ``none``: (N, 1, 1, 1).

    Raises:
        WeightsError: the backbone can neither be found nor downloaded.
    """

    def __init__(
        self, net: Literal["alex", "vgg"] = "alex", loss_weight: float = 1.0, reduction: Reduction = "mean"
    ) -> None:
        super().__init__(loss_weight, reduction)
        import lpips

        try:
            with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # it draws weights before it loads them
                # lpips 0.1.4 still names its backbones the old way.
                warnings.filterwarnings("ignore", module=r"torchvision\.models\._utils")
                metric = lpips.LPIPS(net=net, verbose=False)
        except (URLError, OSError, RuntimeError) as error:
            cache = f"{torch.hub.get_dir()}/checkpoints"
            mend = f"Run once with a network, or put torchvision's file into {cache}"
            raise WeightsError(f"LPIPS' {net} backbone cannot be had ({error})", where=cache, mend=mend) from error
        self.metric = freeze_into_buffers(metric)

    def terms(
        self, prediction: Tensor, target: Tensor, weight: Tensor | None = None, *, step: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `RestorationLoss.terms`; ``step`` is ignored. NaN in gives NaN out, for the training loop to catch.

        Raises:
            DataError: shapes differ.
        """
        self.check_shapes(prediction, target)
        with torch.autocast(prediction.device.type, enabled=False):
            scores = self.metric(prediction.float(), target.float(), normalize=True)
        l1 = (prediction.detach().float() - target.detach().float()).abs().mean()
        return self.reduce(scores, weight), {"l1": l1}
