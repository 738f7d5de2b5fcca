"""MILO and LPIPS as BasicSR's losses: what ``type: MILOLoss`` and ``type: LPIPSLoss`` in a configuration stand for.

Nothing of basicsr is imported: its forks differ, and `milo_restore.basicsr.door` knows how.
"""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from milo_restore import loss as losses
from milo_restore.errors import ConfigError, warn_renamed
from milo_restore.train.watch import GamingWatch

__all__ = ["BasicSRLoss", "BasicSRMILOLoss", "LPIPSLoss", "keys_of"]

_UNTOLD = "Train with BasicSR's own models, which call BaseModel.update_learning_rate before every iteration"


class BasicSRLoss(nn.Module):
    """Base of both losses: BasicSR's way to call a loss, 5-D tensors, and images in [-1, 1] (``range_norm``).

    ``perceptual_opt`` wants a pair (perceptual, style) back, ``pixel_opt`` a number. Which slot a loss fills is told by
    `milo_restore.basicsr.curriculum` before each iteration; see `told`.
    """

    returns_pair = False
    range_norm = False
    inner: losses.RestorationLoss

    def told(self, slot: str, iteration: int, total_iter: int, *, logged: bool = False) -> None:
        """Learn, before an iteration, where the loss sits (the model's attribute) and what is about to be trained.

        Args:
            slot: name of the model's attribute that holds the loss.
            iteration: BasicSR's, from 1.
            total_iter: the run's.
            logged: whether BasicSR will print a line about this iteration.
        """
        self.returns_pair = slot == "cri_perceptual"

    def evaluate(self, prediction: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """The loss of 4-D tensors."""
        return self.inner(prediction, target, weight)

    def forward(self, prediction: Tensor, target: Tensor, weight: Tensor | None = None, **_: Any) -> Any:
        """The loss.

        Args:
            prediction: (N, C, H, W), or (N, T, C, H, W) from video models, whose frames count as images; C is 3 or 1.
                It may leave [0, 1].
            target: the same shape, in [0, 1]; with ``range_norm`` both are in [-1, 1].
            weight: element-wise factor, broadcast to the shape.

        Returns:
            A scalar (with ``reduction: none``, all elements); as ``perceptual_opt``, the pair (scalar, None).
        """
        if prediction.ndim == 5:
            weight = None if weight is None else weight.expand_as(prediction).flatten(0, 1)
            prediction, target = prediction.flatten(0, 1), target.flatten(0, 1)
        if self.range_norm:
            prediction, target = (prediction + 1) / 2, (target + 1) / 2
        value = self.evaluate(prediction, target, weight)
        return (value, None) if self.returns_pair else value


class BasicSRMILOLoss(BasicSRLoss):
    """`milo_restore.MILOLoss` for BasicSR, in ``pixel_opt`` or ``perceptual_opt``.

    It keeps what `milo_restore.basicsr.watch` reads for the log.

    Args:
        weights: ``official``, ``mini`` or a path.
        curriculum: ``constant``, ``linear`` or ``cosine``, from the first to the last iteration of the run.
        mask_gradient: false takes MILO's mask as a constant weight; true lets gradients flow through it as well, as
            upstream does; without a curriculum, training from random weights then ended in a pattern that the mask
            does not see.
        normalize: divide the weights by their mean per image, which keeps L1's scale.
        anchor: L1 with this factor is added to MILO, before ``loss_weight``; 0 adds none.
        range_norm: the images are in [-1, 1], as with a data set's ``mean`` and ``std`` of 0.5; as in BasicSR's
            PerceptualLoss.
        start_iter: the iteration up to which the curriculum stays at its start.
        total_iter: the iteration at which it ends; by default ``train.total_iter``.
        loss_weight: factor on the result.
        reduction: ``mean``, ``sum`` or ``none``.
        **unknown: refused.

    Raises:
        ConfigError: an unknown key, or a value that means nothing.
        WeightsError: the weights can neither be found nor downloaded.
    """

    inner: losses.MILOLoss

    def __init__(
        self,
        weights: str = "official",
        curriculum: str = "constant",
        mask_gradient: bool = False,
        normalize: bool = False,
        anchor: float = 0.0,
        range_norm: bool = False,
        start_iter: int = 0,
        total_iter: int | None = None,
        loss_weight: float = 1.0,
        reduction: str = "mean",
        **unknown: Any,
    ) -> None:
        super().__init__()
        _refuse(unknown, type(self), "MILOLoss")
        self.kind, self.range_norm = curriculum, _flag(range_norm, "range_norm")
        self.start = int(_number(start_iter, "start_iter"))
        self.end = None if total_iter is None else int(_number(total_iter, "total_iter"))
        losses.Curriculum(curriculum, self.end or self.start + 1, self.start)  # type: ignore[arg-type]  # refuses others
        # The horizon is the run's, which no loss is told when it is built: the curriculum follows in `told`.
        self.inner = losses.MILOLoss(
            weights,
            mask_gradient=_flag(mask_gradient, "mask_gradient"),
            normalize=_flag(normalize, "normalize"),
            anchor=_number(anchor, "anchor"),
            loss_weight=_number(loss_weight, "loss_weight"),
            reduction=reduction,  # type: ignore[arg-type]  # checked there
        )
        self.iteration: int | None = None
        self.watch = GamingWatch()
        self.measured = False  # whether the first batch was reported
        self.logged = False  # whether BasicSR prints a line about this iteration
        self._latest: dict[str, Tensor] | None = None  # of this iteration
        self._sums: Tensor | None = None  # of L1 and MILO over the calls since the last line, on the device
        self._calls = 0

    def told(self, slot: str, iteration: int, total_iter: int, *, logged: bool = False) -> None:
        """See `BasicSRLoss`; sets the curriculum's position."""
        super().told(slot, iteration, total_iter)
        if self.iteration is None:
            end = total_iter if self.end is None else self.end
            self.inner.curriculum = losses.Curriculum(self.kind, end, self.start)  # type: ignore[arg-type]
        self.iteration = iteration
        self.logged, self._latest = logged, None

    def evaluate(self, prediction: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """The loss at the present iteration.

        Raises:
            ConfigError: a curriculum is on, and nobody told the iteration.
        """
        if self.kind != "constant" and self.iteration is None:
            what = f"a {self.kind} curriculum needs the iteration, and this program tells none"
            raise ConfigError(what, where="MILOLoss", mend=_UNTOLD)
        value, terms = self.inner.terms(prediction, target, weight, step=self.iteration)
        if self.iteration is not None:
            per = prediction.numel() if self.inner.reduction == "sum" else 1
            self._latest = {"loss": value.detach().mean() / per, "l1": terms["l1"]}
            both = torch.stack([terms["l1"], terms["milo"]])
            self._sums = both if self._sums is None else self._sums + both
            self._calls += 1
        return value

    def reading(self) -> dict[str, Tensor] | None:
        """Terms of this iteration for the log and the watch, where it is logged or the first; else None.

        Detached scalars: ``loss`` and ``l1`` of this iteration as means over elements, the former with its weight, and
        ``mean_l1`` and ``mean_milo``, the latter the raw error, over all calls since the last logged iteration. Only
        reading them waits for the device.
        """
        if self._latest is None or self._sums is None or (self.measured and not self.logged):
            return None
        mean_l1, mean_milo = self._sums / self._calls
        reading = {**self._latest, "mean_l1": mean_l1, "mean_milo": mean_milo}
        self._latest = None
        if self.logged:
            self._sums, self._calls = None, 0
        return reading

    @property
    def position(self) -> float:
        """The curriculum's position in [0, 1] at the present iteration."""
        return self.inner.curriculum.position(self.iteration)


BasicSRMILOLoss.__name__ = "MILOLoss"  # by which BasicSR registers a class, and logs it


class LPIPSLoss(BasicSRLoss):
    """`milo_restore.LPIPSLoss` for BasicSR: v0.1 of the ``lpips`` package.

    Args:
        net: ``alex`` or ``vgg``; torchvision downloads its ImageNet weights once.
        range_norm: the images are in [-1, 1].
        loss_weight: factor on the result.
        reduction: ``mean``, ``sum`` or ``none``, over images.
        **unknown: refused.

    Raises:
        ConfigError: an unknown key, or a value that means nothing.
        WeightsError: the backbone can neither be found nor downloaded.
    """

    def __init__(
        self,
        net: str = "alex",
        range_norm: bool = False,
        loss_weight: float = 1.0,
        reduction: str = "mean",
        **unknown: Any,
    ) -> None:
        super().__init__()
        self.range_norm = _flag(range_norm, "range_norm")
        _refuse(unknown, type(self), "LPIPSLoss")
        if net not in ("alex", "vgg"):
            raise ConfigError(f"{net!r} is neither 'alex' nor 'vgg'", where="LPIPSLoss, key 'net'")
        weight = _number(loss_weight, "loss_weight")
        self.inner = losses.LPIPSLoss(net, weight, reduction)  # type: ignore[arg-type]  # checked there


def __getattr__(name: str) -> Any:
    if name != "MILOLoss":
        raise AttributeError(f"module 'milo_restore.basicsr.losses' has no attribute {name!r}")
    warn_renamed("milo_restore.basicsr.losses.MILOLoss", "BasicSRMILOLoss")
    return BasicSRMILOLoss


def keys_of(loss: type[BasicSRLoss]) -> list[str]:
    """The keys that a configuration may give to a loss of this module."""
    code = loss.__init__.__code__
    return list(code.co_varnames[1 : code.co_argcount])


def _refuse(unknown: dict[str, Any], loss: type[BasicSRLoss], name: str) -> None:
    for key in unknown:
        known = keys_of(loss)
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        mend = f"Did you mean {close[0]!r}?" if close else f"Remove it; known keys: {', '.join(known)}"
        raise ConfigError(f"unknown key {key!r}", where=name, mend=mend)


def _number(value: Any, key: str) -> float:
    """YAML reads 1e-4 as text; a loss need not mind."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not torch.isfinite(torch.tensor(number)):
        raise ConfigError(f"{value!r} is not a number", where=f"loss, key {key!r}")
    return number


def _flag(value: Any, key: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{value!r} is neither true nor false", where=f"loss, key {key!r}")
    return value
