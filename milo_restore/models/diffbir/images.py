"""Images on their way into the pipeline and out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from milo_restore.errors import ConfigError, DataError

__all__ = [
    "MINIMUM_SIDE",
    "Images",
    "OutputType",
    "check_output_type",
    "converted",
    "resized",
    "to_batch",
    "working_size",
]

Images: TypeAlias = "Tensor | Image.Image | Sequence[Image.Image]"
OutputType = Literal["pil", "pt", "np"]
MINIMUM_SIDE = 8
"""Pixels; one cell of the latent is as large."""

_LARGEST = 8.0  # noise may leave [0, 1], but not as far as this: such values are 0 to 255


def to_batch(images: Images) -> Tensor:
    """Images to (N, 3, H, W) float32.

    Args:
        images: (N, 3, H, W) in [0, 1]; one PIL image in mode RGB or L, or several of one size.

    Raises:
        DataError: another shape, mode or range, no images, or images of several sizes.
    """
    if isinstance(images, Tensor):
        return _checked(images)
    several = [images] if isinstance(images, Image.Image) else list(images)
    if not several or not all(isinstance(image, Image.Image) for image in several):
        raise DataError("expected a tensor (N, 3, H, W) or PIL images")
    modes = {image.mode for image in several} - {"RGB", "L"}
    if modes:
        mend = "Read files with milo_restore.data.read_image, which refuses what it cannot convert without loss"
        raise DataError(f"expected PIL images in mode RGB or L, got {', '.join(sorted(modes))}", mend=mend)
    sizes = sorted({image.size for image in several})
    if len(sizes) > 1:
        raise DataError(f"images of {len(sizes)} sizes in one batch", mend="Restore them one after another")
    arrays = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) for image in several])
    return _checked(torch.from_numpy(arrays).permute(0, 3, 1, 2) / 255)


def _checked(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or not len(images):
        raise DataError(f"expected float images (N, 3, H, W), got {tuple(images.shape)} {images.dtype}")
    height, width = images.shape[-2:]
    if min(height, width) < MINIMUM_SIDE:
        raise DataError(f"is {width}x{height} pixels", mend=f"{MINIMUM_SIDE} along each side are the least")
    if not torch.isfinite(images).all():
        raise DataError("the images hold NaN or infinite values")
    if images.abs().max() > _LARGEST:
        raise DataError(f"the images reach {float(images.abs().max()):g}, expected [0, 1]", mend="Divide them by 255")
    return images.float()


def resized(images: Tensor, height: int, width: int) -> Tensor:
    """Images (N, 3, H, W) in [0, 1], bicubic, and clamped where their size changes.

    Raises:
        ConfigError: no pixel would be left.
    """
    if tuple(images.shape[-2:]) == (height, width):
        return images
    if min(height, width) < MINIMUM_SIDE:
        what = f"makes {width}x{height} pixels of {images.shape[-1]}x{images.shape[-2]}"
        raise ConfigError(what, where="upscale", mend=f"{MINIMUM_SIDE} along each side are the least")
    return F.interpolate(images, (height, width), mode="bicubic", antialias=True).clamp(0, 1)


def working_size(height: int, width: int, minimum_side: int) -> tuple[int, int]:
    """Height and width of an image whose shorter side is brought to ``minimum_side`` where it has less pixels.

    The longer side is rounded down, as in DiffBIR's program.
    """
    shorter = min(height, width)
    if shorter >= minimum_side:
        return height, width
    factor = minimum_side / shorter
    if height == width:
        return minimum_side, minimum_side
    return (minimum_side, int(width * factor)) if height < width else (int(height * factor), minimum_side)


def check_output_type(output_type: str) -> None:
    """Refuse, before any work, what `converted` cannot make.

    Raises:
        ConfigError: no such type.
    """
    if output_type not in get_args(OutputType):
        raise ConfigError(f"is {output_type!r}", where="output_type", mend="Take pil, pt or np")


def converted(images: Tensor, output_type: OutputType) -> Any:
    """Images (N, 3, H, W) in [0, 1] as what was asked for: 8-bit PIL images, a tensor, or an array (N, H, W, 3)."""
    if output_type == "pt":
        return images
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()
    if output_type == "np":
        return arrays
    return [Image.fromarray((array * 255).round().astype(np.uint8)) for array in arrays]
