"""The error of a training that has left the finite numbers, and the command that goes on from before that."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from milo_restore.errors import NumericsError

_LOWER = 10  # what the proposed learning rate is divided by


class Diverged(NumericsError):
    """The weights themselves have diverged.

    Args:
        what: what shows it.
        where: the step.
        rate: the learning rate.
        left: the newest checkpoint that is good; None where there is none.
        command: how to go on; by default what follows the command of a recipe.
    """

    def __init__(self, what: str, *, where: str, rate: float, left: Path | None, command: str | None = None) -> None:
        self.rate, self.left = rate, left
        command = command or f"... {shlex.join(self._options)}"
        begin = f"go on from {left.name}" if left is not None else "begin again, for no good checkpoint is left"
        super().__init__(what, where=where, mend=f"Lower the learning rate, and {begin}: {command}")

    @property
    def _options(self) -> list[str]:
        return ["--resume", "latest", "--change", f"training.learning_rate={self.rate / _LOWER:g}"]

    def with_command(self, words: Sequence[str]) -> Diverged:
        """The same error with the command that was run, as it goes on.

        Args:
            words: the script and its arguments.
        """
        launcher = ["accelerate", "launch"] if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ["python"]
        kept = [word for before, word in zip(["", *words], words) if "--resume" not in (before, word.partition("=")[0])]
        command = shlex.join([*launcher, *kept, *self._options])
        return Diverged(self.what, where=str(self.where), rate=self.rate, left=self.left, command=command)
