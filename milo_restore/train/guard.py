"""One optimisation step, which either happens as a whole or not at all."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object, send_to_device, set_seed
from torch import Tensor, nn

from milo_restore.errors import ConfigError
from milo_restore.train.feed import MicroBatch
from milo_restore.train.schedule import learning_rate
from milo_restore.train.settings import TrainSettings
from milo_restore.train.state import TrainingState

Step = Callable[[nn.Module, dict[str, Any], int], "Tensor | tuple[Tensor, dict[str, Tensor]]"]


@dataclass
class Outcome:
    """Outcome of a step; equal on all processes."""

    loss: float  # mean over the effective batch
    gradient_norm: float  # of the whole gradient, before clipping
    stop: bool  # whether any process was asked to stop
    skipped: str | None  # "loss" or "gradient": not finite, nothing changed; "overflow": fp16's scale was too high
    parts: dict[str, float]  # what the recipe reports besides the loss, means over the effective batch
    found: bool = False  # whether any process met a file that cannot be trained on


def take_step(
    state: TrainingState,
    step: Step,
    number: int,
    batches: list[MicroBatch],
    settings: TrainSettings,
    stop: Callable[[], bool],
    *,
    update: bool = True,
) -> tuple[Outcome, list[Tensor]]:
    """Forward, backward, check, update. A loss or gradient norm that is not finite on any process changes nothing.

    Without ``update`` no step changes anything.

    Returns:
        The outcome, and this process's micro-batch losses, unread.
    """
    accelerator = state.accelerator
    process = accelerator.process_index
    # Whatever the step draws (dropout, say) depends on the seed, the step and the process, not on what came before.
    set_seed(int(np.random.SeedSequence([settings.seed, number, process]).generate_state(1)[0]))
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(number, settings)
    buffers = [buffer.clone() for buffer in state.module.buffers()]  # running statistics, say; mostly there are none
    state.optimizer.zero_grad(set_to_none=True)
    with _compiler_errors():
        losses, parts = _backward(state, step, number, batches)
    norm = accelerator.clip_grad_norm_(state.parameters, settings.clip_norm or math.inf)

    mean = torch.stack([loss * batch.share for loss, batch in zip(losses, batches)]).sum()
    flags = torch.tensor([float(stop()), float(any(batch.found for batch in batches))], device=mean.device)
    # The one exchange and the one wait for the device per step: all that is reported, together.
    shares = [mean, norm.to(mean), *flags, *(part.to(mean) for part in parts.values())]
    loss, norms, stops, finds, *means = accelerator.reduce(torch.stack(shares), "sum").tolist()
    reported = dict(zip(parts, means))
    skipped = _skipped(state, loss, norms)
    outcome = Outcome(loss, norms / accelerator.num_processes, stops > 0, skipped, reported, finds > 0)
    if skipped or not update:
        with torch.no_grad():
            for buffer, before in zip(state.module.buffers(), buffers):
                buffer.copy_(before)
        if accelerator.scaler is not None:
            accelerator.scaler.update()  # lowers the scale, and closes the step that unscaling opened
    else:
        state.optimizer.step()
        if state.ema is not None:
            state.ema.step(state.parameters)
    state.optimizer.zero_grad(set_to_none=True)
    return outcome, losses


def _backward(
    state: TrainingState, step: Step, number: int, batches: list[MicroBatch]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Leave the gradient of the mean over the effective batch in the parameters, however the batch is split."""
    accelerator, losses = state.accelerator, []
    parts: dict[str, Tensor] = {}
    for index, batch in enumerate(batches):
        last = index == len(batches) - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(state.model):
            found = step(state.model, send_to_device(batch.batch, accelerator.device, non_blocking=True), number)
            loss, extra = found if isinstance(found, tuple) else (found, {})
            if loss.ndim != 0 or not loss.requires_grad:
                raise TypeError(f"step must return a scalar loss with a gradient, got shape {tuple(loss.shape)}")
            # Times the number of processes, because DDP averages over them.
            accelerator.backward(loss * (batch.share * accelerator.num_processes))
        losses.append(loss.detach().float())
        for key, value in extra.items():
            parts[key] = parts.get(key, 0) + value.detach().float().mean() * batch.share
    return losses, parts


@contextlib.contextmanager
def _compiler_errors() -> Iterator[None]:
    """Why torch.compile does not work here, in one line: no C++ compiler, no Triton, or a network it does not take.

    Raises:
        ConfigError: naming the first line of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        what = f"torch.compile fails here ({str(error).strip().splitlines()[0]})"
        mend = "Set compile: false, or install what it needs: a C++ compiler for CPUs, Triton for GPUs"
        raise ConfigError(what, where="training.compile", mend=mend) from error


def _skipped(state: TrainingState, loss: float, norm: float) -> str | None:
    if not math.isfinite(loss):
        return "loss"
    if math.isfinite(norm):
        return None
    scaler = state.accelerator.scaler
    # fp16 finds its scale by overflowing now and then; only at a scale of 1 is the gradient itself to blame.
    return "overflow" if scaler is not None and scaler.get_scale() > 1 else "gradient"


def culprits(batches: list[MicroBatch], losses: list[Tensor]) -> list[str]:
    """The names of the samples behind a skipped step, from all processes.

    Those of the micro-batches whose loss is not finite; where all losses are finite, the whole effective batch.
    """
    suspects = [n for batch, loss in zip(batches, losses) if not math.isfinite(loss.item()) for n in batch.names()]
    everything = [name for batch in batches for name in batch.names()]
    gathered = gather_object([(suspects, everything)])
    return [name for found, _ in gathered for name in found] or [name for _, names in gathered for name in names]
