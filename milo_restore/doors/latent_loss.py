"""LatentMILO for a diffusion program: what it noised, which target this implies, its error under the mask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from milo_restore.doors.layouts import layout_of
from milo_restore.doors.wish import Wish
from milo_restore.errors import ConfigError, DataError
from milo_restore.loss.diffusion import DiffusionLoss
from milo_restore.loss.diffusion_settings import DiffusionLossSettings
from milo_restore.loss.parametrization import prediction_target
from milo_restore.metric import LatentSpace

__all__ = ["LatentLoss", "Noised", "Seen", "flow_schedule", "forward_noised", "interpolated"]

_TOLERANCE = 2e-2  # of targets in half precision, whose values are of the order of 1
_NOT_HERE = {"kind", "anchor", "anchor_timestep", "weighting_scheme"}  # the last is the program's own


@dataclass
class Seen:
    """Record of what a door met on the way of a program's latents.

    Attributes:
        packed: see `layout_of`.
        space: of the VAE that encoded last, where its factors say it.
    """

    packed: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    space: LatentSpace | None = None


class Noised(NamedTuple):
    """A noising: z_t from z_0 and eps, by a scheduler's timesteps or by flow matching's (1 - sigma) z_0 + sigma eps."""

    clean: Tensor  # (N, C, h, w), or as `layout_of` knows
    noise: Tensor
    noisy: Tensor
    scheduler: Any  # None: flow matching
    timesteps: Tensor | None
    sigma: Tensor | None  # broadcast to the latents' shape; flow matching's

    def matched(self, target: Tensor) -> tuple[Noised, str] | None:
        """The part of the batch whose target this is, and what it is.

        It is ``ddpm``, the scheduler's; or of flow matching ``velocity`` (eps - z_0), ``reverse`` of it, or ``clean``.
        """
        size = len(target) if target.ndim == self.clean.ndim else 0
        if size == 0 or target.shape[1:] != self.clean.shape[1:] or len(self.clean) % size:
            return None
        for start in range(0, len(self.clean), size):  # DreamBooth compares the halves of its batch one by one
            part = self if size == len(self.clean) else self._part(slice(start, start + size))
            for kind, expected in part._targets():
                if torch.allclose(target.float(), expected, rtol=_TOLERANCE, atol=_TOLERANCE):
                    return part, kind
        return None

    def times(self) -> Tensor:
        """The timesteps, (N,): flow matching's are 1000 sigma."""
        if self.timesteps is not None:
            return self.timesteps
        assert self.sigma is not None  # noqa: S101  (flow matching's)
        return 1000 * self.sigma.flatten().expand(len(self.clean))

    def _part(self, samples: slice) -> Noised:
        values = self._asdict().items()
        cut = {name: value[samples] for name, value in values if isinstance(value, Tensor) and len(value) > 1}
        return self._replace(**cut)

    def _targets(self) -> Iterator[tuple[str, Tensor]]:
        if self.scheduler is not None:
            assert self.timesteps is not None  # noqa: S101  (made together)
            yield "ddpm", prediction_target(self.scheduler, self.clean, self.noise, self.timesteps)
        else:
            yield "velocity", (self.noise - self.clean).float()
            yield "reverse", (self.clean - self.noise).float()
            yield "clean", self.clean.float()


def interpolated(clean: Tensor, noise: Tensor, sigma: Tensor) -> Noised:
    """Flow matching's noising; z_t in float32, as half precision loses the first timesteps' noise."""
    clean, noise, sigma = clean.detach(), noise.detach(), sigma.detach().float()
    noisy = (1.0 - sigma) * clean.float() + sigma * noise.float()
    return Noised(clean, noise, noisy, None, None, sigma)


def forward_noised(scheduler: Any, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Noised:
    """The noising of ``scheduler.add_noise``; z_t in float32, as half precision loses the first timesteps' noise."""
    clean, noise, timesteps = clean.detach(), noise.detach(), timesteps.detach().to(clean.device)
    alpha_bar = scheduler.alphas_cumprod.to(clean.device)[timesteps.long()].float().view(-1, *[1] * (clean.ndim - 1))
    noisy = alpha_bar.sqrt() * clean.float() + (1 - alpha_bar).sqrt() * noise.float()
    return Noised(clean, noise, noisy, scheduler, timesteps, None)


class LatentLoss:
    """The element-wise error under the mask, (N, C, h, w), float32.

    Args:
        wish: MILO's weights and options, those of `DiffusionLossSettings`.
        total: the run's steps.
        seen: on the way to the latents.

    Raises:
        ConfigError: an option that means nothing.
    """

    def __init__(self, wish: Wish, total: int, seen: Seen) -> None:
        known = {each.name for each in fields(DiffusionLossSettings)} - _NOT_HERE
        for key in wish.options:
            if key not in known:
                raise ConfigError("is no option of the latent loss here", where=f"--option {key}",
                                  mend=f"Known: {', '.join(sorted(known))}")  # fmt: skip
        try:
            self.settings = DiffusionLossSettings(kind="milo", **wish.arguments())
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error), where="--option") from error
        self.total, self.seen = total, seen
        self.diffusion: DiffusionLoss | None = None
        self.scheduler: Any = None
        self.kind = ""

    def __call__(self, prediction: Tensor, target: Tensor, noised: Noised, kind: str, step: int | None) -> Tensor:
        """The error of a prediction against the target that was matched.

        Raises:
            ConfigError: the latents or the schedule are none that LatentMILO knows.
            WeightsError: the weights can neither be found nor downloaded.
        """
        diffusion = self._diffusion(prediction, noised, kind)
        assert diffusion.metric is not None  # noqa: S101  (of kind milo)
        layout = layout_of(noised.clean, diffusion.metric.channels, self.seen.packed)
        said = -prediction if kind == "reverse" else prediction
        said, noisy, clean = map(layout.pictures, (said, noised.noisy, noised.clean))
        timesteps = noised.times().repeat_interleave(layout.frames)
        try:
            weights = diffusion.pixel_weights(said, noisy, clean, timesteps, step=step)
        except DataError as refused:
            what = f"LatentMILO refuses the program's latents ({refused})"
            raise ConfigError(what, where="milo-restore run") from refused
        error = (prediction.float() - target.float()).abs()
        weights = layout.back(weights.expand(clean.shape))
        return self.settings.loss_weight * weights * (error if self.settings.power == 1 else error.square())

    def _diffusion(self, prediction: Tensor, noised: Noised, kind: str) -> DiffusionLoss:
        """The library's own loss of this noising; its weights are what is used here."""
        if self.diffusion is None or (self.scheduler, self.kind) != (noised.scheduler, kind):
            self.scheduler, self.kind = noised.scheduler, kind
            scheduler = noised.scheduler or flow_schedule(kind)
            self.diffusion = DiffusionLoss(self.settings, scheduler, self.total).to(prediction.device)
            if self.seen.space is not None and self.diffusion.metric is not None:
                self.diffusion.metric.check_space(self.seen.space, "the program's VAE")
        return self.diffusion


def flow_schedule(kind: str) -> Any:
    """The schedule for sigmas that a program has looked up itself; a shift is in these already."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler()
    if kind == "clean":
        scheduler.register_to_config(prediction_type="sample")
    return scheduler
