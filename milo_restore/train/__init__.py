"""Training: one plain loop on Accelerate with exact resume; what must never differ between recipes."""

from __future__ import annotations

from milo_restore.train.loop import FitResult, fit
from milo_restore.train.schedule import Key, learning_rate
from milo_restore.train.settings import Stage, TrainSettings

__all__ = ["FitResult", "Key", "Stage", "TrainSettings", "fit", "learning_rate"]
