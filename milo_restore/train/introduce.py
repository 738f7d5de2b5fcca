"""The first lines of a run: what trains where, on what, into which folder, with how much memory; how to watch it."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from milo_restore.train.memory import optimizer_bytes, parameter_count, weight_bytes
from milo_restore.train.settings import TrainSettings
from milo_restore.train.state import TrainingState


def introduction(
    state: TrainingState, settings: TrainSettings, output: Path, last: int, about: Mapping[str, str]
) -> list[str]:
    """The lines.

    Args:
        state: before its first step.
        settings: of the run.
        output: the run folder.
        last: the step that this call goes to.
        about: what the recipe says of its data, its loss and its weights.
    """
    accelerator, device = state.accelerator, state.accelerator.device
    where = f"{torch.get_num_threads()} threads"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        where = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    several = f" x {accelerator.num_processes} processes" if accelerator.num_processes > 1 else ""
    whole = parameter_count(state.module)
    trained = sum(value.numel() for value in state.parameters)
    batches = ", ".join(f"{stage.steps} of {stage.batch} x {stage.patch} px" for stage in settings.stages)
    watch = [f"tensorboard --logdir {output / 'logs'}"] if "tensorboard" in settings.trackers else []
    watch += [str(output / "samples")] if settings.sample_every is not None else []
    return [
        f"device: {device} ({where}){several}, precision {settings.mixed_precision}",
        f"parameters: {trained:,}" + (f" of {whole:,}" if trained < whole else ""),
        *(f"{name}: {text}" for name, text in about.items()),
        f"steps: {state.step + 1} to {last} of {settings.steps}; {batches}",
        f"memory: {_gib(needed(state, settings))} for weights, gradients, {settings.optimizer}"
        f"{' and averages' if settings.ema_decay is not None else ''}, and the activations; the first step tells",
        f"run folder: {output}; to watch: {', '.join([*watch, str(output / 'metrics.jsonl')])}",
    ]


def needed(state: TrainingState, settings: TrainSettings) -> int:
    """Bytes of what lasts from step to step: weights, gradients, the optimiser's and the averaged weights."""
    averaged = settings.ema_decay is not None
    trained = optimizer_bytes(state.module, settings.optimizer, averaged=averaged)
    return weight_bytes([state.module]) + sum(trained.values())


def peak(device: torch.device) -> str:
    """The most memory that this process has held so far, in words: the GPU's, or on a CPU the process's."""
    if device.type == "cuda":
        return f"{_gib(torch.cuda.max_memory_allocated(device))} of GPU memory at most"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{_gib(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)} of memory at most, all imports included"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
