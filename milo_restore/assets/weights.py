"""The authors' MILO weights, by name."""

from __future__ import annotations

from pathlib import Path

from milo_restore.assets import files, registry
from milo_restore.errors import WeightsError

WEIGHTS = ("milo", "milo-latent")


def weights_path(name: str) -> Path:
    """A weight file of the authors, checked by sha256: from the local folder, from the cache, or downloaded once.

    Args:
        name: ``milo`` (MILO.pth) or ``milo-latent`` (MILO_latent.pth).

    Returns:
        ``MILO.pth`` or ``weights/milo/MILO.pth`` in the folder named by ``MILO_RESTORE_ASSETS``, or else in the cache.

    Raises:
        WeightsError: no such name; a file with another content (it is named, and no other one is taken in its place);
            or the file is nowhere and cannot be downloaded.
        DataError: ``MILO_RESTORE_ASSETS`` names no folder, or a file cannot be read.
    """
    found = find_weights(name)
    return found if found is not None else fetch_weights(name)


def find_weights(name: str, root: Path | None = None) -> Path | None:
    """As `weights_path`, but nothing is downloaded: None where the file is nowhere.

    Args:
        name: ``milo`` or ``milo-latent``.
        root: look in this folder only.

    Raises:
        WeightsError: no such name, or a file with another content.
    """
    file = _file(name)
    for path in _places(file, root):
        if path.is_file():
            files.check_file(path, file, WeightsError)
            return path
    return None


def fetch_weights(name: str, root: Path | None = None) -> Path:
    """Download a weight file into ``root/weights/milo`` (by default in the cache), whatever the local folder holds.

    Raises:
        WeightsError: no such name, or it cannot be downloaded.
    """
    file = _file(name)
    folder = (root or files.cache_folder()) / "weights" / "milo"
    local = f"the folder that {files.ASSETS_VARIABLE} names"
    mend = f"Where there is no network, put the file into {local}, or into {folder}"
    return files.download(file, folder, WeightsError, mend, progress=True)


def _file(name: str) -> registry.RemoteFile:
    if name not in WEIGHTS:
        raise WeightsError("no such weights", where=repr(name), mend=f"Known names: {', '.join(WEIGHTS)}")
    return registry.weight_file(name)


def _places(file: registry.RemoteFile, root: Path | None) -> list[Path]:
    local = files.assets_folder() if root is None else root
    roots = [local] if root is not None else [local, files.cache_folder()]
    return [folder / sub / file.name for folder in roots if folder is not None for sub in ("", "weights/milo")]
