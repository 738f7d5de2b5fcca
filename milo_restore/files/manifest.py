"""Lists of sizes and sha256 sums, checked wherever the files are read: of published folders, and of a user's images.

A published folder, such as a run's ``final/``, has manifest.json. ``milo-restore assets seal DIR`` writes seal.json,
of the same kind, for the images in DIR and the folders below it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from milo_restore.errors import DataError, WeightsError
from milo_restore.files.hashes import sha256_of, text_sha256

MANIFEST = "manifest.json"
"""Size and sha256 of each other file of a published folder, and a digest of its own."""
SEAL = "seal.json"
"""The same of a folder of images, those in the folders below included."""

Entries = Mapping[str, Mapping[str, Any]]
"""``bytes`` and ``sha256`` of files, by their paths from the folder on."""


def manifest_of(folder: Path, names: Collection[str]) -> str:
    """The text of a manifest of these files of a folder.

    Raises:
        DataError: one of them cannot be read.
    """
    return _text({name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
                  for name in names})  # fmt: skip


def read_manifest(path: Path, mend: str | None = None) -> Entries:
    """The entries of a manifest or a seal.

    Raises:
        WeightsError: it is missing or damaged.
    """
    try:
        raw = path.read_bytes()
        files: dict[str, dict[str, Any]] = json.loads(raw)["files"]
        if raw != _text(files).encode():
            raise ValueError("its own digest differs")
    except FileNotFoundError as error:
        raise WeightsError("is missing: the folder is not complete", where=path, mend=mend) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WeightsError("is damaged", where=path, mend=mend) from error
    return files


def verify(folder: Path, mend: str | None = None) -> None:
    """Check every byte of a published folder against its manifest, before any of it is interpreted.

    Args:
        folder: what `milo_restore.files.write.publish` made.
        mend: what to do about a damaged one, for the error.

    Raises:
        WeightsError: naming the first file that is missing, too many, or differs.
    """
    files = read_manifest(folder / MANIFEST, mend)
    for name in sorted(names_of(folder) - {MANIFEST} - set(files)):
        raise WeightsError("does not belong there", where=folder / name, mend=mend)
    for name, entry in files.items():
        _check(folder / name, entry, mend)


def verify_file(path: Path, *, needed: bool = False) -> None:
    """Check a file against the manifest of its folder.

    Args:
        path: the file.
        needed: there must be one.

    Raises:
        WeightsError: the file differs, or the manifest is damaged or does not name it.
    """
    manifest = path.parent / MANIFEST
    if not needed and not _is_ours(manifest):
        return
    mend = "Take it from where it was made once more; without its manifest.json it would be read unchecked"
    files = read_manifest(manifest, mend)
    if path.name not in files:
        raise WeightsError("does not belong there: the folder's manifest.json does not name it", where=path, mend=mend)
    _check(path, files[path.name], mend)


def verify_folder(folder: Path) -> None:
    """`verify` where the folder has a manifest."""
    if _is_ours(folder / MANIFEST):
        verify(folder, "Take it from where it was made once more")


def names_of(folder: Path) -> set[str]:
    """All that lies in a folder and is none, by its name from there on."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def check_sealed(path: Path, content: bytes) -> None:
    """Hold an image that was read against the seal of its folder, where there is one.

    Raises:
        DataError: another content than when it was sealed, or an image that was not there then.
    """
    folder, entries = _seal_over(path.absolute().parent)
    if folder is None:
        return
    entry = entries.get(path.absolute().relative_to(folder).as_posix())
    mend = f"If that is meant: milo-restore assets seal {folder} --again"
    if entry is None:
        raise DataError(f"is not among the images that {folder / SEAL} lists", where=path, mend=mend)
    if entry["sha256"] != hashlib.sha256(content).hexdigest():
        raise DataError(f"is not what it was when it was sealed ({folder / SEAL})", where=path, mend=mend)


def check_sealed_listing(folder: Path, found: Iterable[Path], *, below: bool) -> None:
    """Refuse a folder in which a sealed image is gone.

    Args:
        folder: of images.
        found: the images that are there; looked at only where there is a seal.
        below: those in the folders below count, too.

    Raises:
        DataError: naming one that is gone.
    """
    top, entries = _seal_over(folder.absolute())
    if top is None:
        return
    there, inside = {path.absolute() for path in found}, folder.absolute()
    for path in (top / name for name in entries):
        if path not in there and (inside in path.parents if below else path.parent == inside):
            mend = f"Put it back; or, if that is meant: milo-restore assets seal {top} --again"
            raise DataError(f"is gone, which {top / SEAL} lists", where=path, mend=mend)


def forget_seals() -> None:
    """Read seals anew: one has changed."""
    _seal_over.cache_clear()


@functools.lru_cache(maxsize=4096)
def _seal_over(folder: Path) -> tuple[Path | None, Entries]:
    """The nearest seal of a folder or of those above it."""
    for place in (folder, *folder.parents):
        if (place / SEAL).is_file():
            return place, read_seal(place)
    return None, {}


def read_seal(folder: Path) -> Entries:
    """The entries of a folder's seal.

    Raises:
        DataError: it is damaged.
    """
    try:
        return read_manifest(folder / SEAL)
    except WeightsError as error:
        mend = "Remove it, look at the images, and seal them again"
        raise DataError(error.what, where=error.where, mend=mend) from error


def _is_ours(manifest: Path) -> bool:
    """Whether a manifest.json is one of this program's, whole or damaged; other programs have files of that name."""
    if not manifest.is_file():
        return False
    try:
        found = json.loads(manifest.read_bytes())
    except (OSError, ValueError, RecursionError):
        return True
    return not isinstance(found, dict) or bool({"files", "digest"} & found.keys())


def _check(path: Path, entry: Mapping[str, Any], mend: str | None) -> None:
    try:
        if path.stat().st_size != entry["bytes"]:
            raise WeightsError(f"has {path.stat().st_size} bytes, not {entry['bytes']}", where=path, mend=mend)
        if sha256_of(path) != entry["sha256"]:
            raise WeightsError("is damaged: its sha256 is not the manifest's", where=path, mend=mend)
    except OSError as error:
        raise WeightsError(f"cannot be read ({error.strerror})", where=path, mend=mend) from error
    except DataError as error:
        raise WeightsError(error.what, where=path, mend=mend) from error


def _text(files: Any) -> str:
    """A manifest's one spelling; its own digest makes any change to it show."""
    digest = text_sha256(json.dumps(files, sort_keys=True))
    return json.dumps({"files": files, "digest": digest}, sort_keys=True, indent=1) + "\n"
