"""VGG16's features compared: VGG and DeepWSD, and the base that E-VGG, E-LPIPS and E-DISTS stand on, too.

The features are those after relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3 of torchvision's VGG16; the network knows no
more than the metric says of normalising images and of pooling between stages.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from milo_restore.errors import ConfigError, DataError
from milo_restore.files import weights_path
from milo_restore.files.hashes import sha256_of
from milo_restore.files.state import read_state
from milo_restore.metric.e_metric import EMetric
from milo_restore.metric.weights import WeightsInfo

CHANNELS = (64, 128, 256, 512, 512)
"""Of VGG16's features after relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3."""
CONVOLUTIONS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Of VGG16's stages, by their numbers in torchvision's ``vgg16().features``. Each is 3x3 and has a ReLU behind it."""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class L2Pool(nn.Module):
    """DISTS' pooling: the root of the squares' mean under a 3x3 Hann window, stride 2; (N, C, H, W)."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        side = torch.tensor([0.5, 1.0, 0.5])
        self.register_buffer("window", torch.outer(side, side)[None, None] / 4, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Halve the sides."""
        channels = features.shape[1]
        weights = self.window.expand(channels, 1, 3, 3)
        return (F.conv2d(features.square(), weights, stride=2, padding=1, groups=channels) + 1e-12).sqrt()


class FeatureMetric(EMetric):
    """Base of metrics on VGG16's features. Attributes as in `EMetric`.

    Attributes:
        normalised: images are brought to ImageNet's mean and deviation.
    """

    normalised: ClassVar[bool] = True
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *CHANNELS)
        self.stages = nn.ModuleList()
        for number, (numbers, channels) in enumerate(zip(CONVOLUTIONS, CHANNELS)):
            layers: list[nn.Module] = [] if number == 0 else [self._pool()]
            for place, _ in enumerate(numbers):
                layers += [nn.Conv2d(channels if place else inputs[number], channels, 3, padding=1), nn.ReLU()]
            self.stages.append(nn.Sequential(*layers))
        for name, values in (("mean", _MEAN), ("std", _STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor, *, reference: Tensor) -> Tensor:
        """The value per image: 0 for identical images, lower is better.

        Args:
            image: distorted images, (N, 3, H, W), RGB in [0, 1]; grey (N, 1, H, W) is repeated.
            reference: what they should be, same shape. Keyword-only, for not every metric is symmetric.

        Returns:
            (N,), differentiable.

        Raises:
            DataError: wrong rank, channels, size (below 16; DeepWSD: a side below 33, and more where the longest is
                above 384), device or value range, or NaN.
        """
        image, reference = self._prepare(image, reference)
        with torch.autocast(image.device.type, enabled=False):
            return self._compare(image, reference)

    @abstractmethod
    def _compare(self, image: Tensor, reference: Tensor) -> Tensor:
        """(N,), from checked RGB batches."""

    @abstractmethod
    def _pool(self) -> nn.Module:
        """A layer between two stages."""

    def _features(self, image: Tensor) -> list[Tensor]:
        """After each stage, as they are compared."""
        features = (image - self.mean) / self.std if self.normalised else image
        found = []
        for stage in self.stages:
            features = stage(features)
            found.append(features)
        return found


class VGG(FeatureMetric):
    """VGG: |difference| of raw features, its mean over pixels, and the mean of these over all 1,472 channels.

    The papers of MILO and of the E-metrics print no formula for their VGG, and Johnson et al. (2016), whom they cite,
    compare single layers by squares, as a loss. This is what the authors' program of E-VGG (Masked_VGG.py of
    Enhanced-IQM at 0d36d66) computes where its masks are 1: images are not normalised, stages are pooled by their mean.
    """

    name = "vgg"
    normalised = False

    def _pool(self) -> nn.Module:
        return nn.AvgPool2d(2)

    def _compare(self, image: Tensor, reference: Tensor) -> Tensor:
        pair = self._features(image), self._features(reference)
        return torch.cat([(x - y).abs().mean((2, 3)) for x, y in zip(*pair)], 1).mean(1)


class DeepWSD(FeatureMetric):
    """DeepWSD: Wasserstein distances of features (Liao et al., "DeepWSD: Projecting degradations in perceptual space to
    Wasserstein distance in deep feature space", ACM Multimedia 2022).

    As the authors' program computes it (DeepWSD.py of Buka-Xing/DeepWSD at 532c728), which is more than the paper says:
    images are averaged over f x f pixels, f = max(1, round(longest side / 256)), and not normalised. Of the image and
    of each stage, `L2Pool` between stages, the sides are padded with zeros, or cut, to a multiple of the window w (4,
    or 16 where f >= 5). What the paper calls windows are w * w parts of equal length of all channels' values in a row;
    the values at one place of all parts are a distribution over 0 .. w * w - 1 with the masses v^2 / (sum of all v).
    Masses need not be equal: the squared distance is integrated up to the greater one. A place adds that distance W,
    and its squared differences times 1 / (sqrt(exp(-1 / (W + 10))) * (W + 10)^2). With s the sum over places, averaged
    over the six stages, the value is log(1 + s), where f > 1 its square: sizes are not to be mixed.
    """

    name = "deepwsd"
    normalised = False

    def _pool(self) -> nn.Module:
        return L2Pool()

    def _compare(self, image: Tensor, reference: Tensor) -> Tensor:
        factor = max(1, round(max(image.shape[2:]) / 256))
        window = 16 if factor >= 5 else 4
        _check_size(image, factor, window)
        pair = [self._features(F.avg_pool2d(side, factor)) for side in (image, reference)]
        sums = [_transported(_padded(x, window), _padded(y, window), window) for x, y in zip(*pair)]
        value = torch.stack(sums).mean(0).log1p()
        return value if factor == 1 else value.square()

    def _features(self, image: Tensor) -> list[Tensor]:
        return [image, *super()._features(image)]


def load_features(name: str) -> FeatureMetric:
    """A frozen `VGG` or `DeepWSD` on torchvision's VGG16, which is downloaded once where there is a network (553 MB).

    Args:
        name: ``vgg`` or ``deepwsd``.

    Raises:
        ConfigError: no such metric.
        WeightsError: VGG16's file is nowhere, or another one.
    """
    classes: dict[str, type[FeatureMetric]] = {cls.name: cls for cls in (VGG, DeepWSD)}
    if name not in classes:
        raise ConfigError("no such metric", where=repr(name), mend=f"Known: {', '.join(classes)}")
    metric = classes[name]()
    fill_stages(metric)
    path = weights_path("vgg16")
    metric.weights = WeightsInfo("vgg16", str(path), sha256_of(path))
    return metric.freeze()


def fill_stages(metric: FeatureMetric) -> None:
    """Give a metric the convolutions of torchvision's VGG16.

    Raises:
        WeightsError: its file is nowhere, or another one.
    """
    state = read_state(weights_path("vgg16")).tensors
    for stage, numbers in zip(metric.stages, CONVOLUTIONS):
        convolutions = [layer for layer in stage.children() if isinstance(layer, nn.Conv2d)]
        for number, layer in zip(numbers, convolutions, strict=True):
            layer.load_state_dict({part: state[f"features.{number}.{part}"] for part in ("weight", "bias")})


def _check_size(image: Tensor, factor: int, window: int) -> None:
    """Refuse images whose last stage, 1/16 of the sides and rounded up, fills no half of a window."""
    height, width = image.shape[2:]
    if any(round(-(-(side // factor) // 16) / window) < 1 for side in (height, width)):
        what = f"DeepWSD needs sides of at least {factor * (8 * window + 1)} pixels, got {width}x{height}"
        raise DataError(what if factor == 1 else f"{what}; it averages over {factor}x{factor} pixels first")


def _padded(features: Tensor, window: int) -> Tensor:
    """Sides to the nearest multiples of the window: zeros at the left and below, or rows and columns cut there."""
    more = [round(side / window) * window - side for side in features.shape[2:]]
    return F.pad(features, (more[1], 0, 0, more[0]))


def _transported(x: Tensor, y: Tensor, window: int) -> Tensor:
    """The sum over places of one stage, (N,), of (N, C, H, W) features of at least 0."""
    x, y = (side.reshape(len(side), window * window, -1).transpose(1, 2) for side in (x, y))  # (N, places, parts)
    masses = [side.square() / (side.sum((1, 2), keepdim=True) + 1e-6) for side in (x, y)]
    levels = [mass.cumsum(2).contiguous() for mass in masses]
    both = torch.cat(levels, 2).sort(2).values
    steps = both.diff(dim=2, prepend=torch.zeros_like(both[..., :1]))
    first, second = (torch.searchsorted(level, both).clamp(max=window * window - 1) for level in levels)
    distance = (steps * (first - second).square()).sum(2)
    weight = 1 / ((-1 / (distance + 10)).exp().sqrt() * (distance + 10).square())
    return (distance + weight * (x - y).square().sum(2)).sum(1)
