"""Identity of a run: all that its numbers depend on. A continued run differs from it on record, or not at all."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from milo_restore.errors import ConfigError, listed
from milo_restore.files.hashes import text_sha256
from milo_restore.train.settings import TrainSettings

# What may change between a run and its continuation without changing the result.
_FREE = {"accumulation", "workers", "deterministic", "trackers", "max_bad_steps", "max_bad_files", "keep_checkpoints"}
_FREE |= {"compile", "channels_last"} | {f"{what}_every" for what in ("log", "evaluate", "sample", "checkpoint")}
_SETTINGS = "training."  # the section of a recipe's configuration that `TrainSettings` are
_SHOWN = 60  # characters of a value

Changes = dict[str, list[Any]]
"""The former and the new value of each changed key."""


def fingerprint(model: nn.Module, settings: TrainSettings, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Values that must be the same for a continued run to equal an uninterrupted one; of JSON's types."""
    kept = {key: value for key, value in dataclasses.asdict(settings).items() if key not in _FREE}
    if kept["optimizer"] == "adamw":  # checkpoints from when there was no other do not name it
        del kept["optimizer"]
    if kept["scheduler"] is None:  # the same
        for name in ("scheduler", "warmup_steps", "num_cycles", "power"):
            del kept[name]
    if kept["stop"] is None:  # the same
        del kept["stop"]
    else:  # then it matters which steps are evaluated
        kept["evaluate_every"] = settings.evaluate_every
    shapes = [(name, list(value.shape), str(value.dtype)) for name, value in model.state_dict().items()]
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    digest = text_sha256(json.dumps([shapes, trained]))
    count = sum(value.numel() for value in model.parameters())
    architecture = f"{count} parameters, shapes {digest[:12]}"
    found: dict[str, Any] = json.loads(json.dumps({**kept, "model": architecture, **fixed}, default=str))
    return found


def flattened(config: str, free: Sequence[str] = ()) -> dict[str, Any]:
    """A configuration's values by dotted keys, lists as wholes; without ``training``, which the fingerprint has.

    Args:
        config: YAML.
        free: keys that say where things lie, or other things that the result does not depend on.
    """
    values: dict[str, Any] = {}

    def visit(node: Any, prefix: str) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                visit(value, f"{prefix}.{key}" if prefix else str(key))
        else:
            values[prefix] = node

    visit(yaml.safe_load(config), "")
    kept = {key: value for key, value in values.items() if not key.startswith(_SETTINGS) and key not in free}
    found: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return found


def changed(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Changes:
    """The keys whose values differ; one that is missing counts as None."""
    keys = dict.fromkeys((*ours, *theirs))
    return {key: [theirs.get(key), ours.get(key)] for key in keys if ours.get(key) != theirs.get(key)}


def check(found: Changes, named: Sequence[str], folder: Path) -> None:
    """Refuse differences that the user has not named.

    Args:
        found: see `changed`.
        named: the keys of ``--change``, with or without ``training.`` before those of the settings.
        folder: the checkpoint, for the error.

    Raises:
        ConfigError: naming each other key with both values, and the options with which it is a change on record.
    """
    allowed = [key.removeprefix(_SETTINGS) for key in named]
    left = {
        key: values
        for key, values in found.items()
        if not any(key == name or key.startswith(f"{name}.") or name.startswith(f"{key}.") for name in allowed)
    }
    if not left:
        return
    differences = [f"{key} is now {_short(new)}; the checkpoint was trained with {_short(old)}"
                   for key, (old, new) in left.items()]  # fmt: skip
    raise ConfigError(
        listed(differences, 8, ", and "),
        where=folder,
        mend="Restore the setting to continue this run, or start another --output, "
        f"or have the change on record: --change {' '.join(left)} (KEY=VALUE also sets it)",
    )


def told(lineage: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each change of a run in words, such as ``from step 251 on: learning_rate 0.0001 in place of 0.001``."""
    return [
        f"from step {entry['after'] + 1} on: "
        + ", ".join(f"{key} {_short(new)} in place of {_short(old)}" for key, (old, new) in entry["changed"].items())
        for entry in lineage
    ]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
