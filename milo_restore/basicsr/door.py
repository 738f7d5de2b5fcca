"""BasicSR's door: MILO in any program built on a basicsr, from 1.2 to master and in the forks that carry their own.

What is there decides: a registry with or without ``suffix``, or modules whose losses are found by ``getattr``. The
place of the loss is ``train.pixel_opt``, which every model reads after ``BaseModel.__init__`` was given the options;
the iteration comes from ``BaseModel.update_learning_rate``, which every fork's program calls.
"""

from __future__ import annotations

import functools
import inspect
import sys
from types import ModuleType
from typing import Any

from torch import nn

from milo_restore.basicsr.metric import calculate_milo
from milo_restore.basicsr.options import LOSSES, in_signed_range, put_loss
from milo_restore.doors.ledger import LEDGER, Entry
from milo_restore.doors.local_rank import accept_local_rank
from milo_restore.doors.wish import Wish
from milo_restore.errors import ConfigError
from milo_restore.hooks import when_imported

__all__ = ["add_item", "install"]

NAME = "BasicSR"


def install(wish: Wish | None = None) -> None:
    """Wait for a basicsr, and let its files name what this project adds; harmless to repeat.

    Args:
        wish: replace ``train.pixel_opt`` of whatever the program trains; None leaves it to the files.
    """
    accept_local_rank()
    when_imported("basicsr.utils.registry", _offer_restormer)
    for losses in ("basicsr.losses", "basicsr.models.losses"):
        when_imported(losses, functools.partial(_offer, registry="LOSS_REGISTRY"))
    when_imported("basicsr.metrics", functools.partial(_offer, registry="METRIC_REGISTRY"))
    when_imported("basicsr.models.base_model", functools.partial(_hook, wish=wish))


def add_item(registry: Any, item: Any, *, fallback: bool = False) -> None:
    """Put a class or function into a registry of any age; one that is there under its name stays.

    Args:
        registry: a basicsr's.
        item: goes by its ``__name__``.
        fallback: under the name with a suffix where registries know one, which the plain name beats at any time.
    """
    if fallback and "suffix" in inspect.signature(registry.register).parameters:
        if f"{item.__name__}_basicsr" not in registry:
            registry.register(item, suffix="basicsr")
    elif item.__name__ not in registry:
        registry.register(item)


def _offer(module: ModuleType, *, registry: str) -> None:
    """Add our losses, or our metric, to a registry or, where there is none, to the module itself."""
    from milo_restore.basicsr.losses import BasicSRMILOLoss, LPIPSLoss

    items = ((BasicSRMILOLoss, False), (LPIPSLoss, True)) if registry == "LOSS_REGISTRY" else ((calculate_milo, False),)
    registries = sys.modules.get("basicsr.utils.registry")
    for item, fallback in items:
        if registries is not None and hasattr(registries, registry):
            add_item(getattr(registries, registry), item, fallback=fallback)
        if not hasattr(module, item.__name__) and not hasattr(module, "build_loss"):
            setattr(module, item.__name__, item)


def _offer_restormer(module: ModuleType) -> None:
    """Add Restormer's classes under fallback names; where registries know none, forks bring a Restormer themselves."""
    from milo_restore.basicsr.restormer import register

    if "suffix" in inspect.signature(module.ARCH_REGISTRY.register).parameters:
        register(module)


def _hook(module: ModuleType, *, wish: Wish | None) -> None:
    from milo_restore.basicsr import curriculum, watch

    curriculum.install(module.BaseModel)
    watch.install(module.BaseModel)
    if wish is None:
        return
    LEDGER.note("basicsr was imported, and no model was trained that reads train.pixel_opt")
    made, told = module.BaseModel.__init__, module.BaseModel.update_learning_rate

    @functools.wraps(made)
    def init(self: Any, opt: Any, *arguments: Any, **options: Any) -> None:
        self.milo_restore_entry = _replace(opt, wish)
        made(self, opt, *arguments, **options)

    @functools.wraps(told)
    def update_learning_rate(self: Any, *arguments: Any, **options: Any) -> Any:
        _count(self)
        return told(self, *arguments, **options)

    module.BaseModel.__init__ = init
    module.BaseModel.update_learning_rate = update_learning_rate


def _replace(options: dict[str, Any], wish: Wish) -> Entry | None:
    """Put the wish into the options of a model that is about to be made, in place."""
    training = options.get("train")
    if not options.get("is_train", True) or not training:
        LEDGER.note("basicsr made a model that is not for training")
        return None
    if not isinstance(training.get("pixel_opt"), dict):
        given = ", ".join(key for key in training if key.endswith("_opt")) or "none"
        LEDGER.note(f"the options of {options.get('model_type')} name no train.pixel_opt (losses: {given})")
        return None
    wanted = dict(LOSSES[wish.loss])
    if wish.is_milo:
        wanted.update({"weights": wish.weights or "official"}, **wish.options)
        if in_signed_range(options):
            wanted.setdefault("range_norm", True)
    return LEDGER.add(NAME, put_loss(training["pixel_opt"], wanted))


def _count(model: Any) -> None:
    """Count the calls of the replaced loss, which now is made."""
    entry, model.milo_restore_entry = getattr(model, "milo_restore_entry", None), None
    if entry is None:
        return
    loss = getattr(model, "cri_pix", None)
    if not isinstance(loss, nn.Module):
        what = f"{type(model).__name__} reads train.pixel_opt, and keeps no loss as cri_pix"
        raise ConfigError(what, where="BasicSR", mend="Write type: MILOLoss where its file names its loss")
    entry.count(loss)
