"""The generator against a user's copy of KADID-10k, image by image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from milo_restore.data.images import read_image
from milo_restore.data.kadid.model import LEVELS, Distortion, GeneratorName, distort
from milo_restore.errors import DataError

CLOSE = 59.0
"""PSNR in dB that types reach which can be made the same, rounding of colour matrices included."""

NEARER = {10: 35.0, 22: 35.0}
"""The same for JPEG, whose codecs round differently, and for type 22, whose search turns on the last bit."""

UNKNOWN = {
    6: "MATLAB's palette is not known",
    9: "another JPEG 2000 encoder",
    15: "MATLAB's network is not to be had",
}
"""Types that cannot be made the same, and why; the random ones cannot either."""


_MEND = "Name the folder that holds dmos.csv and images/, with I01.png and I01_01_01.png in it"


class Compared(NamedTuple):
    """A distorted image of the data set against ours.

    Attributes:
        name: of the data set's file.
        number: KADID's number of the distortion.
        level: 1 to 5.
        largest: absolute difference, in 8-bit levels.
        mean: absolute difference, in 8-bit levels.
        psnr: of the two, in dB; infinite where they are equal.
        theirs: PSNR of the data set's image to its reference.
        ours: PSNR of ours to it.
    """

    name: str
    number: int
    level: int
    largest: int
    mean: float
    psnr: float
    theirs: float
    ours: float


def tolerance(kind: Distortion) -> float | None:
    """PSNR in dB that a type is to reach; None if it cannot be made the same."""
    return None if kind.random or kind.number in UNKNOWN else NEARER.get(kind.number, CLOSE)


def compare(
    root: str | Path, kinds: Sequence[Distortion], *, seed: int = 0, generator: GeneratorName = "published"
) -> tuple[list[Compared], list[str]]:
    """Distort every reference of a copy, and compare with the images that the copy holds.

    Args:
        root: KADID-10k's folder, with ``images/I01.png`` to ``I81.png`` and ``images/I01_01_01.png`` and so on.
        kinds: which distortions.
        seed: of what we draw at random.
        generator: see `distort`.

    Returns:
        The images that are there, in the order of their names, and the names of those that are not.

    Raises:
        DataError: the folder holds no reference, or none of the distorted images; or one that cannot be read or has
            another size than its reference.
    """
    wanted = _wanted(Path(root), kinds)
    missing = {row[1].name for row in wanted if not row[1].is_file()}
    present = [row for row in wanted if row[1].name not in missing]
    if not present:
        what = f"holds references, but none of {len(wanted)} distorted images, such as {wanted[0][1].name}"
        raise DataError(what, where=Path(root) / "images", mend=_MEND)
    found: list[Compared] = []
    last: tuple[Path | None, NDArray[np.uint8]] = (None, np.zeros((0, 0, 3), np.uint8))
    for path, other, kind, level in tqdm(present, desc="comparing", unit="image", leave=False, disable=None):
        if path != last[0]:
            last = (path, read_image(path))
        found.append(_compare(other, last[1], distort(last[1], kind.number, level, seed=seed, generator=generator),
                              kind.number, level))  # fmt: skip
    return found, sorted(missing)


def _wanted(root: Path, kinds: Sequence[Distortion]) -> list[tuple[Path, Path, Distortion, int]]:
    """References and distorted images of a complete copy with the references that are there."""
    images = root / "images"
    references = sorted(images.glob("[Ii][0-9][0-9].png"))
    if not references:
        raise DataError("is no copy of KADID-10k: there is no images/I01.png", where=root, mend=_MEND)
    return [
        (path, images / f"{path.stem}_{kind.number:02d}_{level:02d}.png", kind, level)
        for path in references
        for kind in kinds
        for level in range(1, LEVELS + 1)
    ]


def _compare(path: Path, reference: NDArray[np.uint8], ours: NDArray[np.uint8], number: int, level: int) -> Compared:
    theirs = read_image(path)
    if theirs.shape != ours.shape:
        sizes = [f"{image.shape[1]}x{image.shape[0]}" for image in (theirs, ours)]
        raise DataError(f"is {sizes[0]}, its reference {sizes[1]} (width x height)", where=path)
    apart = np.abs(theirs.astype(int) - ours)
    return Compared(
        path.name, number, level, int(apart.max()), float(apart.mean()),
        _psnr(theirs, ours), _psnr(theirs, reference), _psnr(ours, reference),
    )  # fmt: skip


def _psnr(image: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    error = float(np.square(image.astype(np.float64) - other).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
