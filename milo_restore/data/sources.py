"""Training images by number, wherever they lie, and which of them a sample shows when its own cannot be used."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from milo_restore.data.keys import epoch_order, keyed_rng
from milo_restore.errors import DataError
from milo_restore.files.quarantine import TRIES, Quarantine


class Item(NamedTuple):
    """Content of a source under a number.

    Attributes:
        name: for messages and logs.
        image: (H, W, 3) uint8.
        degraded: the image's degraded counterpart, of its size or a whole fraction of it; None: there is none.
        texts: its captions, none, one, or a short and a long one.
    """

    name: str
    image: NDArray[np.uint8]
    degraded: NDArray[np.uint8] | None = None
    texts: tuple[str, ...] = ()


class Source(ABC):
    """Training images by number, from 0."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def path(self, number: int) -> str:
        """Where an image lies, as quarantine names it. Nothing is read."""

    @abstractmethod
    def read(self, number: int) -> Item:
        """Read an image and what belongs to it.

        Raises:
            DataError: it cannot be read; it is named.
        """

    def number_at(self, seed: int, position: int) -> int:
        """Which image comes at ``position`` of a run: each epoch visits every one once, in an order of its own."""
        epoch, place = divmod(position, len(self))
        return int(epoch_order(seed, epoch, len(self))[place])


class InMemory(Source):
    """Decoded images: names and (H, W, 3) uint8 arrays."""

    def __init__(self, images: Sequence[tuple[str, NDArray[np.uint8]]]) -> None:
        self.images = list(images)

    def __len__(self) -> int:
        return len(self.images)

    def path(self, number: int) -> str:
        """The image's name."""
        return self.images[number][0]

    def read(self, number: int) -> Item:
        """The image; nothing is read."""
        return Item(*self.images[number])


class Picker:
    """Choice of a sample's image: its own, or another one in its place where that is in quarantine, or goes there.

    The other one is drawn by the sample's key. So it is the same on any number of workers and processes, and when the
    run goes on after a stop, as long as the bad file stays as it is or the list goes with the run.

    Args:
        source: the images.
        seed: the run's.
        quarantine: where bad files go; None: a bad file is an error.
    """

    def __init__(self, source: Source, seed: int, quarantine: Quarantine | None) -> None:
        self.source, self.seed, self.quarantine = source, seed, quarantine
        if quarantine is not None:
            quarantine.files += len(source)

    def pick(self, number: int, patch: int, stream: str, *key: int) -> tuple[int, Item]:
        """The image to show for ``number``, and its number.

        Args:
            number: the sample's own image.
            patch: pixels that its shorter side must have; 0: any will do.
            stream: of the numbers that replacements are drawn with, and
            key: the sample's key in it.

        Raises:
            DataError: it cannot be used, and there is no quarantine; or nothing that was drawn in its place can.
        """
        if self.quarantine is None:
            return number, self.sound(number, patch)
        reason = ""
        for attempt in range(1, TRIES + 1):
            path = self.source.path(number)
            if not self.quarantine.holds(path):
                try:
                    return number, self.sound(number, patch)
                except DataError as error:
                    self.quarantine.add(path, error)
                    reason = f"; the last one, {path}: {error.what}"
            number = int(keyed_rng(self.seed, stream, *key, attempt).integers(len(self.source)))
        what = f"{TRIES} images in a row cannot be trained on{reason}"
        raise DataError(what, where=self.source.path(number), mend="See that the images can be reached and are whole")

    def sound(self, number: int, patch: int) -> Item:
        """An image that can be trained on.

        Raises:
            DataError: it cannot be read, the patch does not fit, or its counterpart's size does not go with its own.
        """
        item = self.source.read(number)
        check_fits(self.source.path(number), item.image, patch)
        if item.degraded is not None:
            scale_between(self.source.path(number), item.image, item.degraded)
        return item


def check_fits(name: str, image: NDArray[np.uint8], patch: int) -> None:
    """Refuse an image that a patch does not fit into.

    Raises:
        DataError: naming it.
    """
    height, width = image.shape[:2]
    if min(height, width) < patch:
        what = f"a patch of {patch} pixels does not fit into {width}x{height}"
        mend = f"Cap the patches at {min(height, width)}, or leave this image out"
        raise DataError(what, where=name, mend=mend)


def scale_between(name: str, image: NDArray[np.uint8], degraded: NDArray[np.uint8]) -> int:
    """Factor by which the degraded one of a pair is smaller; 1: equal in size.

    Raises:
        DataError: its size is no whole fraction of the image's.
    """
    height, width = image.shape[:2]
    scale = height // max(degraded.shape[0], 1)
    if scale < 1 or (degraded.shape[0] * scale, degraded.shape[1] * scale) != (height, width):
        what = f"its degraded image has {degraded.shape[1]}x{degraded.shape[0]}, no whole fraction of {width}x{height}"
        mend = "Pairs are of one size, or the degraded image is 2, 3, 4, ... times smaller"
        raise DataError(what, where=name, mend=mend)
    return scale
