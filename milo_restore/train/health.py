"""Health of what is trained: weights that have left the finite numbers, or lead out of them, are never gone on from."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from milo_restore.train import checkpoint
from milo_restore.train.feed import feed
from milo_restore.train.guard import Step, take_step
from milo_restore.train.settings import TrainSettings
from milo_restore.train.state import TrainingState

ASIDE = "diverged-"
"""Prefix of checkpoints with diverged weights, in place of ``checkpoint-``: to look at, not to go on from."""


def finite(state: TrainingState) -> bool:
    """Whether all trained weights are finite numbers."""
    with torch.no_grad():
        return all(bool(torch.isfinite(value).all()) for value in state.parameters)


def sound(state: TrainingState, step: Step, data: Any, settings: TrainSettings) -> bool:
    """Whether the weights give a finite loss and gradient on the samples of the last step that had both.

    This tells samples that cannot be trained on, after which a run may go on, from weights that are lost. Changes
    nothing; call it on every process.
    """
    number, accelerator = state.sound, state.accelerator
    if not number:
        return True  # no step has changed the weights
    alone = dataclasses.replace(settings, workers=0)
    place = accelerator.process_index, accelerator.num_processes
    for _, batches in feed(data, alone, number, number, *place, pin=False):
        outcome, _ = take_step(state, step, number, batches, settings, lambda: False, update=False)
        return outcome.skipped not in ("loss", "gradient")
    return True


def set_aside(output: Path, state: TrainingState) -> Path | None:
    """Rename the checkpoints after which no step was finite.

    Returns:
        The newest of the others; None where there are none.
    """
    left = None
    for folder in checkpoint.checkpoints(output):
        if checkpoint.step_of(folder) < state.sound:
            left = folder
            continue
        aside = output / f"{ASIDE}{checkpoint.step_of(folder):06d}"
        with checkpoint.writing(aside):
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(folder, aside)
    return left
