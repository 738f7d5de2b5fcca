"""Where a metric's weights come from: the authors' files, the small ones shipped here, or a path."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from milo_restore.assets import weights_path
from milo_restore.errors import WeightsError
from milo_restore.state_file import read_state_file

SHIPPED = Path(__file__).resolve().parent.parent / "weights"

# Upstream's names of the layers, in MILO's files and in those of the masking-enhanced metrics, and ours.
_RENAMED = {
    "mask_finder_1.netBasic.": "mask_network.",
    "mask_finder_1.conv1.0.": "mask_network.0.",
    "mask_finder_1.conv2.0.": "mask_network.2.",
    "mask_finder_1.conv3.0.": "mask_network.4.",
    "scaler_network.model.": "scaler.",
}


@dataclass(frozen=True)
class WeightsInfo:
    """Which weights a metric carries; written to logs, checkpoints and reports.

    Attributes:
        name: what was asked for: ``official``, ``mini`` or a path.
        path: the file that was read.
        sha256: the file's hash.
    """

    name: str
    path: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name} ({Path(self.path).name}, sha256 {self.sha256[:12]})"


def load_weights(name: str | Path, asset: str, shipped: str | None) -> tuple[dict[str, Tensor], WeightsInfo]:
    """Find, check and read weights.

    Args:
        name: ``official``, ``mini``, or the path of a .pth (read with ``weights_only=True``) or .safetensors file.
        asset: what ``official`` means to `milo_restore.assets`.
        shipped: file name that ``mini`` means in `SHIPPED`; None where this metric has no shipped weights.

    Returns:
        The state dict in this project's key names, and what was read.

    Raises:
        WeightsError: naming the file that is missing, damaged or of another architecture.
    """
    if name == "official":
        path = weights_path(asset)
    elif name == "mini":
        if shipped is None:
            raise WeightsError(
                "no mini weights are shipped for this metric", where="mini", mend="Use 'official' or a path"
            )
        path = SHIPPED / shipped
    else:
        path = Path(name)
    content = read_state_file(path)
    info = WeightsInfo(str(name), str(path), hashlib.sha256(path.read_bytes()).hexdigest())
    return {_ours(key): value for key, value in content.items()}, info


def fill(metric: nn.Module, state: dict[str, Tensor], info: WeightsInfo) -> None:
    """Load weights into a metric, all of them and no others.

    Raises:
        WeightsError: they are of another architecture.
    """
    try:
        metric.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:240]
        raise WeightsError(f"does not fit {type(metric).__name__} ({reason})", where=info.path) from error


def _ours(key: str) -> str:
    """Upstream's key names in this project's; keys that are ours already pass."""
    for theirs, ours in _RENAMED.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return key
