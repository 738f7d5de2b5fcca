"""The former generator, ``clipped``: values that leave [0, 1] are cut off, where the published one stretches them.

It was written from a description, before the published functions could be read, and the shipped MILO weights were
taught on it. It is kept as it was, in single precision; `CHANGED` holds the types that differ by more than the stretch.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from milo_restore.data.kadid import noise
from milo_restore.data.kadid.arrays import Floats, Values, convolve, gaussian, to_bytes, to_floats
from milo_restore.data.kadid.method import Method

_PATCH, _FAR, _BLOCK = 16, 8, 32


def gaussian_blur(image: Values, sigma: float) -> Values:
    """01: edges mirrored."""
    return gaussian(image, sigma, mirrored=True)


def lens_blur(image: Values, radius: float) -> Values:
    """02: edges mirrored, the disc from 15 x 15 points in every pixel."""
    return convolve(image, _disk(radius), mirrored=True)


def motion_blur(image: Values, length: float, angle: float) -> Values:
    """03: edges mirrored, any direction (radians, clockwise), rounder ends."""
    return convolve(image, _line(length, angle), mirrored=True)


def colour_diffusion(image: Values, amount: float) -> Values:
    """04: edges mirrored, Lab's lightness and blues cut off."""
    lab = _to_lab(image)
    lab[..., 1:] = amount * gaussian(np.ascontiguousarray(lab[..., 1:]), 1.5 * amount + 2, mirrored=True)
    return _from_lab(lab)


def colour_shift(image: Values, distance: float, angle: float) -> Values:
    """05: any direction; blended by the gradient's magnitude, blurred, over its maximum, in [0.1, 1]."""
    down, right = round(distance * math.sin(angle)), round(distance * math.cos(angle))
    green = image[..., 1]
    rows = (np.arange(green.shape[0]) - down).clip(0, green.shape[0] - 1)
    columns = (np.arange(green.shape[1]) - right).clip(0, green.shape[1] - 1)
    grey = image @ np.array([0.299, 0.587, 0.114], np.float32)
    edges = gaussian(np.hypot(*np.gradient(grey)), 4.0, mirrored=True)
    share = (edges / max(float(edges.max()), 1e-6)).clip(0.1, 1)
    shifted = image.copy()
    shifted[..., 1] += share * (green[np.ix_(rows, columns)] - green)
    return shifted


def colour_quantisation(image: Values, colours: float) -> Values:
    """06: the palette is Pillow's median cut."""
    from PIL import Image

    picture = Image.fromarray(to_bytes(image))
    palette = picture.quantize(int(colours), method=Image.Quantize.MEDIANCUT)
    indexed = picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    return to_floats(np.asarray(indexed.convert("RGB")))


def colour_saturation_lab(image: Values, factor: float) -> Values:
    """08: Lab's lightness and blues cut off."""
    lab = _to_lab(image)
    lab[..., 1:] *= factor
    return _from_lab(lab)


def white_noise_ycbcr(image: Values, variance: float, normal: Values) -> Values:
    """12: not clipped in YCbCr."""
    from skimage.color import rgb2ycbcr, ycbcr2rgb

    return np.asarray(ycbcr2rgb(rgb2ycbcr(image) + 255 * math.sqrt(variance) * normal), dtype=np.float32)


def multiplicative_noise(image: Values, variance: float, normal: Values) -> Values:
    """14: the noise is Gaussian."""
    return image * (1 + math.sqrt(variance) * normal)


def denoise(image: Values, variance: float, normal: Values) -> Values:
    """15: total variation with the noise's standard deviation as weight."""
    return noise.total_variation(noise.white_noise(image, variance, normal), math.sqrt(variance))


def brighten(image: Values, amount: float) -> Values:
    """16: Lab's lightness and blues cut off."""
    return _lift(image, 0.5 + amount / 2)


def darken(image: Values, amount: float) -> Values:
    """17: on RGB and on Lab's lightness, as 16."""
    return _lift(image, 0.5 - amount / 2)


def jitter(image: Values, deviation: float, shifts: Values) -> Values:
    """19: bilinear, edges mirrored; ``shifts`` is (5, 2, H, W)."""
    import cv2

    rows, columns = np.indices(image.shape[:2], dtype=np.float32)
    for down, right in np.float32(deviation) * shifts:
        image = cv2.remap(image, columns + right, rows + down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return image


def non_eccentricity_patch(image: Values, patches: float, places: NDArray[np.int64]) -> Values:
    """20: patches begin anywhere; ``places`` is (2, patches, 2): from and to, rows and columns."""
    height, width = (min(_PATCH, side) for side in image.shape[:2])
    result = image.copy()
    for (y, x), (to_y, to_x) in zip(*places):
        result[to_y : to_y + height, to_x : to_x + width] = result[y : y + height, x : x + width].copy()
    return result


def pixelate(image: Values, strength: float) -> Values:
    """21: by OpenCV's rule for the nearest pixel, to the rounded size."""
    import cv2

    height, width = image.shape[:2]
    factor = 0.95 - strength**0.6
    small = (max(1, round(width * factor)), max(1, round(height * factor)))
    coarse = cv2.resize(image, small, interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST_EXACT))


def quantisation(image: Values, levels: float) -> Values:
    """22: so many levels, not thresholds; the exact optimum of Otsu's criterion, and the classes' means as values."""
    values = to_bytes(image)
    return to_floats(_class_means(np.bincount(values.ravel(), minlength=256), int(levels))[values])


def colour_block(image: Values, blocks: float, drawn: tuple[NDArray[np.int64], Floats]) -> Values:
    """23: blocks lie inside the image; ``drawn`` is places, (blocks, 2), and colours, (blocks, 3)."""
    height, width = (min(_BLOCK, side) for side in image.shape[:2])
    result = image.copy()
    for (y, x), colour in zip(*drawn):
        result[y : y + height, x : x + width] = colour
    return result


def high_sharpen(image: Values, amount: float) -> Values:
    """24: edges mirrored, Lab's lightness and blues cut off."""
    lab = _to_lab(image)
    lightness = lab[..., 0].copy()
    lab[..., 0] += amount * (lightness - gaussian(lightness, 3.0, mirrored=True))
    return _from_lab(lab)


def contrast_change(image: Values, amount: float) -> Values:
    """25: through (0.25, 0.25 - v/4) and (0.75, 0.75 + v/4); level 3 is the identity."""
    return _tone_curve(image, [0.25, 0.75], [0.25 - amount / 4, 0.75 + amount / 4])


def _angle(turn: float, rng: np.random.Generator) -> float:
    return float(rng.uniform(0, turn))


def _draw_shifts(rng: np.random.Generator, size: tuple[int, int], deviation: float) -> Floats:
    return rng.standard_normal((5, 2, *size), dtype=np.float32)


def _draw_patches(rng: np.random.Generator, size: tuple[int, int], patches: float) -> NDArray[np.int64]:
    last = tuple(side - min(_PATCH, side) for side in size)
    places = rng.integers(0, last, (int(patches), 2), endpoint=True)
    return np.stack([places, (places + rng.integers(-_FAR, _FAR, places.shape, endpoint=True)).clip(0, last)])


def _draw_blocks(rng: np.random.Generator, size: tuple[int, int], blocks: float) -> tuple[NDArray[np.int64], Floats]:
    last = tuple(side - min(_BLOCK, side) for side in size)
    places = rng.integers(0, last, (int(blocks), 2), endpoint=True)
    return places, rng.random((int(blocks), 3), dtype=np.float32)


CHANGED: dict[int, Method] = {
    1: Method(gaussian_blur),
    2: Method(lens_blur),
    3: Method(motion_blur, lambda rng, size, value: _angle(math.pi, rng)),
    4: Method(colour_diffusion),
    5: Method(colour_shift, lambda rng, size, value: _angle(2 * math.pi, rng)),
    6: Method(colour_quantisation),
    8: Method(colour_saturation_lab),
    12: Method(white_noise_ycbcr, noise.draw_normal),
    14: Method(multiplicative_noise, noise.draw_normal),
    15: Method(denoise, noise.draw_normal),
    16: Method(brighten),
    17: Method(darken),
    19: Method(jitter, _draw_shifts),
    20: Method(non_eccentricity_patch, _draw_patches),
    21: Method(pixelate),
    22: Method(quantisation),
    23: Method(colour_block, _draw_blocks),
    24: Method(high_sharpen),
    25: Method(contrast_change),
}


def _to_lab(image: Values) -> Floats:
    from skimage.color import rgb2lab

    return np.asarray(rgb2lab(image), dtype=np.float32)


def _from_lab(lab: Floats) -> Floats:
    """Clipped to [0, 1] in RGB; L is clipped to [0, 100] first."""
    from skimage.color import lab2rgb

    lab = lab.copy()
    lab[..., 0] = lab[..., 0].clip(0, 100)
    # Stronger blues than Z = 0 do not exist; scikit-image clips Z there too, but warns.
    lab[..., 2] = np.minimum(lab[..., 2], np.float32(199.99 / 116) * (lab[..., 0] + 16))
    return np.asarray(lab2rgb(lab), dtype=np.float32)


def _tone_curve(values: Values, x: list[float], y: list[float]) -> Values:
    """The polynomial of degree 2 or 3 through (0, 0), one or two given points and (1, 1), clipped to [0, 1]."""
    curve = np.polyfit([0.0, *x, 1.0], [0.0, *y, 1.0], len(x) + 1).astype(np.float32)
    return np.asarray(np.polyval(curve, values), dtype=np.float32).clip(0, 1)


def _lift(image: Values, middle: float) -> Values:
    lab = _to_lab(image)
    lab[..., 0] = 100 * _tone_curve(lab[..., 0] / np.float32(100), [0.5], [middle])
    return np.float32(2 / 3) * _tone_curve(image, [0.5], [middle]) + _from_lab(lab) / np.float32(3)


@lru_cache(maxsize=8)
def _disk(radius: float, fine: int = 15) -> Floats:
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
