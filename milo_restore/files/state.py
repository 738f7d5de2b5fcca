"""Weight files: read without running what is in them, and loaded into networks strictly."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from milo_restore.errors import WeightsError
from milo_restore.files.manifest import verify_file

State = dict[str, Tensor]
Network = TypeVar("Network", bound=nn.Module)

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
ENTRIES = ("params_ema", "params", "state_dict", "model")
"""Training programs' names for the weights in a checkpoint. Of several the first is taken: averaged weights are what
BasicSR validates and publishes."""

_NAMED = 4


@dataclass(frozen=True)
class StateFile:
    """Content of a weight file.

    Attributes:
        tensors: the weights by their keys, on the CPU; those of a .safetensors lie in the file itself.
        metadata: what a .safetensors says about itself; empty for other files.
        entry: the entry of the file they were taken from, such as ``params_ema``; empty where they are the whole file.
    """

    tensors: State
    metadata: Mapping[str, str] = field(default_factory=dict)
    entry: str = ""


def read_state(
    path: Path,
    prefer: Sequence[str] = ENTRIES,
    entry: str | None = None,
    strip: Sequence[str] = ("module.",),
    *,
    mapped: bool = False,
) -> StateFile:
    """Read the weights of a file, whichever training program wrote it.

    Of several entries one is taken, and which is said on stderr.

    Args:
        path: one of `SUFFIXES`; anything but a .safetensors is read with ``weights_only=True``.
        prefer: entries that hold weights, the preferred first. In a .safetensors an entry is a prefix of its keys
            (``params.conv.weight``), if all keys have such a prefix. A file without any is taken as a whole.
        entry: the entry to take, in place of the preferred one.
        strip: prefixes taken off the keys where all have them, one after the other.
        mapped: leave a .pth's tensors in the file, for one that is large beside the memory. Their checksums are not
            looked at.

    Raises:
        WeightsError: the file is missing, of another kind, or damaged; holds no tensors; or has no such ``entry``.
    """
    content, metadata = read_content(path, mapped=mapped)
    entries = prefer if entry is None else (entry, *prefer)
    if path.suffix == ".safetensors":
        content = _nested(content, entries, whole=entry is None)
    if entry is not None:
        held = [key for key in prefer if isinstance(content, dict) and isinstance(content.get(key), dict)]
        if not isinstance(content, dict) or not isinstance(content.get(entry), dict):
            mend = f"It has {', '.join(held)}" if held else "It has no entries: leave the name out"
            raise WeightsError(f"holds no dictionary of tensors under {entry!r}", where=path, mend=mend)
        content, taken = content[entry], entry
    else:
        content, taken = _unwrapped(content, prefer, path)
    if not _is_state(content):
        raise WeightsError(f"holds no dictionary of tensors, nor one under {', '.join(prefer)}", where=path)
    for prefix in strip:
        if all(key.startswith(prefix) for key in content):
            content = {key.removeprefix(prefix): value for key, value in content.items()}
    return StateFile(content, metadata, taken)


def read_content(path: Path, *, mapped: bool = False) -> tuple[Any, dict[str, str]]:
    """All that a file of one of `SUFFIXES` holds, and the metadata of a .safetensors.

    Where the folder has a manifest, as a run's ``final/`` has, the file is first held against it.

    Raises:
        WeightsError: the file is missing, of another kind or damaged, or holds objects that could run code.
    """
    if not path.is_file():
        raise WeightsError("no such weight file", where=path, mend=f"Give a file ending in {', '.join(SUFFIXES)}")
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"unknown suffix {path.suffix!r}", where=path, mend=f"Known: {', '.join(SUFFIXES)}")
    verify_file(path)
    try:
        return _read_safetensors(path) if path.suffix == ".safetensors" else (_read_torch(path, mapped), {})
    except Exception as error:  # the unpickler raises nearly anything on damaged files, and on what is not allowed
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        if path.suffix != ".safetensors" and not isinstance(error, OSError | RuntimeError | ValueError):
            reason = "it is damaged, or holds objects that are no weights"
        mend = "Fetch it again; or, where it holds more than tensors, take a .safetensors of the same network"
        raise WeightsError(f"unreadable ({reason})", where=path, mend=mend) from error


def fill(
    network: Network, state: Mapping[str, Tensor], path: str | Path, *, name: str | None = None, assign: bool = False
) -> Network:
    """Load weights into a network, all of them and no others.

    Args:
        network: it may lie on the meta device where ``assign`` is given.
        state: tensors by the network's own keys.
        path: the file they came from, for the error.
        name: what the network is called, for the error; by default its class.
        assign: the network takes over the tensors themselves, in their precision, instead of their values.

    Raises:
        WeightsError: keys are missing or unexpected, or shapes differ; the first few are named.
    """
    expected = network.state_dict()
    wrong = sorted(
        f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    )
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    faults = listed({"missing": missing, "unexpected": unexpected, "of wrong shape": wrong})
    if faults:
        raise WeightsError(f"does not fit {name or type(network).__name__}: {faults}", where=path)
    network.load_state_dict(state, strict=True, assign=assign)
    return network


def listed(faults: Mapping[str, Sequence[object]]) -> str:
    """``2 missing: a, b; 1 unexpected: c``; empty where there are no faults."""
    return "; ".join(f"{len(keys)} {fault}: {shortened(keys)}" for fault, keys in faults.items() if keys)


def shortened(names: Sequence[object]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(str, names[:_NAMED])) + more


def _read_torch(path: Path, mapped: bool) -> Any:
    if mapped:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written by a PyTorch before 1.6, which cannot be mapped
            pass
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118  no mapping


def _unwrapped(content: Any, prefer: Sequence[str], path: Path) -> tuple[Any, str]:
    """The content of the preferred entry, and the entry's name; entries may lie in entries."""
    taken = []
    while isinstance(content, dict) and (held := [key for key in prefer if isinstance(content.get(key), dict)]):
        if len(held) > 1:
            print(f"milo-restore: {path} holds {', '.join(held)}: {held[0]} is taken", file=sys.stderr)
        taken.append(held[0])
        content = content[held[0]]
    return content, ".".join(taken)


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    )


def _nested(flat: State, entries: Sequence[str], *, whole: bool) -> dict[str, Any]:
    """Keys ``entry.key`` as entries; with ``whole`` only where every key belongs to one."""
    heads = {key: key.partition(".")[0] for key in flat}
    if whole and not all(head in entries for head in heads.values()):
        return flat
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        if heads[key] in entries:
            nested.setdefault(heads[key], {})[key.partition(".")[2]] = value
    return nested
