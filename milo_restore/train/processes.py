"""The processes of a run: starting Accelerate, and reproducible algorithms."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed.nn  # before there is a group: see milo_restore.processes.leave
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType, ProjectConfiguration

from milo_restore.errors import ConfigError
from milo_restore.train.settings import TrainSettings


def start_accelerator(settings: TrainSettings, output: Path) -> Accelerator:
    """A new Accelerator; an earlier run of this Python process may have used another precision.

    Raises:
        ConfigError: for a tracker or a precision that this machine does not have, or a launch that spreads one copy of
            the weights over the processes.
    """
    _refuse_sharding()
    known = [str(kind) for kind in LoggerType if kind != LoggerType.ALL]
    for name in settings.trackers:
        if name not in known:
            raise ConfigError(f"{name!r} is not one of {', '.join(known)}", where="trackers")
    missing = sorted(set(settings.trackers) - {str(kind) for kind in get_available_trackers()})
    if missing:  # before Accelerate warns of it
        mend = f"pip install {missing[0]}, or leave it out"
        raise ConfigError(f"{missing[0]!r} is not installed", where="trackers", mend=mend)
    launched = int(os.environ.get("WORLD_SIZE", "1"))  # set by accelerate launch and torchrun
    alone = PartialState._shared_state != {} and PartialState().num_processes == 1
    AcceleratorState._reset_state(reset_partial_state=launched > 1 and alone)
    GradientState._reset_state()
    folders = ProjectConfiguration(project_dir=str(output), logging_dir=str(output / "logs"))
    try:
        accelerator = Accelerator(
            cpu=launched > 1 and not _has_device(),  # else Accelerate overlooks the other processes
            mixed_precision=settings.mixed_precision,
            dynamo_backend="inductor" if settings.compile else None,  # None: as launched
            log_with=list(settings.trackers) or None,
            project_config=folders,
        )
    except ValueError as error:  # fp16 or bf16 where the device has none
        raise ConfigError(str(error), where="mixed_precision", mend="Use 'no' here") from error
    if settings.mixed_precision == "fp16" and accelerator.scaler is None:  # accelerate goes on in float32, unsaid
        raise ConfigError(
            f"'fp16' does not work on {accelerator.device}", where="mixed_precision", mend="Use 'bf16' or 'no' here"
        )
    if accelerator.num_processes != launched:
        raise ConfigError(f"{launched} processes were launched, Accelerate sees {accelerator.num_processes}")
    return accelerator


def _refuse_sharding() -> None:
    """Every process holds all that is trained: checkpoints, averages and the checks of a step are of whole tensors."""
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            mend = "Launch with recipes/accelerate/one_machine.yaml; memory: LoRA, gradient_checkpointing, adamw8bit"
            raise ConfigError(
                f"{name} is not supported: training is data-parallel", where="accelerate launch", mend=mend
            )


def _has_device() -> bool:
    accelerators = getattr(torch, "accelerator", None)  # torch 2.6 and later
    return torch.cuda.is_available() or (accelerators is not None and accelerators.is_available())


@contextlib.contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Within it, where ``on``, torch refuses algorithms that differ from run to run."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself only with this
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
