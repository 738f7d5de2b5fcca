"""Dry runs: one look at each thing that a configuration names, and all that is missing at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from milo_restore.errors import ConfigError, MiloRestoreError
from milo_restore.files.write import check_target
from milo_restore.train.opening import ENVIRONMENT, start_of
from milo_restore.train.schedule import Key, check_split
from milo_restore.train.settings import TrainSettings, check_best

Looks = Mapping[str, Callable[[], object]]


def look_at_all(looks: Looks) -> int:
    """Call each look, print a line for each, what it found or what is missing.

    Args:
        looks: by what they look at, in the order in which they need each other; each says in a few words what it
            found, or raises.

    Returns:
        0, a program's exit code.

    Raises:
        ConfigError: something is wrong.
    """
    wrong = []
    for name, look in looks.items():
        try:
            _say(f"{name}: {look()}")
        except MiloRestoreError as error:
            wrong.append(name)
            _say(f"{name}: MISSING: {error}")
    if wrong:
        raise ConfigError(f"{len(wrong)} of {len(looks)} checks failed: {', '.join(wrong)}", where="--dry-run")
    return 0


def _say(line: str) -> None:
    """Print a line on the first process."""
    from accelerate import PartialState

    PartialState().print(line)


def training_looks(
    settings: TrainSettings, output: Path, resume: str | None, numbers: Collection[str] | None = None
) -> Looks:
    """The looks at what `milo_restore.train.fit` refuses: tracker, precision, optimiser, batches, run folder.

    Args:
        settings: of the run.
        output: the run folder; it is not made.
        resume: see `milo_restore.train.fit`.
        numbers: what evaluations give, for ``keep_best``; None: not known beforehand.
    """
    import torch

    from milo_restore.train.processes import start_accelerator
    from milo_restore.train.state import build_optimizer

    def trackers() -> str:
        start_accelerator(TrainSettings(trackers=settings.trackers), output)
        return ", ".join(settings.trackers) or "none"

    def precision() -> str:
        accelerator = start_accelerator(TrainSettings(trackers=(), mixed_precision=settings.mixed_precision), output)
        check_split(settings, accelerator.num_processes)
        return f"{accelerator.device}, {accelerator.num_processes} process(es), precision {settings.mixed_precision}"

    def optimizer() -> str:
        device = start_accelerator(TrainSettings(trackers=()), output).device
        build_optimizer([torch.nn.Parameter(torch.zeros(1, device=device))], settings, device)
        return settings.optimizer

    def folder() -> str:
        check_target(output / ENVIRONMENT)
        _, notes = start_of(output, resume, [])
        return "; ".join(notes) or f"{output}, a new run"

    def keep_best() -> str:
        if numbers is not None:
            check_best(settings, numbers)
        return settings.keep_best or "none"

    return {
        "training.trackers": trackers,
        "device": precision,
        "training.optimizer": optimizer,
        "training.keep_best": keep_best,
        "run folder": folder,
    }


def first_samples(data: Any, settings: TrainSettings) -> str:
    """Draw a sample of every stage's patch size; how many images there are, in words.

    Args:
        data: as for `milo_restore.train.fit`, with a length.
        settings: of the run.

    Raises:
        MiloRestoreError: the run's, such as where a patch does not fit into the images.
    """
    for patch in dict.fromkeys(stage.patch for stage in settings.stages):
        data[Key(1, 0, 0, patch)]
    return f"{len(data):,} samples an epoch"
