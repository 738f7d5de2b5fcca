"""Cost of training: the data of two workers against MILO's own step, the loop's overhead, and a step of Restormer."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from milo_restore.bench.losses import BenchSettings
from milo_restore.bench.restormer import BATCH as CROPS
from milo_restore.bench.restormer import COMPILED, measure_programs, measure_settings
from milo_restore.bench.restormer import PATCH as SIDE
from milo_restore.bench.timing import interleaved, machine, machine_line, ratio
from milo_restore.data import SampleKey, training_photographs
from milo_restore.metric import MILO
from milo_restore.processes import choose_device
from milo_restore.teach.pairs import DistortedPairs
from milo_restore.teach.student import MOSTraining, Taught
from milo_restore.train import Stage, TrainSettings, fit

WORKERS = 2
SQUARE, PATCH, BATCH = 192, 48, 8  # of recipes/configs/milo_tiny.yaml
STEPS = 10


class _Again:
    """One batch's samples, again and again: what is left of a step is the loop."""

    def __init__(self, samples: list[dict[str, Any]]) -> None:
        self.samples = samples

    def __getitem__(self, key: tuple[int, int, int, int]) -> dict[str, Any]:
        return self.samples[key[1] % len(self.samples)]


def run_training_bench(settings: BenchSettings) -> dict[str, Any]:
    """Measure MILO's own training with the sizes of its tiny recipe, and Restormer's with those of the lite one.

    Returns:
        ``machine``; ``synthesis_per_s`` and ``training_per_s``, images a second that `WORKERS` loading processes make
        and that the training takes, and ``supply``, the first over the second; ``step_ms`` of the training loop and
        ``bare_ms`` of forward and backward alone, and ``overhead``, the first over the second; ``settings`` and
        ``programs``, see `milo_restore.bench.restormer`.

    Raises:
        ConfigError: no such device.
        WeightsError: MILO's weights cannot be had.
    """
    torch.set_num_threads(settings.threads)
    device = choose_device(settings.device)
    pairs = DistortedPairs(training_photographs(), square=SQUARE, seed=1)
    torch.manual_seed(0)
    model = MOSTraining(MILO.untrained(), MILO.from_pretrained(settings.weights)).to(device)
    samples = [pairs[SampleKey(1, index, index, PATCH)] for index in range(BATCH)]
    batch = {key: torch.stack([sample[key] for sample in samples]).to(device) for key in ("image", "reference")}

    def bare() -> None:
        for _ in range(STEPS):
            _loss(model, batch, 0).backward()
            model.zero_grad()

    def loop(steps: int) -> None:
        run = TrainSettings(
            stages=(Stage(steps, PATCH, BATCH),), workers=0, trackers=(), log_every=10**6, checkpoint_every=10**6
        )
        with tempfile.TemporaryDirectory() as folder:
            fit(model, _loss, _Again(samples), run, Path(folder) / "run")

    # Of two lengths, so that starting, the last checkpoint and the final weights cancel out.
    contenders = {"bare": bare, "short": lambda: loop(STEPS), "long": lambda: loop(2 * STEPS)}
    times = interleaved(contenders, settings.repeats, device, "training step")
    steps = [long - short for long, short in zip(times["long"], times["short"])]
    supply = _synthesis(pairs, 2 if settings.quick else 40)
    taken = BATCH * STEPS / median(steps)
    return {
        "machine": machine(settings.threads, device),
        "synthesis_per_s": supply,
        "training_per_s": taken,
        "supply": supply / taken,
        "step_ms": 1e3 * median(steps) / STEPS,
        "bare_ms": 1e3 * median(times["bare"]) / STEPS,
        "overhead": ratio(steps, times["bare"]),
        "settings": measure_settings(settings.repeats, device, quick=settings.quick),
        "programs": measure_programs(settings.repeats, settings.weights, device, quick=settings.quick),
    }


def _loss(model: torch.nn.Module, batch: dict[str, Tensor], number: int) -> Tensor:
    said = model(batch["image"], batch["reference"])
    taught: Taught = said.taught
    return F.mse_loss(said.mos, taught.mos) + taught.divergence


def _synthesis(pairs: DistortedPairs, batches: int) -> float:
    """Images a second from `WORKERS` loading processes, once they run."""
    keys = [[(step, index, step * BATCH + index, PATCH) for index in range(BATCH)] for step in range(batches + 8)]
    loader: DataLoader[dict[str, Any]] = DataLoader(pairs, batch_sampler=keys, num_workers=WORKERS)
    given: Iterator[dict[str, Any]] = iter(loader)
    for _ in itertools.islice(given, 8):
        pass
    start = time.perf_counter()
    count = sum(len(batch["name"]) for batch in given)
    return count / (time.perf_counter() - start)


def format_training_report(report: dict[str, Any]) -> str:
    """The report for a terminal."""
    programs = report["programs"]
    steps = [
        f"Restormer's step, {name:13s}{row['ms']:8.1f} ms         ratio {row['vs_plain']:.2f}"
        for name, row in report["settings"].items()
    ]
    missing = [] if COMPILED in report["settings"] else [f"{COMPILED} is left out: it takes a minute to compile."]
    return "\n".join(
        (
            machine_line(report),
            f"distortions made by {WORKERS} workers   {report['synthesis_per_s']:8.1f} images/s",
            f"the tiny training takes        {report['training_per_s']:8.1f} images/s   ratio {report['supply']:.2f}",
            f"a step of the training loop    {report['step_ms']:8.1f} ms",
            f"forward and backward alone     {report['bare_ms']:8.1f} ms         ratio {report['overhead']:.2f}",
            f"Restormer (lite), {CROPS} crops of {SIDE} px, as it is and with training.channels_last, training.compile",
            *steps,
            *missing,
            f"a step of the whole recipe     {programs['recipe_ms']:8.1f} ms",
            f"the same in BasicSR's program  {programs['basicsr_ms']:8.1f} ms         ratio {programs['ratio']:.2f}",
        )
    )
