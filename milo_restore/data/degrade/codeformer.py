"""CodeFormer's degradation (blur, shrink, noise, JPEG), with DiffBIR v2's values and those of DiffBIR v1 for faces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from milo_restore.data.degrade.arrays import (
    Floats,
    blur,
    check_range,
    check_shares,
    draw,
    gaussian_noise,
    jpeg,
    resize,
    round_to_bytes,
)
from milo_restore.data.degrade.kernels import Kernel, Range, draw_gaussian_kernel

KINDS = ("iso", "aniso")


@dataclass(frozen=True)
class CodeFormerSettings:
    """DiffBIR v2's values: ``configs/train/train_stage1.yaml`` and, the same, ``train_stage2.yaml`` at 3f8b530."""

    kernel_size: int = 41  # side of the blur kernel, in pixels
    kernel_shares: tuple[float, float] = (0.5, 0.5)  # of round and of elliptic Gaussians
    blur_sigma: Range = (0.1, 12.0)  # pixels, at full size
    downsample: Range = (1.0, 12.0)  # factor; below 1 enlarges
    noise: Range = (0.0, 15.0)  # Gaussian, in 8-bit units, at the small size
    jpeg: Range = (30.0, 100.0)  # quality

    def __post_init__(self) -> None:
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is an odd number, got {self.kernel_size}")
        check_shares("kernel_shares", self.kernel_shares)
        check_range("blur_sigma", self.blur_sigma, 0.05)  # narrower ones are no number in basicsr's formula
        check_range("downsample", self.downsample, 0.1)
        check_range("noise", self.noise, 0)
        check_range("jpeg", self.jpeg, 1, 100)


@dataclass(frozen=True)
class FaceSettings(CodeFormerSettings):
    """DiffBIR v1's values for faces: ``configs/dataset/face_train.yaml`` at 7bd5675 (those of DifFace)."""

    blur_sigma: Range = (0.1, 10.0)
    downsample: Range = (0.8, 8.0)
    noise: Range = (0.0, 20.0)
    jpeg: Range = (60.0, 100.0)


class CodeFormerDraw(NamedTuple):
    """Random parameters of one image, but for the noise itself."""

    kernel: Kernel
    downsample: float
    noise: float  # 8-bit units
    quality: float


def draw_codeformer(settings: CodeFormerSettings, rng: np.random.Generator) -> CodeFormerDraw:
    """Draw the parameters of one image; each is uniform in its range."""
    return CodeFormerDraw(
        draw_gaussian_kernel(rng, KINDS, settings.kernel_shares, settings.kernel_size, settings.blur_sigma),
        draw(rng, settings.downsample),
        draw(rng, settings.noise),
        draw(rng, settings.jpeg),
    )


def degrade_codeformer(image: Floats, settings: CodeFormerSettings, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Blur, shrink (bilinear), add Gaussian noise, compress, and enlarge to the old size (bilinear).

    Returns:
        The degraded image, of the same size, with values of 8 bits; and the target, which is ``image``.
    """
    height, width = image.shape[:2]
    drawn = draw_codeformer(settings, rng)
    out = blur(image, drawn.kernel)
    out = resize(out, (int(height / drawn.downsample), int(width / drawn.downsample)), "bilinear")
    out = out + gaussian_noise(rng, out, drawn.noise)
    out = jpeg(out, round(drawn.quality))
    return round_to_bytes(resize(out, (height, width), "bilinear")), image
