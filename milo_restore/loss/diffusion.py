"""The training loss of latent diffusion: the residual of the prediction, weighted by where errors would be visible.

Only latents are looked at; nothing is ever decoded.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from milo_restore.errors import ConfigError, DataError
from milo_restore.loss.agreement import warn_below_goal
from milo_restore.loss.curriculum import Curriculum
from milo_restore.loss.diffusion_settings import DiffusionLossSettings
from milo_restore.loss.parametrization import (
    amplification,
    check_latents,
    check_noising,
    check_scheduler,
    clean_latent,
    is_flow,
    min_snr_weight,
    prediction_target,
    sd3_weight,
    signal_and_noise,
)
from milo_restore.metric import LatentMILO, WeightsInfo
from milo_restore.metric.checks import SMALLEST_SIDE

if TYPE_CHECKING:
    from milo_restore.loss.parametrization import Scheduler

_LEAST_MASK = 1e-12
"""A mask that underflows to 0 would have an infinite derivative under an exponent below 1."""


class DiffusionLoss(nn.Module):
    """mean(w * |prediction - target|^p), with w from LatentMILO's mask on (z0_hat, z_0).

    The target and the residual live where the model predicts (eps, v, flow matching's velocity eps - z_0, or z_0); the
    mask m in (0, 1) is LatentMILO's,
    divided by its number of scales. The settings change it like this, in this order:

    - ``mask_pair: condition``: m is the mask on (condition, z_0) at every timestep: where the degraded input is visibly
      wrong, whatever the model makes of it.
    - ``contrast`` c: m^c in place of m.
    - ``curriculum``: w = (1 - a)(1 - m) + a m at its position a; a = 1, w = m, where it is constant.
    - ``normalize``: w / mean(w) per image.
    - ``noise_blend`` k: w + b (1 - w), b = sigma_t^k. It is w that is blended, not m: at a = 1 that is the same, and
      early in a curriculum blending m would silence the noisy timesteps.
    - ``residual: z0``: |z0_hat - z_0|^p min(1, 1 / g)^p in place of |prediction - target|^p, where g is what
      multiplies the prediction's error on its way to z0_hat (`amplification`): the error of the clean latent as it is,
      the amplification at noisy steps undone. Both residuals differ by g alone, the same at all places of a sample:
      this moves weight between timesteps, never between places, and undone at every timestep it would be the
      prediction's again. Under eps and p = 2 it is Min-SNR with gamma 1.
    - ``snr_gamma``: times the Min-SNR weight of the timestep; ``weighting_scheme``: times SD 3's.
    - ``anchor`` k: none of the above but the last line, on the plain MSE, and beside it LatentMILO's own error:
      mean(|prediction - target|^2) + k mean(4 m |z0_hat - z_0|), the second 0 for samples with t >=
      ``anchor_timestep``.

    Where m = 1 the loss is the plain one, and ``mse`` and ``mae`` are this loss with w = 1.

    How much of a MILO it is: on one of Stable Diffusion's latents with official weights the gradient of the default,
    normalised, has a cosine of 0.985 to 0.990 with MSE's at t = 50 to 900, under eps and v alike: it is MSE under
    another name, and trains like it. `cosine_with_mse` says it of any settings; every run of the recipes logs it.

    By default the mask is a constant. It weights a residual that already is the training signal; through the mask, a
    model is also paid for errors that the mask sees less, and under eps the way to z0_hat multiplies that part of the
    gradient by sigma / alpha, up to 14.6.

    By default nothing is blended: the mask does it by itself. With official weights, white errors in z0_hat of 0.01,
    0.1, 0.3, 1 and 3 times a latent's spread give masks of mean 0.41, 0.45, 0.66, 0.89 and 0.96, so that noisy
    timesteps approach the plain loss. By the same token the mask weighs timesteps as much as places, and 1 - m at a
    curriculum's start hushes the noisy ones (0.1 against 0.58); with ``normalize`` it weighs places alone.

    It trains nothing of its own: the metric's weights are buffers outside of parameters and state dict.

    Args:
        settings: see there.
        scheduler: the training's noise schedule, diffusers' `DDPMScheduler` or another variance-preserving one, or
            `FlowMatchEulerDiscreteScheduler`, as SD 3 and FLUX have it.
        total_steps: where the curriculum ends.

    Raises:
        ConfigError: the scheduler has no clean latent to give (eps under zero terminal SNR), a ``weighting_scheme`` is
            set and it is not flow matching's, or the curriculum is empty.
        WeightsError: LatentMILO's weights can neither be found nor downloaded.

    Example:
        >>> import torch
        >>> from diffusers import DDPMScheduler
        >>> from milo_restore import DiffusionLoss, DiffusionLossSettings
        >>> scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
        >>> loss = DiffusionLoss(DiffusionLossSettings(weights="mini"), scheduler, total_steps=1000)
        >>> z0, noise, timesteps = torch.randn(2, 4, 32, 32), torch.randn(2, 4, 32, 32), torch.tensor([50, 900])
        >>> z_t = scheduler.add_noise(z0, noise, timesteps)
        >>> prediction = torch.zeros_like(z0, requires_grad=True)  # in place of unet(z_t, timesteps, ...).sample
        >>> loss(prediction, z_t, z0, noise, timesteps, step=1).backward()
        >>> loss(noise, z_t, z0, noise, timesteps, step=1).item()
        0.0
    """

    def __init__(self, settings: DiffusionLossSettings, scheduler: Scheduler, total_steps: int) -> None:
        super().__init__()
        check_scheduler(scheduler)
        if settings.weighting_scheme != "none" and not is_flow(scheduler):
            mend = "Set weighting_scheme to none, or take snr_gamma"
            raise ConfigError("is flow matching's", where="weighting_scheme", mend=mend)
        self.settings, self.scheduler = settings, scheduler
        self._noising_seen = not is_flow(scheduler)
        self.power = {"mse": 2, "mae": 1, "milo": settings.power}[settings.kind]
        self.curriculum = Curriculum(settings.curriculum, total_steps)
        self.metric: LatentMILO | None = None
        if settings.kind == "milo":
            dtype = torch.bfloat16 if settings.bfloat16 else torch.float32
            self.metric = LatentMILO.from_pretrained(settings.weights, compute_dtype=dtype)
            warn_below_goal(self.metric.weights)

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
        condition: Tensor | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            prediction: the model's, (N, 4, h, w), any floating dtype; NaN in gives NaN out, for the loop to catch.
            z_t: the noisy latents that the model saw, float32 (diffusers adds noise in the latents' dtype, and in
                bfloat16 the first timesteps then have none).
            z0: clean latents times the VAE's scaling factor, same shape.
            noise: what was added, same shape.
            timesteps: (N,), whole numbers; for flow matching ``scheduler.timesteps[indices]``, 1000 sigma.
            step: the training step, for the curriculum.
            condition: the degraded (cleaned) input's latents, same shape and scaling; for ``mask_pair: condition``.

        Returns:
            A scalar, float32. Gradients reach ``prediction`` only.

        Raises:
            DataError: shapes differ, latents are too small for the mask, z0 holds values that are no latents, or under
                flow matching z_t is another noising (read in the first batch).
            ConfigError: a curriculum is on and ``step`` is missing, or the mask needs a condition that is missing.
        """
        check_latents(timesteps, prediction=prediction, z_t=z_t, z0=z0, noise=noise)
        z_t, z0, noise = z_t.detach(), z0.detach(), noise.detach()
        if not self._noising_seen:
            check_noising(self.scheduler, z_t, z0, noise, timesteps)
            self._noising_seen = True
        residual = prediction.float() - prediction_target(self.scheduler, z0, noise, timesteps)
        w = self.pixel_weights(prediction, z_t, z0, timesteps, step=step, condition=condition)
        error = residual.abs() if self.power == 1 else residual.square()
        value = (w * error).mean()
        if self.settings.anchor is not None:
            value = value + self.settings.anchor * self._latent_error(prediction, z_t, z0, timesteps)
        return self.settings.loss_weight * value

    def terms(self, *arguments: Tensor, compare: bool, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and what to log beside it, for `milo_restore.train.fit`.

        Args:
            arguments: as in `forward`.
            compare: log `cosine_with_mse`: how far this is another loss at all.
            options: as in `forward`.

        Returns:
            The loss, and ``cosine_mse`` where it was asked for.
        """
        value = self(*arguments, **options)
        return value, {"cosine_mse": self.cosine_with_mse(*arguments, **options)} if compare else {}

    @torch.enable_grad()
    def cosine_with_mse(
        self,
        prediction: Tensor,
        z_t: Tensor,
        z0: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        *,
        step: int | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """The cosine between this loss's gradient and the MSE's, both with respect to the prediction of the batch.

        Near 1, training with this loss is training with MSE. It costs one more forward and backward pass of the loss,
        and none of the model. Arguments and errors as in `forward`.

        Returns:
            A scalar in [-1, 1], float32; 0 where a gradient vanishes.
        """
        said = prediction.detach().float().requires_grad_()
        value = self(said, z_t, z0, noise, timesteps, step=step, condition=condition)
        (gradient,) = torch.autograd.grad(value, said)
        mse = said.detach() - prediction_target(self.scheduler, z0.detach(), noise.detach(), timesteps)
        # Normalised first: gradients of a mean over many values are small, their products smaller.
        cosine = F.normalize(gradient.flatten(), dim=0, eps=1e-30) @ F.normalize(mse.flatten(), dim=0, eps=1e-30)
        return cosine.clamp(-1, 1)  # rounding takes equal ones beyond

    def pixel_weights(
        self,
        prediction: Tensor,
        z_t: Tensor,
        z0: Tensor,
        timesteps: Tensor,
        *,
        step: int | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """The factor on |residual|^p, (N, 1, h, w), or (N, 1, 1, 1) without a mask; arguments as in `forward`."""
        settings = self.settings
        _, sigma = signal_and_noise(self.scheduler, timesteps)
        w = torch.ones_like(sigma)
        if self.metric is not None and settings.anchor is None:
            m = self.mask(prediction, z_t, z0, timesteps, condition=condition)
            if settings.contrast != 1:
                m = m.clamp_min(_LEAST_MASK) ** settings.contrast
            w = self.curriculum.blend(m, step)
            if settings.normalize:
                w = w / w.mean((1, 2, 3), keepdim=True).clamp_min(1e-8)
            if settings.noise_blend is not None:
                w = w + sigma**settings.noise_blend * (1 - w)
        if settings.residual == "z0":
            w = w * amplification(self.scheduler, timesteps).clamp_max(1) ** self.power
        if settings.snr_gamma is not None:
            w = w * min_snr_weight(self.scheduler, timesteps, settings.snr_gamma)
        if settings.weighting_scheme != "none":
            w = w * sd3_weight(sigma, settings.weighting_scheme)
        return w

    def mask(
        self, prediction: Tensor, z_t: Tensor, z0: Tensor, timesteps: Tensor, *, condition: Tensor | None = None
    ) -> Tensor:
        """The visibility mask m in (0, 1), (N, 1, h, w), float32: LatentMILO's on the configured pair, over n_scales.

        z0_hat is taken as it comes: at noisy timesteps it may lie far outside of what latents are, and the mask
        saturates. Arguments as in `forward`; the gradient flows as configured.

        Raises:
            ConfigError: this loss has no mask, or the pair has a condition and none is given.
            DataError: latents of another number of channels than four, or under 16x16; z0 holds no latents.
        """
        if self.metric is None:
            raise ConfigError(f"{self.label} has no mask", where="loss.kind", mend="Set kind to milo")
        self._check_metric_takes(self.metric, z0)
        with nullcontext() if self.settings.mask_gradient else torch.no_grad():
            if self.settings.mask_pair == "estimate":
                seen = clean_latent(self.scheduler, prediction, z_t, timesteps)
            elif condition is None:
                mend = "Call loss(..., condition=the degraded input's latents), or set mask_pair to estimate"
                raise ConfigError("mask_pair: condition needs the condition", where="condition", mend=mend)
            else:
                check_latents(timesteps, z0=z0, condition=condition)
                seen = condition.detach()
            return self.metric.predict_mask(seen, z0) / self.metric.n_scales

    def _latent_error(self, prediction: Tensor, z_t: Tensor, z0: Tensor, timesteps: Tensor) -> Tensor:
        """LatentMILO's raw error of z0_hat where t < ``anchor_timestep``, 0 elsewhere: its mean over the batch."""
        assert self.metric is not None  # noqa: S101  (the settings want it for an anchor)
        m = self.mask(prediction, z_t, z0, timesteps)
        z0_hat = clean_latent(self.scheduler, prediction, z_t, timesteps)
        below = (timesteps < self.settings.anchor_timestep).view(-1, 1, 1, 1)
        # Where it does not count z0_hat may be far off: multiplied by 0, an infinite value would leave NaN.
        error = torch.where(below, self.metric.n_scales * m * (z0_hat - z0.float()).abs(), 0.0)
        return error.mean()

    @staticmethod
    def _check_metric_takes(metric: LatentMILO, z0: Tensor) -> None:
        channels, height, width = z0.shape[1:]
        if channels != metric.channels or min(height, width) < SMALLEST_SIDE:
            what = f"LatentMILO needs {metric.channels} channels and sides of at least {SMALLEST_SIDE}"
            mend = f"Train on images of at least {8 * SMALLEST_SIDE} pixels a side"
            raise DataError(f"{what}, got {tuple(z0.shape)}", where="z0", mend=mend)
        metric.check_values(z0, z0)
