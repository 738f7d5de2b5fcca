"""traiNNer-redux's door: MILO in place of its pixel losses.

Its losses are a list, and it multiplies each by ``loss_weight`` itself. It gives the iteration to
``optimize_parameters`` and steps the learning rate after; where it accumulates, the batches before an iteration's last
still bear the number of the iteration before.
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
_MODELS = {"sr_model": "SRModel", "ae_model": "AEModel"}


def install(wish: Wish) -> None:
    """Wait for ``traiNNer``; call it before the program imports that.

    Args:
        wish: what to train with.
    """
    accept_local_rank()
    when_imported("traiNNer.losses", functools.partial(_replace, wish=wish))
    for module, model in _MODELS.items():
        when_imported(f"traiNNer.models.{module}", functools.partial(_hook, name=model))


def _replace(module: ModuleType, *, wish: Wish) -> None:
    LEDGER.note("traiNNer was imported, and built no pixel loss")
    module.build_loss = replacing(module.build_loss, wish, NAME, outside=True)  # type: ignore[attr-defined]


def _hook(module: ModuleType, *, name: str) -> None:
    model = getattr(module, name)
    original = model.optimize_parameters

    @functools.wraps(original)
    def optimize_parameters(self: Any, current_iter: int, current_accum_iter: int, apply_gradient: bool) -> Any:
        for loss in self.losses.values():
            if isinstance(loss, ImageLoss):
                loss.tell(current_iter + (not apply_gradient), int(self.opt.train.total_iter))
        return original(self, current_iter, current_accum_iter, apply_gradient)

    model.optimize_parameters = optimize_parameters
