"""MILO as one number per image that can be trained on: what the doors to other libraries' metrics compute."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from milo_restore.loss.agreement import warn_below_goal
from milo_restore.metric import MaskedMetric
from milo_restore.metric.checks import check_pair, fold_video
from milo_restore.metric.network import traced

__all__ = ["PerImage"]


class PerImage(nn.Module):
    """A metric's raw errors: its own values, with the gradient that `MILOLoss` has.

    Where a gradient is wanted the mask is a constant weight, an image may leave its range, NaN in gives NaN out, and
    weights far from the official ones are warned of, once; elsewhere the image is checked as the metric does.

    Args:
        metric: `MILO` or `LatentMILO`, frozen.
        mask_gradient: let gradients flow through the mask too; see `MILOLoss` for what that did.
    """

    def __init__(self, metric: MaskedMetric, *, mask_gradient: bool = False) -> None:
        super().__init__()
        self.metric, self.mask_gradient = metric, mask_gradient

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """One number per image.

        Args:
            image: distorted images, (N, C, H, W), or videos (N, T, C, H, W), in the metric's range.
            reference: what they should be, same shape.

        Returns:
            (N,) or (N, T), float32; 0 for identical images, lower is better.

        Raises:
            DataError: as the metric does.
        """
        image, reference, videos = fold_video(image, reference)
        scores = self.errors(image, reference).mean((1, 2, 3))
        return scores.unflatten(0, videos) if videos else scores

    def errors(self, image: Tensor, reference: Tensor) -> Tensor:
        """The same before the mean: mask * |image - reference|, (N, C, H, W), float32."""
        trains = torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in (image, reference))
        if not traced():
            check_pair(image, reference, self.metric.channels_of(image))
            self.metric.check_values(reference if trains else image, reference)
        if trains:
            warn_below_goal(self.metric.weights)
        with nullcontext() if self.mask_gradient else torch.no_grad():
            mask = self.metric.predict_mask(image, reference)
        return mask * (image.float() - reference.float()).abs()
