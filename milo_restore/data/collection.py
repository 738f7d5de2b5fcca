"""One name for any set of images: a named data set, the photographs that are always at hand, or a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from milo_restore.assets import DATASETS, find_dataset
from milo_restore.data.images import list_images, load_images
from milo_restore.data.photographs import held_out_photographs, training_photographs

PHOTOGRAPHS = {"photographs": training_photographs, "held-out-photographs": held_out_photographs}


def load_collection(name: str, root: str | Path | None = None) -> list[tuple[str, NDArray[np.uint8]]]:
    """Read a set of images into memory.

    Args:
        name: a named data set such as ``BSD400`` (see `milo_restore.assets.DATASETS`), ``photographs`` or
            ``held-out-photographs`` (shipped by scikit-image), or else the path of a folder of images.
        root: where named data sets lie; by default MILO_RESTORE_ASSETS, then the cache.

    Returns:
        File name and (H, W, 3) uint8 array of each image.

    Raises:
        DataError: the set or folder is missing or empty, or an image cannot be read.
    """
    if name in PHOTOGRAPHS:
        return PHOTOGRAPHS[name]()
    paths = find_dataset(name, Path(root) if root else None) if name in DATASETS else list_images(name)
    return load_images(paths)


def centre_crop(image: NDArray[np.uint8], side: int | None) -> NDArray[np.uint8]:
    """The centre square of an (H, W, 3) array, or what it has of it; all of it where ``side`` is None."""
    height, width = (length if side is None else min(length, side) for length in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])
