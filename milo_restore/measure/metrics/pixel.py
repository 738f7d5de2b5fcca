"""PSNR and SSIM as restoration papers print them: those of BasicSR, on 8-bit RGB, without a border; other protocols.

The data range is 255, always; a function that guesses it from the values is how 26 dB becomes 74. Images are taken in
tiles of one size, so that neither memory nor a pixel's time grows with them; each row of a tile is summed alone and the
sums are added exactly, so that the tiles' height does not show in a value, not in its last bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from milo_restore.errors import DataError
from milo_restore.measure.metrics.metric import OURS, Batch, Known, Metric
from milo_restore.measure.metrics.protocol import Protocol

WINDOW = 11
"""Pixels along each side of SSIM's window, and so the least that an image may have."""
TILE_PIXELS = 2**16
"""Pixels that are taken at once, about: 1.5 MB for an array of RGB in float64, which caches hold."""
TILE_WIDTH = 512
"""Columns of a tile, at most."""
WASTE = 8
"""A tile has so many rows for one that the next one filters again."""

Pixels = NDArray[np.uint8]


def psnr(image: Pixels, reference: Pixels) -> float:
    """Peak signal-to-noise ratio in dB: 10 log10(255^2 / MSE), the MSE over all pixels and the three channels.

    This is `basicsr.metrics.calculate_psnr` with ``crop_border=0, test_y_channel=False``, to the last bit.

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


def ssim(image: Pixels, reference: Pixels) -> float:
    """Structural similarity, at most 1: Wang et al. 2004, per channel, then the mean over the three.

    This is `basicsr.metrics.calculate_ssim` with ``crop_border=0, test_y_channel=False``, the same as the authors'
    MATLAB code: 11x11 Gaussian window of sigma 1.5, population variances, only pixels that the whole window fits
    around, K1 = 0.01, K2 = 0.03. It filters rows, then columns, where BasicSR multiplies Fourier transforms: the two
    agree within 1e-12.

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
    if min(image.shape[:2]) < WINDOW:
        height, width = image.shape[:2]
        raise DataError(f"SSIM needs sides of at least {WINDOW} pixels, got {height}x{width}")
    return _ssim(image, reference)


def load_pixel(name: str, protocol: Protocol, device: torch.device) -> Metric:
    """``psnr`` or ``ssim`` in a protocol's colour, on the CPU whatever the device: both are numpy's."""
    function = {"psnr": _psnr, "ssim": _ssim}[name]

    def measure(batch: Batch) -> list[float]:
        values = []
        for image, reference in zip(batch.images, batch.references):
            height, width = image.shape[:2]
            if name == "ssim" and min(height, width) < WINDOW:
                raise DataError(f"{width}x{height} leaves sides of less than {WINDOW} pixels")
            values.append(function(image, reference, luma=protocol.colour == "y"))
        return values

    equal = {"psnr": "psnr", "ssim": "ssimc"}[name]
    if protocol.colour == "y":
        equal = f"{'psnry' if name == 'psnr' else 'ssim'}, color_space='ycbcr'"
    return Metric(name, False, True, OURS, f"as pyiqa's {equal}", None, None, measure, settings=protocol.colour)


def load_mae(name: str, protocol: Protocol, device: torch.device) -> Metric:
    """Mean absolute error of RGB in [0, 1], on the CPU whatever the device."""

    def measure(batch: Batch) -> list[float]:
        return [_mean(map(np.abs, _differences(*pair))) / 255 for pair in zip(batch.images, batch.references)]

    return Metric(name, True, True, OURS, "mae", None, None, measure)


METRICS = {"psnr": Known(load_pixel), "ssim": Known(load_pixel), "mae": Known(load_mae)}


def _psnr(image: Pixels, reference: Pixels, *, luma: bool = False) -> float:
    error = _mean(map(np.square, _differences(image, reference, luma=luma)))
    return float(10 * np.log10(255.0 * 255.0 / error)) if error else math.inf


def _ssim(image: Pixels, reference: Pixels, *, luma: bool = False) -> float:
    return _mean(
        _similarity(first[..., channel].astype(np.float64), second[..., channel].astype(np.float64))
        for first, second in _tiles(image, reference, luma=luma, overlap=WINDOW - 1)
        for channel in range(first.shape[2])
    )


def _similarity(image: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """SSIM of every pixel of (H, W) that the whole window fits around. Symmetric: equal images have 1, exactly."""
    import cv2

    kernel, margin = cv2.getGaussianKernel(WINDOW, 1.5), WINDOW // 2

    def blurred(array: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(cv2.sepFilter2D(array, -1, kernel, kernel))[margin:-margin, margin:-margin]

    first, second = blurred(image), blurred(reference)
    product, squares = first * second, first**2 + second**2
    covariance = blurred(image * reference) - product
    variances = blurred(image**2 + reference**2) - squares
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))


def _differences(image: Pixels, reference: Pixels, *, luma: bool = False) -> Iterator[NDArray[np.float64]]:
    return (np.subtract(*pair, dtype=np.float64) for pair in _tiles(image, reference, luma=luma))


def _tiles(
    image: Pixels, reference: Pixels, *, luma: bool, overlap: int = 0
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Parts of both, (h, w, C), of Y or of all channels: the next one begins with the last ``overlap`` pixels."""
    height, width = image.shape[:2]
    rows = max(1, WASTE * overlap, TILE_PIXELS // min(width, TILE_WIDTH))
    for top in range(0, height - overlap, rows):
        for left in range(0, width - overlap, TILE_WIDTH):
            place = slice(top, top + rows + overlap), slice(left, left + TILE_WIDTH + overlap)
            yield (_luma(image[place]), _luma(reference[place])) if luma else (image[place], reference[place])


def _mean(tiles: Iterable[NDArray[np.float64]]) -> float:
    """The mean over all tiles, (h, w, ...) each: the same, however the rows are shared out."""
    sums: list[float] = []
    count = 0
    for tile in tiles:
        sums += tile.reshape(len(tile), -1).sum(1).tolist()
        count += tile.size
    return math.fsum(sums) / count


def _luma(image: Pixels) -> NDArray[np.float64]:
    """Y of ITU-R BT.601, (H, W, 1), from 16 to 235, not rounded, as MATLAB's and basicsr's."""
    from skimage.color import rgb2ycbcr

    return np.asarray(rgb2ycbcr(image))[..., :1]


def _check(image: Pixels, reference: Pixels) -> None:
    for name, array in (("image", image), ("reference", reference)):
        if not isinstance(array, np.ndarray) or array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
            found = f"{array.shape} {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
            mend = "milo_restore.data.to_uint8 makes one of a (3, H, W) tensor"
            raise DataError(f"expected an (H, W, 3) uint8 array, got {found}", where=name, mend=mend)
    if image.shape != reference.shape:
        raise DataError(f"shapes differ: image {image.shape}, reference {reference.shape}")
