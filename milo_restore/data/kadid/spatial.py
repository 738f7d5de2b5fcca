"""Spatial distortions: types 19 to 23. Patches and blocks are cut to the image's size where that is smaller."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from milo_restore.data.kadid.arrays import Floats, to_bytes, to_floats

_PATCH = 16
_FAR = 8
_BLOCK = 32


def jitter(image: Floats, deviation: float, rng: np.random.Generator) -> Floats:
    """19: five passes, each of which displaces every pixel at random.

    The parameter is the standard deviation of the normal displacements in pixels, rows and columns apart. The
    description names no interpolation; it is bilinear, edges mirrored.
    """
    import cv2

    rows, columns = np.indices(image.shape[:2], dtype=np.float32)
    for _ in range(5):
        down, right = np.float32(deviation) * rng.standard_normal((2, *rows.shape), dtype=np.float32)
        image = cv2.remap(image, columns + right, rows + down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(image, dtype=np.float32)


def non_eccentricity_patch(image: Floats, patches: float, rng: np.random.Generator) -> Floats:
    """20: patches of 16x16 pixels copied to a place nearby; the parameter is their number.

    Places are uniform, and displacements uniform in -8 to 8 pixels, rows and columns apart, kept inside the image.
    Later patches may copy what earlier ones put there.
    """
    height, width = (min(_PATCH, side) for side in image.shape[:2])
    last = (image.shape[0] - height, image.shape[1] - width)
    places = rng.integers(0, last, (int(patches), 2), endpoint=True)
    targets = (places + rng.integers(-_FAR, _FAR, places.shape, endpoint=True)).clip(0, last)
    result = image.copy()
    for (y, x), (to_y, to_x) in zip(places, targets):
        result[to_y : to_y + height, to_x : to_x + width] = result[y : y + height, x : x + width].copy()
    return result


def pixelate(image: Floats, strength: float) -> Floats:
    """21: nearest neighbour down to the factor 0.95 - parameter^0.6 and back; the parameter has no unit."""
    import cv2

    height, width = image.shape[:2]
    factor = 0.95 - strength**0.6
    small = (max(1, round(width * factor)), max(1, round(height * factor)))
    coarse = cv2.resize(image, small, interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.float32)


def quantisation(image: Floats, levels: float) -> Floats:
    """22: values quantised; the parameter is the number of levels, the same for all channels.

    Thresholds are those of multi-level Otsu on the histogram of all three channels. The description does not say which
    values stand for the classes; here their means, so that the brightness stays.
    """
    values = to_bytes(image)
    return to_floats(_class_means(np.bincount(values.ravel(), minlength=256), int(levels))[values])


def colour_block(image: Floats, blocks: float, rng: np.random.Generator) -> Floats:
    """23: blocks of 32x32 pixels, each of one random colour, at random places; the parameter is their number.

    Colours and places are uniform; blocks lie inside the image and may overlap.
    """
    height, width = (min(_BLOCK, side) for side in image.shape[:2])
    places = rng.integers(0, (image.shape[0] - height, image.shape[1] - width), (int(blocks), 2), endpoint=True)
    result = image.copy()
    for (y, x), colour in zip(places, rng.random((int(blocks), 3), dtype=np.float32)):
        result[y : y + height, x : x + width] = colour
    return result


def _class_means(counts: NDArray[np.intp], classes: int) -> NDArray[np.uint8]:
    """Multi-level Otsu as a table of 256 values: each grey value's class mean, rounded.

    Otsu's thresholds are those of least variance within classes, which a dynamic programme over the histogram finds
    exactly in classes x 256^2 steps; scikit-image's ``threshold_multiotsu`` tries all combinations, which ends near 5.
    """
    present = np.flatnonzero(counts)
    classes = min(classes, len(present))
    weight = counts[present].astype(np.float64)
    zero = np.zeros(1)
    number, total, square = (np.concatenate((zero, np.cumsum(weight * present**power))) for power in (0, 1, 2))
    # cost[i, j]: sum of squared distances to the mean, if the values i to j - 1 made one class
    size = number[None, :] - number[:, None]
    some = np.where(size > 0, size, 1)
    cost = square[None, :] - square[:, None] - (total[None, :] - total[:, None]) ** 2 / some
    cost[size <= 0] = np.inf
    best, begins = cost[0], [np.zeros(len(present) + 1, dtype=np.intp)]  # of one class; where the last class begins
    for _ in range(classes - 1):
        sums = best[:, None] + cost
        begins.append(sums.argmin(axis=0))
        best = sums.min(axis=0)
    table, end = np.zeros(256, np.uint8), len(present)
    for row in reversed(begins):
        begin = int(row[end])
        table[present[begin:end]] = round((total[end] - total[begin]) / (number[end] - number[begin]))
        end = begin
    return table
