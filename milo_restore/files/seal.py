"""Seals: a list of the sha256 sums of one's own images, against which they are held whenever they are read."""

from __future__ import annotations

import json
from pathlib import Path

from milo_restore.errors import DataError
from milo_restore.files.datasets import SUFFIXES
from milo_restore.files.manifest import SEAL, forget_seals, manifest_of, names_of, read_seal
from milo_restore.files.write import replace_file


def seal(folder: Path, *, again: bool = False) -> str:
    """Write the seal of a folder of images, those in the folders below it included.

    Args:
        folder: the folder.
        again: replace a seal that is there and differs.

    Returns:
        What was done, in one sentence.

    Raises:
        DataError: no such folder, no image in it, or a seal of other images.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise DataError("no such folder", where=folder)
    names = {name for name in names_of(folder) if _is_image(Path(name))}
    if not names:
        raise DataError("holds no images", where=folder, mend=f"Expected files ending in {', '.join(SUFFIXES)}")
    text, target = manifest_of(folder, names), folder / SEAL
    if target.is_file() and not again and target.read_text(encoding="utf-8") != text:
        mend = "Where the images were meant to change: --again"
        raise DataError(f"was sealed before, and {_difference(folder, text)}", where=folder, mend=mend)
    replace_file(target, text)
    forget_seals()
    return f"{target}: {len(names)} images sealed"


def _is_image(name: Path) -> bool:
    return name.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in name.parts)


def _difference(folder: Path, text: str) -> str:
    before, now = read_seal(folder), json.loads(text)["files"]
    new, gone = len(now.keys() - before.keys()), len(before.keys() - now.keys())
    other = sum(before[name] != now[name] for name in before.keys() & now.keys())
    return f"{other} images differ since, {new} are new, {gone} are gone"
