"""MILO under ``val.metrics``: the number that a run trains for, in its validation."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milo_restore.errors import ConfigError
from milo_restore.metric import MILO

__all__ = ["calculate_milo"]


@torch.no_grad()
def calculate_milo(
    img: Any = None,
    img2: Any = None,
    crop_border: int = 0,
    input_order: str = "HWC",
    weights: str = "official",
    img1: Any = None,
    **_: Any,
) -> Tensor | float:
    """MILO's raw error of a restored image, lower is better; for BasicSR's ``val.metrics``.

    Args:
        img: the restored image: uint8 or float in [0, 255], BGR or grey, as BasicSR gives it to its metrics; or a
            tensor in [0, 1], (1, C, H, W) or (C, H, W), RGB, as older forks do with ``use_image: false``.
        img2: the reference, alike.
        crop_border: pixels to leave out at each side.
        input_order: ``HWC`` or ``CHW``, of arrays.
        weights: ``official``, ``mini`` or a path.
        img1: another name of ``img``, in basicsr up to 1.3.
        **_: what other metrics take, such as ``test_y_channel``.

    Returns:
        The error: of arrays a plain float, which forks save in training states that load safely; of tensors a scalar
        tensor, as BasicSR's own metrics on tensors give it.

    Raises:
        ConfigError: an unknown order, or an image is missing.
        DataError: sizes differ or are below 16 pixels.
        WeightsError: the weights can neither be found nor downloaded.
    """
    restored, reference = (_batch(each, input_order) for each in (img1 if img is None else img, img2))
    if crop_border:
        inner = slice(crop_border, -crop_border)
        restored, reference = restored[..., inner, inner], reference[..., inner, inner]
    error = _metric(weights)(restored.clamp(0, 1), reference.clamp(0, 1)).mean()
    return error if isinstance(img2, Tensor) else float(error)


@functools.lru_cache(maxsize=2)
def _metric(weights: str) -> MILO:
    return MILO.from_pretrained(weights)


def _batch(image: Any, order: str) -> Tensor:
    """(1, C, H, W), RGB or grey, in [0, 1], on the CPU."""
    if isinstance(image, Tensor):
        return (image if image.ndim == 4 else image[None]).detach().float().cpu()
    if image is None or order not in ("HWC", "CHW"):
        what = "an image is missing" if image is None else f"{order!r} is neither 'HWC' nor 'CHW'"
        raise ConfigError(what, where="calculate_milo")
    array = np.asarray(image, dtype=np.float32)
    array = array[..., None] if array.ndim == 2 else array if order == "HWC" else array.transpose(1, 2, 0)
    pixels = torch.from_numpy(np.ascontiguousarray(array[..., ::-1].transpose(2, 0, 1) / 255))
    return pixels[None]
