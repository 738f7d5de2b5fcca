"""A dry run of a DiffBIR recipe: one look at each thing that its configuration names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from milo_restore.config import dump_config
from milo_restore.data import SampleKey
from milo_restore.data.degrade.batch import degrade_batch
from milo_restore.data.degraded_sets import DegradedData, held_out, training_pairs
from milo_restore.errors import ConfigError, WeightsError
from milo_restore.files.quarantine import Quarantine
from milo_restore.loss import DiffusionLoss, RestorationLoss, gradient_cosines
from milo_restore.loss.build import latent_loss
from milo_restore.loss.cosine import cosine_line, cosine_with_mse
from milo_restore.measure.metrics import load_metric
from milo_restore.metric import LatentSpace
from milo_restore.models.diffbir import noise_scheduler, predict
from milo_restore.models.diffbir.cleaner import load_cleaner
from milo_restore.models.diffbir.frozen import Frozen, load_frozen
from milo_restore.models.diffbir.memory import saved_bytes
from milo_restore.models.diffbir.one_step import OneStep
from milo_restore.train import PartialState
from milo_restore.train.command import RunArguments
from milo_restore.train.dry_run import first_samples, look_at_all, training_looks
from milo_restore.train.memory import optimizer_bytes, parameter_count, weight_bytes

if TYPE_CHECKING:
    from diffbir import Config
    from diffbir_one_step import Config as OneStepConfig

LOOKED_AT, LOOKED_SIDE = 2, 256  # training crops for the cosine, and their side in pixels: a dry run has a CPU only


def check(config: Config, run: RunArguments) -> int:
    """Load all that the configuration names, train nothing, and say all that is wrong, a line each.

    Raises:
        ConfigError: something is wrong.
    """
    return _check(Looks(config), run)


def check_one_step(config: OneStepConfig, run: RunArguments) -> int:
    """`check` of diffbir_one_step.py's configuration.

    Raises:
        ConfigError: something is wrong.
    """
    return _check(OneStepLooks(config), run)


def _check(looks: Looks, run: RunArguments) -> int:
    print(dump_config(looks.config))
    decoding = {"data.train decoded": looks.look_at_every_image} if run.decode else {}
    training = training_looks(looks.config.training, run.output, run.resume)
    return look_at_all({**looks.by_name(), **decoding, **training})


class Looks:
    """Findings of the checks, for those that come after."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.frozen: Frozen | None = None
        self.cleaner: nn.Module | None = None
        self.control: nn.Module | None = None
        self.loss: DiffusionLoss | None = None
        self.one: RestorationLoss | None = None

    def by_name(self) -> dict[str, Callable[[], object]]:
        """The looks, in the order in which they need each other."""
        config = self.config
        looks: dict[str, Callable[[], object]] = {
            "licences": self.look_at_licences,
            "data.train": self.look_at_training_images,
            "data.test": lambda: ", ".join(f"{name}: {len(pairs)}" for name, pairs in held_out(config.data).items()),
            f"base {config.base}": self.look_at_networks,
            self.trained: self.look_at_trained,
            f"cleaner {config.cleaner}": self.look_at_cleaner,
            f"loss {config.loss.label}": self.look_at_loss,
        }
        for name in config.measured:
            looks[f"metric {name}"] = lambda name=name: load_metric(name).weights or "no weights"  # type: ignore[misc]
        return looks | {"gradient cosine with MSE": self.look_at_cosine, "memory": self.look_at_memory}

    def look_at_every_image(self) -> str:
        """All images decoded; a line for each that cannot be trained on."""
        training = self.config.training
        pairs = training_pairs(self.config.data, training.seed, quarantine=Quarantine())
        return pairs.decode_all(training.largest_patch)

    def look_at_licences(self) -> str:
        """The licence notes; none where the configuration names what is not this project's own is an error."""
        if not self.config.licences and self.config.base != "tiny":
            mend = "Note the licence of base, cleaner, control and data under licences: before you train on them"
            raise ConfigError("no licence is noted", where="licences", mend=mend)
        return "; ".join(self.config.licences) or "the tiny world's, as this project's"

    def look_at_training_images(self) -> str:
        pairs = training_pairs(self.config.data, self.config.training.seed)
        first_samples(pairs, self.config.training)
        return f"{len(pairs):,} images"

    def look_at_networks(self) -> str:
        self.frozen = load_frozen(self.config.base, "none", self.config.texts)
        self.config.loss.check_latents_of(self.frozen.scale, self.config.base)
        return f"VAE {self.frozen.sha256()['vae'][:12]}"

    @property
    def trained(self) -> str:
        """Name of what is trained."""
        return f"control {self.config.control}"

    def look_at_trained(self) -> str:
        if self.frozen is None:
            raise WeightsError(f"cannot be made without the base {self.config.base}")
        self.control = self.frozen.start_control(self.config.control)
        return _parameters(self.control)

    def look_at_cleaner(self) -> str:
        self.cleaner = load_cleaner(self.config.cleaner)
        return _parameters(self.cleaner)

    def look_at_loss(self) -> object:
        self.loss = DiffusionLoss(self.config.loss, noise_scheduler(self.config.version), self.config.training.steps)
        return self.loss.weights

    def look_at_memory(self) -> str:
        """Memory that training takes on a GPU, from the networks' real sizes and a pass of one small crop."""
        frozen, trained = self._both()
        if self.cleaner is None:
            raise WeightsError("cannot be computed without what is missing above")
        config, settings = self.config, self.config.training
        half = settings.mixed_precision != "no"
        unet = 2 if settings.mixed_precision == "bf16" else 4
        if config.gradient_checkpointing:
            for network in (frozen.unet, trained):
                getattr(network, "enable_gradient_checkpointing", lambda: None)()
        side = min(config.patch, LOOKED_SIDE)
        latent = torch.zeros(1, 4, side // 8, side // 8)
        kept, block = saved_bytes(lambda: self.said(latent), (frozen.unet, trained))
        samples = -(-settings.stages[-1].batch // (settings.accumulation * PartialState().num_processes))
        scale = samples * (config.patch / side) ** 2 / (2 if half else 1)
        parts = {
            **optimizer_bytes(trained, settings.optimizer, averaged=settings.ema_decay is not None),
            "UNet": weight_bytes([frozen.unet], each=unet),
            "VAE and cleaner": weight_bytes([frozen.vae, self.cleaner], each=4),
            f"activations of {samples} samples": int(kept * scale),
        }
        if block:
            parts["a checkpointed block's"] = int(block * scale)
        words = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts.items())
        return f"{sum(parts.values()) / 1e9:.1f} GB: {words}; and what the VAE takes where it encodes during training"

    def said(self, latent: Tensor) -> Tensor:
        """A training pass of one latent, which is its own condition."""
        frozen, control = self._both()
        return predict(frozen.unet, control, latent, torch.tensor([500]), frozen.context, latent)

    def _both(self) -> tuple[Frozen, nn.Module]:
        """Base and control.

        Raises:
            WeightsError: one is missing.
        """
        if self.frozen is None or self.control is None:
            raise WeightsError("cannot be computed without what is missing above")
        return self.frozen, self.control

    def look_at_cosine(self) -> str:
        """Of the loss's gradient with MSE's, for the control that training starts from, on training crops."""
        config, control, loss = self.config, self.control, self.loss
        if self.frozen is None or self.cleaner is None or control is None or loss is None:
            raise WeightsError("cannot be computed without what is missing above")
        frozen = replace(self.frozen, cleaner=self.cleaner)
        latents = frozen.encode(*_training_images(config.data, config.training.seed, config.patch))
        z0, condition = latents["mean"], latents["condition"]

        def say(z_t: Tensor, timesteps: Tensor) -> Tensor:
            return predict(frozen.unet, control, z_t, timesteps, frozen.context, condition)

        line = cosine_line(gradient_cosines(loss, say, z0, condition, step=config.training.steps))
        if config.loss.curriculum == "constant":
            return line
        first = cosine_line(gradient_cosines(loss, say, z0, condition, step=0))
        return f"{line} where the curriculum ends; {first} where it starts"


class OneStepLooks(Looks):
    """The same of a LoRA and a loss of the latent itself."""

    @property
    def trained(self) -> str:
        """Name of what is trained."""
        return f"lora of rank {self.config.lora.rank}"

    def look_at_networks(self) -> str:
        self.frozen = load_frozen(self.config.base, "none", self.config.texts)
        return f"VAE {self.frozen.sha256()['vae'][:12]}, UNet of {_parameters(self.frozen.unet)}"

    def look_at_trained(self) -> str:
        if self.frozen is None:
            raise WeightsError(f"cannot be made without the base {self.config.base}")
        config = self.config
        self.control = OneStep(self.frozen.unet, config.version, config.timestep, config.lora)
        return _parameters(self.control)

    def said(self, latent: Tensor) -> Tensor:
        """See `Looks.said`."""
        frozen, control = self._both()
        said: Tensor = control(latent, frozen.context)
        return said

    def look_at_loss(self) -> object:
        """The loss's weights, which have to know the base's latents."""
        space = LatentSpace(4, () if self.frozen is None else (self.frozen.scale,))
        self.one = latent_loss(self.config.loss, self.config.training.steps, space, self.config.base)
        return getattr(self.one, "weights", None)

    def look_at_cosine(self) -> str:
        """Of the loss's gradient with MSE's, before the first step, on training crops."""
        if self.frozen is None or self.cleaner is None or self.control is None or self.one is None:
            raise WeightsError("cannot be computed without what is missing above")
        frozen, steps = replace(self.frozen, cleaner=self.cleaner), self.config.training.steps
        latents = frozen.encode(*_training_images(self.config.data, self.config.training.seed, self.config.patch))
        with torch.no_grad():
            said = self.control(latents["condition"], frozen.context)
        return f"{float(cosine_with_mse(self.one, said, latents['mean'], steps)):.3f}"


def _parameters(module: nn.Module) -> str:
    return f"{parameter_count(module):,} parameters"


def _training_images(data: DegradedData, seed: int, patch: int) -> tuple[Tensor, Tensor]:
    """The first training crops, degraded and clean, (N, 3, p, p) each."""
    side, pairs = min(patch, LOOKED_SIDE), training_pairs(data, seed)
    samples = [pairs[SampleKey(1, number, number, side)] for number in range(LOOKED_AT)]
    batch = {key: torch.stack([sample[key] for sample in samples]) for key in samples[0] if key not in ("name", "text")}
    if "key" in batch:
        return degrade_batch(batch["target"], batch["key"], data.realesrgan, seed)
    return batch["input"], batch["target"]
