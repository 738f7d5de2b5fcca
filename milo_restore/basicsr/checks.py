"""What is wrong with a BasicSR configuration or its images, said in one line before the first iteration.

BasicSR finds most of these hours later, in a traceback of a data worker, or not at all.
"""

from __future__ import annotations

import milo_restore.compat  # noqa: F401  # isort: skip  (before basicsr, which it makes importable)

import difflib
import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from basicsr.archs import ARCH_REGISTRY
from basicsr.data import DATASET_REGISTRY
from basicsr.losses import LOSS_REGISTRY
from basicsr.metrics import METRIC_REGISTRY
from basicsr.models import MODEL_REGISTRY
from basicsr.models.base_model import BaseModel
from PIL import Image
from tqdm import tqdm

from milo_restore.assets.datasets import SUFFIXES
from milo_restore.errors import ConfigError, DataError, WeightsError

__all__ = ["check_images", "check_options"]

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
_REQUIRED = ("name", "model_type", "num_gpu", "datasets", "network_g", "path", "train", "logger")
_COUNTED = {"PairedImageDataset": "dataroot_lq", "Dataset_GaussianDenoising": "dataroot_gt"}
_OPTIMIZERS = ("Adam",)
_SCHEDULERS = ("MultiStepLR", "MultiStepRestartLR", "CosineAnnealingRestartLR")


def check_options(options: dict[str, Any], where: Path, processes: int) -> list[str]:
    """Look at everything that can be known without training.

    Args:
        options: the configuration, with ``--force_yml`` applied.
        where: the file's name, for the errors.
        processes: how many processes train together.

    Returns:
        What is worth knowing, in one line each, such as a run that will end early.

    Raises:
        ConfigError: a missing key, a number that YAML reads as text, an unknown class.
        DataError: a missing folder or list of images.
        WeightsError: there is no such checkpoint, or the loss's weights cannot be had.
    """
    for key in _REQUIRED:
        if key not in options:
            raise ConfigError(f"missing key {key!r}", where=where)
    for key in ("datasets", "train", "network_g", "path", "logger"):
        if not isinstance(options[key], dict):
            raise ConfigError("must hold a mapping of keys to values", where=f"{where}, key {key!r}")
    if "train" not in options["datasets"]:
        raise ConfigError("missing key 'datasets.train'", where=where)
    _refuse_textual_numbers(options, where)
    _check_devices(options, where)
    _check_names(options, where)
    _check_training(options, where)
    for key, value in options["path"].items():
        if key.startswith(("pretrain_network", "resume_state")) and value and not Path(value).expanduser().is_file():
            raise WeightsError(f"no such file: {value}", where=f"{where}, key 'path.{key}'", mend="Name it, or write ~")
    for phase, data in options["datasets"].items():
        _check_places(data, f"{where}, key 'datasets.{phase}")
    return _check_batches(options, where, processes)


def check_images(options: dict[str, Any]) -> None:
    """Read every image of the folders once: PNG files against their checksums, others by decoding them.

    Raises:
        DataError: a folder without images; an image that is damaged, or of a pair and smaller than the crops.
    """
    jobs = [
        (path, int(data.get("gt_size", 0)) if data["type"] == "PairedImageDataset" and key == "dataroot_gt" else 0)
        for data in options["datasets"].values()
        if (data.get("io_backend") or {}).get("type", "disk") == "disk"
        for key, root in _roots(data)
        for path in _images(Path(root).expanduser(), f"datasets.{data.get('name', '')}.{key}")
    ]
    unique = list(dict(jobs).items())
    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter's lock
        checked = pool.map(lambda job: _check_image(*job), unique)
        for _ in tqdm(checked, total=len(unique), desc="reading all images once", unit="image", disable=None):
            pass


def _walk(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _walk(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _walk(value, f"{path}.{number}")
    else:
        yield path, node


def _refuse_textual_numbers(options: dict[str, Any], where: Path) -> None:
    for path, value in _walk(options):
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            mend = f"Write !!float {value}, or with a point and a sign, as in 1.0e-4"
            raise ConfigError(f"YAML reads {value} as text, not as a number", where=f"{where}, key {path!r}", mend=mend)


def _check_devices(options: dict[str, Any], where: Path) -> None:
    found, wanted = torch.cuda.device_count(), options["num_gpu"]
    if wanted != "auto" and (not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 0):
        raise ConfigError(f"{wanted!r} is neither a number of GPUs nor auto", where=f"{where}, key 'num_gpu'")
    if wanted != "auto" and wanted > 0 and found == 0:
        mend = "Add --force_yml num_gpu=0 to train on the CPU"
        raise ConfigError(
            f"{wanted} GPUs are asked for, and PyTorch finds none", where=f"{where}, key 'num_gpu'", mend=mend
        )


def _check_names(options: dict[str, Any], where: Path) -> None:
    """Every ``type`` against BasicSR's registries, which would raise a KeyError much later."""
    named = [("model_type", options["model_type"], MODEL_REGISTRY)]
    sections: list[tuple[str, Any, Any]] = [
        (key, value, ARCH_REGISTRY) for key, value in options.items() if key.startswith("network_")
    ]
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
        named.append((f"{key}.type", value["type"], registry))
    for key, name, registry in named:
        _known(name, [known.removesuffix("_basicsr") for known, _ in registry], f"{where}, key {key!r}")


def _known(name: Any, names: Any, where: str) -> None:
    if name in names:
        return
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)
    mend = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(names))}"
    raise ConfigError(f"BasicSR knows no {name!r}", where=where, mend=mend)


def _check_training(options: dict[str, Any], where: Path) -> None:
    training = options["train"]
    model = MODEL_REGISTRY.get(options["model_type"])
    for key in ("total_iter", "optim_g", "scheduler"):
        if key not in training:
            raise ConfigError(f"missing key 'train.{key}'", where=where)
    if model.get_optimizer is BaseModel.get_optimizer:  # a model of one's own may know more
        for key in [key for key in training if key.startswith("optim_")]:
            _known((training[key] or {}).get("type"), _OPTIMIZERS, f"{where}, key 'train.{key}.type'")
    if model.setup_schedulers is BaseModel.setup_schedulers:
        _known((training["scheduler"] or {}).get("type"), _SCHEDULERS, f"{where}, key 'train.scheduler.type'")
    for key, value in training.items():
        if key.endswith("_opt") and isinstance(value, dict) and value["type"] in ("MILOLoss", "LPIPSLoss"):
            # Not by build_loss, which would set up BasicSR's logger before its file is known.
            loss = LOSS_REGISTRY.get(value["type"])
            loss(**{name: given for name, given in value.items() if name != "type"})


def _roots(data: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        if key.startswith("dataroot"):
            for root in value if isinstance(value, list) else [value]:
                if root is not None:
                    yield key, str(root)


def _check_places(data: dict[str, Any], where: str) -> None:
    for key, root in _roots(data):
        if not Path(root).expanduser().exists():
            raise DataError(
                f"no such folder: {root}", where=f"{where}.{key}'", mend="Name an existing folder of images"
            )
    for key, value in data.items():
        if key.startswith("meta_info") and isinstance(value, str) and not Path(value).expanduser().is_file():
            mend = "Name an existing list of images, or remove the key to take the whole folder"
            raise DataError(f"no such file: {value}", where=f"{where}.{key}'", mend=mend)


def _check_batches(options: dict[str, Any], where: Path, processes: int) -> list[str]:
    """BasicSR drops an epoch's last, smaller batch, but counts it: a run may end early, or do nothing at all."""
    data = options["datasets"]["train"]
    if data["type"] not in _COUNTED:
        return []
    count = _count(data)
    ratio, batch = data.get("dataset_enlarge_ratio", 1), data["batch_size_per_gpu"]
    gpus = options["num_gpu"] if isinstance(options["num_gpu"], int) else torch.cuda.device_count()
    per_process = batch * (max(gpus, 1) if processes == 1 else 1)
    done = math.ceil(count * ratio / processes) // per_process
    total = int(options["train"]["total_iter"])
    counted = math.ceil(count * ratio / (batch * processes))
    runs = (math.ceil(total / counted) + 1) * done
    if runs >= total:
        return []
    enough = math.ceil(ratio * 100 * per_process * processes / (count * ratio))
    what = f"{count} images x dataset_enlarge_ratio {ratio} make {done} whole batches of {per_process} per epoch"
    mend = f"Set dataset_enlarge_ratio to {enough} or more"
    if done == 0:
        raise ConfigError(f"{what}: there is nothing to train on", where=f"{where}, key 'datasets.train'", mend=mend)
    return [f"{what}, so BasicSR will end at iteration {runs}, not {total}. {mend}"]


def _count(data: dict[str, Any]) -> int:
    listed = data.get("meta_info_file")
    if listed is not None:
        return len(Path(listed).expanduser().read_text(encoding="utf-8").splitlines())
    return len(_images(Path(str(data[_COUNTED[data["type"]]])).expanduser(), "datasets.train", deep=False))


def _images(root: Path, where: str, *, deep: bool = True) -> list[Path]:
    paths = sorted(path for path in (root.rglob("*") if deep else root.glob("*")) if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise DataError(f"holds no images: {root}", where=where, mend=f"Expected files ending in {', '.join(SUFFIXES)}")
    return paths


def _check_image(path: Path, least: int) -> None:
    try:
        with Image.open(path) as image:
            size = image.size
            if image.format == "PNG":
                image.verify()  # the checksums of all its chunks
            else:
                image.load()
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise DataError(f"is damaged or no image ({error})", where=path, mend="Replace or remove it") from error
    if min(size) < least:
        raise DataError(f"is {size[0]}x{size[1]}, smaller than gt_size {least}", where=path, mend="Remove it")
