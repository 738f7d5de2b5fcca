"""Blurs: types 01 to 03. Edges are mirrored."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from milo_restore.data.kadid.arrays import Floats, convolve, gaussian


def gaussian_blur(image: Floats, sigma: float) -> Floats:
    """01: Gaussian filter; the parameter is its standard deviation in pixels, the kernel ends at twice that.

    Level 1 (0.1 pixels) is the reference itself: the neighbours' weight is below 1e-21.
    """
    return gaussian(image, sigma)


def lens_blur(image: Floats, radius: float) -> Floats:
    """02: filter with a disk; the parameter is its radius in pixels."""
    return convolve(image, _disk(radius))


def motion_blur(image: Floats, length: float, rng: np.random.Generator) -> Floats:
    """03: filter with a straight line; the parameter is its length in pixels.

    The direction is drawn uniformly from all (the description leaves it open). Level 1, a line of one pixel, is the
    reference itself.
    """
    return convolve(image, _line(length, rng.uniform(0, math.pi)))


@lru_cache(maxsize=8)
def _disk(radius: float, fine: int = 15) -> Floats:
    """Each pixel's share of the disk, from ``fine`` x ``fine`` points in every pixel; sums to 1."""
    side = 2 * math.ceil(radius) + 1
    place = 2 * np.arange(side * fine) + 1 - side * fine  # in pixels, times 2 fine: whole numbers round no point away
    inside = place[:, None] ** 2 + place[None, :] ** 2 <= (2 * fine * radius) ** 2
    share = inside.reshape(side, fine, side, fine).mean((1, 3))
    return (share / share.sum()).astype(np.float32)


def _line(length: float, angle: float) -> Floats:
    """A segment with ends at ``(length - 1) / 2`` from the centre; a pixel's weight falls to 0 one pixel from it."""
    reach = (length - 1) / 2
    half = math.ceil(reach) + 1
    rows, columns = np.mgrid[-half : half + 1, -half : half + 1]
    down, right = math.sin(angle), math.cos(angle)
    nearest = (rows * down + columns * right).clip(-reach, reach)  # of the segment's points, from the centre
    weight = (1 - np.hypot(rows - nearest * down, columns - nearest * right)).clip(min=0)
    return (weight / weight.sum()).astype(np.float32)
