"""Messages of a BasicSR run about its MILO loss: the residual beside it, its scale, and whether it is gamed.

A mask that is learned can be gamed: errors grow where it does not look, and MILO falls. So the mean absolute residual
stands beside the loss in every line of the log, and one warning comes where it rises while MILO falls, or where a
validation finds the output worse than the input. Nothing here stops a run, and nothing is read from the device but in
iterations that BasicSR logs, and in the first.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping
from typing import Any
from unittest.mock import patch

from torch import Tensor

from milo_restore.basicsr.losses import BasicSRMILOLoss

__all__ = ["install"]

_LOG = logging.getLogger("basicsr")  # the name that every fork's program gives its own


def install(base_model: Any) -> None:
    """Let ``BaseModel.reduce_loss_dict`` add the residual, and ``BaseModel.validation`` compare. Harmless to repeat.

    BasicSR's models average their losses over processes by the one and are validated by the other. A model class
    with a way of its own logs no residual and is not watched; it trains as it would.

    Args:
        base_model: a basicsr's class of that name.
    """
    for name, wrapped in (("reduce_loss_dict", _reducing), ("validation", _validating)):
        original = getattr(base_model, name, None)
        if original is not None and not getattr(original, "watches", False):
            watching = functools.wraps(original)(wrapped(original))
            watching.watches = True  # type: ignore[attr-defined]
            setattr(base_model, name, watching)


def _reducing(original: Any) -> Any:
    def reduce_loss_dict(self: Any, loss_dict: Mapping[str, Tensor]) -> Any:
        readings = {slot: reading for slot, loss in _losses(self) if (reading := loss.reading()) is not None}
        if not readings:
            return original(self, loss_dict)
        flat = {f"{slot}.{name}": value for slot, reading in readings.items() for name, value in reading.items()}
        log = original(self, {**flat, **loss_dict})  # means over processes
        for number, (slot, reading) in enumerate(readings.items()):
            means, loss = {name: log.pop(f"{slot}.{name}") for name in reading}, getattr(self, slot)
            _introduce(self, slot, loss, means)
            if number == 0 and loss.logged:  # a second one sees the same images
                _warn(loss.watch.observe(loss.iteration, means["mean_l1"], means["mean_milo"]))
                log = {"l1": means["l1"], **log}
        return log

    return reduce_loss_dict


def _validating(original: Any) -> Any:
    def validation(self: Any, dataloader: Any, current_iter: int, *arguments: Any, **options: Any) -> Any:
        _, loss = next(_losses(self), (None, None))
        if loss is None:
            return original(self, dataloader, current_iter, *arguments, **options)
        found: list[tuple[float, float]] = []
        visuals = self.get_current_visuals

        def get_current_visuals() -> Any:
            images = visuals()
            found.extend(_psnrs(images))
            return images

        with patch.object(self, "get_current_visuals", get_current_visuals):
            result = original(self, dataloader, current_iter, *arguments, **options)
        if found:
            given, restored = (sum(values) / len(found) for values in zip(*found))
            _warn(loss.watch.evaluated(current_iter, {"psnr": restored, "input_psnr": given}))
        return result

    return validation


def _introduce(model: Any, slot: str, loss: BasicSRMILOLoss, means: Mapping[str, float]) -> None:
    """Say once how large the loss is, what keeps its balance with others, and what its values mean."""
    if loss.measured:
        return
    loss.measured = True
    name = {"cri_pix": "pixel_opt", "cri_perceptual": "perceptual_opt"}.get(slot, slot)
    unit = loss.inner.loss_weight * means["l1"]
    if unit > 0:
        ratio = means["loss"] / unit
        _LOG.info(f"{name}: MILOLoss is {ratio:.3g} times L1 of the same loss_weight on the first batch.")
        others = [key for key, value in model.opt["train"].items() if key.endswith("_opt") and value]
        if len(others) > 1 and not loss.inner.normalize:
            _LOG.warning(
                f"{name}: beside {', '.join(key for key in others if key != name)} this shifts their balance, and a "
                f"curriculum goes on shifting it: normalize: true stays near L1's scale; loss_weight: "
                f"{loss.inner.loss_weight / ratio:.3g} gives MILOLoss L1's share on this batch."
            )
    if loss.kind != "constant":
        _LOG.info(
            f"{name}: the {loss.kind} curriculum changes what MILOLoss weighs, so its values do not compare between "
            "iterations; l1, the mean absolute residual beside them, does."
        )


def _psnrs(images: Any) -> list[tuple[float, float]]:
    """PSNR of input and output in dB, at most 100; none where their sizes differ from the target's, as in upscaling."""
    given, restored, target = ((images or {}).get(name) for name in ("lq", "result", "gt"))
    if given is None or restored is None or target is None or not given.shape == restored.shape == target.shape:
        return []
    return [(_psnr(given, target), _psnr(restored, target))]


def _psnr(image: Tensor, target: Tensor) -> float:
    error = (image.float().clamp(0, 1) - target.float()).square().mean()
    return float(-10 * error.clamp_min(1e-10).log10())


def _losses(model: Any) -> Iterator[tuple[str, BasicSRMILOLoss]]:
    """Attributes of a BasicSR model that are ours, by name."""
    return ((slot, value) for slot, value in vars(model).items() if isinstance(value, BasicSRMILOLoss))


def _warn(line: str | None) -> None:
    if line is not None:
        _LOG.warning(line)
