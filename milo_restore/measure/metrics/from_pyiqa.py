"""pyiqa's metrics, made ready: its traps on the way to a metric are handled here, once.

Importing pyiqa may fail, weights are downloaded when a metric is made, reports go to standard output, and its ``clip``
imports ``packaging`` from ``pkg_resources``, which setuptools 82 removed: while a metric is made, a stand-in takes its
place. A metric is called as pyiqa wants it: the distorted image first, tensors in [0, 1]. Metrics that draw crops at
random get one fixed seed for every image, so that a value belongs to the image alone.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import pickle  # for the name of an error
import random
import socket
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milo_restore.errors import DataError
from milo_restore.files.hashes import tensors_sha256
from milo_restore.files.registry import upstream
from milo_restore.measure.metrics.metric import Batch, Known, Metric, MetricUnavailable, base_name, random_state_kept
from milo_restore.measure.metrics.protocol import Protocol

_LOADING_FAILS = (OSError, RuntimeError, ImportError, EOFError, KeyError, pickle.UnpicklingError)
_PATIENCE = 15.0  # seconds for a server to answer
_SEED = 123
# These give each image of a batch what it gets alone: tried, but for lpips and dists, whose formulas say so. pyiqa's
# others are called with one image at a time.
_BATCHED = {
    "psnr", "psnry", "ssim", "ssimc", "topiq_fr", "topiq_nr", "musiq", "lpips", "lpips-vgg", "dists",
}  # fmt: skip


def pyiqa_mode(name: str) -> str | None:
    """``FR`` or ``NR`` as the installed pyiqa says; None where it has no such metric, or is not here."""
    try:
        with quiet():
            from pyiqa.default_model_configs import DEFAULT_CONFIGS
    except ImportError:
        return None
    return DEFAULT_CONFIGS[name]["metric_mode"] if name in DEFAULT_CONFIGS else None


def load_pyiqa(name: str, protocol: Protocol, device: torch.device) -> Metric:
    """One of pyiqa's metrics.

    Args:
        name: pyiqa's own, or with ``pyiqa:`` before it.
        protocol: of no effect.
        device: where it computes.

    Raises:
        MetricUnavailable: as `create_pyiqa`.
    """
    base = base_name(name)
    metric, version = create_pyiqa(base, device)
    full = metric.metric_mode == "FR"

    def measure(batch: Batch) -> list[float]:
        with _one_seed(device), quiet():
            # pyiqa: the distorted image first
            found = metric(batch.image_tensor, batch.reference_tensor) if full else metric(batch.image_tensor)
        return one_each(found, len(batch))

    state = metric.net.state_dict()
    digest = tensors_sha256(state) if state else None
    described = None if digest is None else f"pyiqa's default, tensors' sha256 {digest[:12]}"
    source = f"pyiqa {version}"
    return Metric(
        name, bool(metric.lower_better), full, source, base, described, digest, measure, batched=base in _BATCHED
    )


FULL_REFERENCE = (
    "psnr", "psnry", "ssim", "ssimc", "ms_ssim", "cw_ssim", "fsim", "vif", "vsi", "gmsd", "nlpd", "mad", "lpips",
    "lpips-vgg", "dists", "topiq_fr", "topiq_fr-pipal", "pieapp", "wadiqam_fr", "stlpips", "stlpips-vgg",
)  # fmt: skip
NO_REFERENCE = (
    "topiq_nr", "topiq_nr-flive", "topiq_nr-spaq", "topiq_nr-face", "topiq_nr-face-v1", "topiq_nr_swin-face",
    "topiq_iaa", "topiq_iaa_res50", "clipiqa", "clipiqa+", "clipiqa+_vitL14_512", "clipiqa+_rn50_512", "musiq",
    "musiq-ava", "musiq-paq2piq", "musiq-spaq", "maniqa", "maniqa-pipal", "maniqa-kadid", "niqe", "niqe_matlab",
    "ilniqe", "brisque", "brisque_matlab", "piqe", "nrqm", "pi", "nima", "nima-koniq", "nima-spaq", "nima-vgg16-ava",
    "dbcnn", "cnniqa", "paq2piq", "hyperiqa", "tres", "tres-flive", "liqe", "liqe_mix", "unique", "uranker",
    "entropy", "arniqa", "qualiclip", "qalign", "compare2score", "laion_aes", "wadiqam_nr",
)  # fmt: skip
"""pyiqa's metrics at 0.1.16 that people use; a newer pyiqa's others are asked for by their names, too."""
METRICS = {name: Known(load_pyiqa, name in FULL_REFERENCE) for name in (*FULL_REFERENCE, *NO_REFERENCE)}


def create_pyiqa(name: str, device: torch.device | str, **options: Any) -> tuple[Any, str]:
    """The metric of this name, and the version of pyiqa. Weights are downloaded, or refused within seconds.

    Raises:
        MetricUnavailable: pyiqa is not here or has no such metric, or weights cannot be had.
    """
    try:
        with quiet():
            import pyiqa
            from pyiqa.default_model_configs import DEFAULT_CONFIGS
        version = str(pyiqa.__version__)
    except ImportError as error:
        mend = "pip install 'milo-restore[eval]' (pyiqa is for non-commercial use)"
        raise MetricUnavailable(f"needs pyiqa, which cannot be imported ({error})", where=name, mend=mend) from error
    if name not in DEFAULT_CONFIGS:
        raise MetricUnavailable(f"pyiqa {version} does not offer it", where=name, mend="Upgrade pyiqa")
    # TOPIQ's checkpoints hold their backbone; asking timm for its own copy first costs a download, or fails offline.
    settings = ({"backbone_pretrain": False} if name.startswith("topiq") else {}) | options
    try:
        with quiet(), short_patience(), pkg_resources():
            return pyiqa.create_metric(name, device=torch.device(device), **settings), version
    except _LOADING_FAILS as error:  # offline: URLError and HuggingFace's are OSErrors
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        what, missing = f"pyiqa {version} cannot load it ({reason})", isinstance(error, OSError)
        mend = f"Install {error.name or 'what is missing'}" if isinstance(error, ImportError) else _help(name, missing)
        raise MetricUnavailable(what, where=name, mend=mend, fetch=missing) from error


def missing_files(name: str) -> list[tuple[str, Path]]:
    """The files that a metric will download: addresses, and where they belong. Of metrics that the supplement names.

    Args:
        name: pyiqa's; of others than ``third_party/upstream.toml`` lists, nothing is known, and nothing is found.
    """
    known = upstream()["pyiqa"]
    files, hub = known["metrics"].get(name, {}), Path(torch.hub.get_dir())
    places = [
        (f"{known[source]}{files[kind]}", hub / folder / files[kind])
        for kind, source, folder in (("file", "url", "pyiqa"), ("backbone", "backbones", "checkpoints"))
        if kind in files
    ]
    return [(address, path) for address, path in places if not path.is_file()]


def _help(name: str, missing: bool) -> str:
    """Remedy where a metric's files cannot be had (``missing``), or are there and cannot be read."""
    fetch = f"run 'milo-restore assets fetch --metrics {name}'"
    if not missing:
        folder = Path(torch.hub.get_dir()) / "pyiqa"
        return f"Where a file of it in {folder} is damaged, remove that, and where there is network {fetch}"
    files = " and ".join(f"{address} as {path}" for address, path in missing_files(name))
    copied = "copy its $TORCH_HOME/hub (by default ~/.cache/torch/hub) from there"
    return f"Where there is network, {fetch}; on a machine without, {f'put {files}' if files else copied}"


def one_each(found: Any, count: int) -> list[float]:
    """A metric's answer as one number per image; pyiqa's shapes differ: (), (N,), (N, 1)."""
    values = found if isinstance(found, Tensor) else torch.as_tensor(found)
    if values.numel() != count:
        raise DataError(f"the metric gave {values.numel()} numbers for {count} images")
    return [float(value) for value in values.detach().reshape(-1)]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Standard output is sent to standard error: pyiqa reports downloads there, and it is for the table."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def _one_seed(device: torch.device) -> Iterator[None]:
    """The three generators at one seed, and afterwards where they were."""
    with random_state_kept(device):
        torch.manual_seed(_SEED)
        random.seed(_SEED)
        np.random.seed(_SEED)  # noqa: NPY002  (pyiqa draws its crops from it)
        yield


@contextlib.contextmanager
def short_patience() -> Iterator[None]:
    """torch.hub sets no time limit: a server that never answers would hold a run up for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def pkg_resources() -> Iterator[None]:
    """A stand-in for ``pkg_resources.packaging``, for clip, where setuptools no longer has it; gone afterwards."""
    if "pkg_resources" in sys.modules or importlib.util.find_spec("pkg_resources") is not None:
        yield
        return
    packaging = importlib.import_module("packaging")
    importlib.import_module("packaging.version")
    with stand_ins({"pkg_resources": {"packaging": packaging}}):
        yield


@contextlib.contextmanager
def stand_ins(modules: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Modules with these contents, those of them that are not installed; gone afterwards."""
    made = []
    for name, content in modules.items():
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            module = types.ModuleType(name, "Stand-in made by milo_restore.measure.metrics.from_pyiqa.")
            vars(module).update(content)
            sys.modules[name] = module
            made.append(name)
    try:
        yield
    finally:
        for name in made:
            sys.modules.pop(name, None)
