"""MILO, the E-metrics, and the surrogate of the paper's ensemble, as metrics of a folder of images."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from milo_restore.errors import MiloRestoreError
from milo_restore.files.hashes import text_sha256
from milo_restore.measure.metrics.metric import OURS, Batch, Known, Metric, MetricUnavailable
from milo_restore.measure.metrics.protocol import Protocol


def load_masked(name: str, protocol: Protocol, device: torch.device) -> Metric:
    """MILO or an E-metric: its raw value.

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
        if base == "milo":
            values: Tensor = module.raw_error_8bit(*batch.tensors_8bit())
        else:
            with torch.no_grad():
                values = module(batch.image_tensor, reference=batch.reference_tensor)
        return values.tolist()

    return Metric(
        name,
        not module.higher_is_better,
        True,
        OURS,
        base,
        str(module.weights),
        module.weights.sha256,
        measure,
        module=module,
    )


def load_surrogate(name: str, protocol: Protocol, device: torch.device) -> Metric:
    """The mean of all four public E-metrics' MOS: all four, or it would be another one elsewhere.

    Raises:
        MetricUnavailable: one's weights cannot be had.
    """
    from milo_restore.metric import E_PIXEL
    from milo_restore.metric.ensemble import PseudoMOS

    try:
        teacher = PseudoMOS.from_names(E_PIXEL).to(device)
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
    from milo_restore.metric import E_FEATURES, MILO, load_e_features, load_e_pixel

    if base == "milo":
        return MILO.from_pretrained(weights)
    return load_e_features(base, weights) if base in E_FEATURES else load_e_pixel(base, weights)


def _unavailable(name: str, error: MiloRestoreError) -> MetricUnavailable:
    where = f"{name}: {error.where}" if error.where else name
    return MetricUnavailable(error.what, where=where, mend=error.mend)
