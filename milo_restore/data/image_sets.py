"""One name for any set of images: a named data set, the photographs that are always at hand, or a folder.

The photographs are those inside scikit-image's wheel; nothing is downloaded. It holds five colour photographs of
everyday scenes (``motorcycle_right`` is a second view of the scene of ``motorcycle_left``, so only one of the two is
used). Its other colour images, ``ihc``, ``retina`` and ``hubble_deep_field``, come from a microscope, a fundus camera
and a space telescope, and its other photographs are grey: both are left out, for they would teach a colour denoiser
the wrong statistics. scikit-image says that astronaut and rocket are in the public domain, and coffee and chelsea
CC0; motorcycle_left is from the Middlebury 2014 stereo benchmark.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from milo_restore.data.images import list_images, load_images, read_image
from milo_restore.errors import DataError, did_you_mean
from milo_restore.files import DATASETS, find_dataset
from milo_restore.files.hashes import images_sha256, text_sha256
from milo_restore.files.quarantine import Quarantine

TRAINING = ("astronaut.png", "coffee.png", "motorcycle_left.png")
HELD_OUT = ("chelsea.png", "rocket.jpg")


def training_photographs() -> list[tuple[str, NDArray[np.uint8]]]:
    """Three colour photographs for training: 512x512, 600x400 and 741x500 pixels, shortest side 400.

    Returns:
        Names and (H, W, 3) uint8 arrays.

    Raises:
        DataError: the installed scikit-image does not ship one of them.
    """
    return [_read(name) for name in TRAINING]


def held_out_photographs() -> list[tuple[str, NDArray[np.uint8]]]:
    """Two colour photographs that `training_photographs` does not show: 451x300 and 640x427 pixels.

    Raises:
        DataError: the installed scikit-image does not ship one of them.
    """
    return [_read(name) for name in HELD_OUT]


PHOTOGRAPHS = {"photographs": training_photographs, "held-out-photographs": held_out_photographs}


def load_collection(
    name: str, root: str | Path | None = None, quarantine: Quarantine | None = None
) -> list[tuple[str, NDArray[np.uint8]]]:
    """Read a set of images into memory.

    Args:
        name: a named data set such as ``BSD400`` (see `milo_restore.files.DATASETS`), ``photographs`` or
            ``held-out-photographs`` (shipped by scikit-image), or else the path of a folder of images.
        root: where named data sets lie; by default MILO_RESTORE_ASSETS, then the cache.
        quarantine: what cannot be read goes there, and is left out; None: it is an error.

    Returns:
        File name and (H, W, 3) uint8 array of each image.

    Raises:
        DataError: the set or folder is missing or empty, or an image cannot be read.
    """
    if name in PHOTOGRAPHS:
        return PHOTOGRAPHS[name]()
    if name not in DATASETS and not Path(name).exists() and (hint := did_you_mean(name, [*PHOTOGRAPHS, *DATASETS])):
        raise DataError("is neither a folder nor a data set", where=name, mend=hint)
    paths = find_dataset(name, Path(root) if root else None) if name in DATASETS else list_images(name)
    return load_images(paths, quarantine=quarantine)


def identity_of(images: Sequence[Path | tuple[str, NDArray[np.uint8]]]) -> str:
    """A hash of a set of images in its order: of all pixels of those in memory, of names and sizes of files.

    Files are not read for it: a million of them would take hours. ``milo-restore assets seal`` watches their bytes.

    Raises:
        DataError: a file is gone.
    """
    try:
        listed = "\n".join(f"{image.name} {image.stat().st_size}" for image in images if isinstance(image, Path))
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=error.filename) from error
    return text_sha256(listed) if listed else images_sha256([image for image in images if not isinstance(image, Path)])


def centre_crop(image: NDArray[np.uint8], side: int | None) -> NDArray[np.uint8]:
    """The centre square of an (H, W, 3) array, or what it has of it; all of it where ``side`` is None."""
    height, width = (length if side is None else min(length, side) for length in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def _read(name: str) -> tuple[str, NDArray[np.uint8]]:
    # Read as a file: skimage.data's functions download what they do not find, and importing skimage takes a second.
    spec = importlib.util.find_spec("skimage")
    mend = "Install scikit-image 0.22 to 0.26 from PyPI, or train on a folder of your own"
    if spec is None or spec.origin is None:
        raise DataError("scikit-image is not installed", where=name, mend=mend)
    path = Path(spec.origin).parent / "data" / name
    if not path.is_file():
        raise DataError("the installed scikit-image ships no such photograph", where=path, mend=mend)
    return name, read_image(path)
