"""The door of diffusers' training scripts: latent MILO in place of their mean squared error.

The scripts noise a clean latent (``scheduler.add_noise``, or for flow matching in a line of their own, see
`milo_restore.doors.source`) and then compare the model's prediction with a target (``F.mse_loss``, or a line of their
own). A comparison is theirs where its target is what the latent that was noised last implies; all others stay as they
are. The curriculum's position is the learning rate scheduler's, which knows the run's length and survives a resume.
"""

from __future__ import annotations

import functools
import os
from types import ModuleType
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from milo_restore.doors.latent_loss import LatentLoss, Noised, Seen, forward_noised, interpolated
from milo_restore.doors.ledger import LEDGER
from milo_restore.doors.wish import Wish
from milo_restore.errors import ConfigError
from milo_restore.hooks import when_imported
from milo_restore.metric import LatentSpace

__all__ = ["Door", "install"]

NAME = "diffusers"
_SCHEDULERS = {"scheduling_ddpm": "DDPMScheduler", "scheduling_ddim": "DDIMScheduler"}
_PIPELINES = {
    "pipeline_flux": "FluxPipeline",
    "pipeline_flux_control": "FluxControlPipeline",
    "pipeline_flux_controlnet": "FluxControlNetPipeline",
}


def install(wish: Wish) -> Door:
    """Wait for ``diffusers``; call it before the program imports that.

    Args:
        wish: what to train with; mse is the program's own.

    Returns:
        What a program's own lines are rewritten to call.
    """
    door = Door(wish)
    for module, name in _SCHEDULERS.items():
        when_imported(f"diffusers.schedulers.{module}", functools.partial(_hook_noise, name=name, door=door))
    for module, name in _PIPELINES.items():
        when_imported(f"diffusers.pipelines.flux.{module}", functools.partial(_hook_packing, name=name, door=door))
    when_imported("diffusers.models.autoencoders.autoencoder_kl", functools.partial(_hook_vae, door=door))
    when_imported("diffusers.optimization", functools.partial(_hook_length, door=door))
    F.mse_loss = functools.wraps(F.mse_loss)(functools.partial(door.mse_loss, F.mse_loss))
    return door


class Door:
    """State of a diffusers program: what it noised last, how far it is, and the loss that replaces its own.

    Args:
        wish: what to train with.
    """

    def __init__(self, wish: Wish) -> None:
        self.wish = wish
        self.noised: Noised | None = None
        self.schedule: Any = None
        self.total: int | None = None
        self.loss: LatentLoss | None = None
        self.seen = Seen()

    def mse_loss(self, original: Any, input: Tensor, target: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """``F.mse_loss``, or the wish where it is the diffusion's."""
        if self.noised is None or arguments or set(options) - {"reduction"}:
            return original(input, target, *arguments, **options)
        found = self.noised.matched(target)
        if found is None:
            LEDGER.note("an mse_loss had another target than the noising implies")
            return original(input, target, **options)
        self._count("F.mse_loss")
        reduction = options.get("reduction", "mean")
        if self.wish.loss == "mse":
            return original(input, target, reduction=reduction)
        value = self._elements(input, target, found)
        return value if reduction == "none" else value.sum() if reduction == "sum" else value.mean()

    def squared(self, prediction: Any, target: Any) -> Any:
        """``(prediction - target) ** 2`` of a program's own line, or the wish where it is the diffusion's."""
        usable = isinstance(prediction, Tensor) and isinstance(target, Tensor)
        found = self.noised.matched(target) if usable and self.noised is not None else None
        if found is None:
            return (prediction - target) ** 2
        self._count("(prediction - target) ** 2")
        if self.wish.loss == "mse":
            return (prediction - target) ** 2
        return self._elements(prediction, target, found)

    def interpolated(self, noisy: Any, share: Any, first: Any, second: Any, noise_first: bool) -> Any:
        """``(1 - share) * first + share * second`` of a program's own line, which this only takes note of."""
        if all(isinstance(each, Tensor) for each in (noisy, share, first, second)):
            clean, noise, sigma = (second, first, 1 - share) if noise_first else (first, second, share)
            self.noised = interpolated(clean, noise, sigma)
        return noisy

    def step(self) -> tuple[int | None, int]:
        """The step, from 1, that the program is about to make, and their total, in the scheduler's own count."""
        if self.wish.curriculum == "constant":
            return None, 1
        if self.total is None:
            mend = "Take --loss milo, which needs none"
            what = "a curriculum needs the run's length, and the program never called diffusers' get_scheduler with one"
            raise ConfigError(what, where=f"--loss {self.wish.loss}", mend=mend)
        processes = int(os.environ.get("WORLD_SIZE", "1"))  # Accelerate steps a scheduler once for each
        return min(int(self.schedule.last_epoch) + processes, self.total), self.total

    def _elements(self, prediction: Tensor, target: Tensor, found: tuple[Noised, str]) -> Tensor:
        noised, kind = found
        if self.wish.loss == "l1":
            return (prediction - target).abs()
        step, total = self.step()
        if self.loss is None or self.loss.total != total:
            self.loss = LatentLoss(self.wish, total, self.seen)
        return self.loss(prediction, target, noised, kind, step)

    def _count(self, line: str) -> None:
        LEDGER.add(NAME, f"{line} -> latent {self.wish.loss}").calls += 1


def _hook_noise(module: ModuleType, *, name: str, door: Door) -> None:
    LEDGER.note("diffusers was imported, and no mse_loss followed a noising")
    scheduler = getattr(module, name)
    original = scheduler.add_noise

    @functools.wraps(original)
    def add_noise(self: Any, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        noisy = original(self, original_samples, noise, timesteps)
        door.noised = forward_noised(self, original_samples, noise, timesteps)
        return noisy

    scheduler.add_noise = add_noise


def _hook_packing(module: ModuleType, *, name: str, door: Door) -> None:
    """Remember the height and width of what becomes tokens, which these no longer tell."""
    pipeline = getattr(module, name)
    original = pipeline._pack_latents

    @functools.wraps(original)
    def pack(latents: Tensor, *arguments: Any, **options: Any) -> Tensor:
        tokens = original(latents, *arguments, **options)
        door.seen.packed[tokens.shape[1], tokens.shape[2]] = (latents.shape[-2], latents.shape[-1])
        return tokens

    pipeline._pack_latents = staticmethod(pack)


def _hook_vae(module: ModuleType, *, door: Door) -> None:
    """Remember the factors of the VAE that encoded last: they tell Stable Diffusion's latents from SDXL's."""
    original = module.AutoencoderKL.encode

    @functools.wraps(original)
    def encode(self: Any, *arguments: Any, **options: Any) -> Any:
        config = self.config
        shift = float(config.get("shift_factor") or 0.0)
        door.seen.space = LatentSpace(config.latent_channels, (float(config.scaling_factor),), (shift,))
        return original(self, *arguments, **options)

    module.AutoencoderKL.encode = encode


def _hook_length(module: ModuleType, *, door: Door) -> None:
    original = module.get_scheduler

    @functools.wraps(original)
    def get_scheduler(*arguments: Any, **options: Any) -> Any:
        schedule = original(*arguments, **options)
        total = options.get("num_training_steps", arguments[4] if len(arguments) > 4 else None)
        if door.total is None and total:  # the first: the generator's, where there is a discriminator
            door.schedule, door.total = schedule, int(total)
        return schedule

    module.get_scheduler = get_scheduler  # type: ignore[attr-defined]
