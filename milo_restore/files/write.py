"""Writing in one piece: whoever looks sees the old file or folder or the new one, never half of it.

`replace_file` and `replacing` write one file, `publish` a whole folder with a manifest, which
`milo_restore.files.manifest.verify` reads.
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

from milo_restore.errors import DataError
from milo_restore.files.manifest import MANIFEST, manifest_of, names_of

TEMPORARY = ".tmp-"
"""Prefix of names that are not finished; a process that is killed leaves some."""
ASIDE = f"{TEMPORARY}old-"
"""Prefix of folders that stepped aside for a new one of their name."""


_STEM = 160  # bytes of a file's own name in its temporary one: file systems take 255 in all
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
    stem = os.fsencode(path.stem)[:_STEM].decode(errors="ignore")
    temporary = path.with_name(f"{TEMPORARY}{stem}-{os.getpid()}-{threading.get_ident()}{path.suffix}")
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
        try:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        except UnicodeEncodeError as error:
            what = f"names {error.object[error.start :][:40]!r}, which is not UTF-8"
            raise DataError(what, where=path, mend="Rename the file or folder of that name") from error


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
            text = manifest_of(temporary, names_of(temporary))
            (temporary / MANIFEST).write_text(text, encoding="utf-8")
            for path in (*temporary.rglob("*"), temporary):
                sync(path)
            _replace(temporary, target)
            sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def settle(path: Path) -> None:
    """Sort the metadata of a .safetensors, which its writer leaves in random order: equal content, equal bytes."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        head = json.loads(file.read(size))
        head["__metadata__"] = dict(sorted(head.get("__metadata__", {}).items()))
        text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        if len(text) == size:
            file.seek(8)
            file.write(text)


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
