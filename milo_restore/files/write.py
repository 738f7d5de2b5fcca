"""Writing results in one piece: whoever looks sees the old file or the new one, never half of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from milo_restore.errors import DataError


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
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to; moved into place where the block ends well, else removed.

    Folders on the way are made. The temporary name keeps the suffix, for writers that choose a format by it.

    Raises:
        DataError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.{threading.get_ident()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"cannot be written ({error.strerror or error})", where=path) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, UTF-8, line ends as given.

    Raises:
        DataError: it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
