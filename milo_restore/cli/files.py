"""Pairs of files found in two folders."""

from __future__ import annotations

from pathlib import Path

from milo_restore.errors import DataError

_NAMED = 8


def find_pairs(reference: Path, distorted: Path, suffixes: tuple[str, ...] | None) -> list[tuple[str, Path, Path]]:
    """The pairs that two files, or two folders, make; folders are paired by file name without suffix.

    Args:
        reference: a file or a folder.
        distorted: the same kind.
        suffixes: which files of a folder count; None: images.

    Returns:
        Name, reference file and distorted file of each pair, sorted by name.

    Raises:
        DataError: a path is missing, one is a file and the other a folder, a folder is empty, a name appears twice in
            a folder, or a file has no counterpart; all are named.
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
    for folder, there, here in ((distorted, references, distortions), (reference, distortions, references)):
        missing = sorted(there.keys() - here.keys())
        if missing:
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            what = f"{len(missing)} of {len(there)} have no counterpart: {', '.join(missing[:_NAMED])}{more}"
            raise DataError(what, where=folder, mend="Files are paired by name without suffix: a.png and a.jpg")
    return [(stem, references[stem], distortions[stem]) for stem in sorted(references)]


def _files(folder: Path, suffixes: tuple[str, ...] | None) -> dict[str, Path]:
    """A folder's files by their names without suffix."""
    from milo_restore.data.images import by_stem, list_images

    if suffixes is None:
        return by_stem(list_images(folder), folder)
    paths = sorted(path for path in folder.iterdir() if path.suffix in suffixes and not path.name.startswith("."))
    if not paths:
        raise DataError("holds no latents", where=folder, mend=f"Expected files ending in {', '.join(suffixes)}")
    return by_stem(paths, folder)
