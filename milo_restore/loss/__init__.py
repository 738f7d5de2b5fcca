"""Restoration losses in one signature: ``loss(prediction, target, weight=None, *, step=None)``."""

from milo_restore.loss.baselines import L1Loss, LPIPSLoss, RestorationLoss
from milo_restore.loss.build import LossSettings, build_loss
from milo_restore.loss.curriculum import Curriculum, CurriculumKind
from milo_restore.loss.milo import LatentMILOLoss, MILOLoss

__all__ = [
    "Curriculum",
    "CurriculumKind",
    "L1Loss",
    "LPIPSLoss",
    "LatentMILOLoss",
    "LossSettings",
    "MILOLoss",
    "RestorationLoss",
    "build_loss",
]
