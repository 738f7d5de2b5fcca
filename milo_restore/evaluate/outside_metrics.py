"""Metrics of other packages, made ready for `milo_restore.evaluate.suite`: pyiqa's, ST-LPIPS, basicsr's NIQE.

pyiqa is called as it wants to be: the distorted image first, tensors in [0, 1]. Its ``clip`` imports ``packaging`` from
``pkg_resources``, which setuptools 82 removed; while a metric is made, a stand-in takes its place. Metrics that draw
crops at random get one fixed seed for every image, so that a value belongs to the image alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import random
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milo_restore.errors import DataError
from milo_restore.evaluate.fr_metrics import (
    MetricUnavailable,
    quiet,
    short_patience,
    tensors_sha256,
)
from milo_restore.evaluate.suite_metric import Batch, SuiteMetric

_SEED = 123
# These give each image of a batch what it gets alone: tried, but for lpips and dists, whose formulas say so. pyiqa's
# others are called with one image at a time.
_BATCHED = {
    "psnr", "psnry", "ssim", "ssimc", "topiq_fr", "topiq_nr", "musiq", "lpips", "lpips-vgg", "dists",
}  # fmt: skip
_NIQE_BLOCK = 96


def load_outside(name: str, base: str, device: torch.device) -> SuiteMetric:
    """A metric of another package.

    Args:
        name: as asked for.
        base: the package's own name for it, or ``st-lpips``, ``st-lpips-vgg``, ``niqe-basicsr``.
        device: where it computes.

    Raises:
        MetricUnavailable: weights or a package cannot be had.
    """
    if base == "niqe-basicsr":
        return _basicsr_niqe(name)
    if base in ("st-lpips", "st-lpips-vgg"):
        return _st_lpips(name, "vgg" if base.endswith("vgg") else "alex", device)
    return _pyiqa(name, base, device)


def pyiqa_mode(name: str) -> str | None:
    """``FR`` or ``NR`` as the installed pyiqa says; None where it has no such metric, or is not here."""
    try:
        with quiet():
            from pyiqa.default_model_configs import DEFAULT_CONFIGS
    except ImportError:
        return None
    return DEFAULT_CONFIGS[name]["metric_mode"] if name in DEFAULT_CONFIGS else None


def _pyiqa(name: str, base: str, device: torch.device) -> SuiteMetric:
    metric, version = create_pyiqa(base, device)
    full = metric.metric_mode == "FR"

    def measure(batch: Batch) -> list[float]:
        with _one_seed(device), quiet():
            # pyiqa: the distorted image first
            found = metric(batch.image_tensor, batch.reference_tensor) if full else metric(batch.image_tensor)
        return _one_each(found, len(batch))

    digest = tensors_sha256(metric.net.state_dict())
    described = None if digest is None else f"pyiqa's default, tensors' sha256 {digest[:12]}"
    source = f"pyiqa {version}"
    return SuiteMetric(
        name, bool(metric.lower_better), full, source, base, described, digest, measure, batched=base in _BATCHED
    )


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
        with quiet(), short_patience(), _pkg_resources():
            return pyiqa.create_metric(name, device=torch.device(device), **settings), version
    except (OSError, RuntimeError, ImportError) as error:  # offline: URLError and HuggingFace's are OSErrors
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        if isinstance(error, ImportError):
            mend = f"Install {error.name or 'what is missing'}"
        else:
            mend = (
                f"Where there is network, run 'milo-restore assets fetch --metrics {name}'; on a machine without, "
                "copy its $TORCH_HOME/hub (by default ~/.cache/torch/hub) from there"
            )
        raise MetricUnavailable(f"pyiqa {version} cannot load it ({reason})", where=name, mend=mend) from error


def _one_each(found: Any, count: int) -> list[float]:
    """A metric's answer as one number per image; pyiqa's shapes differ: (), (N,), (N, 1)."""
    values = found if isinstance(found, Tensor) else torch.as_tensor(found)
    if values.numel() != count:
        raise DataError(f"the metric gave {values.numel()} numbers for {count} images")
    return [float(value) for value in values.detach().reshape(-1)]


@contextlib.contextmanager
def _pkg_resources() -> Iterator[None]:
    """A stand-in for ``pkg_resources.packaging``, for clip, where setuptools no longer has it; gone afterwards."""
    if "pkg_resources" in sys.modules or importlib.util.find_spec("pkg_resources") is not None:
        yield
        return
    packaging = importlib.import_module("packaging")
    importlib.import_module("packaging.version")
    with _stand_ins({"pkg_resources": {"packaging": packaging}}):
        yield


@contextlib.contextmanager
def _stand_ins(modules: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Modules with these contents, those of them that are not installed; gone afterwards."""
    made = []
    for name, content in modules.items():
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            module = types.ModuleType(name, "Stand-in made by milo_restore.evaluate.outside_metrics.")
            vars(module).update(content)
            sys.modules[name] = module
            made.append(name)
    try:
        yield
    finally:
        for name in made:
            sys.modules.pop(name, None)


@contextlib.contextmanager
def _one_seed(device: torch.device) -> Iterator[None]:
    """The three generators at one seed, and afterwards where they were."""
    numbers, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  (pyiqa draws its crops from it)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(_SEED)
            random.seed(_SEED)
            np.random.seed(_SEED)  # noqa: NPY002
            yield
    finally:
        random.setstate(numbers)
        np.random.set_state(legacy)  # noqa: NPY002


def _st_lpips(name: str, net: str, device: torch.device) -> SuiteMetric:
    """ST-LPIPS (Ghildyal and Liu 2022), a learned metric whose whole network is in its package: it works offline."""
    nothing = {"embed": None}
    try:
        # It imports two packages that it neither declares nor uses.
        with _stand_ins({"IPython": nothing, "torchsummary": {"summary": None}}), quiet():
            stlpips = importlib.import_module("stlpips_pytorch.stlpips")
        version = importlib.metadata.version("stlpips-pytorch")
    except ImportError as error:
        what = f"needs stlpips-pytorch, which cannot be imported ({error})"
        mend = "pip install stlpips-pytorch (64 MB, the weights are inside: nothing is downloaded later)"
        raise MetricUnavailable(what, where=name, mend=mend) from error
    with quiet():
        metric = stlpips.LPIPS(net=net, variant="shift_tolerant", pretrained=False, verbose=False)
    path = Path(str(stlpips.__file__)).parent / "weights" / "vST0.0" / f"{net}_shift_tolerant.pth"
    try:
        missing, foreign = metric.load_state_dict(torch.load(path, "cpu", weights_only=True), strict=False)
        # Its ``lins`` are its ``lin0`` to ``lin4`` again. Anything else that lacks would stay random, unnoticed.
        gone = [key for key in missing if not key.startswith("lins.")]
        if gone or foreign:
            raise RuntimeError(f"does not fit: lacks {gone[:3]}, has {foreign[:3]} besides")
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        mend = "pip install --force-reinstall stlpips-pytorch"
        raise MetricUnavailable(f"its weights cannot be read ({reason})", where=path, mend=mend) from error
    metric = metric.to(device).eval()

    def measure(batch: Batch) -> list[float]:
        with torch.no_grad():  # it takes images in [-1, 1]
            return _one_each(metric(2 * batch.image_tensor - 1, 2 * batch.reference_tensor - 1), len(batch))

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    described = f"{path.name}, sha256 {digest[:12]}"
    source = f"stlpips-pytorch {version}"
    return SuiteMetric(name, True, True, source, f"LPIPS({net}, shift_tolerant)", described, digest, measure)


def _basicsr_niqe(name: str) -> SuiteMetric:
    """NIQE as BasicSR computes it, with the authors' parameters, on BasicSR's Y. pyiqa's ``niqe`` uses another Y."""
    from milo_restore import compat

    compat.make_basicsr_importable()
    from basicsr.metrics import niqe

    def measure(batch: Batch) -> list[float]:
        return [_niqe(niqe, array) for array in batch.images]

    path = Path(niqe.__file__).with_name("niqe_pris_params.npz")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    described = f"{path.name}, sha256 {digest[:12]}"
    source = f"basicsr {importlib.metadata.version('basicsr')}"
    return SuiteMetric(name, True, False, source, "calculate_niqe", described, digest, measure)


def _niqe(module: Any, image: np.ndarray[Any, Any]) -> float:
    height, width = image.shape[:2]
    if (height // _NIQE_BLOCK) * (width // _NIQE_BLOCK) < 2:  # a covariance of blocks needs two
        raise DataError(f"NIQE needs two blocks of {_NIQE_BLOCK}x{_NIQE_BLOCK} pixels, got {width}x{height}")
    return float(module.calculate_niqe(image[..., ::-1], crop_border=0))  # it takes BGR
