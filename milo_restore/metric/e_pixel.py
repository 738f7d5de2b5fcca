"""E-MAE, E-MSE, E-PSNR and E-SSIM: classical metrics behind a visibility mask (Cogalan et al., "Towards a Universal
Image Quality Metric by Enhancing Existing Metrics", 2024; weights from upstream's repository at 0d36d66).

Each has its own small network that looks at the reference and the distorted image once, at full size, and predicts a
mask in (0, 1). Here they are MILO's teachers. Formulas and layer sizes are held against upstream's
outputs in ``tests/test_masked.py``.

How raw values become a quality: each published file also holds a scaler S with the layers of MILO's. Its input was
found from upstream's outputs and from S itself, not from a description:

- E-MAE and E-SSIM (as 1 - SSIM): upstream's map is S(error) - S(0) of the per-pixel error, exactly. E-MSE: the same of
  100 times the squared error. All three S rise, without exception, from 0.12 .. 0.15 at no error to 0.99 and more.
- E-PSNR: decibels as they are. S falls from 0.90 at 4 dB over 0.41 at 48 dB to 0.14 at 80 dB, where the others begin.
  Fed with dB / 100 it would stay at 0.89, whatever the images. No output of upstream's says so directly; on ladders
  of noise and JPEG its MOS falls with every level, and on blur with all but 2 of 27.

So 1 - S is a quality, and `mos` is 5 (1 - S(raw)), as MILO's runner prints since ee6159c.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from milo_restore.errors import ConfigError, WeightsError
from milo_restore.files import WEIGHTS, weights_sha256
from milo_restore.files.state import fill
from milo_restore.metric.e_metric import EMaskNetwork, EMetric
from milo_restore.metric.network import ScoreScaler
from milo_restore.metric.weights import load_weights

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
_SMALLEST_MSE = 1e-15
_MOST_SCALED_DB = 100.0
_NO_WEIGHT = 1e-20


class EPixelMetric(EMetric):
    """Base of E-MAE, E-MSE, E-PSNR and E-SSIM; use `load_e_pixel`. Attributes as in `EMetric`.

    The mask network sees the reference first, then the distorted image: the opposite of MILO's order.

    Attributes:
        scaler_gain: factor on the raw value before it goes into the scaler.
    """

    scaler_gain: ClassVar[float] = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.mask_network = EMaskNetwork(3)
        self.scaler = ScoreScaler()

    def forward(self, image: Tensor, *, reference: Tensor) -> Tensor:
        """The raw value per image.

        Args:
            image: distorted images, (N, 3, H, W), RGB in [0, 1]; grey (N, 1, H, W) is repeated to three channels.
            reference: what they should be, same shape. Keyword-only, for the metric is not symmetric.

        Returns:
            (N,), float32, differentiable through the mask; range and direction as each class says.

        Raises:
            DataError: wrong rank, channels, size (below 16), device or value range, or NaN.
        """
        return self._raw(self._errors(image, reference).mean((1, 2, 3)))

    def mask(self, image: Tensor, *, reference: Tensor) -> Tensor:
        """The visibility mask, (N, 1, H, W), in (0, 1). Arguments as in `forward`."""
        return self._predict_mask(*self._prepare(image, reference))

    def map(self, image: Tensor, *, reference: Tensor) -> Tensor:
        """Map of visible errors: S(error) - S(no error), (N, 1, H, W), in [0, 0.88). Arguments as in `forward`.

        The error is the mean over channels at each pixel. For E-PSNR each pixel's own dB stands for it, which upstream
        has no map of.
        """
        error = self._errors(image, reference).mean(1, keepdim=True)
        return self._scaled(self._raw(error)) - self._scaled(self._raw(torch.zeros_like(error)))

    def mos(self, image: Tensor, *, reference: Tensor) -> Tensor:
        """Predicted mean opinion score 5 (1 - S(raw)), (N,), in (0, 5); higher is better. Arguments as in `forward`.

        Identical images get 4.28 (E-MAE), 4.39 (E-MSE), 4.65 (E-PSNR) and 4.27 (E-SSIM) from the published weights.
        """
        raw = self(image, reference=reference)
        return 5 * (1 - self._scaled(raw[:, None, None, None])[:, 0, 0, 0])

    @abstractmethod
    def _local_errors(self, mask: Tensor, image: Tensor, reference: Tensor) -> Tensor:
        """The masked error of each pixel and channel, (N, 3, H, W), all float32; 0 where the images are equal."""

    def _raw(self, error: Tensor) -> Tensor:
        """The raw value of a mean error of any shape."""
        return error

    def _scaled(self, raw: Tensor) -> Tensor:
        return self.scaler(self.scaler_gain * raw)

    def _errors(self, image: Tensor, reference: Tensor) -> Tensor:
        image, reference = self._prepare(image, reference)
        mask = self._predict_mask(image, reference)
        with torch.autocast(image.device.type, enabled=False):
            return self._local_errors(mask, image, reference)

    def _predict_mask(self, image: Tensor, reference: Tensor) -> Tensor:
        # A training loop may run under autocast; the metric keeps its precision.
        with torch.autocast(image.device.type, enabled=False):
            return self.mask_network(torch.cat([reference, image], 1))


class EMAE(EPixelMetric):
    """E-MAE: mean of mask * |image - reference|; 0 for identical images, below 1, lower is better."""

    name = "e-mae"

    def _local_errors(self, mask: Tensor, image: Tensor, reference: Tensor) -> Tensor:
        return mask * (image - reference).abs()


class EMSE(EPixelMetric):
    """E-MSE: mean of mask * (image - reference)^2; 0 for identical images, below 1, lower is better."""

    name = "e-mse"
    scaler_gain = 100.0

    def _local_errors(self, mask: Tensor, image: Tensor, reference: Tensor) -> Tensor:
        return mask * (image - reference).square()


class EPSNR(EPixelMetric):
    """E-PSNR: the PSNR in dB, peak 1, of mask * image against mask * reference; higher is better.

    Upstream's has no upper end; here a mean squared error below 1e-15 counts as that, so that identical images get
    150 dB instead of infinity, and a zero gradient instead of NaN. The mask is small where an error is faint: noise of
    one 8-bit level gets about 100 dB, JPEG of quality 92 about 90. For `mos` and `map` all above 100 dB is 100 dB, for
    S already passes at 80 dB what the other three say of identical images, and goes on towards 5 for ever.
    """

    name = "e-psnr"
    higher_is_better = True

    def _local_errors(self, mask: Tensor, image: Tensor, reference: Tensor) -> Tensor:
        return (mask * (image - reference)).square()

    def _raw(self, error: Tensor) -> Tensor:
        return -10 * error.clamp(min=_SMALLEST_MSE).log10()

    def _scaled(self, raw: Tensor) -> Tensor:
        return super()._scaled(raw.clamp(max=_MOST_SCALED_DB))


class ESSIM(EPixelMetric):
    """E-SSIM: 1 - SSIM of mask * image against mask * reference; 0 for identical images, at most 2, lower is better.

    SSIM on RGB per channel: 11x11 Gaussian window of sigma 1.5, zeros around the image, population variances, data
    range 1. Upstream's own ``forward`` stops with a NameError; its parts give this.
    """

    name = "e-ssim"
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        centred = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
        window = torch.exp(-centred.square() / (2 * SSIM_SIGMA**2))
        self.register_buffer("window", (window / window.sum()).float(), persistent=False)

    def _local_errors(self, mask: Tensor, image: Tensor, reference: Tensor) -> Tensor:
        # 1 - AB / CD for SSIM's A = 2 mu_x mu_y + c1, C = mu_x^2 + mu_y^2 + c1, B and D the same of (co)variances.
        # C - A and D - B are the squared mean and the variance of the difference: taken from it, nothing cancels, and
        # equal images give exactly 0. The plain form is off by 1e-7 there, which the scaler's slope makes 1e-5.
        x, y = mask * image, mask * reference
        difference = x - y
        mean_x, mean_d, square_x, square_y, square_d = (
            self._blur(t) for t in (x, difference, x.square(), y.square(), difference.square())
        )
        mean_y = mean_x - mean_d
        c = mean_x.square() + mean_y.square() + _C1
        d = square_x - mean_x.square() + square_y - mean_y.square() + _C2
        c_minus_a, d_minus_b = mean_d.square(), square_d - mean_d.square()
        return d_minus_b / d + (d - d_minus_b) / d * (c_minus_a / c)

    def _blur(self, image: Tensor) -> Tensor:
        channels, half = image.shape[1], SSIM_WINDOW // 2
        window = self.window.expand(channels, 1, 1, -1)
        rows = F.conv2d(image, window, padding=(0, half), groups=channels)
        return F.conv2d(rows, window.transpose(2, 3), padding=(half, 0), groups=channels)


_CLASSES: dict[str, type[EPixelMetric]] = {cls.name: cls for cls in (EMAE, EMSE, EPSNR, ESSIM)}

E_PIXEL: tuple[str, ...] = tuple(_CLASSES)
"""The names that `load_e_pixel` takes: those whose weights are published and need no other network."""

ABSENT: dict[str, str] = dict.fromkeys(
    ("e-vgg", "e-lpips", "e-dists"), "without a scaler from its values to opinion scores"
)
"""The paper's others, in `milo_restore.metric.e_features`, and why they are not among these."""


def load_e_pixel(name: str, weights: str | Path = "official") -> EPixelMetric:
    """A frozen E-metric on pixels with trained weights.

    Args:
        name: one of `E_PIXEL`.
        weights: ``official`` (the authors', found offline or downloaded once, sha256 checked), or the path of a .pth or
            .safetensors file.

    Raises:
        ConfigError: no such metric.
        WeightsError: a file is missing, damaged, of another architecture, or another metric's published file, which
            would fit (all four have the same layers) and give wrong scores.
    """
    if name not in _CLASSES:
        mend = f"It is {ABSENT[name]}" if name in ABSENT else f"Known: {', '.join(E_PIXEL)}"
        raise ConfigError("no such E-metric on pixels", where=repr(name), mend=mend)
    state, info = load_weights(weights, name, {})
    for other in WEIGHTS:
        if other != name and info.sha256 == weights_sha256(other):
            raise WeightsError(f"holds the weights of {other}, not of {name}", where=info.path)
    metric = _CLASSES[name]()
    fill(metric, state, info.path, assign=True)
    metric.weights = info
    _drop_decayed_weights(metric)
    return metric.freeze()


def untrained_e_pixel(name: str) -> EPixelMetric:
    """An E-metric on pixels, one of `E_PIXEL`, with random weights that are parameters: to be trained."""
    return _CLASSES[name]()


@torch.no_grad()
def _drop_decayed_weights(metric: EPixelMetric) -> None:
    """Set weights below 1e-20 to zero. It changes no score, and makes CPUs 11 to 19 times as fast.

    63 % of E-MAE's mask weights (21 % of E-PSNR's, 9 % of E-SSIM's, none of E-MSE's) have decayed below 1e-20, half of
    them to subnormal numbers, which CPUs are slow with. No published mask weight lies between 1e-20 and 1e-8.
    """
    for parameter in metric.parameters():
        parameter[parameter.abs() < _NO_WEIGHT] = 0
