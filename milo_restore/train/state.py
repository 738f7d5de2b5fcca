"""Everything that a step changes, in one place: the model, AdamW, the averaged weights, the counters."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from milo_restore.errors import ConfigError, WeightsError
from milo_restore.files.hashes import text_sha256
from milo_restore.train.settings import TrainSettings
from milo_restore.train.waiting import Waiting

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel

# What may change between a run and its continuation without changing the result. Not the stages: a longer run has
# another learning rate at each step, so it is another run.
_FREE = {"accumulation", "workers", "deterministic", "trackers", "max_bad_steps", "keep_checkpoints"}
_FREE |= {"compile", "channels_last"} | {f"{what}_every" for what in ("log", "evaluate", "sample", "checkpoint")}


class TrainingState:
    """The model as Accelerate prepared it, the optimiser of its trainable parameters, and what belongs to them.

    Args:
        model: any module; only its own parameters that require a gradient are trained.
        settings: of the run.
        accelerator: the run's.
        fixed: further entries of the fingerprint, such as the loss and the checksums of the metric's weights.

    Raises:
        ConfigError: nothing to train, or an optimiser that this machine does not have.
    """

    def __init__(
        self, model: nn.Module, settings: TrainSettings, accelerator: Accelerator, fixed: Mapping[str, Any]
    ) -> None:
        self.step = 0
        self.bad_steps = 0  # skipped steps in a row
        self.waiting = Waiting()
        self.accelerator = accelerator
        # As given, never compiled or distributed, so that its keys are its own; accelerate replaces its forward when it
        # mixes precisions.
        self.module = model
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)
        self._own_forward = model.__dict__.get("forward")
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        if not trained:
            raise ConfigError("has no parameter that requires a gradient", where="model")
        self.names, self.parameters = list(trained), list(trained.values())
        optimizer = build_optimizer(self.parameters, settings, accelerator.device)
        self.model, self.optimizer = accelerator.prepare(model.train(), optimizer)
        self.ema: EMAModel | None = None
        if settings.ema_decay is not None:
            from diffusers.training_utils import EMAModel  # seconds, and what bitsandbytes has to say

            self.ema = EMAModel(self.parameters, decay=settings.ema_decay, foreach=True)
        self.fingerprint = _fingerprint(model, settings, fixed)

    def release(self) -> None:
        """Give the model its own forward back."""
        self.module.__dict__.pop("_original_forward", None)
        self.module.__dict__.pop("forward", None)
        if self._own_forward is not None:
            self.module.forward = self._own_forward

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The bare model with the averaged weights (where they are kept), in eval mode, without gradients.

        The training weights come back bit for bit, whatever happens inside.
        """
        if self.ema is not None:
            self.ema.store(self.parameters)
            self.ema.copy_to(self.parameters)
        self.module.eval()
        try:
            with torch.no_grad():
                yield self.module
        finally:
            self.module.train()
            if self.ema is not None:
                self.ema.restore(self.parameters)

    def write(self, folder: Path) -> None:
        """Write the files of a checkpoint (see `milo_restore.train.checkpoint`) into ``folder``."""
        save_model(self.module, str(folder / "model.safetensors"), {"format": "pt"})
        scaler = self.accelerator.scaler
        loss_scale = scaler.state_dict() if scaler is not None else None
        torch.save({"optimizer": self.optimizer.state_dict(), "scaler": loss_scale}, folder / "optimizer.pt")
        if self.ema is not None:
            averages = zip(self.names, self.ema.shadow_params)
            save_file({name: value.contiguous() for name, value in averages}, str(folder / "ema.safetensors"))
        counters: dict[str, Any] = {"step": self.step, "bad_steps": self.bad_steps}
        if "stop" in self.fingerprint:
            counters["waiting"] = dataclasses.asdict(self.waiting)
        if self.ema is not None:
            counters["ema_updates"] = self.ema.optimization_step
        text = json.dumps({**counters, "fingerprint": self.fingerprint}, indent=1)
        (folder / "state.json").write_text(text, encoding="utf-8")

    def read(self, folder: Path) -> None:
        """Take over a verified checkpoint.

        Raises:
            ConfigError: naming the first setting that differs from the checkpoint's.
            WeightsError: where its files do not fit this model.
        """
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        self._check_fingerprint(state["fingerprint"], folder)
        try:
            load_model(self.module, folder / "model.safetensors")
            saved = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
            self.optimizer.load_state_dict(saved["optimizer"])
            self._lay_out_moments()
            if self.accelerator.scaler is not None and saved["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(saved["scaler"])
            if self.ema is not None:
                averages = load_file(folder / "ema.safetensors")
                for name, value in zip(self.names, self.ema.shadow_params):
                    value.copy_(averages[name])
                self.ema.optimization_step = state["ema_updates"]
        except (RuntimeError, KeyError, ValueError) as error:
            raise WeightsError(f"does not fit this model ({error})", where=folder) from error
        self.step, self.bad_steps = state["step"], state["bad_steps"]
        self.waiting = Waiting(**state.get("waiting", {}))

    def _lay_out_moments(self) -> None:
        """As the parameters are laid out; a checkpoint brings the layout of the run that wrote it."""
        for parameter, moments in self.optimizer.state.items():
            for name, value in moments.items():
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    def _check_fingerprint(self, theirs: dict[str, Any], folder: Path) -> None:
        for key in (*self.fingerprint, *theirs):
            ours, other = self.fingerprint.get(key), theirs.get(key)
            if ours != other:
                raise ConfigError(
                    f"{key} is now {ours!r}; the checkpoint was trained with {other!r}",
                    where=folder,
                    mend="Restore the setting to continue this run, or start another --output",
                )


def build_optimizer(
    parameters: list[nn.Parameter], settings: TrainSettings, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW, bitsandbytes' AdamW that keeps its two averages in 8 bits, or SOAP (Vyas et al., 2024, arXiv 2409.11321).

    Raises:
        ConfigError: 8 bits without an NVIDIA GPU or without bitsandbytes; SOAP without pytorch_optimizer.
    """
    options: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": settings.betas,
        "weight_decay": settings.weight_decay,
    }
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **options)
    if settings.optimizer == "soap":
        try:
            from pytorch_optimizer import SOAP
        except ImportError as error:
            mend = "pip install pytorch_optimizer, or use adamw"
            raise ConfigError("soap needs pytorch_optimizer", where="training.optimizer", mend=mend) from error
        soap: torch.optim.Optimizer = SOAP(parameters, **options)
        return soap
    if device.type != "cuda":
        what = f"adamw8bit needs a GPU with CUDA, this run is on {device.type}"
        raise ConfigError(what, where="training.optimizer", mend="Use adamw here")
    try:
        from bitsandbytes.optim import AdamW8bit
    except (ImportError, RuntimeError, OSError) as error:
        mend = "pip install bitsandbytes, or use adamw"
        raise ConfigError("adamw8bit needs bitsandbytes", where="training.optimizer", mend=mend) from error
    optimizer: torch.optim.Optimizer = AdamW8bit(parameters, **options)
    return optimizer


def _fingerprint(model: nn.Module, settings: TrainSettings, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same for a continued run to equal an uninterrupted one; JSON values only."""
    kept = {key: value for key, value in dataclasses.asdict(settings).items() if key not in _FREE}
    if kept["optimizer"] == "adamw":  # checkpoints from when there was no other do not name it
        del kept["optimizer"]
    if kept["stop"] is None:  # the same
        del kept["stop"]
    else:  # then it matters which steps are evaluated
        kept["evaluate_every"] = settings.evaluate_every
    shapes = [(name, list(value.shape), str(value.dtype)) for name, value in model.state_dict().items()]
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    digest = text_sha256(json.dumps([shapes, trained]))
    count = sum(value.numel() for value in model.parameters())
    architecture = f"{count} parameters, shapes {digest[:12]}"
    found: dict[str, Any] = json.loads(json.dumps({**kept, "model": architecture, **fixed}, default=str))
    return found
