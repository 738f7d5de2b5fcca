"""A metric by name, the batch it measures, and its row in the table."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import milo_restore
from milo_restore.data.images import to_tensor
from milo_restore.errors import ConfigError, MiloRestoreError
from milo_restore.measure.metrics.protocol import Protocol

OURS = f"milo-restore {milo_restore.__version__}"
"""The software of this project's own metrics."""
REFUSALS = (MiloRestoreError, RuntimeError, ValueError, AssertionError, IndexError, ArithmeticError)
"""Errors by which metrics refuse an image, too small ones above all."""


class MetricUnavailable(MiloRestoreError):
    """A metric is known, but its weights or its package cannot be had here.

    Args:
        what: why.
        where: the metric, with the file concerned.
        mend: what helps.
        fetch: ``milo-restore assets fetch --metrics NAME`` helps, where there is a network.
    """

    def __init__(
        self, what: str, *, where: str | Path | None = None, mend: str | None = None, fetch: bool = False
    ) -> None:
        super().__init__(what, where=where, mend=mend)
        self.fetch = fetch


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
        self._cuts: dict[tuple[int, int], Batch] = {}

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

    def cut(self, protocol: Protocol) -> Batch:
        """The parts that a protocol measures, one and the same batch for all metrics; itself where that is all.

        Raises:
            DataError: nothing is left of an image.
        """
        cut = protocol.modcrop, protocol.border
        if cut == (1, 0):
            return self
        if cut not in self._cuts:
            parts = None if self._references is None else [protocol.cut(array) for array in self._references]
            self._cuts[cut] = Batch([protocol.cut(array) for array in self.images], parts, self.device)
        return self._cuts[cut]

    def tensors_8bit(self) -> tuple[Tensor, Tensor]:
        """Images and references as (N, 3, H, W) uint8, RGB; of one image on the CPU the arrays' own memory."""
        first, second = (_stacked(arrays).to(self.device) for arrays in (self.images, self.references))
        return first, second

    def select(self, rows: Sequence[int]) -> Batch:
        """Some of the images; itself where that is all."""
        if list(rows) == list(range(len(self))):
            return self
        references = None if self._references is None else [self._references[row] for row in rows]
        return Batch([self.images[row] for row in rows], references, self.device)


@dataclass(frozen=True)
class Metric:
    """A metric ready to measure.

    Attributes:
        name: as asked for.
        lower_better: its direction.
        reference: whether it needs references.
        source: the software, with its version.
        formal: the software's own name for it; of this project's ``psnr`` and ``ssim``, what they are in pyiqa.
        weights: which, for people; None without any.
        weights_sha256: of the file (ours) or of all tensors (others').
        settings: whatever else its values depend on.
        note: what must be said wherever a value is printed.
        batched: whether a batch gives each image what it gets alone; others are measured one by one.
        measure: a batch's values, one per image.
        module: MILO itself, or another of this project's modules; None for other software.
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
    module: Any = None

    def identity(self) -> dict[str, str | None]:
        """Everything a value depends on, beside the images: the key of the cache."""
        software = f"{self.source}, {self.settings}" if self.settings else self.source
        return {"metric": base_name(self.name), "software": software, "weights_sha256": self.weights_sha256}

    def as_dict(self) -> dict[str, Any]:
        """The entry of results.json."""
        entry: dict[str, Any] = {
            "better": "lower" if self.lower_better else "higher", "reference": self.reference, "source": self.source,
            "name": self.formal, "weights": self.weights, "weights_sha256": self.weights_sha256,
        }  # fmt: skip
        return entry if self.note is None else {**entry, "note": self.note}


@dataclass(frozen=True)
class Known:
    """A row of the table of metrics, see `milo_restore.measure.metrics.table`.

    Attributes:
        load: the metric of this name, on this device; of ``psnr`` and ``ssim`` in this protocol's colour. What it cuts
            off is cut before, by `milo_restore.measure.metrics.load.load_metric`.
        reference: it compares with a reference; False for no-reference metrics.
        weights: it takes weights after a colon.
        whole: it has one number of a whole folder and none of an image; ``load`` says so.
    """

    load: Callable[[str, Protocol, torch.device], Metric]
    reference: bool = True
    weights: bool = False
    whole: bool = False


def _stacked(arrays: Sequence[NDArray[np.uint8]]) -> Tensor:
    # torch neither shares arrays that are read-only nor those that run backwards.
    shared = (a if a.flags.writeable and min(a.strides) > 0 else a.copy() for a in arrays)
    tensors = [torch.from_numpy(array).permute(2, 0, 1) for array in shared]
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


@contextlib.contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Leave the random numbers of torch, numpy and Python as they were, whatever other software draws meanwhile."""
    numbers, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(numbers)
        np.random.set_state(legacy)  # noqa: NPY002


def base_name(name: str) -> str:
    """The metric without its weights, and without the prefix that says that it is pyiqa's."""
    return name.removeprefix("pyiqa:").partition(":")[0]
