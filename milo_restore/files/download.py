"""Folders, hashes and downloads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from milo_restore.errors import DataError, MiloRestoreError
from milo_restore.files.registry import RemoteFile

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


def sha256_of(path: Path) -> str:
    """The file's sha256 as hexadecimal digits.

    Raises:
        DataError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", where=path) from error
    return digest.hexdigest()


def check_file(path: Path, file: RemoteFile, error: type[MiloRestoreError]) -> None:
    """Refuse a file whose content is not the registered one.

    Raises:
        MiloRestoreError: of the type ``error``, naming the file, both hashes, and where to get the right one.
    """
    found = sha256_of(path)
    if found != file.sha256:
        what = f"is damaged or another file (sha256 {found[:16]}..., expected {file.sha256[:16]}...)"
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
    """Download one file. It appears under its name only when it is whole and its sha256 is right.

    Any number of processes may do this at once: each writes under a temporary name of its own.

    Raises:
        MiloRestoreError: of the type ``error``, with ``mend``: offline, a wrong content, or a disk that takes no more.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    try:
        fetched = pooch.retrieve(
            file.url,
            known_hash=f"sha256:{file.sha256}",
            path=folder,
            fname=file.name,
            downloader=pooch.HTTPDownloader(progressbar=progress, timeout=timeout),
        )
    except requests.exceptions.RequestException as problem:
        answer = getattr(problem, "response", None)
        reason = (
            f"the server says {answer.status_code}" if answer is not None else f"no network? {type(problem).__name__}"
        )
        raise error(f"{file.url} cannot be downloaded ({reason})", where=file.name, mend=mend) from problem
    except ValueError as problem:  # pooch: the hash differs
        raise error(f"{file.url} gave another content than registered", where=file.name, mend=mend) from problem
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise error(f"cannot be written ({reason})", where=folder / file.name, mend=mend) from problem
    return Path(fetched)


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
