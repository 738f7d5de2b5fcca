"""Operations of the degradations on arrays: blur, resize, noise, JPEG, all of (H, W, 3) float32 RGB."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from milo_restore.data.degrade.kernels import Kernel, Range
from milo_restore.data.kadid import compression
from milo_restore.data.kadid.arrays import Floats, to_bytes, to_floats
from milo_restore.errors import DataError

__all__ = ["Floats", "blur", "gaussian_noise", "jpeg", "poisson_noise", "resize", "round_to_bytes", "sharpen"]

MODES = ("area", "bilinear", "bicubic")


def blur(image: Floats, kernel: Kernel) -> Floats:
    """Filter each channel; edges are mirrored without repeating the edge pixel, as basicsr's ``filter2D`` does."""
    import cv2

    return np.asarray(cv2.filter2D(image, -1, kernel.array(), borderType=cv2.BORDER_REFLECT_101), dtype=np.float32)


def resize(image: Floats, size: tuple[int, int], mode: str) -> Floats:
    """To (height, width) ``size``, at least one pixel each, by one of `MODES`. Bicubic may leave [0, 1]."""
    import cv2

    kind = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[mode]
    height, width = (max(1, side) for side in size)
    return np.asarray(cv2.resize(image, (width, height), interpolation=kind), dtype=np.float32)


def gaussian_noise(rng: np.random.Generator, image: Floats, sigma: float, grey: bool = False) -> Floats:
    """Gaussian noise for ``image``, level ``sigma`` in 8-bit units; ``grey``: the same in all three channels."""
    shape = (*image.shape[:2], 1 if grey else 3)
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(sigma / 255)


def poisson_noise(rng: np.random.Generator, image: Floats, scale: float, grey: bool = False) -> Floats:
    """Poisson noise for ``image``, as basicsr's ``generate_poisson_noise`` defines it.

    The image is counted in as many photons per unit as it has distinct 8-bit values, rounded up to a power of two;
    the noise is then multiplied by ``scale``. ``grey``: the noise of the luminance, in all three channels.
    """
    import cv2

    source = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] if grey else image
    levels = to_bytes(source)
    photons = 1 << (len(np.unique(levels)) - 1).bit_length()
    expected = to_floats(levels)
    noisy = rng.poisson(expected * np.float32(photons)).astype(np.float32) / np.float32(photons)
    return np.asarray((noisy - expected) * np.float32(scale), dtype=np.float32)


def round_to_bytes(image: Floats) -> Floats:
    """Clipped to [0, 1] and rounded to the values that an 8-bit file can hold."""
    return to_floats(to_bytes(image))


def jpeg(image: Floats, quality: float) -> Floats:
    """JPEG by libjpeg at a quality of 1 to 100, chroma subsampled 4:2:0; rounded before to what a file can hold."""
    return np.asarray(compression.jpeg(round_to_bytes(image), quality), dtype=np.float32)


def sharpen(image: Floats) -> Floats:
    """Unsharp masking by basicsr's ``usm_sharp`` with its defaults: weight 0.5, radius 50, threshold 10."""
    from basicsr.utils.img_process_util import usm_sharp

    return np.asarray(usm_sharp(image), dtype=np.float32)


def check_range(name: str, ends: Sequence[float], least: float, most: float = float("inf")) -> None:
    """Refuse a range that is in the wrong order or leaves [least, most].

    Raises:
        ValueError: which `milo_restore.config` turns into a ConfigError that names the file and the key.
    """
    low, high = ends
    if not least <= low <= high <= most:
        bounds = f"at least {least:g}" if most == float("inf") else f"in [{least:g}, {most:g}]"
        raise ValueError(f"{name} is a range [low, high] {bounds}, got [{low:g}, {high:g}]")


def check_shares(name: str, shares: Sequence[float]) -> None:
    """Refuse probabilities that do not add up to 1, with ValueError."""
    if not all(share >= 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"{name} are probabilities with the sum 1, got {list(shares)}")


def draw(rng: np.random.Generator, ends: Range) -> float:
    """A uniform draw as a plain number."""
    return float(rng.uniform(*ends))


def check_image(image: NDArray[np.float32]) -> None:
    """Refuse anything but (H, W, 3) float32.

    Raises:
        DataError: another shape or type.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.float32:
        raise DataError(f"expected an (H, W, 3) float32 array in [0, 1], got {image.shape} {image.dtype}")
