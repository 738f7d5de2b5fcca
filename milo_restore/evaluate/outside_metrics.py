"""Metrics of other packages, made ready for `milo_restore.evaluate.suite`: pyiqa's, ST-LPIPS, basicsr's NIQE.

pyiqa is called as it wants to be: the distorted image first, tensors in [0, 1]. Metrics that draw crops at random get
one fixed seed for every image, so that a value belongs to the image alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milo_restore.errors import DataError
from milo_restore.evaluate.pyiqa_metrics import MetricUnavailable, create_pyiqa, quiet, stand_ins, tensors_sha256
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


def _one_each(found: Any, count: int) -> list[float]:
    """A metric's answer as one number per image; pyiqa's shapes differ: (), (N,), (N, 1)."""
    values = found if isinstance(found, Tensor) else torch.as_tensor(found)
    if values.numel() != count:
        raise DataError(f"the metric gave {values.numel()} numbers for {count} images")
    return [float(value) for value in values.detach().reshape(-1)]


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
        with stand_ins({"IPython": nothing, "torchsummary": {"summary": None}}), quiet():
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
