"""The authors' weights of MILO and of the masking-enhanced metrics, by name."""

from __future__ import annotations

from pathlib import Path

from milo_restore.errors import WeightsError
from milo_restore.files import download, registry

WEIGHTS = ("milo", "milo-latent", "e-mae", "e-mse", "e-psnr", "e-ssim")
_SMALL_ONES = ("milo",)  # mini's latents are another world's than milo-latent's


def weights_path(name: str) -> Path:
    """A weight file of the authors, checked by sha256: from the local folder, from the cache, or downloaded once.

    Args:
        name: one of `WEIGHTS`: ``milo`` (MILO.pth), ``milo-latent`` (MILO_latent.pth), ``e-mae`` (E_MAE.pth), ...

    Returns:
        ``MILO.pth`` or ``weights/milo/MILO.pth`` in the folder named by ``MILO_RESTORE_ASSETS``, or else in the cache.
        The masking-enhanced metrics' folder is ``weights/enhanced_iqm``.

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
        name: one of `WEIGHTS`.
        root: look in this folder only.

    Raises:
        WeightsError: no such name, or a file with another content.
    """
    file = _file(name)
    for path in _places(name, file, root):
        if path.is_file():
            download.check_file(path, file, WeightsError)
            return path
    return None


def fetch_weights(name: str, root: Path | None = None, *, timeout: float = download.TIMEOUT) -> Path:
    """Download a weight file into its folder under ``root/weights`` (default: the cache), whatever is found elsewhere.

    Args:
        name: one of `WEIGHTS`.
        root: where to download to.
        timeout: seconds to wait for an answer.

    Raises:
        WeightsError: no such name, or it cannot be downloaded.
    """
    file = _file(name)
    folder = (root or download.cache_folder()) / _folder(name)
    mend = f"Where there is a network, run 'milo-restore assets fetch {name}', or get the file from {file.url}; put it "
    mend += f"into the folder that {download.ASSETS_VARIABLE} names, or into {folder}"
    if name in _SMALL_ONES:
        mend += ". Without it, the weights 'mini' (--weights mini) are shipped with milo-restore; their scores differ"
    return download.download(file, folder, WeightsError, mend, progress=True, timeout=timeout)


def weights_sha256(name: str) -> str:
    """The hash that a weight file must have.

    Raises:
        WeightsError: no such name.
    """
    return _file(name).sha256


def _file(name: str) -> registry.RemoteFile:
    if name not in WEIGHTS:
        raise WeightsError("no such weights", where=repr(name), mend=f"Known names: {', '.join(WEIGHTS)}")
    return registry.weight_file(name)


def _folder(name: str) -> str:
    """Where a file lies under a root: one folder per outside repository."""
    return f"weights/{registry.upstream()['weights'][name]['folder']}"


def _places(name: str, file: registry.RemoteFile, root: Path | None) -> list[Path]:
    local = download.assets_folder() if root is None else root
    roots = [local] if root is not None else [local, download.cache_folder()]
    return [folder / sub / file.name for folder in roots if folder is not None for sub in ("", _folder(name))]
