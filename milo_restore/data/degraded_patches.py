"""Pairs of degraded and clean training patches, degraded as they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from milo_restore.data.crops import Crops, cut
from milo_restore.data.degrade import Degradation, build_degradation
from milo_restore.data.degrade.kernels import load_degradations
from milo_restore.data.images import read_image
from milo_restore.data.keys import SampleKey, keyed_rng
from milo_restore.errors import DataError

STREAM = "degrade"


class DegradedPairs(Crops):
    """Patches for training a restorer: crop, mirror, then degrade.

    A sample is a pure function of ``seed`` and its `SampleKey`: the data set keeps no state, so that the order of
    access, the number of workers and the number of processes do not matter. Each epoch visits every image once, in an
    order keyed by (seed, epoch), where the epoch is ``position // len(images)``. Crop, mirroring and degradation are
    keyed by (seed, step, index).

    The patch is cut out first and degraded then, as DiffBIR does with its images of 512 pixels: so blur and resizing
    see the patch's own, mirrored edges.

    Args:
        images: names and (H, W, 3) uint8 arrays, as `load_collection`, `load_images` and `training_photographs` give.
        degradation: one of `milo_restore.data.degrade.DEGRADATIONS` by name, with the published values; or what
            `build_degradation` gives. None: clean patches and their keys, to be degraded on the accelerator by
            `milo_restore.data.degrade.batch.degrade_batch`.
        seed: the run's seed.
        flip: mirror half of the patches left to right.

    Raises:
        ConfigError: no such degradation, or an impossible seed.
        DataError: no images, or an array of another shape or type, by name.
    """

    def __init__(
        self,
        images: Sequence[tuple[str, NDArray[np.uint8]]],
        degradation: Degradation | str | None,
        *,
        seed: int = 0,
        flip: bool = True,
    ) -> None:
        super().__init__(images, seed)
        self.degradation = build_degradation(degradation) if isinstance(degradation, str) else degradation
        self.flip = flip
        if self.degradation is not None and self.degradation.name != "noise":
            load_degradations()  # here, where worker processes inherit it: each would take a second to import it

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """One sample.

        Args:
            key: (step, index, position, patch), a `SampleKey` or a plain tuple.

        Returns:
            ``input`` (3, p, p) float32, degraded, in [0, 1] except for Gaussian noise, which is not clipped;
            ``target`` (3, p, p) float32 in [0, 1], sharpened where the degradation says so; ``name`` of the image.
            Without a degradation, ``key`` (2,) int64, step and index, stands in place of ``input``.

        Raises:
            DataError: the patch does not fit into the smallest image, which is named. Nothing is padded.
        """
        step, index, position, patch = key
        self.check_patch(patch)
        name, image = self.images[self.image_number(position)]
        clean = self._crop(image, step, index, patch)
        if self.degradation is None:
            return {"target": _tensor(clean), "key": torch.tensor([step, index]), "name": name}
        degraded, target = self.degradation(clean, keyed_rng(self.seed, STREAM, step, index))
        return {"input": _tensor(degraded), "target": _tensor(target), "name": name}

    def _crop(self, image: NDArray[np.uint8], step: int, index: int, patch: int) -> NDArray[np.float32]:
        rng = keyed_rng(self.seed, "crop", step, index)
        crop = cut(image, patch, rng)
        if self.flip and rng.random() < 0.5:
            crop = crop[:, ::-1]
        return np.ascontiguousarray(crop).astype(np.float32) / np.float32(255)


class Files(Sequence[Any]):
    """Image files as (name, array), each read when it is asked for: for sets that do not fit into memory."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: Any) -> tuple[str, NDArray[np.uint8]]:
        return self.paths[number].name, read_image(self.paths[number])


class FilePairs(DegradedPairs):
    """`DegradedPairs` of images that stay on disk."""

    def __init__(self, files: Files, degradation: Degradation | None, *, seed: int) -> None:
        super().__init__([files[0]], degradation, seed=seed)
        self.images: Any = files

    def _crop(self, image: NDArray[np.uint8], step: int, index: int, patch: int) -> NDArray[np.float32]:
        if min(image.shape[:2]) < patch:
            what = f"a patch of {patch} pixels does not fit into an image of {image.shape[1]}x{image.shape[0]}"
            raise DataError(what, where="data.train", mend="Leave small images out, or take smaller patches")
        return super()._crop(image, step, index, patch)


def _tensor(image: NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
