"""Everything that a step changes, in one place: the model, AdamW, the averaged weights, the counters."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from milo_restore.errors import ConfigError, WeightsError
from milo_restore.files.quarantine import QUARANTINE, Quarantine, as_lines, read_faults
from milo_restore.train import identity
from milo_restore.train.settings import TrainSettings
from milo_restore.train.waiting import Waiting

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel


class TrainingState:
    """The model as Accelerate prepared it, the optimiser of its trainable parameters, and what belongs to them.

    Args:
        model: any module; only its own parameters that require a gradient are trained.
        settings: of the run.
        accelerator: the run's.
        fixed: further entries of the fingerprint, such as the loss and the checksums of the metric's weights.
        config: the recipe's configuration by keys, see `milo_restore.train.identity.flattened`; None: there is none.
        quarantine: the data's; None: it has none.

    Raises:
        ConfigError: nothing to train, or an optimiser that this machine does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainSettings,
        accelerator: Accelerator,
        fixed: Mapping[str, Any],
        config: Mapping[str, Any] | None = None,
        quarantine: Quarantine | None = None,
    ) -> None:
        self.step = 0
        self.bad_steps = 0  # skipped steps in a row
        self.sound = 0  # the last step whose loss and gradient were finite
        self.lineage: list[dict[str, Any]] = []  # changes of the run on its way: {"after": step, "changed": {...}}
        self.waiting = Waiting()
        self.quarantine = Quarantine() if quarantine is None else quarantine
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
        self.fingerprint = identity.fingerprint(model, settings, fixed)
        self.config = config
        self._own_options = {name: self.optimizer.param_groups[0][name] for name in ("betas", "weight_decay")}

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
        if bad := self.quarantine.faults(self.step):
            (folder / QUARANTINE).write_text(as_lines(bad), encoding="utf-8")
        counters: dict[str, Any] = {"step": self.step, "bad_steps": self.bad_steps, "sound": self.sound}
        if "stop" in self.fingerprint:
            counters["waiting"] = dataclasses.asdict(self.waiting)
        if self.ema is not None:
            counters["ema_updates"] = self.ema.optimization_step
        about = {"fingerprint": self.fingerprint, "config": self.config, "changes": self.lineage}
        text = json.dumps({**counters, **about}, indent=1)
        (folder / "state.json").write_text(text, encoding="utf-8")

    def read(self, folder: Path, changes: Sequence[str] = ()) -> list[str]:
        """Take over a verified checkpoint.

        Args:
            folder: the checkpoint.
            changes: keys that may differ from the checkpoint's, which the lineage then tells.

        Returns:
            What there is to say.

        Raises:
            ConfigError: naming the settings that differ from the checkpoint's.
            WeightsError: where its files do not fit this model.
        """
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        found, notes = self._changed(state), []
        identity.check(found, changes, folder)
        if self.ema is not None and "ema_updates" not in state:
            raise ConfigError("has no averaged weights", where=folder, mend="Set ema_decay to null")
        if self.config is not None and state.get("config") is None:
            notes.append(f"{folder.name} is from before whole configurations were compared: see that yours is its own")
        try:
            load_model(self.module, folder / "model.safetensors")
            saved = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
            self.optimizer.load_state_dict(saved["optimizer"])
            for group in self.optimizer.param_groups:
                group.update(self._own_options)  # as set here: a change of them would else be none
            self._lay_out_moments()
            if self.accelerator.scaler is not None and saved["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(saved["scaler"])
            if self.ema is not None:
                averages = load_file(folder / "ema.safetensors")
                for name, value in zip(self.names, self.ema.shadow_params):
                    value.copy_(averages[name])
                self.ema.optimization_step = state["ema_updates"]
        except (RuntimeError, KeyError, ValueError, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split())[:300]
            raise WeightsError(f"does not fit this model ({reason})", where=folder) from error
        self.step, self.bad_steps = state["step"], state["bad_steps"]
        self.sound = state.get("sound", self.step - self.bad_steps)
        self.waiting = Waiting(**state.get("waiting", {}))
        self.lineage = list(state.get("changes", []))
        self.quarantine.take_over(read_faults(folder / QUARANTINE))
        if found:
            self.lineage.append({"after": self.step, "changed": found})
        return notes + [f"changed {line}" for line in identity.told(self.lineage)]

    def _changed(self, state: Mapping[str, Any]) -> identity.Changes:
        """The keys in which this run differs from the one that wrote ``state``."""
        theirs = state.get("config")
        found = {} if self.config is None or theirs is None else identity.changed(self.config, theirs)
        return found | identity.changed(self.fingerprint, state["fingerprint"])

    def _lay_out_moments(self) -> None:
        """Memory layout of the parameters; a checkpoint brings the layout of the run that wrote it."""
        for parameter, moments in self.optimizer.state.items():
            for name, value in moments.items():
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


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
