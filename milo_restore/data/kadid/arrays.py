"""What the distortions share: values in [0, 1] and 8 bits, Lab, filters with mirrored edges, tone curves.

Where the authors' generator brings values back to [0, 1] ("mapmm"), they are clipped here, not stretched: a stretch
would undo brightness and contrast changes, and would make a pixel depend on the image's extremes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
"""(H, W, 3) RGB in [0, 1]; a result may leave [0, 1], `to_bytes` clips it."""


def to_floats(image: NDArray[np.uint8]) -> Floats:
    """8 bits to [0, 1]."""
    return image.astype(np.float32) / np.float32(255)


def to_bytes(image: Floats) -> NDArray[np.uint8]:
    """To 8 bits: clipped to [0, 1], times 255, rounded to nearest (ties to even)."""
    return np.rint(np.clip(image, 0, 1) * np.float32(255)).astype(np.uint8)


def to_lab(image: Floats) -> Floats:
    """RGB (sRGB) to CIELAB, D65: L in [0, 100], a and b about [-128, 128].

    scikit-image, not OpenCV, whose tables are off by up to 0.4 in a and b: types 04 and 08 multiply that by 9 and 12.
    """
    from skimage.color import rgb2lab

    return np.asarray(rgb2lab(image), dtype=np.float32)


def from_lab(lab: Floats) -> Floats:
    """CIELAB to RGB, clipped to [0, 1] in RGB; L is clipped to [0, 100] first."""
    from skimage.color import lab2rgb

    lab = lab.copy()
    lab[..., 0] = lab[..., 0].clip(0, 100)
    # Stronger blues than Z = 0 do not exist; scikit-image clips Z there too, but warns.
    lab[..., 2] = np.minimum(lab[..., 2], np.float32(199.99 / 116) * (lab[..., 0] + 16))
    return np.asarray(lab2rgb(lab), dtype=np.float32)


def gaussian(image: Floats, sigma: float) -> Floats:
    """Gaussian filter: ``sigma`` in pixels, cut off at ``ceil(2 * sigma)`` pixels, edges mirrored."""
    import cv2

    side = 2 * math.ceil(2 * sigma) + 1
    return np.asarray(cv2.GaussianBlur(image, (side, side), sigma, borderType=cv2.BORDER_REFLECT), dtype=np.float32)


def convolve(image: Floats, kernel: Floats) -> Floats:
    """Filter every channel with a point-symmetric kernel of odd sides, edges mirrored."""
    import cv2

    return np.asarray(cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT), dtype=np.float32)


def tone_curve(values: Floats, x: Sequence[float], y: Sequence[float]) -> Floats:
    """The cubic spline through (0, 0), one or two given points and (1, 1), clipped to [0, 1].

    With so few points a not-a-knot spline (MATLAB's ``spline``) is a single polynomial of degree 2 or 3.
    """
    curve = np.polyfit([0.0, *x, 1.0], [0.0, *y, 1.0], len(x) + 1).astype(np.float32)
    return np.asarray(np.polyval(curve, values), dtype=np.float32).clip(0, 1)
