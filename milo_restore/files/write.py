"""Writing in one piece: whoever looks sees the old file or folder or the new one, never half of it.

`replace_file` and `replacing` write one file, `publish` a whole folder with a manifest, which `verify` reads.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from milo_restore.errors import DataError, WeightsError
from milo_restore.files.hashes import sha256_of, text_sha256

MANIFEST = "manifest.json"
"""Size and sha256 of each other file of a published folder, and a digest of its own."""
TEMPORARY = ".tmp-"
"""What names begin with that are not finished; a process that is killed leaves some."""
ASIDE = f"{TEMPORARY}old-"
"""What the names of folders begin with that stepped aside for a new one of their name."""


_UNFINISHED = re.compile(rf"{re.escape(TEMPORARY)}.+-\d+(-\d+)?(\.\w+)?")  # a process, and perhaps a thread


def is_temporary(path: Path) -> bool:
    """Whether a name is one that this module gives to what is not finished."""
    return _UNFINISHED.fullmatch(path.name) is not None


def check_target(path: Path) -> None:
    """Refuse, before any work is done, a result that could not be written at its end.

    Folders on the way need not exist: writing makes them.

    Raises:
        DataError: ``path`` is itself a folder, something on the way is a file, or a folder takes no files.
    """
    if path.is_dir():
        raise DataError("is a folder", where=path, mend="Give the name of a file")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise DataError("is a file, not a folder", where=above, mend="Write elsewhere")
    if not os.access(above, os.W_OK):
        raise DataError("no permission to write there", where=above)


@contextmanager
def writing(target: Path, then: str = "") -> Iterator[None]:
    """Say what a failed write means. Full disks also show as torch's RuntimeError and safetensors' own error.

    Args:
        target: what is written.
        then: how to go on once there is room, for the error.

    Raises:
        DataError: naming ``target`` and the folder to make room in.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        mend = f"Free space in {target.parent.absolute()} or allow writing there{then}"
        raise DataError(f"cannot be written ({reason})", where=target, mend=mend) from error


@contextmanager
def replacing(path: Path, then: str = "") -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; moved into place where the block ends well, else removed.

    Folders on the way are made. The temporary name keeps the suffix, for writers that choose a format by it.

    Raises:
        DataError: the file cannot be written.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.stem}-{os.getpid()}-{threading.get_ident()}{path.suffix}")
    with writing(path, then):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes | str, then: str = "") -> None:
    """Write a file: bytes, or a text in UTF-8 with its line ends as given.

    Raises:
        DataError: it cannot be written.
    """
    with replacing(path, then) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def publish(target: Path, write: Callable[[Path], object], then: str = "") -> None:
    """Make the folder ``target`` with what ``write(folder)`` puts into it; whole and on disk, or not at all.

    A manifest is added. A folder already there is replaced.

    Raises:
        DataError: it cannot be written (full disk, no permission). Nothing is left behind, and what was there before
            is untouched.
    """
    temporary = target.parent / f"{TEMPORARY}{target.name}-{os.getpid()}"
    try:
        with writing(target, then):
            temporary.mkdir(parents=True)
            write(temporary)
            _write_manifest(temporary)
            for path in (*temporary.rglob("*"), temporary):
                sync(path)
            _replace(temporary, target)
            sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def verify(folder: Path, mend: str | None = None) -> None:
    """Check every byte of a published folder against its manifest, before any of it is interpreted.

    Args:
        folder: what `publish` made.
        mend: what to do about a damaged one, for the error.

    Raises:
        WeightsError: naming the first file that is missing, too many, or differs.
    """
    manifest = folder / MANIFEST
    try:
        raw = manifest.read_bytes()
        files = json.loads(raw)["files"]
        if raw != _manifest_text(files).encode():
            raise ValueError("its own digest differs")
    except FileNotFoundError as error:
        raise WeightsError("is missing: the folder is not complete", where=manifest, mend=mend) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError("is damaged", where=manifest, mend=mend) from error
    for name in sorted(_files(folder).keys() - {MANIFEST} - set(files)):
        raise WeightsError("does not belong there", where=folder / name, mend=mend)
    for name, entry in files.items():
        path = folder / name
        try:
            if path.stat().st_size != entry["bytes"]:
                raise WeightsError(f"has {path.stat().st_size} bytes, not {entry['bytes']}", where=path, mend=mend)
            if sha256_of(path) != entry["sha256"]:
                raise WeightsError("is damaged: its sha256 is not the manifest's", where=path, mend=mend)
        except OSError as error:
            raise WeightsError(f"cannot be read ({error.strerror})", where=path, mend=mend) from error
        except DataError as error:
            raise WeightsError(error.what, where=path, mend=mend) from error


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(temporary: Path, target: Path) -> None:
    """Rename; a folder already at ``target`` steps aside first, for rename does not overwrite folders."""
    aside = target.parent / f"{ASIDE}{target.name}-{os.getpid()}"
    if target.exists():
        os.rename(target, aside)
    try:
        os.rename(temporary, target)
    except OSError:
        if aside.exists():
            os.rename(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _files(folder: Path) -> dict[str, Path]:
    """All that lies in a folder and is none, by its name from there on."""
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}


def _manifest_text(files: dict[str, Any]) -> str:
    """The manifest's one spelling; its own digest makes any change to it show."""
    digest = text_sha256(json.dumps(files, sort_keys=True))
    return json.dumps({"files": files, "digest": digest}, sort_keys=True, indent=1) + "\n"


def _write_manifest(folder: Path) -> None:
    files = {name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for name, path in _files(folder).items()}
    (folder / MANIFEST).write_text(_manifest_text(files), encoding="utf-8")
