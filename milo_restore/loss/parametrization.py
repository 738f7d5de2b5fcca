"""Parametrizations of a diffusion model's prediction, and the clean latent that a prediction stands for.

With alpha = sqrt(alpha_bar_t) and sigma = sqrt(1 - alpha_bar_t) a noisy latent is z_t = alpha z_0 + sigma eps. A model
says eps, or v = alpha eps - sigma z_0 (Salimans and Ho, 2022), or z_0 itself. The formulas are those of diffusers'
schedulers, in float32 whatever the model computes in: z_t in bfloat16 would lose the noise of the first timesteps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from milo_restore.errors import ConfigError, DataError

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""diffusers' names of what a model may predict."""
ZERO_SNR = 1e-7
"""An alpha_bar below this is a zero: diffusers' samplers write 2**-24 where they cannot take 0 itself."""


def check_scheduler(scheduler: DDPMScheduler) -> None:
    """Refuse a noise schedule from which no clean latent can be had.

    Raises:
        ConfigError: it is not variance preserving (DDPM's and DDIM's are), it predicts something unknown, or it
            predicts eps and ends without any signal: then the last timestep's eps is z_t itself and says nothing.
    """
    where = type(scheduler).__name__
    mend = "Train with diffusers' DDPMScheduler"
    if not isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor):
        raise ConfigError("has no alphas_cumprod", where=where, mend=mend)
    if float(getattr(scheduler, "init_noise_sigma", 1.0)) != 1.0:
        raise ConfigError("does not keep the variance: its noisy latents are scaled otherwise", where=where, mend=mend)
    if prediction_type(scheduler) == "epsilon" and float(scheduler.alphas_cumprod.min()) < ZERO_SNR:
        raise _no_signal(where)


def prediction_type(scheduler: DDPMScheduler) -> str:
    """One of `PREDICTIONS`.

    Raises:
        ConfigError: the scheduler's is another one, or eps on a schedule rescaled to zero terminal SNR.
    """
    kind, where = scheduler.config.prediction_type, type(scheduler).__name__
    if kind not in PREDICTIONS:
        known = ", ".join(repr(name) for name in PREDICTIONS)
        raise ConfigError(f"{kind!r} is not one of {known}", where=f"{where}, prediction_type")
    if kind == "epsilon" and scheduler.config.get("rescale_betas_zero_snr"):
        raise _no_signal(where)
    return str(kind)


def signal_and_noise(scheduler: DDPMScheduler, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha and sigma of every sample, (N, 1, 1, 1), float32, on the timesteps' device.

    Args:
        scheduler: gives alpha_bar.
        timesteps: (N,), whole numbers from 0 to 999 (or as many as the schedule has).

    Raises:
        DataError: other timesteps. Their range is read on CPUs only; accelerators stop with an assertion of their own.
    """
    last = len(scheduler.alphas_cumprod) - 1
    if timesteps.ndim != 1 or timesteps.is_floating_point() or timesteps.dtype == torch.bool:
        what = f"expected whole numbers of shape (N,), got {timesteps.dtype} of shape {tuple(timesteps.shape)}"
        raise DataError(what, where="timesteps")
    if timesteps.device.type == "cpu" and len(timesteps) and not 0 <= timesteps.min() <= timesteps.max() <= last:
        what = f"must lie between 0 and {last}, got {int(timesteps.min())} to {int(timesteps.max())}"
        raise DataError(what, where="timesteps")
    alpha_bar = scheduler.alphas_cumprod.to(timesteps.device)[timesteps.long()].view(-1, 1, 1, 1)
    if alpha_bar.device.type != "mps":  # which has no float64
        alpha_bar = alpha_bar.double()
    return alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()


def clean_latent(scheduler: DDPMScheduler, prediction: Tensor, z_t: Tensor, timesteps: Tensor) -> Tensor:
    """z0_hat, the clean latent that a prediction stands for; z_0 itself where the prediction is exact.

    eps: (z_t - sigma eps) / alpha, which multiplies the prediction's error by sigma / alpha: 14.6 at the last timestep
    of Stable Diffusion's schedule. v: alpha z_t - sigma v, by sigma, at most 1. Nothing is clipped.

    Args:
        scheduler: its prediction type and schedule decide.
        prediction: the model's, (N, C, h, w), any floating dtype.
        z_t: the noisy latents that the model saw, same shape.
        timesteps: (N,), whole numbers.

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
    return alpha * z_t - sigma * prediction if kind == "v_prediction" else prediction


def noised(
    scheduler: DDPMScheduler, z0: Tensor, timesteps: Sequence[int], seed: int
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
        times = torch.full((len(z0),), time, device=z0.device)
        yield scheduler.add_noise(z0, noise, times), noise, times


def amplification(scheduler: DDPMScheduler, timesteps: Tensor) -> Tensor:
    """Factor on the prediction's error on its way to z0_hat, (N, 1, 1, 1), float32.

    |z0_hat - z_0| = g |prediction - target| with g = sigma / alpha for eps, sigma for v, 1 for z_0.

    Raises:
        ConfigError: as `prediction_type`.
        DataError: timesteps are none.
    """
    kind = prediction_type(scheduler)
    alpha, sigma = signal_and_noise(scheduler, timesteps)
    if kind == "epsilon":
        return sigma / alpha
    return sigma if kind == "v_prediction" else torch.ones_like(sigma)


def prediction_target(scheduler: DDPMScheduler, z0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Target of the model's prediction: eps, alpha eps - sigma z_0, or z_0.

    Args:
        scheduler: its prediction type and schedule decide.
        z0: clean latents, (N, C, h, w), any floating dtype.
        noise: standard normal, same shape.
        timesteps: (N,), whole numbers.

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
    if kind == "epsilon":
        return noise
    return alpha * noise - sigma * z0 if kind == "v_prediction" else z0


def min_snr_weight(scheduler: DDPMScheduler, timesteps: Tensor, gamma: float) -> Tensor:
    """The Min-SNR-gamma weight of every sample (Hang et al., ICCV 2023, arXiv 2303.09556).

    With snr = alpha^2 / sigma^2: min(snr, gamma) for a model that says z_0, over snr for eps, over snr + 1 for v. All
    three weigh the error of z0_hat alike. Under zero terminal SNR the last timestep gets weight 0.

    Args:
        scheduler: its prediction type and schedule decide.
        timesteps: (N,), whole numbers.
        gamma: the authors use 5.

    Returns:
        (N, 1, 1, 1), float32.
    """
    kind = prediction_type(scheduler)
    alpha, sigma = signal_and_noise(scheduler, timesteps)
    snr = (alpha / sigma).square()
    weight = snr.clamp_max(gamma)
    if kind == "epsilon":
        return weight / snr
    return weight / (snr + 1) if kind == "v_prediction" else weight


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
