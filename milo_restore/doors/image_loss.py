"""MILO for the training programs of images whose losses are not told the iteration; their doors tell it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from milo_restore import loss as losses
from milo_restore.doors.ledger import LEDGER
from milo_restore.doors.wish import Wish
from milo_restore.errors import ConfigError

__all__ = ["ImageLoss", "replacing"]

_PIXEL = {"l1loss", "mseloss", "charbonnierloss", "huberloss", "smoothl1loss", "chc_loss"}
_OWN = {"l1": "L1Loss", "mse": "MSELoss"}
Build = Callable[[dict[str, Any]], nn.Module]


class ImageLoss(nn.Module):
    """`milo_restore.MILOLoss`, whose curriculum begins when `tell` is called.

    Args:
        wish: which MILO.
        loss_weight: factor that the program gave its pixel loss.
        outside: the program multiplies by the attribute ``loss_weight`` itself.

    Raises:
        ConfigError: an unknown option.
        WeightsError: the weights can neither be found nor downloaded.
    """

    def __init__(self, wish: Wish, loss_weight: float, *, outside: bool) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        arguments = dict(wish.arguments())
        self.kind, self.step = arguments.pop("curriculum"), 0
        try:
            self.inner = losses.MILOLoss(loss_weight=1.0 if outside else loss_weight, **arguments)
        except TypeError as error:
            raise ConfigError(f"MILOLoss refuses {dict(wish.options)} ({error})", where="--option") from error

    def tell(self, step: int, total: int) -> None:
        """Learn which step, from 1, of how many comes."""
        self.step = step
        self.inner.curriculum = losses.Curriculum(self.kind, total)

    def forward(self, prediction: Tensor, target: Tensor, **_: Any) -> Tensor:
        """The loss, a scalar; images are (N, C, H, W), the target in [0, 1].

        Raises:
            ConfigError: a curriculum is on, and nobody told the step.
        """
        if self.kind != "constant" and not self.step:
            mend = "Take --loss milo, or report the program's version"
            raise ConfigError(
                f"a {self.kind} curriculum needs the iteration, and nobody told it", where="MILO", mend=mend
            )
        return self.inner(prediction, target, step=self.step)


def replacing(build_loss: Build, wish: Wish, door: str, *, outside: bool) -> Build:
    """A program's ``build_loss`` that makes the wish of each pixel loss, and counts its calls.

    Args:
        build_loss: takes a section with ``type`` and the loss's keys.
        wish: what to make.
        door: for the ledger.
        outside: see `ImageLoss`.
    """

    def build(section: dict[str, Any]) -> nn.Module:
        kind = str(section["type"])
        if kind.lower() not in _PIXEL:
            LEDGER.note(f"{kind} is no pixel loss")
            return build_loss(section)
        weight = section.get("loss_weight", 1.0)
        if wish.is_milo:
            milo = ImageLoss(wish, float(weight), outside=outside)
            made: nn.Module = milo
            now = f"{wish.loss} ({milo.inner.weights}), loss_weight {weight:g}"
        elif _OWN[wish.loss].lower() == kind.lower():
            made, now = build_loss(section), "the same, as asked for"
        else:
            made, now = build_loss({"type": _OWN[wish.loss], "loss_weight": weight}), _OWN[wish.loss]
        LEDGER.add(door, f"{kind} -> {now}").count(made)
        return made

    return build
