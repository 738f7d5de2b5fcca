"""One writer per folder: a lock that names host and process, and that a crash, a kill or a power cut leaves open.

Two signs tell that the writer lives. The operating system's lock on FOLDER/.lock goes with its process; NFS and the
usual cluster file systems carry it from host to host. Some are mounted without: so the writer also touches the file
every few seconds, and who finds the name of another host waits to see whether that goes on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from milo_restore.errors import ConfigError, DataError

LOCK = ".lock"
BEAT = 5.0
"""Seconds between two touches."""
_MISSED = 4  # touches that a writer on a busy host may come late
_UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}


class FolderLock:
    """The right to write into a folder; within one process it does not exclude a second holder.

    Args:
        folder: the folder, which exists when the lock is taken.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._descriptor: int | None = None
        self._done = threading.Event()

    def acquire(self) -> list[str]:
        """Take the lock.

        Returns:
            What there is to say of it: a lock that a killed process left, a file system that has none.

        Raises:
            ConfigError: another process writes there; host, process and since when are named.
            DataError: the folder takes no files.
        """
        notes = []
        while self._descriptor is None:
            try:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise DataError(f"cannot be written ({error.strerror})", where=self.path) from error
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = self._holder(descriptor)
                os.close(descriptor)
                if error.errno not in _UNSUPPORTED:
                    raise self._in_use(holder) from error
                raise DataError(
                    f"this file system has no locks ({error.strerror}): nothing would keep a second run out",
                    where=self.path.parent,
                    mend="Name an --output on another file system, or have this one mounted with locks",
                ) from error
            if _same(descriptor, self.path):  # else its last holder has just removed it
                self._descriptor = descriptor
            else:
                os.close(descriptor)
        try:
            notes = self._take_over(self._holder(self._descriptor))
            self._sign(self._descriptor)
        except BaseException:
            os.close(self._descriptor)
            self._descriptor = None
            raise
        threading.Thread(target=self._beat, name="lock", daemon=True).start()
        return notes

    def release(self) -> None:
        """Give the lock back, if it was taken."""
        if self._descriptor is None:
            return
        self._done.set()
        with contextlib.suppress(OSError):
            self.path.unlink()
        os.close(self._descriptor)
        self._descriptor = None

    def _take_over(self, left: dict[str, Any]) -> list[str]:
        """A lock that was open, but signed: by who was killed, or by a host whose locks do not reach here."""
        if not left:
            return []
        who = f"process {left.get('process')} on {left.get('host')}"
        if left.get("host") != socket.gethostname():
            before, until = _touched(self.path), time.monotonic() + _MISSED * BEAT
            while time.monotonic() < until:
                time.sleep(BEAT / 10)
                if _touched(self.path) != before:
                    raise self._in_use(left)
        return [f"{self.path.parent} was locked by {who}, which is gone: going on"]

    def _sign(self, descriptor: int) -> None:
        text = json.dumps(
            {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        )
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text.encode(), 0)
        except OSError as error:
            mend = f"Free space in {self.path.parent.absolute()} or allow writing there"
            raise DataError(f"cannot be written ({error.strerror})", where=self.path, mend=mend) from error

    def _beat(self) -> None:
        while not self._done.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path)

    def _holder(self, descriptor: int) -> dict[str, Any]:
        """Signature of the holder; empty where nobody signed, or was killed at it."""
        try:
            found = json.loads(os.pread(descriptor, 4096, 0))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _in_use(self, holder: dict[str, Any]) -> ConfigError:
        who = f"process {holder.get('process', '?')} on {holder.get('host', '?')} since {holder.get('since', '?')}"
        mend = "Wait for it or stop it, or name another --output"
        return ConfigError(f"is in use by {who}", where=self.path.parent, mend=mend)


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _touched(path: Path) -> int:
    return os.stat(path).st_mtime_ns
