"""Full-reference metrics by name: MILO, the masking-enhanced metrics, the mean absolute error, and pyiqa's.

A name may carry weights after a colon, where the metric is one of this project's: ``milo`` is ``milo:official``;
``milo:mini`` and ``milo:PATH`` are other weights, so that one table can compare them. pyiqa's metrics keep pyiqa's
names and defaults, of which some surprise: ``ssim`` is of the luma and ``ssimc`` of RGB, ``psnr`` ends at 80 dB,
``lpips`` has AlexNet inside and ``lpips-vgg`` VGG.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import milo_restore
from milo_restore.errors import ConfigError, WeightsError
from milo_restore.evaluate.pyiqa_metrics import MetricUnavailable, create_pyiqa, tensors_sha256

OURS = ("milo", "e-mae", "e-mse", "e-psnr", "e-ssim", "e-vgg", "e-lpips", "e-dists", "mae")
PYIQA = (
    "psnr", "psnry", "ssim", "ssimc", "ms_ssim", "cw_ssim", "fsim", "vif", "vsi", "gmsd", "nlpd", "mad", "lpips",
    "lpips-vgg", "dists", "topiq_fr", "topiq_fr-pipal", "pieapp", "wadiqam_fr", "stlpips", "stlpips-vgg",
)  # fmt: skip
NOT_OFFERED = {
    "flip": "pyiqa has no FLIP; NVIDIA's package flip-evaluator is not used here",
    "hdr-vdp-2": "a MATLAB program",
    "vgg": "pyiqa has no plain distance of VGG features",
    "deepwsd": "pyiqa has no DeepWSD",
    "e-deepwsd": "neither code nor weights are published",
}
"""Metrics of the supplement that cannot be measured here, and why."""

KNOWN = [*OURS, *PYIQA, *NOT_OFFERED]


@dataclass(frozen=True)
class FRMetric:
    """A metric ready to score.

    Attributes:
        name: as asked for.
        lower_better: its direction.
        software: what computes it, with the version.
        weights: which weights, for people; None where it has none.
        weights_sha256: of the weight file (ours) or of all tensors of the network (pyiqa); None without weights.
        score: (distorted, reference), each (1, 3, H, W) RGB in [0, 1] on the metric's device -> a number.
    """

    name: str
    lower_better: bool
    software: str
    weights: str | None
    weights_sha256: str | None
    score: Callable[[Tensor, Tensor], float]

    def identity(self) -> dict[str, str | None]:
        """What its scores depend on; ``milo`` and ``milo:official`` are one."""
        return {"metric": _split(self.name)[0], "software": self.software, "weights_sha256": self.weights_sha256}


def check_metric_name(name: str) -> None:
    """Refuse what no installation could measure, before anything is loaded.

    Raises:
        ConfigError: an unknown name, or weights after a name that takes none.
    """
    base, weights = _split(name)
    if base not in (*OURS, *PYIQA, *NOT_OFFERED):
        raise ConfigError("no such metric", where=repr(name), mend=f"Known: {', '.join((*OURS, *PYIQA))}")
    if weights == "" or (weights is not None and (base not in OURS or base == "mae")):
        mend = "Write milo, milo:official, milo:mini or milo:PATH; e-mae to e-dists take a path too, others nothing"
        raise ConfigError("takes no such weights", where=repr(name), mend=mend)


def load_fr_metric(name: str, device: torch.device | str = "cpu") -> FRMetric:
    """A metric on its device. What must be downloaded is downloaded here, or refused within seconds.

    Args:
        name: one of `OURS`, with ``:WEIGHTS`` where it has weights, or of `PYIQA`.
        device: where it computes.

    Raises:
        ConfigError: as `check_metric_name`.
        MetricUnavailable: weights or a package cannot be had; the error says which.
    """
    check_metric_name(name)
    base, weights = _split(name)
    if base in NOT_OFFERED:
        raise MetricUnavailable(NOT_OFFERED[base], where=name, mend="Leave it out, or use --skip-unavailable")
    if base not in OURS:
        return _pyiqa(base, torch.device(device))
    software = f"milo-restore {milo_restore.__version__}"
    if base == "mae":
        return FRMetric(
            name, True, software, None, None, lambda image, reference: float((image - reference).abs().mean())
        )
    try:
        metric = load_masked(base, weights or "official").to(device)
    except WeightsError as error:
        where = f"{name}: {error.where}" if error.where else name
        raise MetricUnavailable(error.what, where=where, mend=error.mend) from error
    lower_better = bool(getattr(metric, "lower_better", True))

    def score(image: Tensor, reference: Tensor) -> float:
        with torch.no_grad():
            return float(metric(image, reference=reference))

    return FRMetric(name, lower_better, software, str(metric.weights), metric.weights.sha256, score)


def _split(name: str) -> tuple[str, str | None]:
    """The metric's name and its weights, if any are named. Only ours may hold a colon."""
    base, colon, weights = name.partition(":")
    return base, weights if colon else None


def load_masked(base: str, weights: str) -> Any:
    """MILO or a masking-enhanced metric: ``metric(image, reference=reference) -> (N,)``, with ``weights``.

    Raises:
        WeightsError: its weights cannot be had.
    """
    from milo_restore.metric import FEATURE_METRICS, MILO, load_enhanced, load_feature_metric

    if base == "milo":
        return MILO.from_pretrained(weights)
    return load_feature_metric(base, weights) if base in FEATURE_METRICS else load_enhanced(base, weights)


def _pyiqa(name: str, device: torch.device) -> FRMetric:
    metric, version = create_pyiqa(name, device)

    def score(image: Tensor, reference: Tensor) -> float:
        return float(metric(image, reference))  # pyiqa: the distorted image first

    digest = tensors_sha256(metric.net.state_dict())
    described = None if digest is None else f"pyiqa's default, tensors' sha256 {digest[:12]}"
    return FRMetric(name, bool(metric.lower_better), f"pyiqa {version}", described, digest, score)
