"""What a diffusion program noised, which target this implies, and its error under LatentMILO's mask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from milo_restore.doors.wish import Wish
from milo_restore.errors import ConfigError, MiloRestoreError
from milo_restore.loss.curriculum import Curriculum
from milo_restore.loss.diffusion import DiffusionLoss
from milo_restore.loss.diffusion_settings import DiffusionLossSettings
from milo_restore.loss.parametrization import prediction_target
from milo_restore.metric import LatentMILO

__all__ = ["LatentLoss", "Noised", "forward_noised"]

_TOLERANCE = 2e-2  # of targets in half precision, whose values are of the order of 1
_FLOW_OPTIONS = {"weights", "curriculum", "contrast", "normalize", "power", "loss_weight"}


class Noised(NamedTuple):
    """A noising: z_t from z_0 and eps, by a scheduler's timesteps or by flow matching's (1 - sigma) z_0 + sigma eps."""

    clean: Tensor  # (N, C, h, w)
    noise: Tensor
    noisy: Tensor
    scheduler: Any  # None: flow matching
    timesteps: Tensor | None
    sigma: Tensor | None  # broadcast to the latents' shape; flow matching's

    def matched(self, target: Tensor) -> tuple[Noised, str] | None:
        """The part of the batch whose target this is, and what it is: ``ddpm``, ``velocity`` or ``clean``."""
        size = len(target) if target.ndim == self.clean.ndim else 0
        if size == 0 or target.shape[1:] != self.clean.shape[1:] or len(self.clean) % size:
            return None
        for start in range(0, len(self.clean), size):  # DreamBooth compares the halves of its batch one by one
            part = self if size == len(self.clean) else self._part(slice(start, start + size))
            for kind, expected in part._targets():
                if torch.allclose(target.float(), expected, rtol=_TOLERANCE, atol=_TOLERANCE):
                    return part, kind
        return None

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

    def estimate(self, prediction: Tensor, kind: str) -> Tensor:
        """z_0 as flow matching's prediction implies it, float32."""
        assert self.sigma is not None  # noqa: S101  (flow matching's)
        if kind == "clean":
            return prediction.float()
        sign = 1 if kind == "velocity" else -1
        return self.noisy.float() - sign * self.sigma.float() * prediction.float()


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

    Raises:
        ConfigError: an option that means nothing.
    """

    def __init__(self, wish: Wish, total: int) -> None:
        known = {field.name for field in fields(DiffusionLossSettings)} - {"kind", "anchor", "anchor_timestep"}
        for key in wish.options:
            if key not in known:
                raise ConfigError("is no option of the latent loss here", where=f"--option {key}",
                                  mend=f"Known: {', '.join(sorted(known))}")  # fmt: skip
        try:
            self.settings = DiffusionLossSettings(kind="milo", **wish.arguments())
        except (TypeError, ValueError) as error:
            raise ConfigError(str(error), where="--option") from error
        self.wish, self.total = wish, total
        self.diffusion: DiffusionLoss | None = None
        self.metric: LatentMILO | None = None

    def __call__(self, prediction: Tensor, target: Tensor, noised: Noised, kind: str, step: int | None) -> Tensor:
        """The error of a prediction against the target that was matched.

        Raises:
            ConfigError: the latents or the schedule are none that LatentMILO knows, or an option is not for flows.
            WeightsError: the weights can neither be found nor downloaded.
        """
        channels = noised.clean.shape[1] if noised.clean.ndim == 4 else 0
        if channels != LatentMILO.channels:
            what = f"the program's latents are {tuple(noised.clean.shape)}, and LatentMILO is for (N, 4, h, w)"
            mend = "It knows the latents of Stable Diffusion 1 and 2 only: train SDXL, SD3 and FLUX with their own loss"
            raise ConfigError(what, where="milo-restore run", mend=mend)
        weights = self._ddpm(prediction, noised, step) if kind == "ddpm" else self._flow(prediction, noised, kind, step)
        error = (prediction.float() - target.float()).abs()
        return self.settings.loss_weight * weights * (error if self.settings.power == 1 else error.square())

    def _ddpm(self, prediction: Tensor, noised: Noised, step: int | None) -> Tensor:
        if self.diffusion is None or self.diffusion.scheduler is not noised.scheduler:
            self.diffusion = DiffusionLoss(self.settings, noised.scheduler, self.total)
            self.diffusion.to(prediction.device)
        assert noised.timesteps is not None  # noqa: S101  (made together)
        return self.diffusion.pixel_weights(prediction, noised.noisy, noised.clean, noised.timesteps, step=step)

    def _flow(self, prediction: Tensor, noised: Noised, kind: str, step: int | None) -> Tensor:
        """Of `DiffusionLoss`'s weights those that need no DDPM schedule."""
        settings = self.settings
        for key in self.wish.options:
            if key not in _FLOW_OPTIONS:
                mend = f"Known there: {', '.join(sorted(_FLOW_OPTIONS))}"
                raise ConfigError("is not for flow matching", where=f"--option {key}", mend=mend)
        if self.metric is None:
            self.metric = LatentMILO.from_pretrained(settings.weights).to(prediction.device)
        try:
            with torch.no_grad():
                clean = noised.clean.float()
                self.metric.check_values(clean, clean)
                m = self.metric.predict_mask(noised.estimate(prediction, kind), clean) / self.metric.n_scales
        except MiloRestoreError as error:
            raise ConfigError(
                f"LatentMILO refuses the program's latents ({error})", where="milo-restore run"
            ) from error
        w = Curriculum(settings.curriculum, self.total).weights(m**settings.contrast, step)
        return w / w.mean((1, 2, 3), keepdim=True).clamp_min(1e-8) if settings.normalize else w
