"""Noise: types 11 to 15. Variances are on the [0, 1] range."""

from __future__ import annotations

import math

import numpy as np

from milo_restore.data.kadid.arrays import Floats


def white_noise(image: Floats, variance: float, rng: np.random.Generator) -> Floats:
    """11: Gaussian noise added to R, G and B; the parameter is its variance (values in [0, 1])."""
    return image + math.sqrt(variance) * _normal(image, rng)


def white_noise_ycbcr(image: Floats, variance: float, rng: np.random.Generator) -> Floats:
    """12: Gaussian noise added to Y, Cb and Cr; the parameter is its variance (values in [0, 1]).

    The description names YCbCr only; this is ITU-R BT.601 with Y in [16, 235] / 255, MATLAB's ``rgb2ycbcr``. In RGB the
    noise is stronger and coloured: its variance is 3.8 (R), 2.1 (G) and 5.4 (B) times the parameter.
    """
    from skimage.color import rgb2ycbcr, ycbcr2rgb  # in 8-bit units

    return np.asarray(ycbcr2rgb(rgb2ycbcr(image) + 255 * math.sqrt(variance) * _normal(image, rng)), dtype=np.float32)


def impulse_noise(image: Floats, density: float, rng: np.random.Generator) -> Floats:
    """13: salt and pepper; the parameter is the share of values set, half to 0 and half to 1, channels apart."""
    drawn = rng.random(image.shape, dtype=np.float32)
    return np.where(drawn < density / 2, np.float32(0), np.where(drawn < density, np.float32(1), image))


def multiplicative_noise(image: Floats, variance: float, rng: np.random.Generator) -> Floats:
    """14: speckle, image x (1 + noise); the parameter is the Gaussian noise's variance (no unit)."""
    return image * (1 + math.sqrt(variance) * _normal(image, rng))


def denoise(image: Floats, variance: float, rng: np.random.Generator) -> Floats:
    """15: Gaussian noise added, then taken away, channel by channel; the parameter is its variance (values in [0, 1]).

    An approximation: the generator denoises with MATLAB's DnCNN network, which may not be redistributed. Here it is
    total variation (Chambolle 2004, scikit-image), with the noise's standard deviation as weight. It too smooths
    textures and leaves blotches, but they are of another look than DnCNN's.
    """
    from skimage.restoration import denoise_tv_chambolle

    noisy = white_noise(image, variance, rng).clip(0, 1)
    # A fixed number of iterations: scikit-image's stopping rule ends now early, now late, and level 3 kept more noise
    # than level 4.
    clean = denoise_tv_chambolle(noisy, weight=math.sqrt(variance), eps=0, max_num_iter=20, channel_axis=2)
    return np.asarray(clean, dtype=np.float32)


def _normal(image: Floats, rng: np.random.Generator) -> Floats:
    return rng.standard_normal(image.shape, dtype=np.float32)
