"""VGG and DeepWSD, this project's own from the authors' formulas, as metrics of a folder of images."""

from __future__ import annotations

import torch

from milo_restore.errors import MiloRestoreError
from milo_restore.measure.metrics.metric import OURS, Batch, Known, Metric, MetricUnavailable
from milo_restore.measure.metrics.protocol import Protocol

_NOTES = {"vgg": "the papers print no formula of their VGG: this is E-VGG with all masks at 1, mean |difference|"}


def load_vgg16(name: str, protocol: Protocol, device: torch.device) -> Metric:
    """A metric on VGG16's features, see `milo_restore.metric.features`.

    Args:
        name: ``vgg`` or ``deepwsd``.
        protocol: of no effect.
        device: where it computes.

    Raises:
        MetricUnavailable: VGG16's weights cannot be had.
    """
    from milo_restore.metric import load_features

    try:
        module = load_features(name).to(device)
    except MiloRestoreError as error:
        where = f"{name}: {error.where}" if error.where else name
        raise MetricUnavailable(error.what, where=where, mend=error.mend) from error

    def measure(batch: Batch) -> list[float]:
        with torch.no_grad():
            return [float(value) for value in module(batch.image_tensor, reference=batch.reference_tensor)]

    weights = module.weights
    assert weights is not None  # noqa: S101  load_features names them
    return Metric(
        name, True, True, OURS, name, str(weights), weights.sha256, measure, note=_NOTES.get(name), module=module
    )


METRICS = {"vgg": Known(load_vgg16), "deepwsd": Known(load_vgg16)}
