"""neosr's door: MILO in place of its pixel loss.

Its losses fill one slot each and multiply by their weight themselves. What it calls an iteration is a batch: with
``accumulate = n`` there are n to a step of the optimizer, and the curriculum counts those steps.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from milo_restore.doors.image_loss import ImageLoss, replacing
from milo_restore.doors.ledger import LEDGER
from milo_restore.doors.local_rank import accept_local_rank
from milo_restore.doors.wish import Wish
from milo_restore.hooks import when_imported

__all__ = ["install"]

NAME = "neosr"
_TOTAL = 1_000_000  # neosr's own, where its file names none


def install(wish: Wish) -> None:
    """Wait for ``neosr``; call it before the program imports that.

    Args:
        wish: what to train with.
    """
    accept_local_rank()
    when_imported("neosr.losses", functools.partial(_replace, wish=wish))
    when_imported("neosr.models.image", _hook)


def _replace(module: ModuleType, *, wish: Wish) -> None:
    LEDGER.note("neosr was imported, and built no pixel loss")
    module.build_loss = replacing(module.build_loss, wish, NAME, outside=False)  # type: ignore[attr-defined]


def _hook(module: ModuleType) -> None:
    original = module.image.optimize_parameters

    @functools.wraps(original)
    def optimize_parameters(self: Any, current_iter: int) -> None:
        batches = self.opt["datasets"]["train"].get("accumulate") or 1
        total = int(self.opt["logger"].get("total_iter", _TOTAL))
        for loss in vars(self).values():
            if isinstance(loss, ImageLoss):
                loss.tell(-(-current_iter // batches), total)
        original(self, current_iter)

    module.image.optimize_parameters = optimize_parameters
