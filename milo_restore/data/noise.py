"""Additive white Gaussian noise: keyed noise for training, one fixed noise per image for evaluation.

Levels (``sigma``) are in 8-bit units throughout, so 25 means a standard deviation of 25/255 on the [0, 1] range.
Noise is never clipped: a noisy image leaves [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from milo_restore.errors import ConfigError, DataError


def noise_range(sigma: float | Sequence[float]) -> tuple[float, float]:
    """The lowest and highest level that ``sigma`` means, in 8-bit units.

    Args:
        sigma: one level such as 25, or the two ends of a uniform range such as ``(0, 50)`` (blind denoising).

    Raises:
        ConfigError: not finite, negative, below 1 but not 0, not two numbers, or in the wrong order.
    """
    ends = tuple(float(end) for end in sigma) if isinstance(sigma, Sequence) else (float(sigma), float(sigma))
    mend = "Use one level such as 25, or a range such as [0, 50], in 8-bit units"
    if len(ends) != 2:
        raise ConfigError(f"a range of noise levels has two ends, got {len(ends)}", where="sigma", mend=mend)
    if not all(math.isfinite(end) and end >= 0 for end in ends):
        raise ConfigError(f"noise levels must be finite and not negative, got {sigma}", where="sigma", mend=mend)
    if ends[0] > ends[1]:
        raise ConfigError(f"the range of noise levels {sigma} is in the wrong order", where="sigma", mend=mend)
    refuse_fraction(ends[1])
    return ends


def refuse_fraction(level: float) -> None:
    """Refuse a noise level that was meant for values in [0, 1].

    Raises:
        ConfigError: it lies between 0 and 1.
    """
    if 0 < level < 1:
        what = f"{level:g} is noise in 8-bit units: for {level:g} of 1 write {255 * level:g}"
        raise ConfigError(what, where="sigma", mend="No denoiser is trained for less than one level of 256")


def draw_noise(
    rng: np.random.Generator, shape: tuple[int, ...], sigma: tuple[float, float]
) -> tuple[NDArray[np.float32], float]:
    """Training noise: draw a level uniformly from ``sigma``, then float32 noise of that level on the [0, 1] range.

    Args:
        rng: the sample's own generator, see `milo_restore.data.keys.keyed_rng`.
        shape: shape of the noise.
        sigma: lowest and highest level, as `noise_range` gives them; equal ends mean a fixed level.

    Returns:
        The noise, and the level drawn, in 8-bit units.
    """
    low, high = sigma
    level = low if low == high else float(rng.uniform(low, high))
    noise = rng.standard_normal(shape, dtype=np.float32)
    noise *= np.float32(level / 255.0)
    return noise, level


def evaluation_noise(shape: tuple[int, ...], sigma: float, *, seed: int = 0) -> NDArray[np.float64]:
    """The fixed noise that evaluation adds to every image of this shape, float64, on the [0, 1] range.

    This is the protocol of Restormer's published results (arXiv 2111.09881): NumPy's legacy generator is seeded
    with 0 anew for each image, and ``normal(0, sigma / 255)`` is drawn in (H, W, C) order, (H, W, 1) for grey images.
    The global NumPy generator is left alone.
    """
    # The legacy generator is the protocol; its stream is frozen for good, unlike that of numpy's Generator.
    return np.random.RandomState(seed).normal(0.0, sigma / 255.0, shape)  # noqa: NPY002


def evaluation_input(image: NDArray[np.uint8], sigma: float, *, seed: int = 0) -> Tensor:
    """A clean 8-bit image made noisy for evaluation: neither clipped nor quantised.

    Args:
        image: (H, W, 3), or (H, W, 1) for grey denoising, uint8.
        sigma: noise level in 8-bit units.
        seed: 0 in the published protocol.

    Returns:
        (C, H, W) float32.

    Raises:
        ConfigError: an impossible noise level.
        DataError: ``image`` is not (H, W, C) uint8.
    """
    noise_range(sigma)
    if image.ndim != 3 or image.dtype != np.uint8:
        raise DataError(f"expected an (H, W, C) uint8 array, got {image.shape} {image.dtype}")
    clean = image.astype(np.float32) / np.float32(255)
    noisy = (clean + evaluation_noise(image.shape, sigma, seed=seed)).astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(noisy.transpose(2, 0, 1)))
