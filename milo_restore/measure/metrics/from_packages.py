"""Metrics of other packages that work offline: ST-LPIPS, FLIP, ColorVideoVDP and basicsr's NIQE."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from milo_restore.errors import DataError, WeightsError
from milo_restore.files.hashes import sha256_of
from milo_restore.files.state import fill, read_state
from milo_restore.measure.metrics.from_pyiqa import one_each, quiet, stand_ins
from milo_restore.measure.metrics.metric import Batch, Known, Metric, MetricUnavailable, random_state_kept
from milo_restore.measure.metrics.protocol import Protocol

_NIQE_BLOCK = 96
_VIEWING = {"vc": [0.7, 3840.0, 0.7]}  # FLIP's default: m from the display, its pixels, its width in m
_DISPLAY = "standard_4k"


def load_st_lpips(name: str, protocol: Protocol, device: torch.device) -> Metric:
    """ST-LPIPS (Ghildyal and Liu 2022), a learned metric whose whole network is in its package: it works offline.

    Args:
        name: ``st-lpips``, with AlexNet inside, or ``st-lpips-vgg``.
        protocol: of no effect.
        device: where it computes.

    Raises:
        MetricUnavailable: the package is missing or damaged.
    """
    net, nothing = "vgg" if name.endswith("vgg") else "alex", {"embed": None}
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
        state = read_state(path).tensors
        again = {re.sub(r"^lin(\d)", r"lins.\1", key): value for key, value in state.items()}  # it names them twice
        fill(metric, {**state, **again}, path)
    except WeightsError as error:
        mend = "pip install --force-reinstall stlpips-pytorch"
        raise MetricUnavailable(error.what, where=path, mend=mend) from error
    metric = metric.to(device).eval()

    def measure(batch: Batch) -> list[float]:
        with torch.no_grad():  # it takes images in [-1, 1]
            return one_each(metric(2 * batch.image_tensor - 1, 2 * batch.reference_tensor - 1), len(batch))

    digest = sha256_of(path)
    described = f"{path.name}, sha256 {digest[:12]}"
    source = f"stlpips-pytorch {version}"
    return Metric(name, True, True, source, f"LPIPS({net}, shift_tolerant)", described, digest, measure)


def load_basicsr_niqe(name: str, protocol: Protocol, device: torch.device) -> Metric:
    """NIQE as BasicSR computes it, with the authors' parameters, on BasicSR's Y. pyiqa's ``niqe`` uses another Y."""
    from basicsr.metrics import niqe

    def measure(batch: Batch) -> list[float]:
        return [_niqe(niqe, array) for array in batch.images]

    path = Path(niqe.__file__).with_name("niqe_pris_params.npz")
    digest = sha256_of(path)
    described = f"{path.name}, sha256 {digest[:12]}"
    source = f"basicsr {importlib.metadata.version('basicsr')}"
    return Metric(name, True, False, source, "calculate_niqe", described, digest, measure)


def load_flip(name: str, protocol: Protocol, device: torch.device) -> Metric:
    """LDR-FLIP (Andersson et al. 2020) by NVIDIA's own package: the mean of its error map, in [0, 1], on the CPU.

    Args:
        name: ``flip``.
        protocol: of no effect.
        device: of no effect.

    Raises:
        MetricUnavailable: the package is missing.
    """
    flip, version = _package(name, "flip_evaluator", "flip-evaluator", "1 MB, no weights")

    def measure(batch: Batch) -> list[float]:
        return [_flip(flip, image, reference) for image, reference in zip(batch.images, batch.references)]

    settings = "0.7 m from 0.7 m of 3840 pixels"
    formal = f"LDR-FLIP, mean, {settings}"
    return Metric(name, True, True, f"flip-evaluator {version}", formal, None, None, measure, settings=settings)


def load_cvvdp(name: str, protocol: Protocol, device: torch.device) -> Metric:
    """ColorVideoVDP (Mantiuk et al. 2024), the successor of HDR-VDP-2, which is a MATLAB program, by its authors.

    Its value is a quality in JOD, 10 for identical images; HDR-VDP-2's is another number. A display must be assumed:
    its default, ``standard_4k``, a 30 inch monitor of 3840x2160 pixels and 200 cd/m^2 seen from 0.75 m.

    Args:
        name: ``cvvdp``.
        protocol: of no effect.
        device: where it computes.

    Raises:
        MetricUnavailable: the package is missing.
    """
    pycvvdp, version = _package(name, "pycvvdp", "cvvdp", "7 MB, its parameters are inside")
    with quiet():
        metric = pycvvdp.cvvdp(display_name=_DISPLAY, heatmap=None, quiet=True, device=device)

    def measure(batch: Batch) -> list[float]:
        with torch.no_grad(), quiet(), random_state_kept(device):  # it moves torch's
            pairs = zip(batch.images, batch.references)
            return [float(metric.predict(image, reference, dim_order="HWC")[0]) for image, reference in pairs]

    formal = f"ColorVideoVDP, JOD, display {_DISPLAY}"
    note = "ColorVideoVDP stands in the place of HDR-VDP-2 and is another number"
    return Metric(
        name, False, True, f"cvvdp {version}", formal, None, None, measure, settings=f"display {_DISPLAY}", note=note
    )


def _package(name: str, module: str, package: str, about: str) -> tuple[Any, str]:
    """A package's module and its version.

    Raises:
        MetricUnavailable: it cannot be imported.
    """
    try:
        with quiet():
            return importlib.import_module(module), importlib.metadata.version(package)
    except ImportError as error:
        what = f"needs {package}, which cannot be imported ({error})"
        raise MetricUnavailable(what, where=name, mend=f"pip install {package} ({about})") from error


def _flip(flip: Any, image: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    pair = [array.astype(np.float32) / 255 for array in (reference, image)]  # it takes the reference first
    return float(flip.evaluate(*pair, "LDR", applyMagma=False, parameters=dict(_VIEWING))[1])


METRICS = {
    "flip": Known(load_flip),
    "cvvdp": Known(load_cvvdp),
    "st-lpips": Known(load_st_lpips),
    "st-lpips-vgg": Known(load_st_lpips),
    "niqe-basicsr": Known(load_basicsr_niqe, reference=False),
}


def _niqe(module: Any, image: np.ndarray[Any, Any]) -> float:
    height, width = image.shape[:2]
    if (height // _NIQE_BLOCK) * (width // _NIQE_BLOCK) < 2:  # a covariance of blocks needs two
        raise DataError(f"NIQE needs two blocks of {_NIQE_BLOCK}x{_NIQE_BLOCK} pixels, got {width}x{height}")
    return float(module.calculate_niqe(image[..., ::-1], crop_border=0))  # it takes BGR
