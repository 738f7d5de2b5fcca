"""From barely visible errors to the visible ones: how the weight of MILO's mask changes while training runs.

The paper's abstract says that less relevant regions come first and the emphasis then moves to the visibly distorted
ones; the supplement names a linear and a cosine variant and prints no formula. What follows is our reading.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from milo_restore.errors import ConfigError, warn_renamed

CurriculumKind = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Curriculum:
    """A pure function of the training step: nothing to save, nothing to restore wrongly.

    With t = (step - start_step) / (end_step - start_step), clamped to [0, 1], the position is

    - ``linear``: a = t;
    - ``cosine``: a = (1 - cos(pi t)) / 2;
    - ``constant``: a = 1, the MILO loss itself, at every step.

    Args:
        kind: ``constant``, ``linear`` or ``cosine``.
        end_step: the step at which a reaches 1, usually the run's total; required unless constant.
        start_step: the step up to which a stays 0.

    Raises:
        ConfigError: an unknown kind, a missing end or an end not after the start.

    Example:
        >>> from milo_restore import Curriculum
        >>> linear, cosine = Curriculum("linear", end_step=1000), Curriculum("cosine", end_step=1000)
        >>> linear.position(250), round(cosine.position(250), 3)
        (0.25, 0.146)
    """

    kind: CurriculumKind = "constant"
    end_step: int | None = None
    start_step: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("constant", "linear", "cosine"):
            raise ConfigError(f"{self.kind!r} is not one of 'constant', 'linear', 'cosine'", where="curriculum")
        if self.kind == "constant":
            return
        if self.end_step is None:
            mend = "Give total_steps (or end_step)"
            raise ConfigError(
                f"a {self.kind} curriculum needs the step at which it ends", where="curriculum", mend=mend
            )
        if not 0 <= self.start_step < self.end_step:
            where = f"curriculum, steps {self.start_step} to {self.end_step}"
            raise ConfigError("the end must come after the start, and the start not before 0", where=where)

    def position(self, step: int | None) -> float:
        """a(step) in [0, 1]: 0 weighs the invisible errors, 1 the visible ones.

        Raises:
            ConfigError: ``step`` is None although the curriculum is not constant, or is no whole number, such as a
                share of the run.
        """
        if step is not None and step % 1 != 0:
            mend = f"Count optimizer steps; the curriculum ends at {self.end_step}" if self.end_step else None
            raise ConfigError(f"{step} is no whole number", where="step", mend=mend)
        if self.kind == "constant":
            return 1.0
        if step is None:
            mend = "Call loss(prediction, target, step=current_step)"
            raise ConfigError(f"a {self.kind} curriculum needs the training step", where="step", mend=mend)
        assert self.end_step is not None  # noqa: S101  (checked when built)
        t = min(max((step - self.start_step) / (self.end_step - self.start_step), 0.0), 1.0)
        return t if self.kind == "linear" else (1.0 - math.cos(math.pi * t)) / 2.0

    def blend(self, mask: Tensor, step: int | None) -> Tensor:
        """Blend a mask m with its complement: (1 - a)(1 - m) + a m.

        Args:
            mask: m in [0, 1], any shape.
            step: the training step, as for `position`, whose errors it raises.

        Returns:
            The weight of each pixel, in [0, 1]; the shape of ``mask``.
        """
        a = self.position(step)
        if a == 1.0:
            return mask
        return (1.0 - a) + (2.0 * a - 1.0) * mask

    def weights(self, mask: Tensor, step: int | None) -> Tensor:
        """The former name of `blend`."""
        warn_renamed("Curriculum.weights", "Curriculum.blend")
        return self.blend(mask, step)
