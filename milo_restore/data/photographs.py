"""A few photographs that are always at hand: those inside scikit-image's wheel. Nothing is downloaded.

The wheel holds five colour photographs of everyday scenes (``motorcycle_right`` is a second view of the scene of
``motorcycle_left``, so only one of the two is used). Its other colour images, ``ihc``, ``retina`` and
``hubble_deep_field``, come from a microscope, a fundus camera and a space telescope, and its other photographs are
grey: both are left out, for they would teach a colour denoiser the wrong statistics. scikit-image says that astronaut
and rocket are in the public domain, and coffee and chelsea CC0; motorcycle_left is from the Middlebury 2014 stereo
benchmark.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from milo_restore.data.images import read_image
from milo_restore.errors import DataError

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
