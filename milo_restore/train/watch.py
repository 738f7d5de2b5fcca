"""Sees a loss that is gamed: a network that lowers MILO by errors which its mask does not see, as the image gets worse.

Plain numbers in, at most one line of text out; used by `milo_restore.train.fit` and by `milo_restore.basicsr`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import median

CURES = (
    "Where the loss is MILO, what helps: a linear or cosine curriculum, mask_gradient: false, an anchor above 0 "
    "(L1 beside MILO), or a start from pretrained weights"
)
SMOOTHING = 5  # readings that an exponential average reaches over
RISEN = 0.5  # of log L1 - log MILO / 2, above its lowest; restoring lowers it or leaves it, MILO's price is under 0.3
KEPT = -0.15  # of log L1 alone: where it has fallen by more, the image became better, whatever MILO did
FALLEN = -0.35  # of log MILO alone: where both rise, training diverges, which is seen in the loss
SURE = 4.0  # by how many standard errors more, for readings scatter with the difficulty of their batches
PATIENCE = 3  # readings in a row for which it must be so
_RECENT = 25  # readings that the scatter is estimated from


class GamingWatch:
    """Warns at most once of each: the residual rises while MILO falls; an evaluation finds the output below its input.

    It never stops a run. It knows only what it has seen since it was made, so nothing of it goes into checkpoints.
    """

    def __init__(self) -> None:
        self._averages = _Averages()
        self._best: tuple[float, float, float] | None = None  # the averages when the first of them was lowest
        self._since = 0  # readings in a row in which the one had risen and the other fallen
        self._warned = self._compared = False

    def observe(self, step: int, l1: float, milo: float | None) -> str | None:
        """Take a reading, at even intervals, such as with every line of the log, and best with the first step too.

        A network that starts near its input goes wrong, if it does, within the first hundred steps: there the first
        step is what the rest is compared with.

        Args:
            step: the training step, for the text.
            l1: the mean absolute residual, best as a mean over the steps since the last reading.
            milo: the raw MILO error of the same; None where the loss knows none: then nothing can be gamed.

        Returns:
            The warning, the first time that it is due; else None.
        """
        if milo is None or not (0 < l1 < math.inf and 0 < milo < math.inf):
            return None
        now = self._averages.add(math.log(l1), math.log(milo))
        if self._best is None or now[0] < self._best[0]:
            self._best = now
        risen = now[0] - self._best[0] > RISEN + SURE * self._averages.error()
        gamed = risen and now[1] - self._best[1] > KEPT and now[2] - self._best[2] < FALLEN
        self._since = self._since + 1 if gamed else 0
        if self._warned or self._since < PATIENCE:
            return None
        self._warned = True
        before, after = ([math.exp(value) for value in pair[1:]] for pair in (self._best, now))
        return (
            f"step {step}: MILO fell from {before[1]:.3g} to {after[1]:.3g} while the mean absolute residual went from "
            f"{before[0]:.3g} to {after[0]:.3g}: the network learns errors that MILO's mask does not see. {CURES}"
        )

    def evaluated(self, step: int, values: Mapping[str, float]) -> str | None:
        """Compare an evaluation's ``psnr`` with its ``input_psnr``, in dB; where one is missing, nothing is compared.

        Returns:
            The warning, the first time that the output is below its input; else None.
        """
        psnr, before = values.get("psnr"), values.get("input_psnr")
        if self._compared or psnr is None or before is None or not psnr < before:
            return None
        self._compared = True
        return (
            f"step {step}: the evaluation finds the output below its input, {psnr:.2f} dB under {before:.2f} dB PSNR: "
            f"so far the network makes images worse. {CURES}"
        )


class _Averages:
    """Exponential averages over about `SMOOTHING` readings, without a pull to where they began."""

    def __init__(self) -> None:
        self._l1 = self._milo = self._weight = 0.0
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def add(self, l1: float, milo: float) -> tuple[float, float, float]:
        """Of log L1 - log MILO / 2, log L1, log MILO. Harder batches move the first least: MILO is about a square."""
        keep = 1 - 1 / SMOOTHING
        self._weight = keep * self._weight + 1
        self._l1, self._milo = keep * self._l1 + l1, keep * self._milo + milo
        self._recent.append(l1 - milo / 2)
        residual, seen = self._l1 / self._weight, self._milo / self._weight
        return residual - seen / 2, residual, seen

    def error(self) -> float:
        """The first one's standard error, from second differences: these see no trend, and 6 variances of a reading."""
        last = list(self._recent)
        bends = [abs(a - 2 * b + c) for a, b, c in zip(last, last[1:], last[2:])]
        if not bends:
            return math.inf
        scatter = 1.4826 * median(bends) / math.sqrt(6)  # a normal deviation from the median of absolute ones
        return scatter / math.sqrt(2 * SMOOTHING - 1)
