"""Pairs of degraded and clean training patches, degraded as they are asked for, or read as pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from milo_restore.data.crops import CropKind, Crops, crop
from milo_restore.data.degrade import Degradation, build_degradation
from milo_restore.data.degrade.kernels import load_degradations
from milo_restore.data.keys import SampleKey, keyed_rng
from milo_restore.data.sources import Item, Source
from milo_restore.data.texts import TextSettings, text_of
from milo_restore.files.quarantine import Quarantine

STREAM = "degrade"


class DegradedPairs(Crops):
    """Patches for training a restorer: crop, mirror, then degrade.

    A sample is a pure function of ``seed`` and its `SampleKey`: the data set keeps no state, so that the order of
    access, the number of workers and the number of processes do not matter. Each epoch visits every image once, in an
    order keyed by (seed, epoch), where the epoch is ``position // len(images)``. Crop, mirroring and degradation are
    keyed by (seed, step, index).

    The patch is cut out first and degraded then, as DiffBIR does with its images of 512 pixels: so blur and resizing
    see the patch's own, mirrored edges. Images that bring a degraded counterpart are cut both at one place, and nothing
    is degraded; a counterpart of a whole fraction of the image's size is enlarged, bicubic, as DiffBIR's cleaner sees
    it.

    Args:
        images: names and (H, W, 3) uint8 arrays, as `load_collection`, `load_images` and `training_photographs` give;
            or a `Source`.
        degradation: one of `milo_restore.data.degrade.DEGRADATIONS` by name, with the published values; or what
            `build_degradation` gives. None: clean patches and their keys, to be degraded on the accelerator by
            `milo_restore.data.degrade.batch.degrade_batch`.
        seed: the run's seed.
        flip: mirror half of the patches left to right.
        crop: see `milo_restore.data.crops.crop`.
        texts: add a caption to each sample, see `milo_restore.data.texts`; None: without.
        quarantine: what cannot be trained on goes there, and another image stands in; None: it is an error.

    Raises:
        ConfigError: no such degradation, or an impossible seed.
        DataError: no images, or an array of another shape or type, by name.
    """

    def __init__(
        self,
        images: Sequence[tuple[str, NDArray[np.uint8]]] | Source,
        degradation: Degradation | str | None,
        *,
        seed: int = 0,
        flip: bool = True,
        crop: CropKind = "random",
        texts: TextSettings | None = None,
        quarantine: Quarantine | None = None,
    ) -> None:
        super().__init__(images, seed, quarantine)
        self.degradation = build_degradation(degradation) if isinstance(degradation, str) else degradation
        self.flip, self.crop, self.texts = flip, crop, texts
        if self.degradation is not None and self.degradation.name != "noise":
            load_degradations()  # here, where worker processes inherit it: each would take a second to import it

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """One sample.

        Args:
            key: (step, index, position, patch), a `SampleKey` or a plain tuple.

        Returns:
            ``input`` (3, p, p) float32, degraded, in [0, 1] except for Gaussian noise, which is not clipped;
            ``target`` (3, p, p) float32 in [0, 1], sharpened where the degradation says so; ``name`` of the image.
            Without a degradation, ``key`` (2,) int64, step and index, stands in place of ``input``. ``text``, the
            caption, where there are captions.

        Raises:
            DataError: the patch does not fit into the image, which is named; where the images are in memory, not into
                the smallest one. Nothing is padded.
        """
        step, index, position, patch = key
        item = self.image_at(position, patch, any_size=self.crop != "random")
        clean, degraded = self._crop(item, step, index, patch)
        sample: dict[str, Any] = {"name": item.name}
        if self.texts is not None:
            sample["text"] = text_of(item.texts, self.texts, self.seed, step, index)
        if degraded is not None:
            return {"input": _tensor(degraded), "target": _tensor(clean), **sample}
        if self.degradation is None:
            return {"target": _tensor(clean), "key": torch.tensor([step, index]), **sample}
        degraded, target = self.degradation(clean, keyed_rng(self.seed, STREAM, step, index))
        return {"input": _tensor(degraded), "target": _tensor(target), **sample}

    def decode_all(self, patch: int, *, any_size: bool = False) -> str:
        """Decode every image, see `milo_restore.data.decoding.decode_all`; ADM's crops take any size."""
        return super().decode_all(patch, any_size=any_size or self.crop != "random")

    def _crop(
        self, item: Item, step: int, index: int, patch: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """The image's patch and its counterpart's, (p, p, 3) in [0, 1]."""
        rng = keyed_rng(self.seed, "crop", step, index)
        patches = crop(item, patch, self.crop, rng)
        if self.flip and rng.random() < 0.5:
            patches = [image[:, ::-1] for image in patches]
        first, *second = [np.ascontiguousarray(image).astype(np.float32) / np.float32(255) for image in patches]
        return first, second[0] if second else None


def _tensor(image: NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
