"""Weights of a metric: the authors' files, the small ones shipped here, or a path."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch

from milo_restore.errors import WeightsError
from milo_restore.files import fetch_weights, find_weights, weights_path
from milo_restore.files.hashes import sha256_of
from milo_restore.files.hub import WEIGHTS_FILE, weights_folder
from milo_restore.files.manifest import verify_file
from milo_restore.files.state import State, read_state

SHIPPED = Path(__file__).resolve().parent.parent / "weights"
AUTO_TIMEOUT = 5.0
"""Seconds that ``auto`` waits for a server to answer."""

# Upstream's names of the layers, in MILO's files and in those of the E-metrics, and ours.
_RENAMED = {
    "mask_finder_1.netBasic.": "mask_network.",
    "mask_finder_1.conv1.0.": "mask_network.0.",
    "mask_finder_1.conv2.0.": "mask_network.2.",
    "mask_finder_1.conv3.0.": "mask_network.4.",
    "scaler_network.model.": "scaler.",
}


@dataclass(frozen=True)
class Agreement:
    """Recorded agreement of weights taught here with their teacher's; None where the file has no record.

    Attributes:
        gradient_cosine: of the loss's gradients, with the mask as a constant.
        mask_correlation: of the masks.
    """

    gradient_cosine: float | None = None
    mask_correlation: float | None = None


@dataclass(frozen=True)
class WeightsInfo:
    """Which weights a metric carries; written to logs, checkpoints and reports.

    Attributes:
        name: what they are: ``official``, ``mini`` or a path.
        path: the file that was read.
        sha256: the file's hash.
        auto: whether ``auto`` was asked for and chose them.
        agreement: with the teacher's, of weights that were taught here.
        metadata: what a .safetensors says of itself.
    """

    name: str
    path: str
    sha256: str
    auto: bool = False
    agreement: Agreement = Agreement()
    metadata: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __str__(self) -> str:
        chosen = ", chosen by auto" if self.auto else ""
        return f"{self.name} ({Path(self.path).name}, sha256 {self.sha256[:12]}{chosen})"


def load_weights(name: str | Path, asset: str, shipped: Mapping[str, str]) -> tuple[State, WeightsInfo]:
    """Find, check and read weights.

    Args:
        name: ``official``, ``mini``, ``auto`` (``official`` where it is at hand or can be downloaded within seconds,
            else ``mini``; which, and why, is said once on stderr), the path of a .pth (read with
            ``weights_only=True``) or .safetensors file, or a folder or repository as `weights_folder` takes.
        asset: what ``official`` means to `milo_restore.files`.
        shipped: files in `SHIPPED` by the names of the weights that this metric has there.

    Returns:
        The state dict in this project's key names, float32, and what was read.

    Raises:
        WeightsError: naming the file that is missing, damaged or of another architecture.
    """
    if name == "auto":
        _shipped_file(shipped, "mini")  # which may be the choice
    chosen = _choose(asset) if name == "auto" else str(name)
    if chosen == "official":
        path = weights_path(asset)
    elif chosen in shipped or chosen == "mini":
        path = _shipped_file(shipped, chosen)
    else:
        folder = weights_folder(name)
        path = Path(name) if folder is None else folder / WEIGHTS_FILE
    content = read_state(path)
    said = content.metadata
    info = WeightsInfo(chosen, str(path), sha256_of(path), name == "auto", _agreement(said, path), said)
    # Copied: the tensors of a .safetensors lie in the file itself, which a training may replace.
    return {_ours(key): value.to(torch.float32, copy=True) for key, value in content.tensors.items()}, info


@functools.cache
def _choose(asset: str) -> str:
    """Choice of ``auto``: ``official`` or ``mini``; decided and said once per process."""
    found = find_weights(asset)
    try:
        path = found or fetch_weights(asset, timeout=AUTO_TIMEOUT)
    except WeightsError as error:
        print(f"milo-restore: weights 'auto' are 'mini': official {error.where} {error.what}", file=sys.stderr)
        return "mini"
    print(f"milo-restore: weights 'auto' are 'official': {'found' if found else 'downloaded'} {path}", file=sys.stderr)
    return "official"


def _shipped_file(shipped: Mapping[str, str], asked: str) -> Path:
    if asked not in shipped:
        raise WeightsError("no mini weights are shipped for this metric", where=asked, mend="Use 'official' or a path")
    verify_file(SHIPPED / shipped[asked], needed=True)
    return SHIPPED / shipped[asked]


def _agreement(said: Mapping[str, str], path: Path) -> Agreement:
    """The agreement that the metadata of a .safetensors file states."""
    try:
        return Agreement(**{key.name: float(said[key.name]) for key in fields(Agreement) if key.name in said})
    except ValueError as error:
        raise WeightsError(f"its metadata is no number ({error})", where=path) from error


def _ours(key: str) -> str:
    """Upstream's key names in this project's; keys that are ours already pass."""
    for theirs, ours in _RENAMED.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return key
