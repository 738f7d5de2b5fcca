"""MILO itself, on RGB images and on latents, and the masking-enhanced metrics that it grew out of."""

from milo_restore.metric.masked import ENHANCED, EnhancedMetric, load_enhanced
from milo_restore.metric.milo import MILO, LatentMILO, MaskedError
from milo_restore.metric.network import N_SCALES
from milo_restore.metric.weights import WeightsInfo

__all__ = [
    "ENHANCED",
    "MILO",
    "N_SCALES",
    "EnhancedMetric",
    "LatentMILO",
    "MaskedError",
    "WeightsInfo",
    "load_enhanced",
]
