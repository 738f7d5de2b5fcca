"""What a metric of `milo_restore.evaluate.suite` is, what it is given, and the protocol of PSNR and SSIM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from milo_restore.data.images import to_tensor
from milo_restore.errors import ConfigError

_SSIM = "Gaussian window 11x11, sigma 1.5, K 0.01 and 0.03, valid pixels only, no downsampling, mean over channels"


@dataclass(frozen=True)
class Protocol:
    """How images become numbers. Only `psnr` and `ssim` have choices; all other metrics see the whole RGB image.

    Attributes:
        colour: ``rgb``, or ``y``: the luma of YCbCr in BasicSR's limited range, 16 to 235, not rounded.
        border: pixels cut off at each side.
    """

    colour: Literal["rgb", "y"] = "rgb"
    border: int = 0

    def __post_init__(self) -> None:
        if self.colour not in ("rgb", "y"):
            raise ConfigError(f"{self.colour!r} is neither rgb nor y", where="colour")
        if self.border < 0:
            raise ConfigError(f"{self.border} is less than 0", where="border")

    def as_dict(self) -> dict[str, Any]:
        """Everything that is fixed or chosen, for the results."""
        return {
            "colour": self.colour, "border": self.border, "peak": 255, "quantisation": "8-bit", "ssim": _SSIM,
            "resize": "none", "applies_to": "psnr and ssim; other metrics see the whole 8-bit RGB image, from 0 to 1",
        }  # fmt: skip

    def __str__(self) -> str:
        colour = "RGB" if self.colour == "rgb" else "Y of BasicSR's YCbCr (16 to 235)"
        return (
            f"psnr and ssim of {colour}, border {self.border}, peak 255; 8-bit files, nothing resized; SSIM: {_SSIM}; "
            "other metrics of the whole RGB image"
        )


PROTOCOLS = {
    "denoising": Protocol(),  # Restormer's evaluation: RGB, no border, 8-bit
    "super-resolution": Protocol(),  # DiffBIR publishes no metric code; its tables are of whole RGB images
    "super-resolution-y": Protocol("y", 4),  # what BasicSR's and most x4 tables print
}


class Batch:
    """Images of one size with their references, as arrays and, made when asked for, as tensors.

    Args:
        images: (H, W, 3) uint8 RGB each.
        references: the same, or None.
        device: of the tensors.
    """

    def __init__(
        self,
        images: Sequence[NDArray[np.uint8]],
        references: Sequence[NDArray[np.uint8]] | None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.images, self._references, self.device = list(images), references, torch.device(device)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def references(self) -> list[NDArray[np.uint8]]:
        """The references' arrays."""
        if self._references is None:
            raise ConfigError("a full-reference metric needs references", mend="Give --ref")
        return list(self._references)

    @cached_property
    def image_tensor(self) -> Tensor:
        """(N, 3, H, W), float32, RGB in [0, 1]."""
        return torch.stack([to_tensor(array) for array in self.images]).to(self.device)

    @cached_property
    def reference_tensor(self) -> Tensor:
        """The same of the references."""
        return torch.stack([to_tensor(array) for array in self.references]).to(self.device)

    def select(self, rows: Sequence[int]) -> Batch:
        """Some of the images; itself where that is all."""
        if list(rows) == list(range(len(self))):
            return self
        references = None if self._references is None else [self._references[row] for row in rows]
        return Batch([self.images[row] for row in rows], references, self.device)


@dataclass(frozen=True)
class SuiteMetric:
    """A metric ready to measure.

    Attributes:
        name: as asked for.
        lower_better: its direction.
        reference: whether it needs references.
        source: the software, with its version.
        formal: the software's own name for it; of this project's ``psnr`` and ``ssim``, what equals it in pyiqa.
        weights: which, for people; None without any.
        weights_sha256: of the file (ours) or of all tensors (others').
        settings: whatever else its values depend on.
        note: what must be said wherever a value is printed.
        batched: whether a batch gives each image what it gets alone; others are measured one by one.
        measure: a batch's values, one per image.
    """

    name: str
    lower_better: bool
    reference: bool
    source: str
    formal: str
    weights: str | None
    weights_sha256: str | None
    measure: Callable[[Batch], list[float]]
    settings: str = ""
    note: str | None = None
    batched: bool = True

    def identity(self) -> dict[str, str | None]:
        """What a value depends on, beside the images: the key of the cache."""
        software = f"{self.source}, {self.settings}" if self.settings else self.source
        return {"metric": base_name(self.name), "software": software, "weights_sha256": self.weights_sha256}

    def as_dict(self) -> dict[str, Any]:
        """The entry of results.json."""
        entry: dict[str, Any] = {
            "better": "lower" if self.lower_better else "higher", "reference": self.reference, "source": self.source,
            "name": self.formal, "weights": self.weights, "weights_sha256": self.weights_sha256,
        }  # fmt: skip
        return entry if self.note is None else {**entry, "note": self.note}


def base_name(name: str) -> str:
    """The metric without its weights, and without the prefix that says that it is pyiqa's."""
    return name.removeprefix("pyiqa:").partition(":")[0]
