"""The learning rate of Restormer's published configurations, as a scheduler that BasicSR's models can step and save."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from milo_restore.errors import ConfigError

__all__ = ["CosineAnnealingRestartCyclicLR"]


class CosineAnnealingRestartCyclicLR(LRScheduler):
    """Half a cosine per period, each from the initial rate (times its weight) down to a minimum of its own.

    With n steps done, p the length of the period that n lies in and d its beginning, the rate is

        eta_min + weight / 2 * (initial - eta_min) * (1 + cos(pi (n - d) / p)).

    The end of a period still belongs to it, as in BasicSR's CosineAnnealingRestartLR, which knows one minimum for all
    periods. Restormer (arXiv 2111.09881, section 4) uses periods of 92,000 and 208,000 with minima 3e-4 and 1e-6 at an
    initial rate of 3e-4, so the rate is constant first and then falls along one cosine.

    Args:
        optimizer: its groups' rates at the start are the initial ones.
        periods: the periods' lengths, in iterations.
        restart_weights: one factor for each period.
        eta_mins: one minimum for each period.
        last_epoch: iterations done; -1 starts anew.

    Raises:
        ConfigError: lists of different lengths, or values that are no numbers; later, a step beyond the last period.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        periods: Sequence[int],
        restart_weights: Sequence[float] = (1,),
        eta_mins: Sequence[float] = (0,),
        last_epoch: int = -1,
    ) -> None:
        self.periods = [round(number) for number in _numbers(periods, "periods")]
        self.restart_weights = _numbers(restart_weights, "restart_weights")
        self.eta_mins = _numbers(eta_mins, "eta_mins")
        lengths = {"restart_weights": len(self.restart_weights), "eta_mins": len(self.eta_mins)}
        for name, length in lengths.items():
            if length != len(self.periods):
                what = f"{length} values for {len(self.periods)} periods"
                raise ConfigError(what, where=f"train.scheduler.{name}", mend="Give one value for each period")
        if not self.periods or min(self.periods) < 1:
            raise ConfigError(f"{periods!r} are not positive whole numbers", where="train.scheduler.periods")
        self.ends = list(itertools.accumulate(self.periods))
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Any]:
        """The rates of all parameter groups after ``last_epoch`` iterations."""
        done = self.last_epoch
        if done > self.ends[-1]:
            what = f"iteration {done + 1} lies beyond the periods' sum, {self.ends[-1]}"
            raise ConfigError(what, where="train.scheduler.periods", mend="Let the periods sum to train.total_iter")
        number = next(i for i, end in enumerate(self.ends) if done <= end)
        length, low, weight = self.periods[number], self.eta_mins[number], self.restart_weights[number]
        share = 0.5 * (1 + math.cos(math.pi * (done - (self.ends[number] - length)) / length))
        return [low + weight * (initial - low) * share for initial in self.base_lrs]


def _numbers(values: Any, name: str) -> list[float]:
    """Finite numbers; YAML reads ``1e-6`` (no dot) as text, which is meant as a number here."""
    where = f"train.scheduler.{name}"
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ConfigError(f"{values!r} is not a list of numbers", where=where, mend="Write it as [a, b]")
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{values!r} is not a list of numbers", where=where) from error
    if not all(math.isfinite(number) for number in numbers):
        raise ConfigError(f"{values!r} holds a value that is not finite", where=where)
    return numbers
