"""Real-ESRGAN's second-order degradation with DiffBIR v2.1's values, on arrays. On tensors: `batch`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from milo_restore.data.degrade.arrays import (
    MODES,
    Floats,
    blur,
    check_range,
    check_shares,
    draw,
    gaussian_noise,
    jpeg,
    poisson_noise,
    resize,
    round_to_bytes,
    sharpen,
)
from milo_restore.data.degrade.kernels import Kernel, Range, draw_gaussian_kernel, draw_sinc_kernel

KINDS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
LOWEST_CUTOFF = math.pi / 3  # of sinc filters, radians per pixel; basicsr's realesrgan_dataset.py
LOWEST_CUTOFF_LARGE = math.pi / 5  # of those from 13 pixels on, in the two passes


@dataclass(frozen=True)
class FirstPass:
    """The first pass, by default; `SecondPass` has other defaults. ``configs/train/train_stage2_v2.1.yaml``."""

    blur_probability: float = 1.0  # how often the image is blurred at all
    blur_sigma: Range = (0.2, 3.0)  # pixels
    resize_shares: tuple[float, float, float] = (0.2, 0.7, 0.1)  # of enlarging, shrinking, keeping
    resize: Range = (0.15, 1.5)  # the smallest and largest factor
    gaussian_probability: float = 0.5  # Gaussian noise; else Poisson
    noise: Range = (1.0, 30.0)  # Gaussian, in 8-bit units
    poisson: Range = (0.05, 3.0)  # multiplies the Poisson noise
    grey_probability: float = 0.4  # the same noise in all channels
    jpeg: Range = (30.0, 95.0)  # quality

    def __post_init__(self) -> None:
        check_range("blur_sigma", self.blur_sigma, 0.05)
        check_shares("resize_shares", self.resize_shares)
        check_range("resize", self.resize, 0.01)
        if not self.resize[0] <= 1 <= self.resize[1]:
            raise ValueError(f"resize goes from shrinking to enlarging, past 1, got {list(self.resize)}")
        for name in ("noise", "poisson"):
            check_range(name, getattr(self, name), 0)
        check_range("jpeg", self.jpeg, 1, 100)
        for name in ("blur_probability", "gaussian_probability", "grey_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, got {getattr(self, name)}")


@dataclass(frozen=True)
class SecondPass(FirstPass):
    """The second pass of the same configuration. It resizes relative to the image's size over the ``scale``."""

    blur_probability: float = 0.8
    blur_sigma: Range = (0.2, 1.5)
    resize_shares: tuple[float, float, float] = (0.3, 0.4, 0.3)
    resize: Range = (0.3, 1.2)
    noise: Range = (1.0, 25.0)
    poisson: Range = (0.05, 2.5)


@dataclass(frozen=True)
class RealESRGANSettings:
    """DiffBIR v2.1's values: ``configs/train/train_stage2_v2.1.yaml`` at 3f8b530."""

    kernel_sizes: tuple[int, int] = (7, 21)  # smallest and largest side of a kernel; odd ones only, in pixels
    kernel_shares: tuple[float, float, float, float, float, float] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)  # of KINDS
    beta_generalized: Range = (0.5, 4.0)  # shape of generalized Gaussians; 1: Gaussian
    beta_plateau: Range = (1.0, 2.0)  # shape of plateau-shaped kernels
    sinc_probability: float = 0.1  # a sinc filter in place of a pass's blur
    final_sinc_probability: float = 0.8  # how often a sinc filter comes before or after the last JPEG
    first: FirstPass = field(default_factory=FirstPass)
    second: SecondPass = field(default_factory=SecondPass)
    scale: int = 4  # the small image has the input's size over this; it is enlarged back in the end
    sharpen: bool = True  # the target is sharpened, and what is degraded too; DiffBIR v1's was not

    def __post_init__(self) -> None:
        low, high = self.kernel_sizes
        if not 3 <= low <= high or low % 2 == 0 or high % 2 == 0:
            raise ValueError(f"kernel_sizes are two odd numbers from 3 on, got {list(self.kernel_sizes)}")
        check_shares("kernel_shares", self.kernel_shares)
        for name in ("beta_generalized", "beta_plateau"):
            low, high = getattr(self, name)
            if not 0 < low <= 1 <= high:
                raise ValueError(f"{name} is a range [low, high] around 1, got [{low:g}, {high:g}]")
        for name in ("sinc_probability", "final_sinc_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, got {getattr(self, name)}")
        if self.scale < 1:
            raise ValueError(f"scale is at least 1, got {self.scale}")


class PassDraw(NamedTuple):
    """Random parameters of one pass over one image, but for the noise itself."""

    kernel: Kernel | None
    resize: float
    mode: str
    noise: str  # gaussian or poisson
    level: float  # 8-bit units, or what multiplies the Poisson noise
    grey: bool
    quality: float


class RealESRGANDraw(NamedTuple):
    """Random parameters of one image, but for the noise itself."""

    first: PassDraw
    second: PassDraw
    final: Kernel | None  # the last sinc filter
    final_mode: str  # of the resize that goes with it
    jpeg_last: bool  # resize and sinc, then JPEG; else the other way round


def draw_realesrgan(settings: RealESRGANSettings, rng: np.random.Generator) -> RealESRGANDraw:
    """Draw the parameters of one image, the same ones for the array and the tensor path."""
    first = _draw_pass(settings, settings.first, rng)
    second = _draw_pass(settings, settings.second, rng)
    final = None
    if rng.random() < settings.final_sinc_probability:
        final = draw_sinc_kernel(rng, _draw_size(settings, rng), LOWEST_CUTOFF)
    return RealESRGANDraw(first, second, final, str(rng.choice(MODES)), bool(rng.random() < 0.5))


def _draw_size(settings: RealESRGANSettings, rng: np.random.Generator) -> int:
    low, high = settings.kernel_sizes
    return low + 2 * int(rng.integers((high - low) // 2 + 1))


def _draw_pass(settings: RealESRGANSettings, of: FirstPass, rng: np.random.Generator) -> PassDraw:
    kernel = None
    if rng.random() < of.blur_probability:
        size = _draw_size(settings, rng)
        if rng.random() < settings.sinc_probability:
            kernel = draw_sinc_kernel(rng, size, LOWEST_CUTOFF if size < 13 else LOWEST_CUTOFF_LARGE)
        else:
            betas = {"beta_generalized": settings.beta_generalized, "beta_plateau": settings.beta_plateau}
            kernel = draw_gaussian_kernel(rng, KINDS, settings.kernel_shares, size, of.blur_sigma, **betas)
    way = int(rng.choice(3, p=of.resize_shares))
    scale = (draw(rng, (1.0, of.resize[1])), draw(rng, (of.resize[0], 1.0)), 1.0)[way]
    mode = str(rng.choice(MODES))
    kind = "gaussian" if rng.random() < of.gaussian_probability else "poisson"
    level = draw(rng, of.noise if kind == "gaussian" else of.poisson)
    return PassDraw(kernel, scale, mode, kind, level, bool(rng.random() < of.grey_probability), draw(rng, of.jpeg))


def sizes(height: int, width: int, scale: int, drawn: RealESRGANDraw) -> list[tuple[int, int]]:
    """(height, width) after the first resize, after the second, and of the small image; at least one pixel."""
    factors = (drawn.first.resize, drawn.second.resize / scale, 1 / scale)
    return [(max(1, int(height * factor)), max(1, int(width * factor))) for factor in factors]


def degrade_realesrgan(image: Floats, settings: RealESRGANSettings, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Twice blur, resize, noise and JPEG, with a last sinc filter before or after the second JPEG; then bicubic back.

    Returns:
        The degraded image, of the same size, in [0, 1]; and the target: ``image``, sharpened if the settings say so.
    """
    height, width = image.shape[:2]
    drawn = draw_realesrgan(settings, rng)
    middle, low, small = sizes(height, width, settings.scale, drawn)
    target = sharpen(image) if settings.sharpen else image
    out = jpeg(_blur_resize_noise(target, drawn.first, middle, rng), round(drawn.first.quality))
    out = _blur_resize_noise(out, drawn.second, low, rng)
    quality = round(drawn.second.quality)
    if drawn.jpeg_last:
        out = jpeg(_resize_sinc(out, drawn, small), quality)
    else:
        out = _resize_sinc(jpeg(out, quality), drawn, small)
    return resize(round_to_bytes(out), (height, width), "bicubic").clip(0, 1), target


def _blur_resize_noise(image: Floats, drawn: PassDraw, size: tuple[int, int], rng: np.random.Generator) -> Floats:
    out = resize(image if drawn.kernel is None else blur(image, drawn.kernel), size, drawn.mode)
    noise = gaussian_noise if drawn.noise == "gaussian" else poisson_noise
    return np.asarray(out + noise(rng, out, drawn.level, drawn.grey), dtype=np.float32).clip(0, 1)


def _resize_sinc(image: Floats, drawn: RealESRGANDraw, size: tuple[int, int]) -> Floats:
    out = resize(image, size, drawn.final_mode)
    return out if drawn.final is None else blur(out, drawn.final)
