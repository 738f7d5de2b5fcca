"""The curriculum's clock inside BasicSR: BasicSR tells its models, and this hook tells their losses.

BasicSR's training program calls ``model.update_learning_rate(current_iter, ...)`` before every iteration, also after a
resume, and whatever the model then does with the batch: the number is the run's own, and nothing here counts.
"""

from __future__ import annotations

import functools
from typing import Any

from milo_restore.basicsr.losses import BasicSRLoss

__all__ = ["install", "tell_losses"]


def install(base_model: Any) -> None:
    """Let ``BaseModel.update_learning_rate`` tell the model's losses first. Harmless to repeat.

    A model class that overrides it without calling ``super()`` tells nothing; so does a basicsr without that method.
    A curriculum then stops with an error, see `BasicSRMILOLoss`.

    Args:
        base_model: a basicsr's class of that name.
    """
    original = getattr(base_model, "update_learning_rate", None)
    if original is None or getattr(original, "tells_losses", False):
        return

    @functools.wraps(original)
    def update_learning_rate(self: Any, current_iter: int, *arguments: Any, **options: Any) -> Any:
        tell_losses(self, current_iter)
        return original(self, current_iter, *arguments, **options)

    update_learning_rate.tells_losses = True  # type: ignore[attr-defined]
    base_model.update_learning_rate = update_learning_rate


def tell_losses(model: Any, iteration: int) -> None:
    """Tell the losses of a BasicSR model, those of its attributes that are ours, which iteration comes."""
    every = int(float((model.opt.get("logger") or {}).get("print_freq") or 0))
    logged = every > 0 and iteration % every == 0
    for slot, value in vars(model).items():
        if isinstance(value, BasicSRLoss):
            value.told(slot, iteration, int(float(model.opt["train"]["total_iter"])), logged=logged)
