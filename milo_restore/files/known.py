"""Facts about files that have not changed since they were read, so that nobody reads them twice."""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from milo_restore.files.write import replace_file

RACY_NS = 2 * 10**9
"""Nanoseconds: a file changed less than this before it was read is not remembered, as git does not trust such files.

It may change once more within the same tick of the file system's clock, 2 s at most (FAT's), and look the same.
"""


class KnownFiles:
    """Facts about files by path, each with the file's size, times of change, inode and device: a cache, in JSON.

    A file of which any of these differs is read again. So is one that kept its time of modification but not that of its
    inode's change, as ``touch -r`` and ``rsync -t`` leave it. Two runs that write at once lose facts, not truth.

    Args:
        path: the file of facts, which need not exist. What is damaged there, by its checksum, counts as unknown.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, list[Any]] = {}
        self._changed = False
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["sum"] == _checksum(kept["files"]):
                self._known = kept["files"]
        except (OSError, ValueError, KeyError, TypeError):
            return

    def fact(self, path: Path, read: Callable[[Path], Any]) -> Any:
        """Result of ``read(path)``, which JSON can hold; from memory where the file has not changed.

        Raises:
            Exception: what ``read`` raises, of a file that is missing or damaged.
        """
        key, stamp, now = os.path.abspath(path), _stamp(path), time.time_ns()
        entry = self._known.get(key)
        if entry is not None and entry[0] == stamp is not None:
            return entry[1]
        fact = read(path)
        if stamp is not None and max(stamp[1:3]) < now - RACY_NS and _stamp(path) == stamp:
            self._known[key] = [stamp, fact]
            self._changed = True
        return fact

    def save(self) -> None:
        """Write it, where anything is new.

        Raises:
            DataError: it cannot be written.
        """
        if self._changed:
            replace_file(self.path, json.dumps({"files": self._known, "sum": _checksum(self._known)}))
            self._changed = False


def _stamp(path: Path) -> list[int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]


def _checksum(known: dict[str, list[Any]]) -> int:
    return zlib.crc32(json.dumps(known).encode())
