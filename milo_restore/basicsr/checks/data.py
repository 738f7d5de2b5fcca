"""The section ``datasets``: what it names must be there, and make batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from basicsr.data import DATASET_REGISTRY
from basicsr.utils import logger

from milo_restore.basicsr.checks.names import registered
from milo_restore.errors import ConfigError, DataError, MiloRestoreError

__all__ = ["check_data", "make", "reads_files", "roots", "tried"]

T = TypeVar("T")


def check_data(options: dict[str, Any], where: Path, processes: int) -> list[str]:
    """Look for what the data sets name, and make them once.

    Args:
        options: the configuration, its names checked.
        where: the file's name, for the errors.
        processes: how many processes train together.

    Returns:
        A line, where BasicSR will end the run early.

    Raises:
        ConfigError: a missing key; a training set smaller than one batch.
        DataError: a missing folder or list of images, or a data set that cannot be made of them.
    """
    for phase, data in options["datasets"].items():
        _check_places(data, f"{where}, key 'datasets.{phase}")
    counts = {}
    for phase in options["datasets"]:
        key = f"{where}, key 'datasets.{phase}'"
        counts[phase] = len(make(options, phase, key))
        if counts[phase] == 0:
            raise DataError("there are no images", where=key)
    return _check_batches(options, counts["train"], where, processes)


def make(options: dict[str, Any], phase: str, where: str) -> Any:
    """The data set of a phase as BasicSR will make it; without its cache, and without touching BasicSR's logger.

    Raises:
        ConfigError: a key that it needs is missing.
        DataError: whatever else keeps it from being made.
    """
    data = copy.deepcopy(options["datasets"][phase])
    data["phase"] = phase.split("_")[0]
    data["check_images"] = False  # ours would decode all
    if "scale" in options:
        data["scale"] = options["scale"]
    if data.get("cache_data"):
        data["cache_data"] = False
    for key in ("dataroot_gt", "dataroot_lq"):
        if isinstance(data.get(key), str):
            data[key] = str(Path(data[key]).expanduser())
    with patch.dict(logger.initialized_logger, {"basicsr": True}):  # else set up here, without its file
        return tried(lambda: registered(DATASET_REGISTRY, data["type"])(data), f"{data['type']} cannot be made", where)


def tried(action: Callable[[], T], what: str, where: str) -> T:
    """Do something that BasicSR will do with the data, and say in one line what it trips over.

    Raises:
        ConfigError: a key is missing.
        DataError: anything else that goes wrong.
    """
    try:
        return action()
    except MiloRestoreError:
        raise
    except KeyError as error:
        raise ConfigError(f"{what}: missing key {error}", where=where) from error
    except Exception as error:  # BasicSR asserts, and raises what its libraries raise
        raise DataError(f"{what} ({type(error).__name__}: {' '.join(str(error).split())})", where=where) from error


def reads_files(data: dict[str, Any]) -> bool:
    """Whether the images lie in folders, not in an archive."""
    return bool((data.get("io_backend") or {}).get("type", "disk") == "disk")


def roots(data: dict[str, Any]) -> Iterator[tuple[str, Path]]:
    """The places that a data set names: key and folder or archive."""
    for key, value in data.items():
        if key.startswith("dataroot"):
            for root in value if isinstance(value, list) else [value]:
                if root is not None:
                    yield key, Path(str(root)).expanduser()


def _check_places(data: dict[str, Any], where: str) -> None:
    for key, root in roots(data):
        if not root.exists():
            mend = "Name an existing folder of images"
            raise DataError(f"no such folder: {root}", where=f"{where}.{key}'", mend=mend)
    for key, value in data.items():
        if key.startswith("meta_info") and isinstance(value, str) and not Path(value).expanduser().is_file():
            mend = "Name an existing list of images, or remove the key to take the whole folder"
            raise DataError(f"no such file: {value}", where=f"{where}.{key}'", mend=mend)


def _check_batches(options: dict[str, Any], count: int, where: Path, processes: int) -> list[str]:
    """BasicSR drops an epoch's last, smaller batch, but counts it: a run may end early, or do nothing at all."""
    data = options["datasets"]["train"]
    ratio, batch = data.get("dataset_enlarge_ratio", 1), data["batch_size_per_gpu"]
    gpus = options["num_gpu"] if isinstance(options["num_gpu"], int) else torch.cuda.device_count()
    per_process = batch * (max(gpus, 1) if processes == 1 else 1)
    done = math.ceil(count * ratio / processes) // per_process
    total = int(options["train"]["total_iter"])
    counted = math.ceil(count * ratio / (batch * processes))
    runs = (math.ceil(total / counted) + 1) * done
    if runs >= total:
        return []
    enough = math.ceil(100 * per_process * processes / count)
    what = f"{count} images x dataset_enlarge_ratio {ratio} make {done} whole batches of {per_process} per epoch"
    mend = f"Set dataset_enlarge_ratio to {enough} or more"
    if done == 0:
        raise ConfigError(f"{what}: there is nothing to train on", where=f"{where}, key 'datasets.train'", mend=mend)
    return [f"{what}, so BasicSR will end at iteration {runs}, not {total}. {mend}"]
