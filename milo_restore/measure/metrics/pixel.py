"""PSNR and SSIM as restoration papers print them: those of BasicSR, on 8-bit RGB, without a border; other protocols.

The data range is 255, always; a function that guesses it from the values is how 26 dB becomes 74.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from milo_restore.errors import DataError
from milo_restore.measure.metrics.metric import OURS, Batch, Known, Metric
from milo_restore.measure.metrics.protocol import Protocol

SMALLEST_SIDE = 11
"""Pixels: SSIM's window."""


def psnr(image: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB: 10 log10(255^2 / MSE), the MSE over all pixels and the three channels.

    Equal to ``basicsr.metrics.calculate_psnr`` with ``crop_border=0, test_y_channel=False``.

    Args:
        image: (H, W, 3) uint8 RGB.
        reference: the same.

    Returns:
        The PSNR; ``inf`` for identical images.

    Raises:
        DataError: another shape or type, or two shapes.

    Example:
        >>> import numpy as np
        >>> grey = np.full((16, 16, 3), 100, np.uint8)
        >>> round(psnr(grey + np.uint8(5), grey), 2)
        34.15
    """
    _check(image, reference)
    return _psnr(image, reference)


def ssim(image: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Structural similarity, at most 1: Wang et al. 2004, per channel, then the mean over the three.

    Equal to ``basicsr.metrics.calculate_ssim`` with ``crop_border=0, test_y_channel=False`` and to the authors' MATLAB
    code, but for rounding: 11x11 Gaussian window of sigma 1.5, population variances, only pixels that the whole window
    fits around, K1 = 0.01, K2 = 0.03.

    Args:
        image: (H, W, 3) uint8 RGB, sides of at least 11.
        reference: the same.

    Raises:
        DataError: another shape or type, two shapes, or too small.

    Example:
        >>> import numpy as np
        >>> grey = np.full((16, 16, 3), 100, np.uint8)
        >>> ssim(grey, grey)
        1.0
    """
    _check(image, reference)
    if min(image.shape[:2]) < SMALLEST_SIDE:
        height, width = image.shape[:2]
        raise DataError(f"SSIM needs sides of at least {SMALLEST_SIDE} pixels, got {height}x{width}")
    return _ssim(image, reference)


def load_pixel(name: str, protocol: Protocol, device: torch.device) -> Metric:
    """``psnr`` or ``ssim`` in a protocol's colour, on the CPU whatever the device: both are numpy's."""
    function = {"psnr": psnr, "ssim": ssim}[name]

    def measure(batch: Batch) -> list[float]:
        return [
            _of_colour(function, protocol.colour, image, reference)
            for image, reference in zip(batch.images, batch.references)
        ]

    equal = {"psnr": "psnr", "ssim": "ssimc"}[name]
    if protocol.colour == "y":
        equal = f"{'psnry' if name == 'psnr' else 'ssim'}, color_space='ycbcr'"
    return Metric(name, False, True, OURS, f"as pyiqa's {equal}", None, None, measure, settings=protocol.colour)


def load_mae(name: str, protocol: Protocol, device: torch.device) -> Metric:
    """Mean absolute error of RGB in [0, 1]."""

    def measure(batch: Batch) -> list[float]:
        return [float(value) for value in (batch.image_tensor - batch.reference_tensor).abs().mean((1, 2, 3))]

    return Metric(name, True, True, OURS, "mae", None, None, measure)


METRICS = {"psnr": Known(load_pixel), "ssim": Known(load_pixel), "mae": Known(load_mae)}


def _of_colour(
    function: Callable[[Any, Any], float],
    colour: str,
    image: NDArray[np.uint8],
    reference: NDArray[np.uint8],
) -> float:
    height, width = image.shape[:2]
    if function is ssim and min(height, width) < SMALLEST_SIDE:
        raise DataError(f"{width}x{height} leaves sides of less than {SMALLEST_SIDE} pixels")
    if colour == "rgb":
        return function(image, reference)
    from skimage.color import rgb2ycbcr  # ITU-R BT.601, Y from 16 to 235, as MATLAB's and basicsr's

    measured = _psnr if function is psnr else _ssim
    return measured(*(rgb2ycbcr(array)[..., :1] for array in (image, reference)))


def _psnr(image: NDArray[Any], reference: NDArray[Any]) -> float:
    """PSNR of (H, W, C) arrays in [0, 255], integers or floats."""
    error = np.square(image.astype(np.float64) - reference.astype(np.float64)).mean()
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def _ssim(image: NDArray[Any], reference: NDArray[Any]) -> float:
    """SSIM of (H, W, C) arrays in [0, 255], the mean over channels. scikit-image's window ends where Wang's does."""
    from skimage.metrics import structural_similarity

    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(structural_similarity(image, reference, data_range=255, channel_axis=-1, **settings))


def _check(image: NDArray[np.uint8], reference: NDArray[np.uint8]) -> None:
    for name, array in (("image", image), ("reference", reference)):
        if not isinstance(array, np.ndarray) or array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
            found = f"{array.shape} {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
            mend = "milo_restore.data.to_uint8 makes one of a (3, H, W) tensor"
            raise DataError(f"expected an (H, W, 3) uint8 array, got {found}", where=name, mend=mend)
    if image.shape != reference.shape:
        raise DataError(f"shapes differ: image {image.shape}, reference {reference.shape}")
