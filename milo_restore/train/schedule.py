"""Schedules as pure functions of a step's number: nothing to save, nothing to restore wrongly."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from milo_restore.errors import ConfigError
from milo_restore.train.settings import Stage, TrainSettings


class Key(NamedTuple):
    """Names one training sample; the data set draws its crop, augmentation and noise from it.

    Unpacks as ``step, index, position, patch``, as `milo_restore.data.keys.SampleKey` does.
    """

    step: int  # optimisation step, from 1
    index: int  # type: ignore[assignment]  # the sample's number within the step's batch, from 0; hides tuple.index
    position: int  # samples drawn before it in the whole run
    patch: int  # side of the crop, in pixels


def learning_rate(step: int, settings: TrainSettings) -> float:
    """The learning rate of ``step`` (from 1): constant, then half a cosine to the final value; or drops.

    With ``constant_steps=92000`` of 300000 this is Restormer's schedule (arXiv 2111.09881, section 4). With
    ``decay_every`` it is torch's MultiStepLR with all multiples of that as milestones. With ``scheduler`` it is
    diffusers' ``get_scheduler`` of that name over the run's steps.
    """
    if settings.scheduler is not None:
        return settings.learning_rate * _factors(settings)(step - 1)
    if settings.decay_every is not None:
        return settings.learning_rate * settings.decay_factor ** ((step - 1) // settings.decay_every)
    constant = settings.steps if settings.constant_steps is None else settings.constant_steps
    done = step - 1 - constant
    if done <= 0:
        return settings.learning_rate
    t = min(done / (settings.steps - constant), 1.0)
    low, high = settings.final_learning_rate, settings.learning_rate
    return low + (high - low) * (1 + math.cos(math.pi * t)) / 2


@functools.lru_cache(maxsize=8)
def _factors(settings: TrainSettings) -> Callable[[int], float]:
    """The factor on the learning rate after so many steps, by diffusers.

    Raises:
        ConfigError: the learning rate is below polynomial's end.
    """
    import torch
    from diffusers.optimization import get_scheduler

    # Of an optimizer it reads the learning rate alone; what it gives is a function of the step.
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=settings.learning_rate)
    options = {"num_warmup_steps": settings.warmup_steps, "num_training_steps": settings.steps}
    try:
        schedule = get_scheduler(
            settings.scheduler, optimizer, num_cycles=settings.num_cycles, power=settings.power, **options
        )
    except ValueError as error:
        raise ConfigError(" ".join(str(error).split()), where="training.learning_rate") from error
    factor: Callable[[int], float] = schedule.lr_lambdas[0]
    return factor


def stage_of(step: int, settings: TrainSettings) -> tuple[Stage, int]:
    """The stage of ``step`` (from 1), and the number of samples drawn before that step."""
    drawn, before = 0, 0
    for stage in settings.stages:
        if step <= before + stage.steps:
            return stage, drawn + (step - 1 - before) * stage.batch
        before += stage.steps
        drawn += stage.steps * stage.batch
    raise IndexError(f"step {step} lies beyond the last one, {before}")


def drawn(step: int, settings: TrainSettings) -> int:
    """Samples drawn up to the end of ``step``."""
    if step == 0:
        return 0
    stage, before = stage_of(step, settings)
    return before + stage.batch


def micro_batches(step: int, settings: TrainSettings, process: int, processes: int) -> list[list[Key]]:
    """The keys of one step that one of ``processes`` processes handles, one list per micro-batch.

    Index ``i`` of the effective batch goes to process ``i % processes``; within a process every
    ``accumulation``-th sample goes to the same micro-batch. Together the processes draw each index once.
    """
    stage, drawn = stage_of(step, settings)
    mine = [Key(step, index, drawn + index, stage.patch) for index in range(process, stage.batch, processes)]
    return [mine[part :: settings.accumulation] for part in range(settings.accumulation)]


def key_lists(settings: TrainSettings, first: int, last: int, process: int, processes: int) -> Iterator[list[Key]]:
    """All micro-batches of one process from step ``first`` to step ``last``, in order."""
    for step in range(first, last + 1):
        yield from micro_batches(step, settings, process, processes)


def check_split(settings: TrainSettings, processes: int) -> None:
    """Refuse a batch that does not give every micro-batch of every process at least one sample.

    Raises:
        ConfigError: naming the stage and the smallest batch that works.
    """
    least = processes * settings.accumulation
    for number, stage in enumerate(settings.stages):
        if stage.batch < least:
            raise ConfigError(
                f"a batch of {stage.batch} cannot be split over {processes} processes"
                f" x {settings.accumulation} micro-batches",
                where=f"stages.{number}.batch",
                mend=f"Use a batch of at least {least}, less accumulation, or fewer processes",
            )
