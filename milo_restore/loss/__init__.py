"""Restoration losses in one signature, ``loss(prediction, target, weight=None, *, step=None)``, and diffusion's own."""

from milo_restore.loss.baselines import L1Loss, LPIPSLoss, MSELoss, RestorationLoss
from milo_restore.loss.build import LossSettings, build_loss
from milo_restore.loss.cosine import gradient_cosines
from milo_restore.loss.curriculum import Curriculum, CurriculumKind
from milo_restore.loss.diffusion import DiffusionLoss
from milo_restore.loss.diffusion_settings import DiffusionLossSettings
from milo_restore.loss.milo import LatentMILOLoss, MILOLoss
from milo_restore.loss.parametrization import clean_latent, prediction_target

__all__ = [
    "Curriculum",
    "CurriculumKind",
    "DiffusionLoss",
    "DiffusionLossSettings",
    "L1Loss",
    "LPIPSLoss",
    "LatentMILOLoss",
    "LossSettings",
    "MILOLoss",
    "MSELoss",
    "RestorationLoss",
    "build_loss",
    "clean_latent",
    "gradient_cosines",
    "prediction_target",
]
