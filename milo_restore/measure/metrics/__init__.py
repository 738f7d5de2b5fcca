"""Metrics by name: this project's, pyiqa's, and two packages'. `names` says which there are, `load` makes them."""

from milo_restore.measure.metrics.load import fetch_metrics, load_metric, load_metrics, weight_folders
from milo_restore.measure.metrics.metric import REFUSALS, Batch, Metric, MetricUnavailable
from milo_restore.measure.metrics.names import FULL_REFERENCE, check_name, needs_reference
from milo_restore.measure.metrics.pixel import psnr, ssim
from milo_restore.measure.metrics.protocol import PROTOCOLS, Protocol

__all__ = [
    "FULL_REFERENCE",
    "PROTOCOLS",
    "REFUSALS",
    "Batch",
    "Metric",
    "MetricUnavailable",
    "Protocol",
    "check_name",
    "fetch_metrics",
    "load_metric",
    "load_metrics",
    "needs_reference",
    "psnr",
    "ssim",
    "weight_folders",
]
