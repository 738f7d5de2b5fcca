"""The sampling loop: timesteps, the first latent, guidance, one step after the other."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from milo_restore.errors import ConfigError, DataError
from milo_restore.models.diffbir.control import predict
from milo_restore.models.diffbir.tiling import in_tiles

__all__ = ["Guided", "Start", "check_shape", "first_latent", "generators_of", "noised", "run", "set_timesteps"]

Start = Literal["noise", "condition"]


@dataclass(frozen=True)
class Guided:
    """The guided prediction: what stays the same in all steps of the sampler.

    Attributes:
        unet: predicts noise or velocity.
        control: an `IRControlNet`.
        condition: (N, 4, h, w).
        contexts: embeddings, (N, L, D) each: the negative prompts' where there is guidance, and the prompts'.
        scale: of the guidance.
        rescale: let it grow over the steps, see `guidance_at`.
        strength: of the control, one number or one for each of its residuals.
        tile: side of tiles, in cells of the latent.
        unit: what places and sizes of these are multiples of.
    """

    unet: Any
    control: Any
    condition: Tensor
    contexts: tuple[Tensor, ...]
    scale: float
    rescale: bool
    strength: float | Sequence[float]
    tile: int | None
    unit: int

    def __call__(self, latent: Tensor, timestep: Tensor) -> Tensor:
        """The prediction, (N, 4, h, w) float32. Both branches see one condition."""
        dtype = next(self.control.parameters()).dtype
        branches, context = len(self.contexts), torch.cat(self.contexts).to(dtype)

        def apply(latent: Tensor, condition: Tensor) -> Tensor:
            both, conditions = (value.to(dtype).repeat(branches, 1, 1, 1) for value in (latent, condition))
            return predict(self.unet, self.control, both, timestep, context, conditions, self.strength)

        prediction = in_tiles(apply, latent, self.condition, tile=self.tile, unit=self.unit)
        if branches == 1:
            return prediction
        negative, positive = prediction.chunk(2)
        scale = guidance_at(float(timestep), self.scale) if self.rescale else self.scale
        return negative + scale * (positive - negative)


def guidance_at(timestep: float, scale: float) -> float:
    """The rescaled guidance: from 1 at timestep 1000 to 1 + ``scale`` at 0; scales up to 1 stay as they are.

    Source: DiffBIR's ``--rescale_cfg``.
    """
    if scale <= 1:
        return scale
    return 1 + scale * (1 - math.cos(math.pi * ((1000 - timestep) / 1000) ** 5)) / 2


def set_timesteps(scheduler: Any, steps: int, start: str, device: torch.device) -> None:
    """Prepare a scheduler.

    Raises:
        ConfigError: it cannot take so many steps, or not begin there.
    """
    if start not in ("noise", "condition"):
        raise ConfigError(f"is {start!r}", where="start", mend="Take noise or condition")
    if start == "condition" and scheduler.config.get("rescale_betas_zero_snr"):
        what = "with zero terminal SNR nothing is left of the condition at the first timestep"
        raise ConfigError(what, where="start", mend="Take noise")
    if steps < 1:
        raise ConfigError(f"is {steps}", where="steps", mend="Take 1 or more")
    try:
        scheduler.set_timesteps(steps, device=device)
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise ConfigError(" ".join(str(error).split())[:200], where="steps") from error


def generators_of(seed: int | Sequence[int], count: int) -> list[torch.Generator]:
    """A generator for each image, on the CPU.

    Raises:
        ConfigError: there are more seeds than images, or less.
    """
    seeds = [seed] * count if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise ConfigError(f"{len(seeds)} for {count} images", where="seed", mend="Give one, or one for each image")
    return [torch.Generator().manual_seed(number) for number in seeds]


def _drawn(like: Tensor, generators: list[torch.Generator]) -> Tensor:
    return torch.stack([torch.randn(like.shape[1:], generator=generator) for generator in generators])


def first_latent(
    scheduler: Any, start: str, condition: Tensor, generators: list[torch.Generator], noise: Tensor | None
) -> Tensor:
    """The latent that sampling starts from.

    Raises:
        DataError: ``noise`` has another shape than the condition.
    """
    noise = _drawn(condition, generators) if noise is None else noise
    check_shape(noise, tuple(condition.shape), "the first noise")
    noise = noise.to(condition)
    if start == "noise":
        first: Tensor = noise * scheduler.init_noise_sigma
    else:
        first = scheduler.add_noise(condition, noise, scheduler.timesteps[:1])
    return first


def noised(scheduler: Any, condition: Tensor, timestep: int, generators: list[torch.Generator]) -> Tensor:
    """A condition under the noise of a timestep; 0: as it is.

    Raises:
        ConfigError: there is no such timestep.

    Source: DiffBIR's ``--noise_aug``.
    """
    if not 0 <= timestep < scheduler.config.num_train_timesteps:
        mend = f"Take 0 to {scheduler.config.num_train_timesteps - 1}"
        raise ConfigError(f"is {timestep}", where="noise_augmentation", mend=mend)
    if timestep == 0:
        return condition
    kept = float(scheduler.alphas_cumprod[timestep])
    return condition * kept**0.5 + _drawn(condition, generators).to(condition) * (1 - kept) ** 0.5


def run(
    scheduler: Any,
    latent: Tensor,
    prediction: Guided,
    generators: list[torch.Generator],
    progress: Callable[[Any], Iterable[Any]],
) -> Tensor:
    """The sampler's loop, in float32 whatever the networks compute in.

    Args:
        scheduler: after `set_timesteps`.
        latent: the first.
        prediction: at a latent and a timestep.
        generators: of what it draws.
        progress: passes timesteps on, and shows them.
    """
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": generators} if takes_generator else {}
    for timestep in progress(scheduler.timesteps):
        made = prediction(scheduler.scale_model_input(latent, timestep), timestep)
        latent = scheduler.step(made, timestep, latent, return_dict=False, **options)[0]
    return latent


def check_shape(latent: Tensor, shape: tuple[int, ...], what: str) -> None:
    """Refuse a latent of another shape.

    Raises:
        DataError: naming it.
    """
    if tuple(latent.shape) != shape:
        raise DataError(f"{what} is {tuple(latent.shape)}, expected {shape}")
