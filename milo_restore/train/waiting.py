"""The wait for a better evaluation, which ends a run early."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """Evaluations since the best one, for a run that ends after so many in a row without a better one.

    It lies in the checkpoints, and not in best/, which may know of later steps than the checkpoint that a run goes on
    from: so a continued run ends where an uninterrupted one does.

    Attributes:
        best: the best number so far; None before the first.
        since: evaluations since that one.
        at: the step of the latest evaluation; 0 before the first.
    """

    best: float | None = None
    since: int = 0
    at: int = 0

    def after(self, step: int, value: float, *, lower: bool) -> Waiting:
        """The same after one more evaluation; an equal number is no better, nor is NaN.

        Args:
            step: of the evaluation.
            value: its number.
            lower: less is better.
        """
        before = self.best if self.best is not None else (math.inf if lower else -math.inf)
        if value < before if lower else value > before:
            return Waiting(value, 0, step)
        return Waiting(self.best, self.since + 1, step)

    def over(self, most: int | None) -> bool:
        """Whether there were ``most`` in a row; never where that is None."""
        return most is not None and self.since >= most

    def __str__(self) -> str:
        return f"none better than {self.best} in {self.since} evaluations"
