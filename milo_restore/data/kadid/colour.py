"""Colour distortions: types 04 to 08."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from milo_restore.data.kadid.arrays import Floats, from_lab, gaussian, to_bytes, to_floats, to_lab


def colour_diffusion(image: Floats, amount: float) -> Floats:
    """04: Lab's a and b blurred and made stronger.

    The parameter (no unit) multiplies a and b, after a Gaussian filter of 1.5 x parameter + 2 pixels.
    """
    lab = to_lab(image)
    lab[..., 1:] = amount * gaussian(np.ascontiguousarray(lab[..., 1:]), 1.5 * amount + 2)
    return from_lab(lab)


def colour_shift(image: Floats, distance: float, rng: np.random.Generator) -> Floats:
    """05: the green channel displaced near edges; the parameter is the distance in pixels.

    The direction is drawn uniformly from all, and the displacement rounded to whole pixels. The displaced channel is
    blended in by the magnitude of the grey image's gradient (central differences), blurred with 4 pixels, divided by
    its maximum, and kept in [0.1, 1]: that is how the description's "0.1-1 truncated" was read.
    """
    angle = rng.uniform(0, 2 * math.pi)
    down, right = round(distance * math.sin(angle)), round(distance * math.cos(angle))
    green = image[..., 1]
    rows = (np.arange(green.shape[0]) - down).clip(0, green.shape[0] - 1)
    columns = (np.arange(green.shape[1]) - right).clip(0, green.shape[1] - 1)
    grey = image @ np.array([0.299, 0.587, 0.114], np.float32)
    edges = gaussian(np.hypot(*np.gradient(grey)), 4.0)
    share = (edges / max(float(edges.max()), 1e-6)).clip(0.1, 1)
    shifted = image.copy()
    shifted[..., 1] += share * (green[np.ix_(rows, columns)] - green)
    return shifted


def colour_quantisation(image: Floats, colours: float) -> Floats:
    """06: indexed colours with Floyd-Steinberg dithering; the parameter is the number of colours.

    The palette is Pillow's median cut; the generator's (minimum variance quantisation) is not described further.
    """
    picture = Image.fromarray(to_bytes(image))
    palette = picture.quantize(int(colours), method=Image.Quantize.MEDIANCUT)
    indexed = picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    return to_floats(np.asarray(indexed.convert("RGB")))


def colour_saturation_hsv(image: Floats, factor: float) -> Floats:
    """07: saturation in HSV; the parameter (no unit) multiplies it, negative ones turn hues to their opposite.

    With hue and value fixed, HSV's colours are linear in the saturation, so that no conversion is needed.
    """
    value = image.max(axis=2, keepdims=True)
    return value - np.float32(factor) * (value - image)


def colour_saturation_lab(image: Floats, factor: float) -> Floats:
    """08: saturation in Lab; the parameter (no unit) multiplies a and b. Level 1 (factor 1) is the reference itself."""
    lab = to_lab(image)
    lab[..., 1:] *= factor
    return from_lab(lab)
