"""PSNR and SSIM as restoration papers print them: BasicSR's, on 8-bit RGB, without a border; and by other protocols.

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

    This is `basicsr.metrics.calculate_psnr` with ``crop_border=0, test_y_channel=False``.

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
    return float(_basicsr().calculate_psnr(image, reference, crop_border=0, input_order="HWC"))


def ssim(image: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    """Structural similarity, at most 1: Wang et al. 2004, per channel, then the mean over the three.

    This is `basicsr.metrics.calculate_ssim` with ``crop_border=0, test_y_channel=False``, the same as the authors'
    MATLAB code: 11x11 Gaussian window of sigma 1.5, population variances, only pixels that the whole window fits
    around, K1 = 0.01, K2 = 0.03.

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
    return float(_basicsr().calculate_ssim(image, reference, crop_border=0, input_order="HWC"))


def load_pixel(name: str, protocol: Protocol, device: torch.device) -> Metric:
    """``psnr`` or ``ssim`` in a protocol's colour, on the CPU whatever the device: basicsr's are numpy's."""
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
    from basicsr.metrics import psnr_ssim

    name = "calculate_psnr" if function is psnr else "calculate_ssim"
    pair = (array[..., ::-1] for array in (image, reference))  # basicsr's Y is of BGR
    return float(getattr(psnr_ssim, name)(*pair, crop_border=0, input_order="HWC", test_y_channel=True))


def _basicsr() -> Any:
    """The functions of basicsr, imported on first use: that takes seconds. Channel order does not matter to them."""
    from basicsr.metrics import psnr_ssim

    return psnr_ssim


def _check(image: NDArray[np.uint8], reference: NDArray[np.uint8]) -> None:
    for name, array in (("image", image), ("reference", reference)):
        if not isinstance(array, np.ndarray) or array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
            found = f"{array.shape} {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
            mend = "milo_restore.data.to_uint8 makes one of a (3, H, W) tensor"
            raise DataError(f"expected an (H, W, 3) uint8 array, got {found}", where=name, mend=mend)
    if image.shape != reference.shape:
        raise DataError(f"shapes differ: image {image.shape}, reference {reference.shape}")
