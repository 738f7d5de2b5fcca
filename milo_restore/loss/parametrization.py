"""Parametrizations of a diffusion model's prediction, and the clean latent that a prediction stands for.

With alpha = sqrt(alpha_bar_t) and sigma = sqrt(1 - alpha_bar_t) a noisy latent is z_t = alpha z_0 + sigma eps. A model
says eps, or v = alpha eps - sigma z_0 (Salimans and Ho, 2022), or z_0 itself. Flow matching (SD 3 and FLUX; Esser et
al., ICML 2024, arXiv 2403.03206) has alpha = 1 - sigma instead, and its models say the velocity eps - z_0. The formulas
are those of diffusers' schedulers, in float32 whatever the model computes in: z_t in bfloat16 would lose the noise of
the first timesteps.

Timesteps are whole numbers for DDPM's schedules, and for flow matching what diffusers' scheduler lists in its
``timesteps``: floating point, 1000 sigma. A schedule's shift moves these values, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from milo_restore.errors import ConfigError, DataError

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

    Scheduler: TypeAlias = DDPMScheduler | FlowMatchEulerDiscreteScheduler

PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""diffusers' names of what a model may predict."""
FLOW_PREDICTIONS = ("flow_prediction", "sample")
"""The same under flow matching: the velocity eps - z_0, or z_0 (SD 3's ``--precondition_outputs``)."""
MOST_OFF = 0.05
"""Largest distance of z_t from the noising of z_0, over its size: half precision is 0.004 off."""
ZERO_SNR = 1e-7
"""An alpha_bar below this is a zero: diffusers' samplers write 2**-24 where they cannot take 0 itself."""


def is_flow(scheduler: Scheduler) -> bool:
    """Whether it is one of diffusers' flow matching schedulers, whose noisy latents are (1 - sigma) z_0 + sigma eps."""
    return any(kind.__name__.startswith("FlowMatch") for kind in type(scheduler).__mro__)


def check_scheduler(scheduler: Scheduler) -> None:
    """Refuse a noise schedule from which no clean latent can be had.

    Raises:
        ConfigError: it is neither variance preserving (DDPM's and DDIM's are) nor flow matching, it predicts something
            unknown, or it predicts eps and ends without any signal: then the last timestep's eps is z_t itself and
            says nothing.
    """
    where = type(scheduler).__name__
    mend = "Train with diffusers' DDPMScheduler or FlowMatchEulerDiscreteScheduler"
    if is_flow(scheduler):
        prediction_type(scheduler)
        return
    if not isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor):
        raise ConfigError("has no alphas_cumprod", where=where, mend=mend)
    if float(getattr(scheduler, "init_noise_sigma", 1.0)) != 1.0:
        raise ConfigError("does not keep the variance: its noisy latents are scaled otherwise", where=where, mend=mend)
    if prediction_type(scheduler) == "epsilon" and float(scheduler.alphas_cumprod.min()) < ZERO_SNR:
        raise _no_signal(where)


def prediction_type(scheduler: Scheduler) -> str:
    """One of `PREDICTIONS` or `FLOW_PREDICTIONS`; flow matching's schedulers name none and mean the first.

    Raises:
        ConfigError: the scheduler's is another one, or eps on a schedule rescaled to zero terminal SNR.
    """
    names = FLOW_PREDICTIONS if is_flow(scheduler) else PREDICTIONS
    kind, where = scheduler.config.get("prediction_type", names[0]), type(scheduler).__name__
    if kind not in names:
        known = ", ".join(repr(name) for name in names)
        raise ConfigError(f"{kind!r} is not one of {known}", where=f"{where}, prediction_type")
    if kind == "epsilon" and scheduler.config.get("rescale_betas_zero_snr"):
        raise _no_signal(where)
    return str(kind)


def signal_and_noise(scheduler: Scheduler, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha and sigma of every sample, (N, 1, 1, 1), float32, on the timesteps' device.

    Args:
        scheduler: gives alpha_bar, or for flow matching the number of timesteps.
        timesteps: (N,), whole numbers from 0 to 999 (or as many as the schedule has); for flow matching floating
            point from 0 to 1000, sigma times 1000.

    Raises:
        DataError: other timesteps. Their range is read on CPUs only; accelerators stop with an assertion of their own.
    """
    flow = is_flow(scheduler)
    last = int(scheduler.config.num_train_timesteps) if flow else len(scheduler.alphas_cumprod) - 1
    if timesteps.ndim != 1 or timesteps.is_floating_point() != flow or timesteps.dtype == torch.bool:
        kind = "floating point" if flow else "whole numbers"
        mend = "Flow matching's are scheduler.timesteps[indices], or 1000 sigma" if flow else None
        what = f"expected {kind} of shape (N,), got {timesteps.dtype} of shape {tuple(timesteps.shape)}"
        raise DataError(what, where="timesteps", mend=mend)
    if timesteps.device.type == "cpu" and len(timesteps) and not 0 <= timesteps.min() <= timesteps.max() <= last:
        what = f"must lie between 0 and {last}, got {float(timesteps.min()):g} to {float(timesteps.max()):g}"
        raise DataError(what, where="timesteps")
    wide = torch.float32 if timesteps.device.type == "mps" else torch.float64  # mps has none
    if flow:
        sigma = timesteps.to(wide).view(-1, 1, 1, 1) / last
        return (1 - sigma).float(), sigma.float()
    alpha_bar = scheduler.alphas_cumprod.to(timesteps.device)[timesteps.long()].view(-1, 1, 1, 1).to(wide)
    return alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()


def clean_latent(scheduler: Scheduler, prediction: Tensor, z_t: Tensor, timesteps: Tensor) -> Tensor:
    """z0_hat, the clean latent that a prediction stands for; z_0 itself where the prediction is exact.

    eps: (z_t - sigma eps) / alpha, which multiplies the prediction's error by sigma / alpha: 14.6 at the last timestep
    of Stable Diffusion's schedule. v: alpha z_t - sigma v, by sigma, at most 1; flow matching's velocity u: z_t -
    sigma u, the same. Nothing is clipped.

    Args:
        scheduler: its prediction type and schedule decide.
        prediction: the model's, (N, C, h, w), any floating dtype.
        z_t: the noisy latents that the model saw, same shape.
        timesteps: (N,), as in `signal_and_noise`.

    Returns:
        (N, C, h, w), float32, differentiable in ``prediction`` and ``z_t``.

    Raises:
        ConfigError: as `prediction_type`.
        DataError: shapes differ or timesteps are none.
    """
    kind = prediction_type(scheduler)
    check_latents(timesteps, prediction=prediction, z_t=z_t)
    alpha, sigma = signal_and_noise(scheduler, timesteps)
    prediction, z_t = prediction.float(), z_t.float()
    if kind == "epsilon":
        return (z_t - sigma * prediction) / alpha
    if kind == "sample":
        return prediction
    return (alpha * z_t if kind == "v_prediction" else z_t) - sigma * prediction


def noised(
    scheduler: Scheduler, z0: Tensor, timesteps: Sequence[int], seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The same latents under each of some timesteps, always with the same noise; to compare models, not to train them.

    Args:
        scheduler: adds the noise.
        z0: clean latents, (N, C, h, w).
        timesteps: whole numbers, one for all latents at a time.
        seed: of the noise, which is another one at each timestep.

    Yields:
        ``z_t`` and the noise, as ``z0`` is, and the timesteps (N,).
    """
    generator = torch.Generator().manual_seed(seed)
    for time in timesteps:
        noise = torch.randn(z0.shape, generator=generator).to(z0)
        times = torch.full((len(z0),), float(time) if is_flow(scheduler) else time, device=z0.device)
        if is_flow(scheduler):
            alpha, sigma = signal_and_noise(scheduler, times)
            yield (alpha * z0 + sigma * noise).to(z0), noise, times
        else:
            yield scheduler.add_noise(z0, noise, times), noise, times


def amplification(scheduler: Scheduler, timesteps: Tensor) -> Tensor:
    """Factor on the prediction's error on its way to z0_hat, (N, 1, 1, 1), float32.

    |z0_hat - z_0| = g |prediction - target| with g = sigma / alpha for eps, sigma for v and for flow matching's
    velocity, 1 for z_0.

    Raises:
        ConfigError: as `prediction_type`.
        DataError: timesteps are none.
    """
    kind = prediction_type(scheduler)
    alpha, sigma = signal_and_noise(scheduler, timesteps)
    if kind == "epsilon":
        return sigma / alpha
    return torch.ones_like(sigma) if kind == "sample" else sigma


def prediction_target(scheduler: Scheduler, z0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Target of the model's prediction: eps, alpha eps - sigma z_0, eps - z_0 for flow matching, or z_0.

    Args:
        scheduler: its prediction type and schedule decide.
        z0: clean latents, (N, C, h, w), any floating dtype.
        noise: standard normal, same shape.
        timesteps: (N,), as in `signal_and_noise`.

    Returns:
        (N, C, h, w), float32.

    Raises:
        ConfigError: as `prediction_type`.
        DataError: shapes differ or timesteps are none.
    """
    kind = prediction_type(scheduler)
    check_latents(timesteps, z0=z0, noise=noise)
    alpha, sigma = signal_and_noise(scheduler, timesteps)
    z0, noise = z0.float(), noise.float()
    if kind == "flow_prediction":
        return noise - z0
    if kind == "epsilon":
        return noise
    return alpha * noise - sigma * z0 if kind == "v_prediction" else z0


def min_snr_weight(scheduler: Scheduler, timesteps: Tensor, gamma: float) -> Tensor:
    """The Min-SNR-gamma weight of every sample (Hang et al., ICCV 2023, arXiv 2303.09556).

    With snr = alpha^2 / sigma^2: min(snr, gamma) for a model that says z_0, over snr for eps, over snr + 1 for v, times
    sigma^2 for flow matching's velocity. All weigh the error of z0_hat alike. Under zero terminal SNR the last timestep
    gets weight 0.

    Args:
        scheduler: its prediction type and schedule decide.
        timesteps: (N,), as in `signal_and_noise`.
        gamma: the authors use 5.

    Returns:
        (N, 1, 1, 1), float32.
    """
    kind = prediction_type(scheduler)
    alpha, sigma = signal_and_noise(scheduler, timesteps)
    if kind == "flow_prediction":
        return torch.minimum(alpha.square(), gamma * sigma.square())  # sigma^2 may be 0
    snr = (alpha / sigma).square()
    weight = snr.clamp_max(gamma)
    if kind == "epsilon":
        return weight / snr
    return weight / (snr + 1) if kind == "v_prediction" else weight


def sd3_weight(sigma: Tensor, scheme: str) -> Tensor:
    """The weight of every sample in the training of SD 3, diffusers' ``compute_loss_weighting_for_sd3``.

    Args:
        sigma: flow matching's, any shape.
        scheme: ``sigma_sqrt`` (sigma^-2), ``cosmap`` (2 / (pi (1 - 2 sigma + 2 sigma^2))), or ``none``.

    Returns:
        The same shape.
    """
    if scheme == "sigma_sqrt":
        return sigma**-2.0
    return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2)) if scheme == "cosmap" else torch.ones_like(sigma)


def check_noising(scheduler: Scheduler, z_t: Tensor, z0: Tensor, noise: Tensor, timesteps: Tensor) -> None:
    """Refuse noisy latents that do not belong to these timesteps, such as where sigmas or indices were given for them.

    Raises:
        DataError: z_t is not (1 - sigma) z_0 + sigma eps, or timesteps are none.
    """
    alpha, sigma = signal_and_noise(scheduler, timesteps)
    expected = alpha * z0.float() + sigma * noise.float()
    if (z_t.float() - expected).norm() > MOST_OFF * expected.norm():
        mend = "Give z_t = scheduler.scale_noise(z0, timesteps, noise) and these timesteps, 1000 sigma each"
        raise DataError("is not the noising of z0 at these timesteps", where="z_t", mend=mend)


def check_latents(timesteps: Tensor, **latents: Tensor) -> None:
    """Refuse what would broadcast: latents must be (N, C, h, w), all of one shape and device, with N timesteps.

    Raises:
        DataError: naming the tensor.
    """
    first, like = next(iter(latents.items()))
    for name, latent in latents.items():
        if not latent.is_floating_point() or latent.ndim != 4 or 0 in latent.shape:
            what = f"expected floating point (N, C, h, w), got {latent.dtype} of shape {tuple(latent.shape)}"
            raise DataError(what, where=name)
        if latent.shape != like.shape:
            raise DataError(f"shapes differ: {first} {tuple(like.shape)}, {name} {tuple(latent.shape)}", where=name)
        if latent.device != like.device:
            raise DataError(f"devices differ: {first} {like.device}, {name} {latent.device}", where=name)
    if timesteps.shape != like.shape[:1] or timesteps.device != like.device:
        what = f"expected one per sample, ({len(like)},) on {like.device}"
        raise DataError(f"{what}, got {tuple(timesteps.shape)} on {timesteps.device}", where="timesteps")


def _no_signal(where: str) -> ConfigError:
    return ConfigError(
        "predicts eps although its last timestep holds no signal: no clean latent follows from eps there",
        where=where,
        mend="Use prediction_type 'v_prediction' with zero terminal SNR, or a schedule that ends above it",
    )
