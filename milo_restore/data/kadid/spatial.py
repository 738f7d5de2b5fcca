"""Spatial distortions: types 19 to 23. Patches and blocks are cut to the image's size where that is smaller."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from milo_restore.data.kadid import otsu
from milo_restore.data.kadid.arrays import Floats, Values, to_bytes_up

_PATCH = 16
_BLOCK = 32
_PASSES = 5


def draw_shifts(rng: np.random.Generator, size: tuple[int, int], deviation: float) -> Floats:
    """Standard normal numbers, (5, H, W, 2): passes, then rows and columns of displacement."""
    return rng.standard_normal((_PASSES, *size, 2), dtype=np.float32)


def jitter(image: Values, deviation: float, shifts: Values) -> Values:
    """19: five passes, each of which displaces every pixel at random.

    The parameter is the standard deviation of the normal displacements in pixels, rows and columns apart. ``shifts``
    has a deviation of 1. The interpolation is bicubic, edges are replicated, and nothing is clipped: what overshoots
    makes the last stretch lower the contrast.
    """
    rows, columns = np.indices(image.shape[:2])
    for down, right in deviation * np.moveaxis(shifts.astype(np.float64), -1, 1):
        image = _bicubic(image, rows - down, columns - right, near=max(abs(down).max(), abs(right).max()) <= 1)
    return image


def draw_patches(rng: np.random.Generator, size: tuple[int, int], patches: float) -> NDArray[np.float64]:
    """Uniform numbers, (patches, 4): column, row, target's column, target's row."""
    return rng.random((int(patches), 4))


def non_eccentricity_patch(image: Values, patches: float, uniform: Values) -> Values:
    """20: patches of 16x16 pixels copied to a place nearby; the parameter is their number.

    They begin at least 15 pixels from the edges and move by -8 to 8 pixels, rows and columns apart. Later patches may
    copy what earlier ones put there. Images below 48 pixels a side have no such place: there, by a rule of our own,
    patches begin anywhere and stay inside.
    """
    sides = np.array(image.shape[1::-1])  # width, height
    inside = sides >= 3 * _PATCH
    first, last = np.where(inside, _PATCH - 1, 0), (sides - _PATCH).clip(0)
    places = first + np.floor(uniform[:, :2] * np.where(inside, sides - 3 * _PATCH, last) + 0.5)
    targets = np.floor(places + _PATCH * (uniform[:, 2:] - 0.5) + 0.5).clip(0, last)
    result = image.copy()
    for (x, y), (to_x, to_y) in zip(places.astype(int), targets.astype(int)):
        result[to_y : to_y + _PATCH, to_x : to_x + _PATCH] = result[y : y + _PATCH, x : x + _PATCH].copy()
    return result


def pixelate(image: Values, strength: float) -> Values:
    """21: nearest neighbour down to the factor 0.95 - parameter^0.6 and back; the parameter has no unit."""
    factor = 0.95 - strength**0.6
    for axis in (0, 1):
        side = image.shape[axis]
        small = int(np.ceil(factor * side))
        down = _nearest(side, small, factor)
        image = image.take(down[_nearest(small, side, side / small)], axis=axis)
    return image


def quantisation(image: Values, thresholds: float) -> Values:
    """22: values quantised; the parameter is the number of thresholds, the same for all channels.

    Classes take their lower threshold as value, but the darkest becomes 0 and the brightest 1.
    """
    found = otsu.thresholds(np.bincount(to_bytes_up(image).ravel(), minlength=256), int(thresholds)) / 255
    values = np.concatenate([[0.0], found[1:], [1.0]])
    return values[np.searchsorted(found, image)]


def draw_blocks(rng: np.random.Generator, size: tuple[int, int], blocks: float) -> NDArray[np.float64]:
    """Uniform numbers, (blocks, 5): red, green, blue, column, row."""
    return rng.random((int(blocks), 5))


def colour_block(image: Values, blocks: float, uniform: Values) -> Values:
    """23: blocks of 32x32 pixels, each of one random colour, at random places; the parameter is their number.

    Blocks may overlap. MATLAB's ``insertShape``, which paints them, was taken to round to whole pixels counted from 1,
    so that a first row or column may lie outside; how it treats parts of pixels cannot be known here.
    """
    result = image.copy()
    height, width = image.shape[:2]
    for *colour, x, y in uniform:
        left, top = (int(np.floor(part * max(side - _BLOCK, 0) + 0.5)) - 1 for part, side in ((x, width), (y, height)))
        result[max(top, 0) : top + _BLOCK, max(left, 0) : left + _BLOCK] = colour
    return result


def _bicubic(image: Values, rows: NDArray[np.float64], columns: NDArray[np.float64], near: bool) -> Values:
    """Values between pixels by cubic convolution (Keys 1981, a = -1/2), edges replicated.

    The published function pads by the largest displacement, rounded up, and MATLAB continues what is padded by a
    parabola. So where all displacements are ``near``, at most one pixel, the last pixel but one stands two pixels
    beyond the edge; a wider padding is continued by its own, equal pixels.

    No library at hand has it for free places: OpenCV's and torch's have a = -3/4, scipy's is a spline.
    """
    from scipy.sparse import csr_matrix

    height, width, channels = image.shape
    flat, result = image.reshape(-1, channels), np.empty_like(image)
    step = max(1, 2**14 // width)  # in strips, for 16 weights a pixel take memory
    for strip in (slice(start, start + step) for start in range(0, height, step)):
        (top, down), (left, right) = _cubic(rows[strip]), _cubic(columns[strip])
        pixels = _inside(top, height, near)[..., :, None] * width + _inside(left, width, near)[..., None, :]
        weights = down[..., :, None] * right[..., None, :]
        ends = np.arange(0, weights.size + 1, 16)
        taken = csr_matrix((weights.ravel(), pixels.ravel(), ends), shape=(len(ends) - 1, height * width))
        result[strip] = (taken @ flat).reshape(-1, width, channels)
    return result


def _inside(places: NDArray[np.int32], side: int, near: bool) -> NDArray[np.int32]:
    """The pixel that stands for each place beyond an edge, see `_bicubic`."""
    found = places.clip(0, side - 1)
    if near:
        found[places == -2] = 1
        found[places == side + 1] = side - 2
    return found


def _cubic(places: NDArray[np.float64]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """The four pixels around each place, in a new last axis, and their weights."""
    before = np.floor(places)
    t = places - before
    weights = ((2 - t) * t - 1) * t, (3 * t - 5) * t * t + 2, ((4 - 3 * t) * t + 1) * t, (t - 1) * t * t
    return (before[..., None] + np.arange(-1, 3)).astype(np.int32), np.stack(weights, -1) / 2


def _nearest(source: int, target: int, scale: float) -> NDArray[np.intp]:
    """Which of ``source`` pixels each of ``target`` pixels takes, by the rule of MATLAB's ``imresize``."""
    places = np.floor(np.arange(1, target + 1) / scale + (1 - 1 / scale) / 2 + 0.5)
    return places.clip(1, source).astype(np.intp) - 1
