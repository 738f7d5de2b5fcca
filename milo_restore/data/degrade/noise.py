"""Blind denoising: Gaussian noise of an unknown level, and optionally a share of noise as cameras make it.

DiffBIR has no degradation for denoising. The Gaussian part is that of `milo_restore.data.noise`; the realistic part is
our choice, after the Poisson-Gaussian model of raw noise (Foi et al., 2008): its ranges come from no publication.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from milo_restore.data.degrade.arrays import Floats, check_range, draw, jpeg, round_to_bytes
from milo_restore.data.degrade.kernels import Range
from milo_restore.data.noise import draw_noise, refuse_fraction


@dataclass(frozen=True)
class BlindNoiseSettings:
    """Which noise. Levels are in 8-bit units. The levels of the tests, 15, 25 and 50, lie in the default range."""

    sigma: Range = (0.0, 50.0)  # Gaussian, neither clipped nor rounded (Restormer's blind range)
    realistic: float = 0.0  # how often the noise is a camera's instead, clipped and rounded to 8 bits
    shot: Range = (0.0, 30.0)  # its standard deviation on white, from photons; falls with the root of the brightness
    read: Range = (0.0, 20.0)  # its standard deviation on black, from electronics
    correlated: float = 0.5  # how often it is blurred, as demosaicking does
    correlation: Range = (0.4, 1.2)  # sigma of that blur, in pixels; the level stays
    compressed: float = 0.5  # how often JPEG follows
    jpeg: Range = (30.0, 95.0)  # quality; Real-ESRGAN's range

    def __post_init__(self) -> None:
        for name in ("sigma", "shot", "read"):
            check_range(name, getattr(self, name), 0)
        refuse_fraction(self.sigma[1])
        check_range("correlation", self.correlation, 0.05)
        check_range("jpeg", self.jpeg, 1, 100)
        for name in ("realistic", "correlated", "compressed"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, got {getattr(self, name)}")


class CameraDraw(NamedTuple):
    """Random parameters of one image of the realistic share, but for the noise itself."""

    shot: float
    read: float
    correlation: float | None  # pixels
    quality: float | None


def draw_camera(settings: BlindNoiseSettings, rng: np.random.Generator) -> CameraDraw:
    """Draw the parameters of one image of the realistic share."""
    shot, read = draw(rng, settings.shot), draw(rng, settings.read)
    correlation = draw(rng, settings.correlation) if rng.random() < settings.correlated else None
    return CameraDraw(shot, read, correlation, draw(rng, settings.jpeg) if rng.random() < settings.compressed else None)


def degrade_noise(image: Floats, settings: BlindNoiseSettings, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Add the noise.

    Returns:
        The noisy image: float32, beyond [0, 1] where the noise is Gaussian; and the target, which is ``image``.
    """
    if rng.random() < settings.realistic:
        return camera_noise(image, draw_camera(settings, rng), rng), image
    noise, _ = draw_noise(rng, image.shape, settings.sigma)
    return image + noise, image


def camera_noise(image: Floats, drawn: CameraDraw, rng: np.random.Generator) -> Floats:
    """Noise of variance ``read^2 + shot^2 * brightness``, perhaps correlated and compressed; 8-bit values."""
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(drawn.read / 255)
    gain = (drawn.shot / 255) ** 2
    if gain > 1e-8:  # below, a thousandth of a level, NumPy would count photons by the billion
        clean = image.clip(0, 1)
        noise += rng.poisson(clean / gain).astype(np.float32) * np.float32(gain) - clean
    if drawn.correlation is not None:
        noise = _correlate(noise, drawn.correlation)
    out = image + noise
    return round_to_bytes(out) if drawn.quality is None else jpeg(out, round(drawn.quality))


def _correlate(noise: Floats, sigma: float) -> Floats:
    import cv2

    kernel = cv2.getGaussianKernel(9, sigma, cv2.CV_32F)
    kernel /= np.sqrt(np.square(kernel).sum())  # keeps the variance of white noise
    return np.asarray(cv2.sepFilter2D(noise, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101), dtype=np.float32)
