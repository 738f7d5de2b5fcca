"""Training: one plain loop on Accelerate with exact resume; what must never differ between recipes.

The names are imported on first use: BasicSR's programs take the watch from here, and have no use for Accelerate.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import PartialState

    from milo_restore.train.loop import FitResult, fit
    from milo_restore.train.schedule import Key, learning_rate
    from milo_restore.train.settings import Stage, TrainSettings

_HOMES = {
    "FitResult": "loop",
    "fit": "loop",
    "PartialState": "processes",  # accelerate's own, for recipes
    "Key": "schedule",
    "learning_rate": "schedule",
    "Stage": "settings",
    "TrainSettings": "settings",
}

__all__ = ["FitResult", "Key", "PartialState", "Stage", "TrainSettings", "fit", "learning_rate"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
