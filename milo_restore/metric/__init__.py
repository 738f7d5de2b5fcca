"""MILO itself: the metric on RGB images and on latents."""

from milo_restore.metric.milo import MILO, LatentMILO, MaskedError
from milo_restore.metric.network import N_SCALES
from milo_restore.metric.weights import WeightsInfo

__all__ = ["MILO", "N_SCALES", "LatentMILO", "MaskedError", "WeightsInfo"]
