"""Outside weight files by name: the metrics', the backbone under some of them, and DiffBIR's cleaners.

Where each comes from stands in ``third_party/upstream.toml``.
"""

from __future__ import annotations

import os
from pathlib import Path

from milo_restore.errors import WeightsError
from milo_restore.files import download, registry

WEIGHTS: tuple[str, ...] = tuple(registry.upstream()["weights"])
"""All names, such as ``milo`` (MILO.pth), ``e-mae`` (E_MAE.pth), ``vgg16``, ``bsrnet``."""
CLEANERS: tuple[str, ...] = tuple(
    name for name in WEIGHTS if registry.upstream()["weights"][name]["folder"] == "diffbir"
)
"""Those that DiffBIR restores images with before its diffusion model sees them."""

_SMALL_ONES = ("milo",)  # mini's latents are another world's than milo-latent's


def weights_path(name: str) -> Path:
    """A weight file, checked by its hash: from the local folder, from the cache, or downloaded once.

    Args:
        name: one of `WEIGHTS`.

    Returns:
        ``MILO.pth``, ``weights/MILO.pth`` or ``weights/milo/MILO.pth`` in the folder named by ``MILO_RESTORE_ASSETS``,
        or else in the cache. The last folder is the table's ``folder`` in ``upstream.toml``. VGG16 is found, and put,
        where torchvision has it, too.

    Raises:
        WeightsError: no such name; a file with another content (it is named, and no other one is taken in its place);
            or the file is nowhere and cannot be downloaded.
        DataError: ``MILO_RESTORE_ASSETS`` names no folder, or a file cannot be read.
    """
    found = find_weights(name)
    return found if found is not None else fetch_weights(name)


def present_weights(name: str) -> Path:
    """Like `weights_path`, without a download: for files that are large, or whose licence a user should have read.

    Raises:
        WeightsError: it is nowhere; the error says how to get it and where it belongs.
    """
    found = find_weights(name)
    if found is None:
        raise WeightsError("is not there", where=_file(name).name, mend=where_to_get(name))
    return found


def where_to_get(name: str) -> str:
    """Remedy for a missing weight file, in one sentence."""
    roots = " or ".join(str(root / _folder(name)) for root in _roots(None))
    return f"Run 'milo-restore assets fetch {_asked(name)}', or get {_file(name).url} and put it into {roots}"


def find_weights(name: str, root: Path | None = None) -> Path | None:
    """Like `weights_path`, without a download: None where the file is nowhere.

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
    in_hub = root is None and registry.upstream()["weights"][name].get("hub", False)
    folder = _torch_hub() if in_hub else (root or download.cache_folder()) / _folder(name)
    mend = (
        f"Where there is a network, run 'milo-restore assets fetch {_asked(name)}', or get the file from {file.url}; "
    )
    mend += f"put it into the folder that {download.ASSETS_VARIABLE} names, or into {folder}"
    if name in _SMALL_ONES:
        mend += ". Without it, the weights 'mini' (--weights mini) are shipped with milo-restore; their scores differ"
    return download.download(file, folder, WeightsError, mend, progress=True, timeout=timeout)


def weights_named(name: str) -> tuple[str, ...]:
    """The weights that a name stands for: itself, or all of a table's ``folder``, such as both halves of ``taef2``."""
    if name in WEIGHTS:
        return (name,)
    return tuple(each for each in WEIGHTS if registry.upstream()["weights"][each]["folder"] == name) or (name,)


def _asked(name: str) -> str:
    """Name to ask for: the whole, where a file is a half of it."""
    folder = str(registry.upstream()["weights"][name]["folder"])
    return folder if name.startswith(f"{folder}-") and folder not in WEIGHTS else name


def weights_sha256(name: str) -> str:
    """The hash that a weight file must have; empty where it is not known.

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


def _roots(root: Path | None) -> list[Path]:
    local = download.assets_folder() if root is None else root
    return [folder for folder in (local, download.cache_folder() if root is None else None) if folder is not None]


def _places(name: str, file: registry.RemoteFile, root: Path | None) -> list[Path]:
    places = [folder / sub / file.name for folder in _roots(root) for sub in ("", "weights", _folder(name))]
    in_hub = root is None and registry.upstream()["weights"][name].get("hub", False)
    return places + [_torch_hub() / file.name] * in_hub


def _torch_hub() -> Path:
    """Where torch keeps downloaded weights, by its own documented rule; importing torch to ask it takes seconds."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    home = os.environ.get("TORCH_HOME") or cache / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints"
