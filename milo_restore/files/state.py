"""Reading weight files without running what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from milo_restore.errors import WeightsError


def read_state_file(path: Path, entry: str = "params") -> dict[str, Tensor]:
    """The dictionary of tensors in a weight file, on the CPU.

    Args:
        path: ``.pth`` or ``.pt``, read with ``weights_only=True``, or ``.safetensors``.
        entry: the entry of a ``.pth``, or key prefix of a ``.safetensors``, that holds the weights, as BasicSR saves
            them; a file that has no such entry is taken as a whole.

    Raises:
        WeightsError: the file is missing, of another kind, damaged, or holds no dictionary of tensors.
    """
    if not path.is_file():
        raise WeightsError("no such weight file", where=path, mend="Give the path of a .pth or .safetensors file")
    if path.suffix not in (".pth", ".pt", ".safetensors"):
        raise WeightsError(f"unknown suffix {path.suffix!r}", where=path, mend="Give a .pth or .safetensors file")
    try:
        content = _read_safetensors(path, entry) if path.suffix == ".safetensors" else _read_torch(path, entry)
    except Exception as error:  # damaged files make torch.load raise nearly anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"unreadable ({reason})", where=path, mend="Fetch it again") from error
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(f"holds no dictionary of tensors, nor one under {entry!r}", where=path)
    return content


def _read_torch(path: Path, entry: str) -> Any:
    content = torch.load(path, map_location="cpu", weights_only=True)
    return content.get(entry, content) if isinstance(content, dict) else content


def _read_safetensors(path: Path, entry: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    flat = load_file(path)
    inside = {key[len(entry) + 1 :]: value for key, value in flat.items() if key.startswith(f"{entry}.")}
    return inside or flat
