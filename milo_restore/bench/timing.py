"""Timing contenders side by side, and what a step needs in memory."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch


def interleaved(
    contenders: dict[str, Callable[[], Any]],
    rounds: int,
    device: torch.device,
    what: str,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every contender in every round; the first round only warms up."""
    from tqdm import tqdm

    times: dict[str, list[float]] = {name: [] for name in contenders}
    which = [device] if device.type == "cuda" else []
    with tqdm(total=(rounds + 1) * len(contenders), desc=what, leave=False) as bar:
        for round_ in range(rounds + 1):
            order = list(contenders)[:: -1 if round_ % 2 else 1]
            for name in order:
                getattr(torch, device.type).synchronize(*which)
                start = clock()
                contenders[name]()
                getattr(torch, device.type).synchronize(*which)
                if round_:
                    times[name].append(clock() - start)
                bar.update()
    return times


def ratio(slow: list[float], fast: list[float]) -> float:
    """The median over rounds of the ratio within a round."""
    return median(a / b for a, b in zip(slow, fast))


def peak_mib(step: Callable[[], Any], device: torch.device) -> float | None:
    """The most memory that torch's tensors took at once during one step, above what lay there before.

    On a CPU every allocation is recorded by torch's profiler; what a convolution library takes for itself is not
    seen. None on devices other than cpu and cuda.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if device.type != "cpu":
        return None
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's library talks on stderr of GPUs it does not find
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    assert profiler.profiler is not None  # noqa: S101  (it has just run)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak / 2**20


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Within it, torch computes on so many CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine(threads: int, device: torch.device) -> dict[str, Any]:
    """Description of the machine that was measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {"device": name, "threads": threads, "torch": torch.__version__}


def machine_line(report: dict[str, Any]) -> str:
    """The machine of a report, in words."""
    return "{device}, {threads} threads, torch {torch}".format(**report["machine"])


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"
