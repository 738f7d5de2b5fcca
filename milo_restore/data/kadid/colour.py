"""Colour distortions: types 04 to 08."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from milo_restore.data.kadid.arrays import Values, from_lab, gaussian, stretch, to_bytes_up, to_lab


def colour_diffusion(image: Values, amount: float) -> Values:
    """04: Lab's a and b blurred and made stronger.

    The parameter (no unit) multiplies a and b, after a Gaussian filter of 1.5 x parameter + 2 pixels.
    """
    lab = to_lab(image)
    lab[..., 1:] = amount * gaussian(np.ascontiguousarray(lab[..., 1:]), 1.5 * amount + 2)
    return from_lab(lab)


def draw_direction(rng: np.random.Generator, size: tuple[int, int], distance: float) -> NDArray[np.float64]:
    """Two uniform numbers, down and right; their ratio is the direction."""
    return rng.random(2)


def colour_shift(image: Values, distance: float, direction: NDArray[np.floating]) -> Values:
    """05: the green channel moved down and right near edges; the parameter is the distance in pixels.

    ``direction``, two numbers in [0, 1), is brought to that length and rounded to whole pixels. What comes in from
    beyond the edge repeats the first rows and columns. The moved channel is blended in by `_edges`.
    """
    down, right = (math.floor(part + 0.5) for part in direction * (distance / max(math.hypot(*direction), 1e-300)))
    green = image[..., 1]
    rows, columns = (np.arange(-by, side - by).clip(0) for by, side in zip((down, right), green.shape))
    share = _edges(image)
    shifted = image.copy()
    shifted[..., 1] = share * green[np.ix_(rows, columns)] + (1 - share) * green
    return shifted


def colour_quantisation(image: Values, colours: float) -> Values:
    """06: indexed colours with Floyd-Steinberg dithering; the parameter is the number of colours.

    The published function calls MATLAB's ``rgb2ind``, whose "minimum variance" palette is compiled code: the same
    colours cannot be had. Here Pillow's median cut of every other row and column is improved by k-means, which lowers
    that variance, until at most 100 pixels change their colour.
    """
    pixels = to_bytes_up(image)
    picture, fewer = Image.fromarray(pixels), Image.fromarray(np.ascontiguousarray(pixels[::2, ::2]))
    palette = fewer.quantize(int(colours), method=Image.Quantize.MEDIANCUT, kmeans=100)
    indexed = picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    return np.asarray(indexed.convert("RGB")) / 255


def colour_saturation_hsv(image: Values, factor: float) -> Values:
    """07: saturation in HSV; the parameter (no unit) multiplies it, negative ones turn hues to their opposite.

    With hue and value fixed, HSV's colours are linear in the saturation, so that no conversion is needed. Level 5
    exceeds 1, which the stretch takes back.
    """
    value = image.max(axis=2, keepdims=True)
    return value - factor * (value - image)


def colour_saturation_lab(image: Values, factor: float) -> Values:
    """08: saturation in Lab; the parameter (no unit) multiplies a and b. Level 1 (factor 1) changes nothing."""
    lab = to_lab(image)
    lab[..., 1:] *= factor
    return from_lab(lab)


def _edges(image: Values) -> NDArray[np.float64]:
    """Strength of the edges, (H, W) in [0, 1]: the gradient's length, blurred, cut at a tenth and at percentiles."""
    slope = np.hypot(*np.gradient(image @ np.array([0.298936, 0.587043, 0.114021])))
    edges = stretch(stretch(gaussian(slope, 4.0)).clip(0.1, 1))
    place = max(math.floor(0.99 * edges.size + 0.5), 1) - 1
    high = np.sort(edges, axis=None)[place]
    low = 1 - np.sort(1 - edges, axis=None)[place]
    return stretch(edges.clip(low, high))
