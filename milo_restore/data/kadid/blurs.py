"""Blurs: types 01 to 03. Edges are replicated."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from milo_restore.data.kadid.arrays import Values, convolve, gaussian


def gaussian_blur(image: Values, sigma: float) -> Values:
    """01: Gaussian filter; the parameter is its standard deviation in pixels, the kernel ends at twice that.

    Level 1 (0.1 pixels) changes nothing: the neighbours' weight is below 1e-21.
    """
    return gaussian(image, sigma)


def lens_blur(image: Values, radius: float) -> Values:
    """02: filter with a disc; the parameter is its radius in pixels."""
    return convolve(image, _disc(radius))


def draw_angle(rng: np.random.Generator, size: tuple[int, int], length: float) -> int:
    """Whole degrees from 0 to 180, both included."""
    return int(rng.integers(0, 180, endpoint=True))


def motion_blur(image: Values, length: float, angle: float) -> Values:
    """03: filter with a straight line; the parameter is its length in pixels. Level 1 changes nothing.

    ``angle`` is in degrees, counter-clockwise: at 45 the line rises to the right.
    """
    return convolve(image, _line(length, math.radians(angle)))


@lru_cache(maxsize=8)
def _disc(radius: float, fine: int = 4096) -> NDArray[np.float64]:
    """Each pixel's share of the disc; sums to 1. Chords are exact, and ``fine`` of them make up a pixel."""
    half = math.ceil(radius)
    across = (np.arange((2 * half + 1) * fine) + 0.5) / fine - half - 0.5
    chord = np.sqrt((radius**2 - across**2).clip(0))[:, None]  # half its length
    low = np.arange(-half, half + 1) - 0.5
    overlap = chord.clip(low, low + 1) - (-chord).clip(low, low + 1)
    share = overlap.reshape(2 * half + 1, fine, -1).mean(1)
    return share / share.sum()


def _line(length: float, angle: float) -> NDArray[np.float64]:
    """A segment with ends at ``(length - 1) / 2`` from the centre; a pixel's weight falls to 0 one pixel from it."""
    reach = (length - 1) / 2
    half = math.ceil(reach) + 1
    rows, columns = np.mgrid[-half : half + 1, -half : half + 1]
    across = np.abs(columns * math.sin(angle) + rows * math.cos(angle))
    along = np.abs(columns * math.cos(angle) - rows * math.sin(angle))
    beyond = (np.hypot(across, along) >= reach) & (across <= 1)
    weight = (1 - np.where(beyond, np.hypot(across, reach - along), across)).clip(0)
    return weight / weight.sum()
