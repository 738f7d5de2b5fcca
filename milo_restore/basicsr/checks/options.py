"""A configuration as a whole: its keys, its numbers and the names in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from basicsr.archs import ARCH_REGISTRY
from basicsr.data import DATASET_REGISTRY
from basicsr.losses import LOSS_REGISTRY
from basicsr.metrics import METRIC_REGISTRY
from basicsr.models import MODEL_REGISTRY

from milo_restore.basicsr.checks.data import check_data
from milo_restore.basicsr.checks.names import refuse_unknown, refuse_unknown_arguments, registered
from milo_restore.basicsr.checks.training import check_training
from milo_restore.basicsr.options import in_signed_range
from milo_restore.errors import ConfigError

__all__ = ["check_options"]

_TEXTUAL = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
_MAPPINGS = ("datasets", "network_g", "path", "train", "logger")
_REQUIRED = (
    "name", "model_type", "num_gpu", *_MAPPINGS, "datasets.train", "train.total_iter", "train.optim_g",
    "train.scheduler", "datasets.train.batch_size_per_gpu", "datasets.train.num_worker_per_gpu", "logger.print_freq",
    "logger.save_checkpoint_freq", "logger.use_tb_logger",
)  # fmt: skip
_MAY_BE_EMPTY = ("logger.use_tb_logger", "val.save_img")
_ABSENT = object()
_WHOLE = {"datasets.train.batch_size_per_gpu": 1, "datasets.train.num_worker_per_gpu": 0}  # and their least values
_POSITIVE = (
    "train.total_iter", "logger.print_freq", "logger.save_checkpoint_freq", "val.val_freq",
    "datasets.train.dataset_enlarge_ratio",
)  # fmt: skip


def check_options(options: dict[str, Any], where: Path, processes: int) -> list[str]:
    """Look at everything that can be known without training or decoding images.

    Args:
        options: the configuration, with ``--force_yml`` applied.
        where: the file's name, for the errors.
        processes: how many processes train together.

    Returns:
        What is worth knowing, in one line each, such as a run that will end early.

    Raises:
        ConfigError: a missing or unknown key, a number that YAML reads as text, an unknown class.
        DataError: a missing folder or list of images, or a data set that cannot be made of them.
        WeightsError: there is no such checkpoint, or the loss's weights cannot be had.
    """
    _refuse_textual_numbers(options, where)
    _check_keys(options, where)
    _check_numbers(options, where)
    _check_devices(options, where)
    _check_names(options, where)
    _check_range(options, where)
    check_training(options, where)
    return check_data(options, where, processes)


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node


def _at(options: dict[str, Any], path: str) -> Any:
    """The value at a dotted path, `_ABSENT` where there is none."""
    node: Any = options
    for key in path.split("."):
        node = node.get(key, _ABSENT) if isinstance(node, dict) else _ABSENT
    return node


def _refuse_textual_numbers(options: dict[str, Any], where: Path) -> None:
    for path, value in _leaves(options):
        if isinstance(value, str) and _TEXTUAL.fullmatch(value):
            mend = f"Write !!float {value}, or with a point and a sign, as in 1.0e-4"
            raise ConfigError(f"YAML reads {value} as text, not as a number", where=f"{where}, key {path!r}", mend=mend)


def _check_keys(options: dict[str, Any], where: Path) -> None:
    """The keys that BasicSR's training program reads without a default."""
    phases = options["datasets"] if isinstance(options.get("datasets"), dict) else {}
    required = [*_REQUIRED, *(f"datasets.{phase}.name" for phase in phases)]
    if options.get("val") is not None:
        required += ["val.val_freq", "val.save_img"]
    for path in required:
        if _at(options, path) is _ABSENT or (_at(options, path) is None and path not in _MAY_BE_EMPTY):
            raise ConfigError(f"missing key {path!r}", where=where)
        if path in (*_MAPPINGS, "datasets.train", "train.scheduler") and not isinstance(_at(options, path), dict):
            raise ConfigError("must hold a mapping of keys to values", where=f"{where}, key {path!r}")
    if not isinstance(options["name"], str):
        raise ConfigError(f"{options['name']!r} is no name for a folder", where=f"{where}, key 'name'")
    for phase in phases:
        if phase != "train" and str(phase).split("_")[0] != "val":
            mend = "Call it val, or val_ and anything, beside the one named train"
            raise ConfigError("BasicSR knows no such phase", where=f"{where}, key 'datasets.{phase}'", mend=mend)


def _check_numbers(options: dict[str, Any], where: Path) -> None:
    for path, least in _WHOLE.items():
        value = _at(options, path)
        if type(value) is not int or value < least:
            raise ConfigError(f"{value!r} is no whole number from {least} on", where=f"{where}, key {path!r}")
    for path in _POSITIVE:
        value = _at(options, path)
        if value is not _ABSENT and (isinstance(value, bool) or not isinstance(value, int | float) or value <= 0):
            raise ConfigError(f"{value!r} is not a positive number", where=f"{where}, key {path!r}")


def _check_devices(options: dict[str, Any], where: Path) -> None:
    found, wanted, key = torch.cuda.device_count(), options["num_gpu"], f"{where}, key 'num_gpu'"
    if wanted != "auto" and (type(wanted) is not int or wanted < 0):
        raise ConfigError(f"{wanted!r} is neither a number of GPUs nor auto", where=key)
    if wanted != "auto" and wanted > 0 and found == 0:
        mend = "Add --force_yml num_gpu=0 to train on the CPU"
        raise ConfigError(f"{wanted} GPUs are asked for, and PyTorch finds none", where=key, mend=mend)
    data = options["datasets"]["train"]
    mode, key = data.get("prefetch_mode"), f"{where}, key 'datasets.train.prefetch_mode'"
    if mode not in (None, "cpu", "cuda"):
        raise ConfigError(f"{mode!r} is neither cpu nor cuda", where=key, mend="Or leave it empty: ~")
    if mode == "cuda" and (found == 0 or data.get("pin_memory") is not True):
        raise ConfigError(
            "cuda needs a GPU, and pin_memory: true", where=key, mend="Set it to cpu, or leave it empty: ~"
        )


def _check_names(options: dict[str, Any], where: Path) -> None:
    """Every ``type`` against BasicSR's registries, and what is told to networks, losses and metrics."""
    _check_type(options["model_type"], MODEL_REGISTRY, f"{where}, key 'model_type'")
    sections = [(key, value, ARCH_REGISTRY) for key, value in options.items() if key.startswith("network_")]
    sections += [(f"datasets.{key}", value, DATASET_REGISTRY) for key, value in options["datasets"].items()]
    sections += [
        (f"train.{key}", value, LOSS_REGISTRY)
        for key, value in options["train"].items()
        if key.endswith("_opt") and isinstance(value, dict)
    ]
    metrics = (options.get("val") or {}).get("metrics") or {}
    sections += [(f"val.metrics.{key}", value, METRIC_REGISTRY) for key, value in metrics.items()]
    for key, value, registry in sections:
        if not isinstance(value, dict) or "type" not in value:
            raise ConfigError(f"missing key '{key}.type'", where=where)
        _check_type(value["type"], registry, f"{where}, key '{key}.type'")
        if registry is not DATASET_REGISTRY:  # those take the section as a whole
            supplied = ("img", "img2") if registry is METRIC_REGISTRY else ()
            refuse_unknown_arguments(registered(registry, value["type"]), value, f"{where}, key {key!r}", supplied)


def _check_range(options: dict[str, Any], where: Path) -> None:
    """Losses on images want to know that they are in [-1, 1], and would find out in the middle of training."""
    for key, section in options["train"].items():
        known = isinstance(section, dict) and section.get("type") in ("MILOLoss", "LPIPSLoss")
        if known and in_signed_range(options) and not section.get("range_norm"):
            what = "mean and std of 0.5 in datasets.train make images in [-1, 1], which this loss is not told"
            raise ConfigError(what, where=f"{where}, key 'train.{key}'", mend="Add range_norm: true")


def _check_type(name: Any, registry: Any, where: str) -> None:
    refuse_unknown(name, [known.removesuffix("_basicsr") for known, _ in registry], where, importable=True)
