"""The launcher's command line, the configuration it names, and the swap of one loss for another."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import yaml

from milo_restore.basicsr.losses import BasicSRMILOLoss, LPIPSLoss, keys_of
from milo_restore.config import read_yaml
from milo_restore.errors import ConfigError

__all__ = ["LOSSES", "add_options", "forced", "in_signed_range", "put_loss", "read_options", "swap_loss"]

LOSSES: dict[str, dict[str, Any]] = {
    "l1": {"type": "L1Loss"},
    "mse": {"type": "MSELoss"},
    "lpips": {"type": "LPIPSLoss"},
    "milo": {"type": "MILOLoss"},
    "milo-linear": {"type": "MILOLoss", "curriculum": "linear"},
    "milo-cosine": {"type": "MILOLoss", "curriculum": "cosine"},
}
"""Names that ``--loss`` takes, and what each puts into ``train.pixel_opt``."""

_SHARED = ["loss_weight", "reduction"]
_KEYS = {"L1Loss": _SHARED, "MSELoss": _SHARED, "MILOLoss": keys_of(BasicSRMILOLoss), "LPIPSLoss": keys_of(LPIPSLoss)}


def add_options(parser: argparse.ArgumentParser) -> None:
    """BasicSR's own options and ours."""
    parser.add_argument("-opt", required=True, type=Path, metavar="FILE.yml", help="BasicSR's configuration")
    parser.add_argument("--loss", choices=LOSSES,
                        help="train with this pixel loss for the file's; milo-cosine is recommended")  # fmt: skip
    parser.add_argument("--weights", metavar="official|mini|PATH", help="MILO's weights, with --loss milo*")
    parser.add_argument("--import", nargs="+", default=[], metavar="MODULE", dest="modules",
                        help="modules of your own that register classes, such as hat.archs")  # fmt: skip
    parser.add_argument("--no-image-check", action="store_true", help="do not read every image once before the start")
    own = parser.add_argument_group("BasicSR's own options")
    own.add_argument("--launcher", choices=["none", "pytorch", "slurm"],
                     help="default: pytorch under torchrun and accelerate launch, else none")  # fmt: skip
    own.add_argument("--auto_resume", action="store_true", help="go on from the newest state of this experiment")
    own.add_argument("--debug", action="store_true", help="a few iterations, everything logged")
    own.add_argument("--force_yml", nargs="+", default=[], metavar="KEY:SUB=VALUE", help="change single values")
    own.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by older launchers")


def read_options(path: Path) -> dict[str, Any]:
    """A configuration as plain dicts and lists.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or holds no mapping.
    """
    options = read_yaml(path)
    if not options:
        raise ConfigError("must hold a mapping of keys to values", where=path)
    return options


def forced(options: dict[str, Any], entries: list[str]) -> dict[str, Any]:
    """A copy of the options with ``--force_yml`` applied as BasicSR will, which adds leaves but no branches.

    Raises:
        ConfigError: an entry is not of the form ``key:sub=value``, or names a branch that does not exist.
    """
    options = copy.deepcopy(options)
    if not entries:  # which forks do not know
        return options
    from basicsr.utils.options import _postprocess_yml_value

    for entry in entries:
        keys, separator, value = entry.partition("=")
        if not separator or "=" in value:
            raise ConfigError("is not of the form key:sub=value", where=f"--force_yml {entry}")
        *branches, leaf = keys.strip().split(":")
        node: Any = options
        for branch in branches:
            node = node.get(branch) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            mend = "BasicSR adds no branches; write it into the file"
            raise ConfigError(f"there is no branch {':'.join(branches)!r}", where=f"--force_yml {entry}", mend=mend)
        node[leaf] = _postprocess_yml_value(value.strip())
    return options


def swap_loss(options: dict[str, Any], loss: str, weights: str | None, where: Path) -> str:
    """Put another loss into ``train.pixel_opt``, in place; what both losses know, such as loss_weight, stays.

    Args:
        options: changed.
        loss: one of `LOSSES`.
        weights: MILO's; None leaves the default, ``official``.
        where: the file's name, for the error.

    Returns:
        One line that says what changed.

    Raises:
        ConfigError: there is no pixel loss to swap, or weights are named for a loss that takes none.
    """
    pixel = (options.get("train") or {}).get("pixel_opt")
    if not isinstance(pixel, dict) or "type" not in pixel:
        mend = "Name one in the file first: pixel_opt: {type: L1Loss, loss_weight: 1.0, reduction: mean}"
        raise ConfigError("there is no train.pixel_opt to swap", where=where, mend=mend)
    wanted = dict(LOSSES[loss])
    if weights is not None:
        if wanted["type"] != "MILOLoss":
            raise ConfigError(f"{loss} takes no weights", where="--weights", mend="Use it with --loss milo")
        wanted["weights"] = weights
    if in_signed_range(options) and wanted["type"] in ("MILOLoss", "LPIPSLoss"):
        wanted["range_norm"] = True
    return put_loss(pixel, wanted)


def put_loss(pixel: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Change the section of a loss, in place, into another; what both losses know, such as loss_weight, stays.

    Args:
        pixel: the section ``train.pixel_opt``; changed.
        wanted: the other loss's ``type`` and keys.

    Returns:
        One line that says what changed.
    """
    before = dict(pixel)
    known, same = _KEYS[wanted["type"]], before.get("type") == wanted["type"]
    kept = {key: value for key, value in before.items() if key in known and (same or key in _SHARED)}
    if same:
        kept.pop("curriculum", None)
    pixel.clear()
    pixel.update({**wanted, **kept, **wanted})
    dropped = [key for key in before if key != "type" and key not in pixel]
    line = f"train.pixel_opt: {_one_line(before)} -> {_one_line(pixel)}"
    return line + (f" (dropped, as {wanted['type']} does not take it: {', '.join(dropped)})" if dropped else "")


def in_signed_range(options: dict[str, Any]) -> bool:
    """Whether the training set says that it gives images in [-1, 1]: ``mean`` and ``std`` of 0.5."""
    data = (options.get("datasets") or {}).get("train") or {}
    given = [data.get(key) for key in ("mean", "std")]
    return all(value == 0.5 or (isinstance(value, list) and value and set(value) == {0.5}) for value in given)


def _one_line(options: dict[str, Any]) -> str:
    return yaml.safe_dump(dict(options), default_flow_style=True, sort_keys=False, width=10_000).strip()
