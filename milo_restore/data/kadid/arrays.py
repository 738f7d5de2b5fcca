"""Tools that the distortions share: the frame that all pass through, filters, Lab, tone curves.

Every type of the published generator works in doubles on values stretched to [0, 1], and its result is stretched again
before it becomes 8 bits. So a distortion depends on the extremes of the image that it is given, and a picture that is
cut first is stretched more than one that is cut afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
"""(H, W, 3) RGB in [0, 1]; a result may leave [0, 1], `to_bytes` clips it."""

Values = NDArray[np.floating[Any]]
"""(H, W, 3) RGB, float64 in the published generator and float32 in the clipping one; not every type stays in [0, 1]."""

# MATLAB's constants for sRGB and D65; the inverse is rounded on its own.
_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_FROM_XYZ = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])
_WHITE = np.array([0.9504, 1.0, 1.0888])


def to_floats(image: NDArray[np.uint8]) -> Floats:
    """8 bits to [0, 1]."""
    return image.astype(np.float32) / np.float32(255)


def to_bytes(image: Values) -> NDArray[np.uint8]:
    """To 8 bits: clipped to [0, 1], times 255, rounded to nearest (ties to even)."""
    return np.rint(np.clip(image, 0, 1) * image.dtype.type(255)).astype(np.uint8)


def to_bytes_up(image: Values) -> NDArray[np.uint8]:
    """The same with ties upwards, as MATLAB rounds; they are common, for the stretch makes k/170 and the like."""
    return np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def stretch(values: NDArray[Any]) -> NDArray[np.float64]:
    """The least of all values becomes 0, the largest 1; values that are all one stay as they are."""
    values = values.astype(np.float64)
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else values


def gaussian(image: Values, sigma: float, *, mirrored: bool = False) -> Values:
    """Gaussian filter: ``sigma`` in pixels, cut off at ``ceil(2 * sigma)`` pixels, edges replicated or mirrored."""
    import cv2

    side = 2 * math.ceil(2 * sigma) + 1
    border = cv2.BORDER_REFLECT if mirrored else cv2.BORDER_REPLICATE
    return np.asarray(cv2.GaussianBlur(image, (side, side), sigma, borderType=border), dtype=image.dtype)


def convolve(image: Values, kernel: Values, *, mirrored: bool = False) -> Values:
    """Filter every channel with a point-symmetric kernel of odd sides, edges replicated or mirrored."""
    import cv2

    border = cv2.BORDER_REFLECT if mirrored else cv2.BORDER_REPLICATE
    return np.asarray(cv2.filter2D(image, -1, kernel, borderType=border), dtype=image.dtype)


def to_lab(image: Values) -> Values:
    """RGB (sRGB) to CIELAB, D65: L in [0, 100], a and b about [-128, 128]; nothing is clipped.

    Not scikit-image's or OpenCV's: these clip, and type 24 at level 5 would be another picture (26 dB).
    """
    linear = np.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)
    ratio = linear @ _TO_XYZ.T / _WHITE
    x, y, z = np.moveaxis(np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def from_lab(lab: Values) -> Values:
    """CIELAB to RGB, clipped to [0, 1] there and nowhere before."""
    y = (lab[..., 0] + 16) / 116
    root = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
    ratio = np.where(root > 6 / 29, root**3, (116 * root - 16) * (27 / 24389))
    linear = (ratio * _WHITE) @ _FROM_XYZ.T
    bright = 1.055 * linear.clip(0.0031308, None) ** (1 / 2.4) - 0.055
    return np.where(linear <= 0.0031308, 12.92 * linear, bright).clip(0, 1)


def tone_curve(values: Values, x: Sequence[float], y: Sequence[float]) -> Values:
    """The cubic spline through (0, 0), the given points and (1, 1), not-a-knot at its ends, clipped to [0, 1]."""
    from scipy.interpolate import CubicSpline

    curve = CubicSpline([0.0, *x, 1.0], [0.0, *y, 1.0], bc_type="not-a-knot")
    return np.asarray(curve(values)).clip(0, 1)
