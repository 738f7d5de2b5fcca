"""Files that belong together, found by their names in two folders: restored images with references and inputs.

Within a pair of folders a name may carry the folder's own ending, as restoration programs add them: ``0801_lq.png``
beside ``0801.png``, ``0801_Restormer.png`` beside ``0801.jpg``. An ending counts only where all files of a folder have
it, and only where every file then has exactly one counterpart; anything else is refused, with the files named.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from milo_restore.data.images import by_stem, list_images
from milo_restore.errors import DataError

_NAMED = 8
_ROTATED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_PNG_EXIF = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
_KNOWN_ENDING = re.compile(
    r"(?:[_-](?:lq|hq|gt|hr|lr|sr|lr[2348]|ref|reference|in|input|out|output|restored|noisy|clean|denoised|pred|degraded"
    r"|distorted|x[2348])|x[2348])$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ImageFiles:
    """One restored image and what belongs to it.

    Attributes:
        name: the reference's file name; the restored image's where there is no reference.
        pred: the restored image.
        ref: what it should be; None where no references were given.
        input: what it was restored from; None where no inputs were given.
        size: width and height of the restored image in pixels, and of its reference.
    """

    name: str
    pred: Path
    ref: Path | None
    input: Path | None
    size: tuple[int, int]


def find_images(pred: Path, ref: Path | None = None, input: Path | None = None) -> list[ImageFiles]:  # noqa: A002
    """The images of a folder with their references and inputs, sorted by name.

    Only headers are read: that a file is damaged further on shows when it is decoded.

    Args:
        pred: folder of restored images.
        ref: folder of references: every image has one of its own size, and every reference has its image.
        input: folder of degraded inputs, likewise, of any size.

    Raises:
        DataError: a folder is missing or holds no images; two files of a folder have one name; a file has no
            counterpart; a file is no image; or two sizes differ. The files are named.
    """
    preds = _files(pred)
    others = {
        folder: _counterparts(pred, preds, folder, _files(folder)) for folder in (ref, input) if folder is not None
    }
    images, unequal = [], []
    for stem, path in preds.items():
        reference = others[ref][stem] if ref is not None else None
        size = image_size(path)
        if reference is not None and (expected := image_size(reference)) != size:
            unequal.append(f"{path} is {size[0]}x{size[1]}, {reference} {expected[0]}x{expected[1]}")
        source = others[input][stem] if input is not None else None
        images.append(ImageFiles((reference or path).name, path, reference, source, size))
    if unequal:
        mend = "Nothing is resized here: restore at full size, or crop the references as the restored images were"
        more = f" and {len(unequal) - 1} more" if len(unequal) > 1 else ""
        raise DataError(f"sizes differ (width x height): {unequal[0]}{more}", mend=mend)
    return sorted(images, key=lambda image: image.name)


def find_pairs(reference: Path, distorted: Path, suffixes: Sequence[str] | None = None) -> list[tuple[str, Path, Path]]:
    """The pairs that two files, or two folders, make.

    Args:
        reference: a file or a folder.
        distorted: the same kind.
        suffixes: of latents; None: a folder's images are paired.

    Returns:
        Name without suffix (the distorted file's, or of two folders the reference's), reference file and distorted file
        of each pair, sorted by name. Sizes are not looked at.

    Raises:
        DataError: a path is missing, one is a file and the other a folder, a folder is empty, two files of a folder
            have one name, or a file has no counterpart; all are named.
    """
    for path in (reference, distorted):
        if not path.exists():
            raise DataError("no such file or folder", where=path)
    if reference.is_dir() != distorted.is_dir():
        folder, file = (reference, distorted) if reference.is_dir() else (distorted, reference)
        raise DataError(f"{folder} is a folder and {file} is a file", mend="Give two files or two folders")
    if not reference.is_dir():
        return [(distorted.stem, reference, distorted)]
    references, distortions = (_files(folder, suffixes) for folder in (reference, distorted))
    counterparts = _counterparts(distorted, distortions, reference, references)
    return sorted((counterparts[stem].stem, counterparts[stem], path) for stem, path in distortions.items())


def image_size(path: Path) -> tuple[int, int]:
    """Width and height as `milo_restore.data.read_image` gives them, EXIF orientation applied, from the header alone.

    Raises:
        DataError: it is no image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            # Pillow decodes a whole PNG to look for EXIF data behind the pixels.
            plain = image.format == "PNG" and not any(mark in path.read_bytes() for mark in _PNG_EXIF)
            # Pillow gives a TIFF's size as it is turned.
            rotated = not plain and image.format != "TIFF" and image.getexif().get(0x0112, 1) in _ROTATED
    except Exception as error:  # damaged files make Pillow's plugins raise nearly anything
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        mend = "It may be truncated, damaged or no image: replace it or remove it"
        raise DataError(f"cannot be read as an image ({reason})", where=path, mend=mend) from error
    return (height, width) if rotated else (width, height)


def _files(folder: Path, suffixes: Sequence[str] | None = None) -> dict[str, Path]:
    """A folder's images, or the latents with these suffixes, by their names without suffix."""
    if suffixes is None:
        return by_stem(list_images(folder), folder)
    paths = sorted(path for path in folder.iterdir() if path.suffix in suffixes and not path.name.startswith("."))
    if not paths:
        raise DataError("holds no latents", where=folder, mend=f"Expected files ending in {', '.join(suffixes)}")
    return by_stem(paths, folder)


def _counterparts(pred: Path, preds: Mapping[str, Path], folder: Path, others: Mapping[str, Path]) -> dict[str, Path]:
    """Stem of each restored image to its counterpart among ``folder``'s."""
    stems = {path: list(found) for path, found in ((pred, preds), (folder, others))}
    choices = [(mine, theirs) for mine in _endings(stems[pred]) for theirs in _endings(stems[folder])]
    for mine, theirs in sorted(choices, key=lambda pair: len(pair[0]) + len(pair[1])):
        known = {_without(stem, theirs): stem for stem in stems[folder]}
        wanted = {_without(stem, mine): stem for stem in stems[pred]}
        if known.keys() == wanted.keys() and len(known) == len(others) and len(wanted) == len(preds):
            return {wanted[name]: others[known[name]] for name in wanted}
    raise _unpaired(pred, preds, folder, others)


def _endings(stems: Sequence[str]) -> list[str]:
    """Endings that all names of a folder may have beside their own: nothing, what they share, or a known mark."""
    endings = {""}
    shared = os.path.commonprefix([stem[::-1] for stem in stems])[::-1] if len(stems) > 1 else ""
    endings |= {shared[place:] for place, letter in enumerate(shared) if letter in "_-"}
    known = {match.group().lower() if (match := _KNOWN_ENDING.search(stem)) else "" for stem in stems}
    if len(known) == 1:
        endings |= known
    return [ending for ending in endings if all(len(stem) > len(ending) for stem in stems)]


def _without(stem: str, ending: str) -> str:
    return stem[: len(stem) - len(ending)]


def _unpaired(pred: Path, preds: Mapping[str, Path], folder: Path, others: Mapping[str, Path]) -> DataError:
    """The complaint about files without counterpart, in the reading of the names that leaves the fewest."""
    best: tuple[list[Path], list[Path]] | None = None
    for mine in _endings(list(preds)):
        for theirs in _endings(list(others)):
            here = {_without(stem, mine): path for stem, path in preds.items()}
            there = {_without(stem, theirs): path for stem, path in others.items()}
            lonely = ([here[name] for name in here.keys() - there.keys()],
                      [there[name] for name in there.keys() - here.keys()])  # fmt: skip
            if best is None or len(lonely[0]) + len(lonely[1]) < len(best[0]) + len(best[1]):
                best = lonely
    assert best is not None  # noqa: S101  (each folder has at least the empty ending)
    parts = []
    for lonely_paths, other in ((best[0], folder), (best[1], pred)):
        if lonely_paths:
            names = sorted(path.name for path in lonely_paths)
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            parts.append(f"{other} has no counterpart of {', '.join(names[:_NAMED])}{more}")
    mend = "Files are paired by name: a.png with a.jpg, a_lq.png with a.png where all files of a folder end in _lq"
    return DataError("; ".join(parts) or f"names cannot be paired with those of {folder}", where=pred, mend=mend)
