"""Base of all data sets of random training crops: their images, their epochs, and the place of a crop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from milo_restore.data.decoding import decode_all
from milo_restore.data.sources import InMemory, Item, Picker, Source, check_fits, scale_between
from milo_restore.errors import ConfigError, DataError
from milo_restore.files.quarantine import Quarantine

CropKind = Literal["random", "adm-center", "adm-random"]
ADM_LEAST = 0.7
"""Least share of the shorter side that a random ADM crop shows; DiffBIR's value (diffbir/dataset/realesrgan.py, commit
3f8b530), ADM's own is 0.8."""


class Crops(Dataset[dict[str, Any]]):
    """Images to cut square patches from. Each epoch visits every image once, in an order keyed by (seed, epoch).

    Args:
        images: names and (H, W, 3) uint8 arrays, as `load_collection`, `load_images` and `training_photographs` give;
            or a `Source`.
        seed: the run's seed.
        quarantine: what cannot be trained on goes there, and another image stands in; None: it is an error.

    Raises:
        ConfigError: an impossible seed.
        DataError: no images, or an array of another shape or type, by name.
    """

    def __init__(
        self,
        images: Sequence[tuple[str, NDArray[np.uint8]]] | Source,
        seed: int,
        quarantine: Quarantine | None = None,
    ) -> None:
        if not len(images):
            raise DataError("no images to train on")
        if not -(2**63) <= seed < 2**63:
            raise ConfigError(f"a seed has at most 64 bits, got {seed}", where="seed")
        self.source = images if isinstance(images, Source) else InMemory(images)
        self.seed, self.quarantine = seed, quarantine
        self._smallest: tuple[str, NDArray[np.uint8]] | None = None
        if isinstance(self.source, InMemory):
            _check_arrays(self.source.images)
            self._smallest = min(self.source.images, key=lambda item: min(item[1].shape[:2]))
        self._picker = Picker(self.source, seed, quarantine)

    def __len__(self) -> int:
        """The number of images, which is the length of an epoch. Keys go on beyond it."""
        return len(self.source)

    def image_number(self, position: int) -> int:
        """Which image the sample at ``position`` of the run comes from, where that one can be used."""
        return self.source.number_at(self.seed, position)

    def image_at(self, position: int, patch: int, *, any_size: bool = False) -> Item:
        """The image of the sample at ``position``, which a patch fits into; another one where its own cannot be used.

        Args:
            position: samples drawn before it in the run.
            patch: side of the patch.
            any_size: an image that it does not fit into will be enlarged.

        Raises:
            ConfigError: the patch has no pixel.
            DataError: there is no such image; without a quarantine, the patch does not fit. Nothing is padded.
        """
        self.check_patch(patch, any_size=any_size)
        return self._picker.pick(self.image_number(position), 0 if any_size else patch, "replacement", position)[1]

    def decode_all(self, patch: int, *, any_size: bool = False) -> str:
        """Decode every image, see `milo_restore.data.decoding.decode_all`.

        Args:
            patch: the largest side of the run's patches.
            any_size: smaller images will be enlarged.
        """
        least = 0 if any_size else patch
        return decode_all(len(self), lambda number: self._picker.sound(number, least), self.quarantine)

    def check_patch(self, patch: int, *, any_size: bool = False) -> None:
        """Refuse a patch that does not fit into every image that is in memory, where there is no quarantine.

        Raises:
            ConfigError: it has no pixel.
            DataError: it does not fit into the smallest image, which is named.
        """
        if self._smallest is not None and self.quarantine is None and not any_size:
            check_fits(*self._smallest, patch)
        if patch < 1:
            raise ConfigError(f"a patch has at least one pixel, got {patch}", where="patch")


def _check_arrays(images: Sequence[tuple[str, NDArray[np.uint8]]]) -> None:
    for name, image in images:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise DataError(f"expected an (H, W, 3) uint8 array, got {image.shape} {image.dtype}", where=name)


def crop(item: Item, patch: int, kind: CropKind, rng: np.random.Generator) -> list[NDArray[np.uint8]]:
    """A square of an image, (p, p, 3), and where it has a degraded counterpart, the same place of that.

    Args:
        item: the image.
        patch: p, in pixels.
        kind: ``random``: pixels as they are, from anywhere. ``adm-center``, as DiffBIR's own training: the image made
            so small that its shorter side is p, and its centre; ``adm-random``: the shorter side between p and p / 0.7,
            and from anywhere. Both halve the image by averaging while it is twice that or more, and are bicubic then
            (Dhariwal and Nichol, 2021, guided-diffusion's image_datasets.py); an image that is smaller is enlarged.
        rng: the sample's.
    """
    if kind == "random":
        return [cut(item.image, patch, rng)] if item.degraded is None else _cut_both(item, item.degraded, patch, rng)
    longest = math.ceil(patch / ADM_LEAST) if kind == "adm-random" else patch
    side = int(rng.integers(patch, longest, endpoint=True)) if longest > patch else patch
    shrunk = _shrunk(item.image, side)
    if kind == "adm-random":
        return [cut(shrunk, patch, rng)]
    top, left = ((length - patch) // 2 for length in shrunk.shape[:2])
    return [shrunk[top : top + patch, left : left + patch]]


def cut(image: NDArray[np.uint8], patch: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A square of ``patch`` pixels a side, anywhere in the image, as a view."""
    height, width = image.shape[:2]
    top, left = int(rng.integers(height - patch + 1)), int(rng.integers(width - patch + 1))
    return image[top : top + patch, left : left + patch]


def _shrunk(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """An image whose shorter side is ``side``."""
    picture = Image.fromarray(image)
    while min(picture.size) >= 2 * side:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = side / min(picture.size)
    size = round(picture.width * scale), round(picture.height * scale)
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))


def enlarged(image: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """An image so many times larger, bicubic, (H * scale, W * scale, 3)."""
    if scale == 1:
        return image
    size = (image.shape[1] * scale, image.shape[0] * scale)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _cut_both(item: Item, degraded: NDArray[np.uint8], patch: int, rng: np.random.Generator) -> list[NDArray[np.uint8]]:
    """The same square of both, on the degraded one's grid.

    Raises:
        ConfigError: the patch is no multiple of the scale.
    """
    scale = scale_between(item.name, item.image, degraded)
    if patch % scale:
        what = f"a patch of {patch} pixels is no multiple of the {scale} that {item.name} was made smaller by"
        raise ConfigError(what, where="training.stages")
    small = patch // scale
    top, left = (int(rng.integers(length - small + 1)) for length in degraded.shape[:2])
    first = item.image[top * scale : top * scale + patch, left * scale : left * scale + patch]
    return [first, enlarged(degraded[top : top + small, left : left + small], scale)]
