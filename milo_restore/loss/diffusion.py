"""The training loss of latent diffusion: the residual of the prediction, weighted by where errors would be visible.

Only latents are looked at; nothing is ever decoded.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from milo_restore.errors import ConfigError, DataError
from milo_restore.loss.curriculum import Curriculum, CurriculumKind
from milo_restore.loss.parametrization import (
    check_latents,
    check_scheduler,
    clean_latent,
    min_snr_weight,
    prediction_target,
    signal_and_noise,
)
from milo_restore.metric import LatentMILO, WeightsInfo
from milo_restore.metric.checks import SMALLEST_SIDE

if TYPE_CHECKING:
    from diffusers import DDPMScheduler


@dataclass(frozen=True)
class DiffusionLossSettings:
    """Which loss trains the diffusion model.

    Attributes:
        kind: ``mse`` (DiffBIR's own), ``mae``, or ``milo``: the residual under the latent mask.
        weights: LatentMILO's weights, ``official``, ``mini`` or a path; ignored by the others.
        curriculum: ``constant``, ``linear`` or ``cosine`` over the run's steps.
        power: of MILO's residual: 1 or 2; ``mse`` is 2 and ``mae`` is 1.
        mask_gradient: let gradients flow through the mask too; see `DiffusionLoss`.
        noise_blend: k > 0 blends MILO's weights towards one by sigma_t^k, sigma_t^2 = 1 - alpha_bar_t; None: never,
            see `DiffusionLoss`.
        snr_gamma: Min-SNR-gamma weighting of the timesteps, for every kind; the authors use 5; None: uniform.
        normalize: divide MILO's weights by their mean per image, so that it compares with ``mse`` at one learning rate;
            ignored by the others, as are ``power`` and ``bfloat16``.
        bfloat16: compute the mask network in bfloat16.
        loss_weight: factor on the loss.
    """

    kind: Literal["mse", "mae", "milo"] = "milo"
    weights: str = "official"
    curriculum: CurriculumKind = "constant"
    power: Literal[1, 2] = 2
    mask_gradient: bool = False
    noise_blend: float | None = None
    snr_gamma: float | None = None
    normalize: bool = False
    bfloat16: bool = False
    loss_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("mse", "mae", "milo"):
            raise ValueError(f"{self.kind!r} is not one of 'mse', 'mae', 'milo'")
        if self.power not in (1, 2):
            raise ValueError(f"power must be 1 or 2, got {self.power}")
        for name in ("noise_blend", "snr_gamma"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a number above 0 or null, got {value}")
        if self.kind == "milo":
            return
        for name, unused in (("curriculum", "constant"), ("mask_gradient", False), ("noise_blend", None)):
            if getattr(self, name) != unused:
                raise ValueError(f"{name} needs MILO's mask: set kind to milo, not {self.kind}")

    @property
    def label(self) -> str:
        """The name used in tables, such as mse, milo, milo-l1-cosine-blend2-minsnr5."""
        milo = self.kind == "milo"
        parts = [
            self.kind,
            "l1" if milo and self.power == 1 else "",
            "" if self.curriculum == "constant" else self.curriculum,
            "through" if self.mask_gradient else "",
            "normalized" if milo and self.normalize else "",
            "" if self.noise_blend is None else f"blend{self.noise_blend:g}",
            "" if self.snr_gamma is None else f"minsnr{self.snr_gamma:g}",
        ]
        return "-".join(part for part in parts if part)


class DiffusionLoss(nn.Module):
    """mean(w * |prediction - target|^p), with w from LatentMILO's mask on (z0_hat, z_0).

    The target and the residual live where the model predicts (eps, v or z_0); the mask m in (0, 1) is LatentMILO's,
    divided by its number of scales. From m follows w = (1 - a)(1 - m) + a m at the curriculum's position a, then
    w / mean(w) per image if ``normalize``, then w + b (1 - w) with b = sigma_t^k if ``noise_blend`` is k. It is w that
    is blended, not m: at a = 1 that is the same, and early in a curriculum blending m would silence the noisy
    timesteps. Where m = 1 the loss is the plain one, and ``mse`` and ``mae`` are this loss with w = 1.

    By default the mask is a constant. It weights a residual that already is the training signal; through the mask, a
    model is also paid for errors that the mask sees less, and under eps the way to z0_hat multiplies that part of the
    gradient by sigma / alpha, up to 14.6. On one of upstream's latents with official weights, the two gradients have a
    cosine of 1.0 at t = 0, 0.8 at 500 and 0.4 to 0.7 at 999; the constant mask's and MSE's one of 0.99 throughout.

    By default nothing is blended: the mask does it by itself. With the same weights, white errors in z0_hat of 0.01,
    0.1, 0.3, 1 and 3 times a latent's spread give masks of mean 0.41, 0.45, 0.66, 0.89 and 0.96, so that noisy
    timesteps approach the plain loss. By the same token the mask weighs timesteps as much as places, and 1 - m at a
    curriculum's start hushes the noisy ones (0.1 against 0.58); with ``normalize`` it weighs places alone.

    It trains nothing of its own: the metric's weights are buffers outside of parameters and state dict.

    Args:
        settings: see there.
        scheduler: the training's noise schedule, diffusers' `DDPMScheduler` or another variance-preserving one.
        total_steps: where the curriculum ends.

    Raises:
        ConfigError: the scheduler has no clean latent to give (eps under zero terminal SNR), or the curriculum is
            empty.
        WeightsError: LatentMILO's weights can neither be found nor downloaded.
    """

    def __init__(self, settings: DiffusionLossSettings, scheduler: DDPMScheduler, total_steps: int) -> None:
        super().__init__()
        check_scheduler(scheduler)
        self.settings, self.scheduler = settings, scheduler
        self.power = {"mse": 2, "mae": 1, "milo": settings.power}[settings.kind]
        self.curriculum = Curriculum(settings.curriculum, total_steps)
        self.metric: LatentMILO | None = None
        if settings.kind == "milo":
            dtype = torch.bfloat16 if settings.bfloat16 else torch.float32
            self.metric = LatentMILO.from_pretrained(settings.weights, compute_dtype=dtype)

    @property
    def label(self) -> str:
        """The name used in tables."""
        return self.settings.label

    @property
    def weights(self) -> WeightsInfo | None:
        """Which weights the mask uses, for the run folder; None without a mask."""
        return None if self.metric is None else self.metric.weights

    def position(self, step: int) -> float:
        """The curriculum's position in [0, 1]: 0 weighs the invisible errors, 1 the visible ones."""
        return self.curriculum.position(step)

    def forward(
        self,
        prediction: Tensor,
        z_t: Tensor,
        z0: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        *,
        step: int | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            prediction: the model's, (N, 4, h, w), any floating dtype; NaN in gives NaN out, for the loop to catch.
            z_t: the noisy latents that the model saw, float32 (diffusers adds noise in the latents' dtype, and in
                bfloat16 the first timesteps then have none).
            z0: clean latents times the VAE's scaling factor, same shape.
            noise: what was added, same shape.
            timesteps: (N,), whole numbers.
            step: the training step, for the curriculum.

        Returns:
            A scalar, float32. Gradients reach ``prediction`` only.

        Raises:
            DataError: shapes differ, latents are too small for the mask, or z0 holds values that are no latents.
            ConfigError: a curriculum is on and ``step`` is missing.
        """
        check_latents(timesteps, prediction=prediction, z_t=z_t, z0=z0, noise=noise)
        z_t, z0, noise = z_t.detach(), z0.detach(), noise.detach()
        residual = prediction.float() - prediction_target(self.scheduler, z0, noise, timesteps)
        w = self.pixel_weights(prediction, z_t, z0, timesteps, step=step)
        error = residual.abs() if self.power == 1 else residual.square()
        return self.settings.loss_weight * (w * error).mean()

    def pixel_weights(
        self, prediction: Tensor, z_t: Tensor, z0: Tensor, timesteps: Tensor, *, step: int | None = None
    ) -> Tensor:
        """The factor on |residual|^p, (N, 1, h, w), or (N, 1, 1, 1) without a mask; arguments as in `forward`."""
        _, sigma = signal_and_noise(self.scheduler, timesteps)
        w = torch.ones_like(sigma)
        if self.metric is not None:
            w = self.curriculum.weights(self.mask(prediction, z_t, z0, timesteps), step)
            if self.settings.normalize:
                w = w / w.mean((1, 2, 3), keepdim=True).clamp_min(1e-8)
            if self.settings.noise_blend is not None:
                w = w + sigma**self.settings.noise_blend * (1 - w)
        if self.settings.snr_gamma is not None:
            w = w * min_snr_weight(self.scheduler, timesteps, self.settings.snr_gamma)
        return w

    def mask(self, prediction: Tensor, z_t: Tensor, z0: Tensor, timesteps: Tensor) -> Tensor:
        """LatentMILO's mask on (z0_hat, z_0) over its number of scales, (N, 1, h, w) in (0, 1), float32.

        z0_hat is taken as it comes: at noisy timesteps it may lie far outside of what latents are, and the mask
        saturates. Arguments as in `forward`; the gradient flows as configured.

        Raises:
            ConfigError: this loss has no mask.
            DataError: latents of another number of channels than four, or under 16x16; z0 holds no latents.
        """
        if self.metric is None:
            raise ConfigError(f"{self.label} has no mask", where="loss.kind", mend="Set kind to milo")
        channels, height, width = z0.shape[1:]
        if channels != self.metric.channels or min(height, width) < SMALLEST_SIDE:
            what = f"LatentMILO needs {self.metric.channels} channels and sides of at least {SMALLEST_SIDE}"
            mend = f"Train on images of at least {8 * SMALLEST_SIDE} pixels a side"
            raise DataError(f"{what}, got {tuple(z0.shape)}", where="z0", mend=mend)
        self.metric.check_values(z0, z0)
        with nullcontext() if self.settings.mask_gradient else torch.no_grad():
            z0_hat = clean_latent(self.scheduler, prediction, z_t, timesteps)
            return self.metric.predict_mask(z0_hat, z0) / self.metric.n_scales
