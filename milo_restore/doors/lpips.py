"""The door of ``lpips``: MILO wherever a program makes an ``lpips.LPIPS``.

It takes that class's arguments and images in [-1, 1], and gives (N, 1, 1, 1), or a map with ``spatial``. LPIPS is
symmetric and MILO is not: the image that is trained is the distorted one, whichever comes first.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from milo_restore import loss as losses
from milo_restore.doors.ledger import LEDGER
from milo_restore.doors.wish import Wish
from milo_restore.errors import ConfigError
from milo_restore.hooks import when_imported

__all__ = ["PerceptualLoss", "install"]

NAME = "lpips"


def install(wish: Wish) -> None:
    """Wait for ``lpips``; call it before the program imports that.

    Args:
        wish: MILO, without a curriculum: a program tells ``lpips.LPIPS`` no step.

    Raises:
        ConfigError: another wish.
    """
    if wish.loss != "milo":
        raise ConfigError(f"{wish.loss} cannot stand in for LPIPS", where="--lpips", mend="Take --lpips milo")
    when_imported("lpips", functools.partial(_replace, wish=wish))


class PerceptualLoss(nn.Module):
    """MILO in the shape of ``lpips.LPIPS``; it trains nothing of its own.

    Args:
        wish: MILO's weights and options.
        spatial: give a map (N, 1, H, W) in place of one number per image.

    Raises:
        ConfigError: an unknown option.
        WeightsError: the weights can neither be found nor downloaded.
    """

    def __init__(self, wish: Wish, *, spatial: bool = False) -> None:
        super().__init__()
        self.spatial = spatial
        try:
            self.inner = losses.MILOLoss(**wish.arguments(), reduction="none")
        except TypeError as error:
            raise ConfigError(f"MILOLoss refuses {dict(wish.options)} ({error})", where="--option") from error

    def forward(self, in0: Tensor, in1: Tensor, retPerLayer: bool = False, normalize: bool = False) -> Tensor:
        """MILO of two batches, float32.

        Args:
            in0: (N, 3, H, W) in [-1, 1].
            in1: the same shape; the reference, unless only this one has a gradient.
            retPerLayer: refused, as MILO has no layers.
            normalize: the images are in [0, 1].

        Raises:
            ConfigError: ``retPerLayer``.
            DataError: shapes differ or are below 16 pixels.
        """
        if retPerLayer:
            raise ConfigError("MILO has no layers to return", where="retPerLayer", mend="Leave it false")
        image, reference = (in1, in0) if in1.requires_grad and not in0.requires_grad else (in0, in1)
        if not normalize:
            image, reference = (image + 1) / 2, (reference + 1) / 2
        # Both are trained (two heads) or none is (validation): a reference may then be an output, which leaves [0, 1].
        elements = self.inner(image, reference.clamp(0, 1))
        return elements.mean(1, keepdim=True) if self.spatial else elements.mean((1, 2, 3), keepdim=True)


def _replace(module: ModuleType, *, wish: Wish) -> None:
    LEDGER.note("lpips was imported, and no lpips.LPIPS was made")

    class LPIPS(PerceptualLoss):
        """Stand-in for lpips' class of this name."""

        def __init__(
            self, pretrained: bool = True, net: str = "alex", *_: Any, spatial: bool = False, **__: Any
        ) -> None:
            super().__init__(wish, spatial=spatial)
            what = f"lpips.LPIPS(net={net!r}) -> {wish.loss} ({self.inner.weights})"
            LEDGER.add(NAME, what).count(self)

    module.LPIPS = LPIPS  # type: ignore[attr-defined]
