"""Settings of a training run: its length, its optimiser, its rhythm. Plain frozen dataclasses."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from milo_restore.errors import ConfigError

Scheduler = Literal["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]
"""diffusers' names of schedules of the learning rate, as its training programs take them."""


def _at_least(name: str, value: float, least: int) -> None:
    if not value >= least:  # also refuses NaN
        raise ValueError(f"{name} must be at least {least}, got {value}")


@dataclass(frozen=True)
class Stage:
    """One stage of progressive training: so many steps with one patch size and one batch size."""

    steps: int  # optimisation steps in this stage
    patch: int  # side of the square training crops, in pixels
    batch: int  # samples per optimisation step, over all processes and all accumulated micro-batches together

    def __post_init__(self) -> None:
        for name in ("steps", "patch", "batch"):
            _at_least(f"a stage's {name}", getattr(self, name), 1)


@dataclass(frozen=True)
class TrainSettings:
    """All settings of `fit`. Values out of range raise ValueError (ConfigError, when read by `load_config`)."""

    stages: tuple[Stage, ...] = (Stage(steps=300, patch=64, batch=8),)  # run one after the other
    seed: int = 1  # of the data order, the noise, and everything random inside a step
    accumulation: int = 1  # micro-batches per step and process; the result does not depend on it
    workers: int = 2  # data loading processes per training process; 0 loads in the training process
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"  # of the model; losses see float32 outputs
    deterministic: bool = False  # refuse algorithms that differ from run to run (on GPUs; a CPU run is exact anyway)

    compile: bool = False  # torch.compile the trained network: minutes at the start; evaluations run without it
    channels_last: bool = False  # lay out the trained network's convolutions for NHWC; what is saved is the same

    learning_rate: float = 3e-4  # during the constant phase
    final_learning_rate: float = 1e-6  # where the cosine ends
    constant_steps: int | None = None  # steps before the cosine starts; null: constant to the end
    decay_every: int | None = None  # steps between drops of the learning rate (MultiStepLR), in place of the cosine
    decay_factor: float = 0.5  # what each drop multiplies it by
    scheduler: Scheduler | None = None  # one of diffusers' schedules, in place of both; null: the above
    warmup_steps: int = 0  # a scheduler's: steps in which the learning rate rises from 0; constant has none
    num_cycles: int = 1  # cosine_with_restarts's
    power: float = 1.0  # polynomial's, which ends at 1e-7
    # adamw8bit: bitsandbytes', a quarter of the state; GPUs only. soap: pytorch_optimizer's, best with betas 0.95, 0.95
    optimizer: Literal["adamw", "adamw8bit", "soap"] = "adamw"
    weight_decay: float = 1e-4  # the optimizer's
    betas: tuple[float, float] = (0.9, 0.999)  # the optimizer's
    clip_norm: float | None = 0.01  # largest 2-norm of the whole gradient (Restormer's); null: no clipping
    ema_decay: float | None = None  # evaluate, sample and finish with averaged weights; null: without

    log_every: int = 10  # steps between lines of metrics.jsonl and the trackers
    evaluate_every: int | None = None  # steps between evaluations, and one at the end; null: none
    keep_best: str | None = None  # number of the evaluation whose best weights stay in best/; null: none
    stop: int | None = None  # end the run after so many evaluations in a row without a new best; null: all steps
    sample_every: int | None = None  # steps between sample pictures, and one at the end; null: none
    checkpoint_every: int = 500  # steps between checkpoints; one is always written at the end
    keep_checkpoints: int | None = 2  # older ones are deleted once a new one is published; null: keep all
    trackers: tuple[str, ...] = ("tensorboard",)  # any that Accelerate knows, such as wandb
    max_bad_steps: int = 3  # stop after so many steps in a row with a non-finite loss or gradient
    max_bad_files: float = 0.1  # stop where more than this share of the files looked at cannot be trained on; 0: none

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("stages is empty: name at least one stage, such as {steps: 300, patch: 64, batch: 8}")
        counts = ("accumulation", "log_every", "checkpoint_every", "max_bad_steps")
        for name in (*counts, "evaluate_every", "sample_every", "keep_checkpoints", "decay_every", "stop"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        for name in ("seed", "workers", "learning_rate", "final_learning_rate", "weight_decay"):
            _at_least(name, getattr(self, name), 0)
        if self.constant_steps is not None:
            _at_least("constant_steps", self.constant_steps, 0)
        if not 0 <= self.max_bad_files <= 1:
            raise ValueError(f"max_bad_files is a share from 0 to 1, got {self.max_bad_files}")
        self._check_schedule()
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, or null for no clipping, got {self.clip_norm}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie between 0 and 1, or be null for none, got {self.ema_decay}")

    def _check_scheduler(self) -> None:
        _at_least("warmup_steps", self.warmup_steps, 0)
        _at_least("num_cycles", self.num_cycles, 1)
        if not self.power > 0:
            raise ValueError(f"power must be positive, got {self.power}")
        if self.scheduler is not None and (self.decay_every, self.constant_steps) != (None, None):
            raise ValueError(f"scheduler: {self.scheduler} needs constant_steps and decay_every null: another schedule")
        if self.warmup_steps and self.scheduler in (None, "constant"):
            raise ValueError("warmup_steps needs a scheduler with a warm-up: constant_with_warmup, linear, cosine, ...")
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps must be less than the run's {self.steps} steps, got {self.warmup_steps}")
        if self.num_cycles != 1 and self.scheduler != "cosine_with_restarts":
            raise ValueError("num_cycles needs scheduler: cosine_with_restarts")
        if self.power != 1 and self.scheduler != "polynomial":
            raise ValueError("power needs scheduler: polynomial")

    def _check_schedule(self) -> None:
        self._check_scheduler()
        if self.decay_every is not None and self.constant_steps is not None:
            raise ValueError("decay_every and constant_steps name two schedules: set one of them to null")
        if not 0 < self.decay_factor <= 1:
            raise ValueError(f"decay_factor must lie in (0, 1], got {self.decay_factor}")
        if self.keep_best is not None and self.evaluate_every is None:
            raise ValueError(f"keep_best: {self.keep_best} needs evaluate_every: a number of steps")
        if self.stop is not None and self.keep_best is None:
            raise ValueError(f"stop: {self.stop} needs keep_best: the number whose best ends the run")

    @property
    def largest_patch(self) -> int:
        """The largest side of a stage's crops, in pixels."""
        return max(stage.patch for stage in self.stages)

    @property
    def steps(self) -> int:
        """Optimisation steps of the whole run."""
        return sum(stage.steps for stage in self.stages)


def check_best(settings: TrainSettings, numbers: Collection[str]) -> None:
    """Refuse a ``keep_best`` that no evaluation gives.

    Args:
        settings: of the run.
        numbers: the names of what evaluations give.

    Raises:
        ConfigError: naming them.
    """
    if settings.keep_best not in (None, *numbers):
        known = f"Known: {', '.join(numbers)}"
        raise ConfigError(f"no evaluation gives {settings.keep_best!r}", where="keep_best", mend=known)
