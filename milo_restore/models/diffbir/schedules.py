"""The noise schedules that DiffBIR was trained with, and its sampling preset, as diffusers schedulers."""

from __future__ import annotations

import inspect
import typing
from typing import TYPE_CHECKING, Any, Literal

from milo_restore.errors import ConfigError

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

__all__ = ["VERSIONS", "Version", "noise_scheduler", "sampler_named", "sampling_scheduler"]

Version = Literal["v1", "v2", "v2.1"]
VERSIONS: tuple[Version, ...] = typing.get_args(Version)

# DiffBIR's samplers as diffusers' schedulers, and what each is told beyond the noise schedule. DDIM's steps are
# LDM's: from the last full stride to 0, whose signal is also the end's. DPM++'s run evenly from 999 to 0.
_SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "spaced": ("DDPMScheduler", {}),
    "ddim": ("DDIMScheduler", {"timestep_spacing": "leading", "steps_offset": 0, "set_alpha_to_one": False}),
    "dpm++_2m": ("DPMSolverMultistepScheduler", {"timestep_spacing": "linspace", "final_sigmas_type": "sigma_min"}),
}
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


def sampler_named(name: str, version: str, steps: int | None = None) -> Any:
    """A sampler on a version's noise schedule.

    Args:
        name: ``spaced``, ``ddim`` or ``dpm++_2m``, DiffBIR's (the last is ``dpm++_m2`` there); or the name of another
            of diffusers' schedulers, such as ``UniPCMultistepScheduler``, with its own settings.
        version: one of `VERSIONS`.
        steps: how many there will be. With it, ``dpm++_2m`` ends with a step of first order below 10 steps only, as in
            DiffBIR's program; without it below 15, as in diffusers.

    Returns:
        The scheduler, without timesteps.

    Raises:
        ConfigError: diffusers has no such scheduler, or it cannot follow this schedule or prediction.
    """
    import diffusers

    base = noise_scheduler(version)
    known, settings = _SAMPLERS.get("dpm++_2m" if name == "dpm++_m2" else name, (name, {}))
    found = getattr(diffusers, known, None)
    mend = f"Take {', '.join(_SAMPLERS)}, or a scheduler of diffusers such as UniPCMultistepScheduler"
    if not (isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin)):
        raise ConfigError(f"no sampler {name!r}", where="sampler", mend=mend)
    kind: Any = found
    takes = inspect.signature(kind).parameters
    needed = ["beta_start", "beta_schedule", "prediction_type"]
    needed += ["rescale_betas_zero_snr"] if base.config.rescale_betas_zero_snr else []
    lacking = [setting for setting in needed if setting not in takes]
    if lacking:  # from_config would leave them out, and sample from another model than was trained
        what = f"{known} has no {', '.join(lacking)}, which DiffBIR {version} needs"
        raise ConfigError(what, where="sampler", mend=mend)
    if steps is not None and settings.get("final_sigmas_type"):
        settings = {**settings, "lower_order_final": steps < 10}
    shared = {key: value for key, value in base.config.items() if key not in ("timestep_spacing", "steps_offset")}
    return kind.from_config(base.config if name == "spaced" else {**shared, **settings})
