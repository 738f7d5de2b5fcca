"""milo-restore: train image restoration networks with the perceptual metric MILO.

The public names are imported on first use, so ``import milo_restore`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from milo_restore import compat, extras

if TYPE_CHECKING:
    from milo_restore.loss import (
        Curriculum,
        DiffusionLoss,
        DiffusionLossSettings,
        L1Loss,
        LatentMILOLoss,
        LPIPSLoss,
        MILOLoss,
    )
    from milo_restore.metric import MILO, LatentMILO
    from milo_restore.models.diffbir import DiffBIRPipeline, IRControlNet
    from milo_restore.models.restormer import Restormer

__version__ = "0.1.0"

compat.install()  # `import basicsr` works from here on
extras.install()  # a package that is missing is named with the command that brings it

_HOMES = {
    "MILO": "milo_restore.metric",
    "LatentMILO": "milo_restore.metric",
    "MILOLoss": "milo_restore.loss",
    "LatentMILOLoss": "milo_restore.loss",
    "L1Loss": "milo_restore.loss",
    "LPIPSLoss": "milo_restore.loss",
    "Curriculum": "milo_restore.loss",
    "DiffusionLoss": "milo_restore.loss",
    "DiffusionLossSettings": "milo_restore.loss",
    "Restormer": "milo_restore.models.restormer",
    # diffusers, too, finds the classes of a saved pipeline by their name here.
    "IRControlNet": "milo_restore.models.diffbir.control",
    "DiffBIRPipeline": "milo_restore.models.diffbir.pipeline",
}

__all__ = [
    "MILO",
    "Curriculum",
    "DiffBIRPipeline",
    "DiffusionLoss",
    "DiffusionLossSettings",
    "IRControlNet",
    "L1Loss",
    "LPIPSLoss",
    "LatentMILO",
    "LatentMILOLoss",
    "MILOLoss",
    "Restormer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'milo_restore' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
