"""MILO, the masking-enhanced metrics, and the surrogate of the paper's ensemble, as metrics of a folder of images."""

from __future__ import annotations

import json
from typing import Any

import torch

from milo_restore.errors import MiloRestoreError
from milo_restore.files.hashes import text_sha256
from milo_restore.measure.metrics.metric import OURS, Batch, Known, Metric, MetricUnavailable
from milo_restore.measure.metrics.protocol import Protocol


def load_masked(name: str, protocol: Protocol, device: torch.device) -> Metric:
    """MILO or a masking-enhanced metric: its raw value.

    Args:
        name: with weights after a colon, or with the published ones.
        protocol: of no effect.
        device: where it computes.

    Raises:
        MetricUnavailable: its weights cannot be had.
    """
    base, _, weights = name.partition(":")
    try:
        module = _module(base, weights or "official").to(device)
    except MiloRestoreError as error:
        raise _unavailable(name, error) from error

    def measure(batch: Batch) -> list[float]:
        with torch.no_grad():
            return [float(value) for value in module(batch.image_tensor, reference=batch.reference_tensor)]

    lower = bool(getattr(module, "lower_better", True))
    return Metric(name, lower, True, OURS, base, str(module.weights), module.weights.sha256, measure, module=module)


def load_surrogate(name: str, protocol: Protocol, device: torch.device) -> Metric:
    """The mean of all four public masking-enhanced metrics' MOS: all four, or it would be another one elsewhere.

    Raises:
        MetricUnavailable: one's weights cannot be had.
    """
    from milo_restore.metric import ENHANCED
    from milo_restore.metric.ensemble import PseudoMOS

    try:
        teacher = PseudoMOS.from_names(ENHANCED).to(device)
    except MiloRestoreError as error:
        raise _unavailable(name, error) from error
    content = json.dumps(teacher.to_json()["members"], sort_keys=True)
    note = f"not the paper's Ens. and not comparable with it (higher is better here); {teacher.describe()}"

    def measure(batch: Batch) -> list[float]:
        return [float(value) for value in teacher(batch.image_tensor, batch.reference_tensor)]

    names = ", ".join(f"{member.name} {member.sha256[:12]}" for member in teacher.members)
    digest = text_sha256(content)
    return Metric(name, False, True, OURS, name, names, digest, measure, note=note)


METRICS = {
    "milo": Known(load_masked, weights=True),
    **{f"e-{name}": Known(load_masked, weights=True)
       for name in ("mae", "mse", "psnr", "ssim", "vgg", "lpips", "dists")},
    "ens-surrogate": Known(load_surrogate),
}  # fmt: skip


def _module(base: str, weights: str) -> Any:
    from milo_restore.metric import FEATURE_METRICS, MILO, load_enhanced, load_feature_metric

    if base == "milo":
        return MILO.from_pretrained(weights)
    return load_feature_metric(base, weights) if base in FEATURE_METRICS else load_enhanced(base, weights)


def _unavailable(name: str, error: MiloRestoreError) -> MetricUnavailable:
    where = f"{name}: {error.where}" if error.where else name
    return MetricUnavailable(error.what, where=where, mend=error.mend)
