"""Metrics by name: this project's, pyiqa's, and other packages'. `table` says which there are, `load` makes them."""

from milo_restore.measure.metrics.load import fetch_metrics, load_metric, load_metrics, weight_folders
from milo_restore.measure.metrics.metric import REFUSALS, Batch, Metric, MetricUnavailable
from milo_restore.measure.metrics.of_sets import SetMetric, load_set_metrics
from milo_restore.measure.metrics.pixel import psnr, ssim
from milo_restore.measure.metrics.protocol import PROTOCOLS, Protocol
from milo_restore.measure.metrics.table import FULL_REFERENCE, find_metric

__all__ = [
    "FULL_REFERENCE",
    "PROTOCOLS",
    "REFUSALS",
    "Batch",
    "Metric",
    "MetricUnavailable",
    "Protocol",
    "SetMetric",
    "fetch_metrics",
    "find_metric",
    "load_metric",
    "load_metrics",
    "load_set_metrics",
    "psnr",
    "ssim",
    "weight_folders",
]
