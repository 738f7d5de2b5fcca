"""MILO itself, on RGB images and on latents, the E-metrics that it grew out of, and VGG and DeepWSD."""

from __future__ import annotations

from typing import Any

from milo_restore.errors import warn_renamed
from milo_restore.metric.e_features import EFeatureMetric
from milo_restore.metric.e_metric import EMetric
from milo_restore.metric.e_pixel import E_PIXEL, EPixelMetric, load_e_pixel
from milo_restore.metric.e_weights import E_FEATURES, load_e_features
from milo_restore.metric.features import VGG, DeepWSD, load_features
from milo_restore.metric.latent_milo import LatentMILO
from milo_restore.metric.latent_space import LatentSpace
from milo_restore.metric.masked import MaskedMetric, MILOScores
from milo_restore.metric.milo import MILO
from milo_restore.metric.pyramid import N_SCALES
from milo_restore.metric.weights import Agreement, WeightsInfo

__all__ = [
    "E_FEATURES",
    "E_PIXEL",
    "MILO",
    "N_SCALES",
    "VGG",
    "Agreement",
    "DeepWSD",
    "EFeatureMetric",
    "EMetric",
    "EPixelMetric",
    "LatentMILO",
    "LatentSpace",
    "MILOScores",
    "MaskedMetric",
    "WeightsInfo",
    "load_e_features",
    "load_e_pixel",
    "load_features",
]

_FORMER = {
    "ENHANCED": "E_PIXEL",
    "EnhancedMetric": "EPixelMetric",
    "FEATURE_METRICS": "E_FEATURES",
    "MaskedError": "MaskedMetric",
    "MaskedFeatureMetric": "EFeatureMetric",
    "load_enhanced": "load_e_pixel",
    "load_feature_metric": "load_e_features",
}


def __getattr__(name: str) -> Any:
    if name not in _FORMER:
        raise AttributeError(f"module 'milo_restore.metric' has no attribute {name!r}")
    warn_renamed(f"milo_restore.metric.{name}", _FORMER[name])
    return globals()[_FORMER[name]]
