"""Folders that belong together: restored images with their references and inputs, and what of them is left out.

Files are paired by `milo_restore.measure.names`. With ``recursive`` a name is the path below the folder: ``sub/a.png``
is paired with ``sub/a.jpg``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from milo_restore.data.images import by_stem, files_below, list_images, list_images_below
from milo_restore.errors import DataError, listed
from milo_restore.files.datasets import SUFFIXES
from milo_restore.measure.names import counterparts
from milo_restore.show.text import counted

_ROTATED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_PNG_EXIF = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
_SCALES = (2, 3, 4, 8)


@dataclass(frozen=True)
class ImageFiles:
    """One restored image and what belongs to it.

    Attributes:
        name: the reference's file name, with the subfolders on its way; the restored image's without a reference.
        pred: the restored image.
        ref: what it should be; None where no references were given.
        input: what it was restored from; None where no inputs were given.
        size: width and height of the restored image in pixels; of its reference, too, but for what ``modcrop`` cuts.
    """

    name: str
    pred: Path
    ref: Path | None
    input: Path | None
    size: tuple[int, int]


def find_images(
    pred: Path,
    ref: Path | None = None,
    input: Path | None = None,  # noqa: A002
    *,
    modcrop: int = 1,
    recursive: bool = False,
    only_present: bool = False,
    size_of: Callable[[Path], tuple[int, int]] | None = None,
) -> list[ImageFiles]:
    """The images of a folder with their references and inputs, sorted by name.

    Only headers are read: that a file is damaged further on shows when it is decoded.

    Args:
        pred: folder of restored images.
        ref: folder of references: every image has one of its own size, and every reference has its image.
        input: folder of degraded inputs, likewise, of any size.
        modcrop: sizes are those after cutting to multiples of this, as
            `milo_restore.measure.metrics.Protocol` cuts.
        recursive: take the subfolders' images, too.
        only_present: leave out references and inputs without a restored image.
        size_of: width and height of a file, with the errors of `image_size`, which it is by default.

    Raises:
        DataError: a folder is missing or holds no images; two files of a folder have one name; a file has no
            counterpart; a file is no image; or two sizes differ. The files are named.
    """
    preds, size_of = _files(pred, recursive=recursive), size_of or image_size
    others = {
        folder: counterparts(pred, preds, folder, _files(folder, recursive=recursive), only_present=only_present)
        for folder in (ref, input)
        if folder is not None
    }
    images, sizes = [], []
    for stem, path in preds.items():
        reference = others[ref][stem] if ref is not None else None
        size = size_of(path)
        if reference is not None:
            sizes.append((path, size, reference, size_of(reference)))
        source = others[input][stem] if input is not None else None
        name = path.relative_to(pred) if reference is None or ref is None else reference.relative_to(ref)
        images.append(ImageFiles(name.as_posix(), path, reference, source, size))
    _check_sizes(sizes, modcrop)
    return sorted(images, key=lambda image: image.name)


def _check_sizes(sizes: Sequence[tuple[Path, tuple[int, int], Path, tuple[int, int]]], modcrop: int) -> None:
    unequal = [row for row in sizes if _cut(row[1], modcrop) != _cut(row[3], modcrop)]
    if not unequal:
        return
    path, size, reference, expected = unequal[0]
    more = f" and {len(unequal) - 1} more" if len(unequal) > 1 else ""
    mend = "Nothing is resized here: restore at full size, or crop the references as the restored images were"
    scales = [scale for scale in _SCALES if all(_cut(row[1], scale) == _cut(row[3], scale) for row in sizes)]
    if scales:
        mend += f"; --modcrop SCALE does that ({', '.join(map(str, scales))} would fit)"
    what = (
        f"sizes differ (width x height): {path} is {size[0]}x{size[1]}, {reference} {expected[0]}x{expected[1]}{more}"
    )
    raise DataError(what, mend=mend)


def _cut(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    return size[0] - size[0] % multiple, size[1] - size[1] % multiple


def find_pairs(
    reference: Path,
    distorted: Path,
    suffixes: Sequence[str] | None = None,
    *,
    recursive: bool = False,
    only_present: bool = False,
) -> list[tuple[str, Path, Path]]:
    """The pairs that two files, or two folders, make.

    Args:
        reference: a file or a folder.
        distorted: the same kind.
        suffixes: of latents; None: a folder's images are paired.
        recursive: take what is in subfolders, too.
        only_present: leave out references without a distorted image.

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
    references, distortions = (_files(folder, suffixes, recursive=recursive) for folder in (reference, distorted))
    found = counterparts(distorted, distortions, reference, references, only_present=only_present)
    names = {path: name for name, path in references.items()}
    return sorted((names[found[name]], found[name], path) for name, path in distortions.items())


def left_out(
    used: Mapping[Path, Iterable[Path]], suffixes: Sequence[str] = SUFFIXES, *, recursive: bool = False
) -> list[str]:
    """Files of the folders that were not used, one line for each that holds more.

    Hidden files and folders are not counted.

    Args:
        used: the files that were used, by folder, as given to `find_images` or `find_pairs`.
        suffixes: of the files that could have been used.
        recursive: whether subfolders were looked into.
    """
    lines = []
    for folder, taken in used.items():
        known = set(taken)
        rest = [path for path in files_below(folder) if path not in known]
        usable = {path for path in rest if path.suffix.lower() in suffixes}
        below = {path for path in usable if not recursive and path.parent != folder}
        places = [f"{path.relative_to(folder).parts[0]}/" for path in below]
        lonely = [path.relative_to(folder).as_posix() for path in usable - below]
        kinds = [path.suffix or path.name for path in rest if path not in usable]
        parts = [
            f"{len(found)} file{'' if len(found) == 1 else 's'} {what} ({listed(sorted(set(found)))})"
            for what, found in (
                ("in subfolders, which --recursive takes", places),
                ("without counterpart", lonely),
                ("of other kinds", kinds),
            )
            if found
        ]
        if parts:
            lines.append(f"left out of {folder}: {'; '.join(parts)}")
    return lines


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


def _files(folder: Path, suffixes: Sequence[str] | None = None, *, recursive: bool = False) -> dict[str, Path]:
    """A folder's images, or the latents with these suffixes, by their names without suffix."""
    if suffixes is None:
        return by_stem(_images(folder, recursive=recursive), folder)
    files = files_below(folder) if recursive else folder.iterdir()
    paths = sorted(path for path in files if path.suffix in suffixes and not path.name.startswith("."))
    if not paths:
        raise DataError("holds no latents", where=folder, mend=f"Expected files ending in {', '.join(suffixes)}")
    return by_stem(paths, folder)


def _images(folder: Path, *, recursive: bool) -> list[Path]:
    if recursive:
        return list_images_below(folder)
    try:
        return list_images(folder)
    except DataError as error:
        below = [path for path in files_below(folder) if path.suffix.lower() in SUFFIXES]
        if not below or any(path.parent == folder for path in below):  # then it is refused for something else
            raise
        where = min(below).parent.relative_to(folder)
        what = f"{error.what} itself, but {counted(len(below))} in subfolders, such as {where}/"
        raise DataError(what, where=folder, mend="--recursive takes them, or name the subfolder") from error
