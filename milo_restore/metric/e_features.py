"""E-VGG, E-LPIPS and E-DISTS: VGG16's features behind visibility masks (Cogalan et al., "Enhancing image quality
prediction with self-supervised visual masking", Computer Graphics Forum 43, 2024).

At each of VGG16's five stages a small network of its own looks at both images' features and predicts a mask in (0, 1).
Formulas, layer sizes, the names in the files and the order of the networks' inputs, which is not the same for all
three, are those of the authors' programs (Masked_VGG.py, Masked_LPIPS.py, Masked_DISTS.py at 0d36d66). Theirs take one
image at a time, two of them give no gradient, and a file that does not fit leaves their masks random without a word.

This project has not seen the published mask weights (`milo_restore.metric.e_weights` loads what a user brings):
the formulas are tested on random ones, against loops. No scaler to opinion scores comes with them, so these three have
no ``mos`` and are no teachers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from milo_restore.metric.e_metric import EMaskNetwork
from milo_restore.metric.features import CHANNELS, FeatureMetric, L2Pool

_C = 1e-6


class EFeatureMetric(FeatureMetric):
    """Base of E-VGG, E-LPIPS and E-DISTS; use `milo_restore.metric.load_e_features`. Attributes as in `EMetric`.

    Attributes:
        file: the name of its published mask file.
        channels: of the features that are masked, stage by stage.
        distorted_first: order of the mask networks' inputs.
    """

    file: ClassVar[str]
    channels: ClassVar[tuple[int, ...]] = CHANNELS
    distorted_first: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.mask_networks = nn.ModuleList(EMaskNetwork(channels) for channels in self.channels)

    def _compare(self, image: Tensor, reference: Tensor) -> Tensor:
        distorted, clean = self._features(image), self._features(reference)
        return self._value(self._masks(distorted, clean), distorted, clean)

    @abstractmethod
    def _value(self, masks: Sequence[Tensor], distorted: Sequence[Tensor], clean: Sequence[Tensor]) -> Tensor:
        """(N,), from the masks and both images' features, stage by stage."""

    def _masks(self, distorted: Sequence[Tensor], clean: Sequence[Tensor]) -> list[Tensor]:
        pairs = zip(distorted, clean) if self.distorted_first else zip(clean, distorted)
        return [network(torch.cat(pair, 1)) for network, pair in zip(self.mask_networks, pairs)]


class EVGG(EFeatureMetric):
    """E-VGG: mask * |difference| of raw features, its mean over pixels, and the mean of these over all 1,472 channels.

    Images go in as they are, not normalised, and stages are pooled by their mean.
    """

    name, file = "e-vgg", "E_VGG.pth"
    distorted_first = True
    normalised = False

    def _pool(self) -> nn.Module:
        return nn.AvgPool2d(2)

    def _value(self, masks: Sequence[Tensor], distorted: Sequence[Tensor], clean: Sequence[Tensor]) -> Tensor:
        parts = [(mask * (x - y).abs()).mean((2, 3)) for mask, x, y in zip(masks, distorted, clean)]
        return torch.cat(parts, 1).mean(1)


class ELPIPS(EFeatureMetric):
    """E-LPIPS: LPIPS' linear heads on (mask * difference)^2 of features of unit length; maxima between stages."""

    name, file = "e-lpips", "E_LPIPS.pth"

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ParameterList(torch.rand(1, channels, 1, 1) for channels in CHANNELS)

    def _pool(self) -> nn.Module:
        return nn.MaxPool2d(2)

    def _features(self, image: Tensor) -> list[Tensor]:
        return [F.normalize(features) for features in super()._features(image)]

    def _value(self, masks: Sequence[Tensor], distorted: Sequence[Tensor], clean: Sequence[Tensor]) -> Tensor:
        parts = [
            (head * (mask * (x - y)).square()).mean((2, 3)).sum(1)
            for head, mask, x, y in zip(self.heads, masks, distorted, clean)
        ]
        return torch.stack(parts).sum(0)


class EDISTS(EFeatureMetric):
    """E-DISTS: DISTS' means and covariances of mask * features, the image's own among them; `L2Pool` between stages."""

    name, file = "e-dists", "E_DISTS.pth"
    channels = (3, *CHANNELS)

    def __init__(self) -> None:
        super().__init__()
        self.alpha, self.beta = (nn.Parameter(torch.rand(1, sum(self.channels), 1, 1)) for _ in range(2))

    def _pool(self) -> nn.Module:
        return L2Pool()

    def _features(self, image: Tensor) -> list[Tensor]:
        return [image, *super()._features(image)]

    def _value(self, masks: Sequence[Tensor], distorted: Sequence[Tensor], clean: Sequence[Tensor]) -> Tensor:
        total = self.alpha.sum() + self.beta.sum()
        weights = zip(*(torch.split(part / total, list(self.channels), 1) for part in (self.alpha, self.beta)))
        value = torch.ones(len(masks[0]), device=masks[0].device, dtype=masks[0].dtype)
        for mask, x, y, (alpha, beta) in zip(masks, distorted, clean, weights):
            x, y = mask * x, mask * y  # noqa: PLW2901
            mean_x, mean_y = x.mean((2, 3), keepdim=True), y.mean((2, 3), keepdim=True)
            var_x, var_y = ((z - mean).square().mean((2, 3), keepdim=True) for z, mean in ((x, mean_x), (y, mean_y)))
            # From the centred values, so that equal images give 0 and not what cancellation leaves.
            covariance = ((x - mean_x) * (y - mean_y)).mean((2, 3), keepdim=True)
            texture = (2 * mean_x * mean_y + _C) / (mean_x.square() + mean_y.square() + _C)
            structure = (2 * covariance + _C) / (var_x + var_y + _C)
            value = value - (alpha * texture + beta * structure).sum((1, 2, 3))
        return value
