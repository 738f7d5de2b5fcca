"""Pairs for training MILO: photographs and their KADID distortions, synthesised as they are asked for."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from milo_restore.data.image_sets import centre_crop
from milo_restore.data.images import list_images_below, read_image, to_tensor
from milo_restore.data.kadid import DISTORTIONS, LEVELS, GeneratorName, check_generator, distort
from milo_restore.data.keys import SampleKey, epoch_order, keyed_rng
from milo_restore.data.sources import Item, Picker, Source
from milo_restore.errors import ConfigError, DataError
from milo_restore.files import DATASETS, find_dataset
from milo_restore.files.quarantine import Quarantine

ALL_DISTORTIONS = tuple(kind.number for kind in DISTORTIONS)
_UNITS = {"": 1, "k": 1_000, "M": 1_000_000}

Reference = Path | tuple[str, NDArray[np.uint8]]
"""An image file, or the name and (H, W, 3) uint8 pixels of an image that is in memory."""


class Pair(NamedTuple):
    """Which distorted image: number of the reference, KADID's number of the distortion, and its level."""

    reference: int
    distortion: int
    level: int


def find_references(folder: str | Path, count: int | str | None, seed: int) -> tuple[list[Path], int]:
    """Choose reference images from a folder and the folders below it, as ImageNet's classes are stored.

    Args:
        folder: of images, or the name of a data set (`milo_restore.files.DATASETS`), such as BSD400.
        count: as Table 1 of the paper writes it: 10000, ``10k`` or ``1M``, to be paired with all distortions, or with
            a star, ``100k*``, with one random distortion each, ``100k*8`` with eight. None: all images; ``*``: all,
            one distortion each.
        seed: which images, where not all: a random choice, the same everywhere.

    Returns:
        The files, and how many random distortions each gets; 0: all distortions.

    Raises:
        ConfigError: another spelling.
        DataError: no such folder, or fewer images than asked for.
    """
    match = re.fullmatch(r"(?:(\d+)(k|M)?)?(\*(\d*))?", "" if count is None else str(count))
    if match is None or "0" in (match.group(1), match.group(4)):
        mend = "Write 10000, 10k or 1M; 100k* for one random distortion each, 100k*8 for eight; null for all images"
        raise ConfigError(f"{count!r} is no number of reference images", where="references", mend=mend)
    found = find_dataset(str(folder)) if str(folder) in DATASETS else list_images_below(folder)
    wanted = int(match.group(1)) * _UNITS[match.group(2) or ""] if match.group(1) else len(found)
    if wanted > len(found):
        what = f"holds {len(found)} images, {wanted} are wanted"
        raise DataError(what, where=folder, mend="Lower references, or name a larger folder")
    chosen = keyed_rng(seed, "references").permutation(len(found))[:wanted]
    return [found[i] for i in sorted(chosen)], 0 if match.group(3) is None else int(match.group(4) or 1)


def centre_square(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The largest centre square of an image, resized to ``side`` (supplement, section 1); bicubic, antialiased."""
    short = min(image.shape[:2])
    square = Image.fromarray(centre_crop(image, short))
    return np.asarray(square.resize((side, side), Image.Resampling.BICUBIC)) if short != side else np.asarray(square)


class DistortedPairs(Dataset[dict[str, Any]]):
    """Every reference with every distortion at every level, or with so many random ones each.

    An image is made a square, distorted as a whole, and then cut to the patch that the key asks for, the same place in
    both. A sample is a pure function of ``seed`` and its key; each epoch visits every pair once.

    Args:
        references: files, or images in memory.
        one_each: True or 1: one random distortion and level per reference (Table 1's star), the same in every epoch;
            k: that many different ones.
        square: side of the square that is distorted, in pixels; the paper's is 256.
        unscaled: cut the square from a random place of the image, which depends on its number in the list, in place
            of resizing the largest centre square.
        seed: of the order, the distortions' random draws and the crops.
        distortions: KADID's numbers of those to use.
        generator: ``published``, KADID-10k's own functions, or ``clipped``, see `milo_restore.data.kadid`.
        quarantine: references that cannot be read go there, and another one stands in; None: it is an error.

    Raises:
        ConfigError: a side below 16, no such distortion or generator, or more distortions each than there are.
        DataError: no references.
    """

    def __init__(
        self,
        references: Sequence[Reference],
        *,
        one_each: bool | int = False,
        square: int = 256,
        unscaled: bool = False,
        seed: int = 0,
        distortions: Sequence[int] = ALL_DISTORTIONS,
        generator: GeneratorName = "published",
        quarantine: Quarantine | None = None,
    ) -> None:
        if not references:
            raise DataError("no reference images to distort")
        if square < 16:
            raise ConfigError(f"squares have sides of at least 16 pixels, got {square}", where="square")
        if not distortions or not set(distortions) <= set(ALL_DISTORTIONS):
            raise ConfigError(f"{list(distortions)} are not numbers from 1 to 25", where="distortions")
        if not 0 <= one_each <= len(distortions) * LEVELS:
            what = f"{one_each} different distortions each of {len(distortions) * LEVELS}"
            raise ConfigError(what, where="references", mend="Lower the number behind the star")
        self.references, self.one_each, self.square, self.seed = list(references), one_each, square, seed
        self.unscaled = unscaled
        check_generator(generator)
        self.distortions, self.generator = tuple(distortions), generator
        # Workers get a copy each; small sets stay decoded in memory, large ones pass through.
        self._read = functools.lru_cache(maxsize=1024)(self._read_square)
        self.quarantine = quarantine
        self._picker = Picker(_Squares(self), seed, quarantine)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_read"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._read = functools.lru_cache(maxsize=1024)(self._read_square)

    def __len__(self) -> int:
        """The number of pairs, which is the length of an epoch. Keys go on beyond it."""
        return len(self.references) * self._each

    @property
    def _each(self) -> int:
        """Number of pairs of one reference."""
        return int(self.one_each) or len(self.distortions) * LEVELS

    def pair(self, number: int) -> Pair:
        """The ``number``-th of all pairs, in a fixed order: by reference, then distortion, then level."""
        if self.one_each == 1:
            rng = keyed_rng(self.seed, "one distortion", number)
            return Pair(number, int(rng.choice(self.distortions)), int(rng.integers(1, LEVELS, endpoint=True)))
        if self.one_each:
            reference, place = divmod(number, self.one_each)
            order = keyed_rng(self.seed, "distortions", reference).permutation(len(self.distortions) * LEVELS)
            kind, level = divmod(int(order[place]), LEVELS)
            return Pair(reference, self.distortions[kind], level + 1)
        rest, level = divmod(number, LEVELS)
        reference, kind = divmod(rest, len(self.distortions))
        return Pair(reference, self.distortions[kind], level + 1)

    def pairs_of(self, reference: int) -> list[Pair]:
        """All pairs of one reference, in the order of `pair`."""
        return [self.pair(reference * self._each + place) for place in range(self._each)]

    def index_of(self, pair: Pair) -> int:
        """Index of a pair in `pairs_of` its reference."""
        if self.one_each:
            return self.pairs_of(pair.reference).index(pair)
        return self.distortions.index(pair.distortion) * LEVELS + pair.level - 1

    def at(self, position: int) -> Pair:
        """The pair at ``position`` of the run."""
        epoch, place = divmod(position, len(self))
        return self.pair(int(epoch_order(self.seed, epoch, len(self))[place]))

    def sound_at(self, position: int) -> Pair:
        """The pair at ``position``; where its reference cannot be read, with another one in its place.

        Raises:
            DataError: it cannot be read, and there is no quarantine.
        """
        pair = self.at(position)
        return pair._replace(reference=self._picker.pick(pair.reference, 0, "replacement", position)[0])

    def square_of(self, reference: int) -> NDArray[np.uint8]:
        """A reference image's square, (square, square, 3) uint8. Not to be written to.

        Raises:
            DataError: the image cannot be read.
        """
        return self._read(reference)

    def images(self, pair: Pair) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The distorted square and its reference, both (square, square, 3) uint8."""
        reference = self.square_of(pair.reference)
        distorted = distort(reference, pair.distortion, pair.level, seed=self.seed, generator=self.generator)
        return distorted, reference

    def name(self, pair: Pair) -> str:
        """Name of a pair in messages: the image, the distortion, the level."""
        return f"{self.reference_name(pair.reference)} distortion {pair.distortion} level {pair.level}"

    def reference_name(self, number: int) -> str:
        """Name of a reference image in messages."""
        reference = self.references[number]
        return reference.name if isinstance(reference, Path) else reference[0]

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """One sample: ``image`` and ``reference``, (3, p, p) float32 in [0, 1], and ``name``.

        Raises:
            DataError: an image cannot be read.
            ConfigError: the patch is larger than the square.
        """
        pair = self.sound_at(key[2])
        rows, columns = self._window(key)
        image, reference = (to_tensor(side[rows, columns]) for side in self.images(pair))
        return {"image": image, "reference": reference, "name": self.name(pair)}

    def reference_crop(self, key: SampleKey) -> NDArray[np.uint8]:
        """The reference of the sample under ``key``, (p, p, 3) uint8, without the work of distorting it."""
        rows, columns = self._window(key)
        return self.square_of(self.sound_at(key[2]).reference)[rows, columns]

    def _window(self, key: SampleKey) -> tuple[slice, slice]:
        step, index, _, patch = key
        if patch > self.square:
            raise ConfigError(f"a patch of {patch} does not fit into squares of {self.square}", where="patch")
        rng = keyed_rng(self.seed, "crop", step, index)
        top, left = (int(rng.integers(self.square - patch + 1)) for _ in range(2))
        return slice(top, top + patch), slice(left, left + patch)

    def _read_square(self, number: int) -> NDArray[np.uint8]:
        reference = self.references[number]
        image = read_image(reference) if isinstance(reference, Path) else reference[1]
        if not self.unscaled:
            return centre_square(image, self.square)
        if min(image.shape[:2]) < self.square:
            what = f"no square of {self.square} pixels fits into {image.shape[1]}x{image.shape[0]}"
            raise DataError(what, where=self.reference_name(number), mend="Lower data.square, or leave data.views out")
        rng = keyed_rng(self.seed, "view", number)
        top, left = (int(rng.integers(side - self.square + 1)) for side in image.shape[:2])
        return np.ascontiguousarray(image[top : top + self.square, left : left + self.square])


class _Squares(Source):
    """The references of pairs, as squares."""

    def __init__(self, pairs: DistortedPairs) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs.references)

    def path(self, number: int) -> str:
        """The file, or the name of an image in memory."""
        reference = self.pairs.references[number]
        return str(reference) if isinstance(reference, Path) else reference[0]

    def read(self, number: int) -> Item:
        """The square."""
        return Item(self.pairs.reference_name(number), self.pairs.square_of(number))
