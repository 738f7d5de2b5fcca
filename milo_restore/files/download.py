"""Folders, hashes and downloads."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from milo_restore.errors import DataError, MiloRestoreError
from milo_restore.files.hashes import git_blob_of, sha256_of
from milo_restore.files.registry import RemoteFile
from milo_restore.files.write import replace_file

ASSETS_VARIABLE = "MILO_RESTORE_ASSETS"
CACHE_VARIABLE = "MILO_RESTORE_CACHE"
TIMEOUT = 30.0
"""Seconds to wait for a server's answer."""


def assets_folder() -> Path | None:
    """The folder named by ``MILO_RESTORE_ASSETS``, or None where that is not set.

    Raises:
        DataError: it names something that is not a folder.
    """
    named = os.environ.get(ASSETS_VARIABLE)
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        mend = f"Name an existing folder, or unset {ASSETS_VARIABLE}"
        raise DataError("no such folder", where=f"{ASSETS_VARIABLE}={named}", mend=mend)
    return folder


def cache_folder() -> Path:
    """The folder for downloads; it need not exist yet."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named).expanduser()
    import pooch

    return Path(pooch.os_cache("milo-restore"))


def hash_record(path: Path) -> Path:
    """The file beside a download whose hash nobody published: its sha256, as sha256sum writes it."""
    return path.with_name(f"{path.name}.sha256")


def can_check(path: Path, file: RemoteFile) -> bool:
    """True if there is a hash to hold the file at ``path`` against: registered, or recorded at its download."""
    return bool(file.sha256 or file.git_blob) or hash_record(path).is_file()


def check_file(path: Path, file: RemoteFile, error: type[MiloRestoreError]) -> None:
    """Refuse a file whose content is not the registered one, or not the one once downloaded.

    A file of which no hash is known at all passes; `can_check` tells.

    Raises:
        MiloRestoreError: of the type ``error``, naming the file, both hashes, and where to get the right one.
    """
    if not can_check(path, file):
        return
    if file.git_blob:
        kind, expected, found = "git blob", file.git_blob, git_blob_of(path)
    else:
        expected = file.sha256 or (hash_record(path).read_text(encoding="utf-8", errors="replace").split() or [""])[0]
        kind, found = "sha256", sha256_of(path)
    if found != expected:
        what = f"is damaged or another file ({kind} {found[:16]}..., expected {expected[:16]}...)"
        raise error(what, where=path, mend=f"Delete it to have it downloaded again, or replace it by {file.url}")


def download(
    file: RemoteFile,
    folder: Path,
    error: type[MiloRestoreError],
    mend: str,
    *,
    progress: bool,
    timeout: float = TIMEOUT,
) -> Path:
    """Download one file. It appears under its name only when it is whole and its hash is right.

    Where no hash is known, that of what came is recorded beside it, and `check_file` holds the file to it. Any
    number of processes may do this at once: each writes under a temporary name of its own.

    Raises:
        MiloRestoreError: of the type ``error``, with ``mend``: offline, a wrong content, or a disk that takes no more.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    target = folder / file.name
    arrived = target if file.sha256 else folder / f".{os.getpid()}.{threading.get_ident()}.{file.name}.part"
    try:
        pooch.retrieve(
            file.url,
            known_hash=f"sha256:{file.sha256}" if file.sha256 else None,
            path=folder,
            fname=arrived.name,
            downloader=pooch.HTTPDownloader(progressbar=progress, timeout=timeout),
        )
        if arrived != target:
            _accept(arrived, target, file)
    except requests.exceptions.RequestException as problem:
        answer = getattr(problem, "response", None)
        reason = (
            f"the server says {answer.status_code}" if answer is not None else f"no network? {type(problem).__name__}"
        )
        raise error(f"{file.url} cannot be downloaded ({reason})", where=file.name, mend=mend) from problem
    except ValueError as problem:  # pooch's, and `_accept`'s: the hash differs
        raise error(f"{file.url} gave another content than registered", where=file.name, mend=mend) from problem
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise error(f"cannot be written ({reason})", where=target, mend=mend) from problem
    finally:
        if arrived != target:
            arrived.unlink(missing_ok=True)
    return target


def _accept(arrived: Path, target: Path, file: RemoteFile) -> None:
    """Move a download of which no sha256 was known into place: held against git's hash, or recorded."""
    if file.git_blob:
        if git_blob_of(arrived) != file.git_blob:
            raise ValueError("another content")
    else:
        replace_file(hash_record(target), f"{sha256_of(arrived)}  {target.name}\n")
    os.replace(arrived, target)


def download_all(files: Sequence[RemoteFile], folder: Path, label: str, mend: str) -> None:
    """Download those of ``files`` that ``folder`` lacks, with one progress bar. Resumes where it was cut off.

    Raises:
        DataError: a file that is there already has another content, or one cannot be downloaded.
    """

    def one(file: RemoteFile) -> None:
        path = folder / file.name
        if path.exists():
            check_file(path, file, DataError)
        else:
            download(file, folder, DataError, mend, progress=False)

    from tqdm import tqdm

    pool = ThreadPoolExecutor(max_workers=4)
    try:
        for _ in tqdm(pool.map(one, files), total=len(files), desc=label, unit="file"):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
