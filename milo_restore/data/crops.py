"""Base of all data sets of random training crops: their images, their epochs, and the place of a crop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from milo_restore.data.keys import epoch_order
from milo_restore.errors import ConfigError, DataError


class Crops(Dataset[dict[str, Any]]):
    """Images to cut square patches from. Each epoch visits every image once, in an order keyed by (seed, epoch).

    Args:
        images: names and (H, W, 3) uint8 arrays, as `load_collection`, `load_images` and `training_photographs` give.
        seed: the run's seed.

    Raises:
        ConfigError: an impossible seed.
        DataError: no images, or an array of another shape or type, by name.
    """

    def __init__(self, images: Sequence[tuple[str, NDArray[np.uint8]]], seed: int) -> None:
        if not images:
            raise DataError("no images to train on")
        for name, image in images:
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise DataError(f"expected an (H, W, 3) uint8 array, got {image.shape} {image.dtype}", where=name)
        if not -(2**63) <= seed < 2**63:
            raise ConfigError(f"a seed has at most 64 bits, got {seed}", where="seed")
        self.images = list(images)
        self.seed = seed
        self._smallest = min(self.images, key=lambda item: min(item[1].shape[:2]))

    def __len__(self) -> int:
        """The number of images, which is the length of an epoch. Keys go on beyond it."""
        return len(self.images)

    def image_number(self, position: int) -> int:
        """Which image the sample at ``position`` of the run comes from."""
        epoch, place = divmod(position, len(self.images))
        return int(epoch_order(self.seed, epoch, len(self.images))[place])

    def check_patch(self, patch: int) -> None:
        """Refuse a patch that does not fit everywhere; nothing is padded.

        Raises:
            ConfigError: it has no pixel.
            DataError: it does not fit into the smallest image, which is named.
        """
        name, image = self._smallest
        side = min(image.shape[:2])
        if patch > side:
            what = f"a patch of {patch} pixels does not fit into {image.shape[1]}x{image.shape[0]}"
            raise DataError(what, where=name, mend=f"Cap the patches at {side}, or leave this image out")
        if patch < 1:
            raise ConfigError(f"a patch has at least one pixel, got {patch}", where="patch")


def cut(image: NDArray[np.uint8], patch: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A square of ``patch`` pixels a side, anywhere in the image, as a view."""
    height, width = image.shape[:2]
    top, left = int(rng.integers(height - patch + 1)), int(rng.integers(width - patch + 1))
    return image[top : top + patch, left : left + patch]
