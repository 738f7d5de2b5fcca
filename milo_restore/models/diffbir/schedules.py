"""The noise schedules that DiffBIR was trained with, and its sampling preset, as diffusers schedulers."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Literal

from milo_restore.errors import ConfigError

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

__all__ = ["VERSIONS", "Version", "noise_scheduler", "sampling_scheduler"]

Version = Literal["v1", "v2", "v2.1"]
VERSIONS: tuple[Version, ...] = typing.get_args(Version)

_PREDICTIONS: dict[str, str] = {"v1": "epsilon", "v2": "epsilon", "v2.1": "v_prediction"}


def noise_scheduler(version: str) -> DDPMScheduler:
    """The schedule of 1000 steps that a version was trained with.

    Args:
        version: ``v1`` and ``v2`` predict the noise on Stable Diffusion 2.1-base's schedule; ``v2.1`` predicts the
            velocity, and its schedule is rescaled so that no signal is left at the last step.

    Raises:
        ConfigError: no such version.

    Source: DiffBIR's configurations; the square roots of beta run linearly from 0.00085 ** 0.5 to 0.012 ** 0.5.
    """
    from diffusers import DDPMScheduler

    if version not in _PREDICTIONS:
        raise ConfigError(f"no DiffBIR version {version!r}", mend=f"Known versions: {', '.join(VERSIONS)}")
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        variance_type="fixed_small",
        clip_sample=False,
        prediction_type=_PREDICTIONS[version],
        timestep_spacing="linspace",
        rescale_betas_zero_snr=version == "v2.1",
    )


def sampling_scheduler(version: str, steps: int = 50) -> DDPMScheduler:
    """DiffBIR's "spaced" sampler: ancestral sampling over ``steps`` evenly spaced timesteps, first and last included.

    Args:
        version: one of `VERSIONS`.
        steps: 1 to 1000; DiffBIR v2 and its paper take 50.

    Returns:
        The scheduler with its timesteps set.

    Raises:
        ConfigError: no such version, or no such number of steps.
    """
    scheduler = noise_scheduler(version)
    if not 1 <= steps <= scheduler.config.num_train_timesteps:
        raise ConfigError(f"{steps} sampling steps", mend="Take 1 to 1000")
    scheduler.set_timesteps(steps)
    return scheduler
