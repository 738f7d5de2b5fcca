"""MILO itself, on RGB images and on latents, and the masking-enhanced metrics that it grew out of."""

from milo_restore.metric.e_features import MaskedFeatureMetric
from milo_restore.metric.e_pixel import ENHANCED, EnhancedMetric, load_enhanced
from milo_restore.metric.e_weights import FEATURE_METRICS, load_feature_metric
from milo_restore.metric.milo import MILO, LatentMILO, MaskedError, MILOScores
from milo_restore.metric.network import N_SCALES
from milo_restore.metric.weights import Agreement, WeightsInfo

__all__ = [
    "ENHANCED",
    "FEATURE_METRICS",
    "MILO",
    "N_SCALES",
    "Agreement",
    "EnhancedMetric",
    "LatentMILO",
    "MILOScores",
    "MaskedError",
    "MaskedFeatureMetric",
    "WeightsInfo",
    "load_enhanced",
    "load_feature_metric",
]
