"""The section ``train``, and the checkpoints to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from basicsr.losses import LOSS_REGISTRY
from basicsr.models import MODEL_REGISTRY, lr_scheduler
from basicsr.models.base_model import BaseModel

from milo_restore.basicsr.checks.names import refuse_unknown, refuse_unknown_arguments, registered
from milo_restore.basicsr.losses import BasicSRLoss
from milo_restore.errors import ConfigError, MiloRestoreError, WeightsError

__all__ = ["check_training"]

_SCHEDULERS = {  # BaseModel.setup_schedulers'
    "MultiStepLR": lr_scheduler.MultiStepRestartLR,
    "MultiStepRestartLR": lr_scheduler.MultiStepRestartLR,
    "CosineAnnealingRestartLR": lr_scheduler.CosineAnnealingRestartLR,
}
_PAIRWISE = {"pixel_opt", "perceptual_opt"}


def check_training(options: dict[str, Any], where: Path) -> None:
    """Try the losses, the optimizers and the schedule on next to nothing, and open the checkpoints.

    Args:
        options: the configuration, its names checked.
        where: the file's name, for the errors.

    Raises:
        ConfigError: one of them refuses its options, or there is no loss.
        WeightsError: there is no such checkpoint, or the loss's weights cannot be had.
    """
    training = options["train"]
    model = registered(MODEL_REGISTRY, options["model_type"])
    if hasattr(model, "get_optimizer"):
        for key in [key for key in training if key.startswith("optim_")]:
            _try_optimizer(model, training[key], f"{where}, key 'train.{key}'")
    if model.setup_schedulers is BaseModel.setup_schedulers:
        _try_schedule(training["scheduler"], int(training["total_iter"]), f"{where}, key 'train.scheduler'")
    losses = {key: value for key, value in training.items() if key.endswith("_opt") and isinstance(value, dict)}
    of_sr = getattr(model, "init_training_settings", None)
    if of_sr is not None and of_sr.__qualname__ == "SRModel.init_training_settings" and not _PAIRWISE & set(losses):
        raise ConfigError("there is neither train.pixel_opt nor train.perceptual_opt", where=where)
    for key, value in losses.items():
        _try_loss(value, int(training["total_iter"]), f"{where}, key 'train.{key}'")
    for key, value in options["path"].items():
        if key.startswith(("pretrain_network", "resume_state")) and value:
            _try_checkpoint(value, f"{where}, key 'path.{key}'")


def _try_optimizer(model: Any, section: Any, where: str) -> None:
    """By the model's own ``get_optimizer``, so that whatever the installed basicsr knows is accepted."""
    if not isinstance(section, dict):
        raise ConfigError("must hold a mapping of keys to values", where=where)
    kind = section.get("type")
    optimizer = getattr(torch.optim, str(kind), None)
    if optimizer is not None:
        refuse_unknown_arguments(optimizer, section, where, ("params",))
    if "lr" not in section:
        raise ConfigError("missing key 'lr'", where=where)
    given = {key: value for key, value in section.items() if key != "type"}
    try:
        model.get_optimizer(object.__new__(model), kind, [torch.zeros(1, requires_grad=True)], **given)
    except NotImplementedError as error:
        mend = f"{_by_newer(kind)}It knows Adam, for one"
        raise ConfigError(f"the installed basicsr knows no {kind!r}", where=f"{where[:-1]}.type'", mend=mend) from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{kind} refuses {given} ({error})", where=where) from error


def _by_newer(kind: Any) -> str:
    return "BasicSR's master branch does, PyPI's 1.4.2 does not. " if kind == "AdamW" else ""


def _try_schedule(section: dict[str, Any], total_iter: int, where: str) -> None:
    """Make it, and ask it for the rate of the run's last iteration, which some find no answer to."""
    refuse_unknown(section.get("type"), _SCHEDULERS, f"{where[:-1]}.type'")
    kind = _SCHEDULERS[section["type"]]
    refuse_unknown_arguments(kind, section, where, ("optimizer",))
    given = {key: value for key, value in section.items() if key != "type"}
    try:
        schedule = kind(torch.optim.Adam([torch.zeros(1, requires_grad=True)]), **given)
    except (AssertionError, TypeError, ValueError, IndexError) as error:
        raise ConfigError(f"{section['type']} refuses {given} ({error})", where=where) from error
    try:
        schedule.last_epoch = total_iter - 1  # the steps done before the last iteration
        schedule.get_lr()
    except Exception as error:  # whatever it trips over
        what = f"{section['type']} has no rate for iteration {total_iter}, the last of train.total_iter"
        mend = "Let its periods sum to train.total_iter, or to more"
        raise ConfigError(what, where=where, mend=mend) from error


def _try_loss(section: dict[str, Any], total_iter: int, where: str) -> None:
    """Not by build_loss, which would set up BasicSR's logger before its file is known."""
    if section["type"] == "PerceptualLoss":
        return  # loads VGG, which BasicSR will do in a moment
    given = {key: value for key, value in section.items() if key != "type"}
    try:
        loss = registered(LOSS_REGISTRY, section["type"])(**given)
        if isinstance(loss, BasicSRLoss):
            loss.told("", 1, total_iter)
    except MiloRestoreError as error:
        what = error.what if error.where is None else f"{error.where}: {error.what}"
        raise type(error)(what, where=where, mend=error.mend) from error
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ConfigError(f"{section['type']} refuses {given} ({error})", where=where) from error


def _try_checkpoint(path: Any, where: str) -> None:
    if not isinstance(path, str) or not Path(path).expanduser().is_file():
        raise WeightsError(f"no such file: {path}", where=where, mend="Name it, or write ~")
    name = Path(path).expanduser()
    try:
        try:
            torch.load(name, map_location="cpu", mmap=True, weights_only=True)  # reads no tensor
        except RuntimeError:  # PyTorch's format before 1.6 cannot be mapped
            torch.load(name, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes of torch.load
        reason = str(error).split(".")[0]  # PyTorch goes on with advice
        mend = "Name another one, or write ~"
        raise WeightsError(f"{path} is no readable checkpoint ({reason})", where=where, mend=mend) from error
