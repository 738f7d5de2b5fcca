"""The dry run of the DiffBIR recipes: load all that the configuration names, train nothing, say what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from diffbir_data import held_out, training_pairs
from diffbir_setup import Frozen, load_frozen, start_control
from torch import Tensor, nn

from milo_restore import MILO
from milo_restore.config import dump_config
from milo_restore.data import SampleKey
from milo_restore.data.degrade.batch import degrade_batch
from milo_restore.errors import ConfigError, MiloRestoreError, WeightsError
from milo_restore.loss import DiffusionLoss, gradient_cosines
from milo_restore.loss.cosine import cosine_line
from milo_restore.models.diffbir import noise_scheduler, predict
from milo_restore.models.diffbir.cleaner import load_cleaner

if TYPE_CHECKING:
    from diffbir import Config

LOOKED_AT, LOOKED_SIDE = 2, 256  # training crops for the cosine, and their side in pixels: a dry run has a CPU only


class Looks:
    """One look at each thing that a configuration names; each says in a few words what it found, or raises."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.frozen: Frozen | None = None
        self.cleaned_by: nn.Module | None = None
        self.started: nn.Module | None = None
        self.loss: DiffusionLoss | None = None

    def by_name(self) -> dict[str, Callable[[], object]]:
        """The looks, in the order in which they need each other."""
        config = self.config
        return {
            "licences": self.licences,
            "data.train": lambda: f"{len(training_pairs(config.data, config.training.seed)):,} images",
            "data.test": lambda: ", ".join(f"{name}: {len(pairs)}" for name, pairs in held_out(config.data).items()),
            f"base {config.base}": self.networks,
            f"control {config.control}": self.control,
            f"cleaner {config.cleaner}": self.cleaner,
            f"loss {config.loss.label}": self.weights,
            "metric_weights": lambda: MILO.from_pretrained(config.metric_weights).weights,
            "gradient cosine with MSE": self.cosine,
        }

    def licences(self) -> str:
        """The licence notes, in one line.

        Raises:
            ConfigError: there are none, although what the configuration names is not this project's own.
        """
        if not self.config.licences and self.config.base != "tiny":
            mend = "Note the licence of base, cleaner, control and data under licences: before you train on them"
            raise ConfigError("no licence is noted", where="licences", mend=mend)
        return "; ".join(self.config.licences) or "the tiny world's, as this project's"

    def networks(self) -> str:
        self.frozen = load_frozen(replace(self.config, cleaner="none"), torch.device("cpu"))
        return f"VAE {self.frozen.sha256()['vae'][:12]}"

    def control(self) -> str:
        if self.frozen is None:
            raise WeightsError(f"cannot be made without the base {self.config.base}")
        self.started = start_control(self.config, self.frozen)
        return _parameters(self.started)

    def cleaner(self) -> str:
        self.cleaned_by = load_cleaner(self.config.cleaner)
        return _parameters(self.cleaned_by)

    def weights(self) -> object:
        self.loss = DiffusionLoss(self.config.loss, noise_scheduler(self.config.version), self.config.training.steps)
        return self.loss.weights

    def cosine(self) -> str:
        """Of the loss's gradient with MSE's, for the control that training starts from, on training crops."""
        config, control, loss = self.config, self.started, self.loss
        if self.frozen is None or self.cleaned_by is None or control is None or loss is None:
            raise WeightsError("cannot be computed without what is missing above")
        frozen = replace(self.frozen, cleaner=self.cleaned_by)
        latents = frozen.encode(*_training_images(config))
        z0, condition = latents["mean"], latents["condition"]

        def say(z_t: Tensor, timesteps: Tensor) -> Tensor:
            return predict(frozen.unet, control, z_t, timesteps, frozen.context, condition)

        line = cosine_line(gradient_cosines(loss, say, z0, condition, step=config.training.steps))
        if config.loss.curriculum == "constant":
            return line
        first = cosine_line(gradient_cosines(loss, say, z0, condition, step=0))
        return f"{line} where the curriculum ends; {first} where it starts"


def _parameters(module: nn.Module) -> str:
    return f"{sum(value.numel() for value in module.parameters()):,} parameters"


def _training_images(config: Config) -> tuple[Tensor, Tensor]:
    """The first training crops, degraded and clean, (N, 3, p, p) each."""
    seed, side = config.training.seed, min(config.patch, LOOKED_SIDE)
    pairs = training_pairs(config.data, seed)
    samples = [pairs[SampleKey(1, number, number, side)] for number in range(LOOKED_AT)]
    batch = {key: torch.stack([sample[key] for sample in samples]) for key in samples[0] if key != "name"}
    if "key" in batch:
        return degrade_batch(batch["target"], batch["key"], config.data.realesrgan, seed)
    return batch["input"], batch["target"]


def check(config: Config) -> int:
    """A dry run: load all that the configuration names, train nothing, and say all that is wrong, a line each.

    Raises:
        ConfigError: something is wrong.
    """
    print(dump_config(config))
    looks, wrong = Looks(config).by_name(), []
    for name, look in looks.items():
        try:
            print(f"{name}: {look()}")
        except MiloRestoreError as error:
            wrong.append(name)
            print(f"{name}: MISSING: {error}")
    if wrong:
        raise ConfigError(f"{len(wrong)} of {len(looks)} checks failed: {', '.join(wrong)}", where="--dry-run")
    return 0
