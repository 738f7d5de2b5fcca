"""traiNNer-redux's door: MILO in place of its pixel losses.

Its losses are a list, and it multiplies each by ``loss_weight`` itself; it says the iteration to the model
(``set_current_iter``) before it trains on a batch, and steps the learning rate after.
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

NAME = "traiNNer-redux"


def install(wish: Wish) -> None:
    """Wait for ``traiNNer``; call it before the program imports that.

    Args:
        wish: what to train with.
    """
    accept_local_rank()
    when_imported("traiNNer.losses", functools.partial(_replace, wish=wish))
    when_imported("traiNNer.models.base_model", _hook)


def _replace(module: ModuleType, *, wish: Wish) -> None:
    LEDGER.note("traiNNer was imported, and built no pixel loss")
    module.build_loss = replacing(module.build_loss, wish, NAME, outside=True)  # type: ignore[attr-defined]


def _hook(module: ModuleType) -> None:
    original = module.BaseModel.set_current_iter

    @functools.wraps(original)
    def set_current_iter(self: Any, iteration: int) -> None:
        original(self, iteration)
        for loss in self.losses.values():
            if isinstance(loss, ImageLoss):
                loss.tell(iteration, int(self.opt.train.total_iter))

    module.BaseModel.set_current_iter = set_current_iter
