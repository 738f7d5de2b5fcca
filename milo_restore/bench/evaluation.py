"""Measuring images: ``milo-restore evaluate`` against pyiqa's own command line; the cost of a pixel by image size."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from milo_restore.bench.losses import BenchSettings
from milo_restore.bench.timing import interleaved, machine, machine_line, ratio, threads
from milo_restore.data import evaluation_input, held_out_photographs, load_collection, to_uint8, write_png
from milo_restore.errors import ConfigError, MiloRestoreError
from milo_restore.measure.metrics import Batch, load_metric

SIGMA = 25.0
DATA = "CBSD68"
THEIRS = {"psnr": "psnr", "ssim": "ssimc"}
"""The metrics that both have, and their names in pyiqa: PSNR and SSIM of RGB."""
OURS = {"PSNR + SSIM": ("psnr", "ssim"), "PSNR + SSIM + MILO": ("psnr", "ssim", "milo")}
PYIQA = "pyiqa: PSNR + SSIM"
MEGAPIXELS = (0.1, 1.0, 10.0, 100.0)
LARGE = 5.0
"""Megapixels from which on an image is measured once only."""
_QUICK = (2, 48)  # images and their sides
_QUICK_MEGAPIXELS = (0.01, 0.02)


def run_evaluation_bench(settings: BenchSettings, program: Sequence[str]) -> dict[str, Any]:
    """Time whole commands: start of the process, imports, hashing, measuring, writing.

    The images are CBSD68 with noise of sigma 25, written as PNG. Each of our commands gets an empty cache; pyiqa's has
    none. Both may use ``threads`` threads. Commands take turns, so a busy machine slows all of them.

    Args:
        settings: ``threads``, ``repeats``, ``weights`` of MILO, ``device``; ``quick`` takes two small photographs.
        program: the words that start ``milo-restore``.

    Returns:
        ``machine``, ``images``, ``rounds`` and ``commands``, one row each: ``name``, ``seconds``, ``faster``, how many
        times as fast as pyiqa's command; ``sizes``, see `cost_of_sizes`. JSON can hold it.

    Raises:
        ConfigError: pyiqa is not installed.
        DataError: CBSD68 is not there.
        MiloRestoreError: a command failed; what it said last is told.
    """
    script = Path(sysconfig.get_path("scripts")) / "pyiqa"
    if importlib.util.find_spec("pyiqa") is None or not script.is_file():
        raise ConfigError("pyiqa is not installed", where="--evaluation", mend="pip install 'milo-restore[eval]'")
    images = _photographs() if settings.quick else load_collection(DATA)
    with tempfile.TemporaryDirectory(prefix="milo-restore-bench-") as temporary:
        folder = Path(temporary)
        for name, clean in images:
            file = f"{Path(name).stem}.png"
            write_png(folder / "ref" / file, clean)
            write_png(folder / "pred" / file, to_uint8(evaluation_input(clean, SIGMA)))
        places = [str(folder / "pred"), str(folder / "ref")]
        device = settings.device
        contenders: dict[str, Callable[[], Any]] = {
            PYIQA: partial(
                _run, [str(script), *THEIRS.values(), "-t", places[0], "-r", places[1], "--device", device], settings
            )
        }
        for name, metrics in OURS.items():
            contenders[name] = partial(_ours, program, folder, metrics, settings)
        times = interleaved(contenders, settings.repeats, torch.device("cpu"), "evaluation")
    rows = [
        {"name": name, "seconds": median(seconds), "faster": ratio(times[PYIQA], seconds)}
        for name, seconds in times.items()
    ]
    return {
        "machine": machine(settings.threads, torch.device(device)),
        "images": f"{len(images)} of {'photographs of scikit-image' if settings.quick else DATA}",
        "rounds": settings.repeats,
        "commands": rows,
        "sizes": cost_of_sizes(images[0][1], settings),
    }


def cost_of_sizes(photograph: NDArray[np.uint8], settings: BenchSettings) -> list[dict[str, float]]:
    """Time PSNR, SSIM and MILO on images in memory: the photograph, repeated to each size of 4:3, with noise.

    Args:
        photograph: (H, W, 3) uint8.
        settings: as of `run_evaluation_bench`.

    Returns:
        One row for each of `MEGAPIXELS`: ``megapixels``, and per metric nanoseconds per pixel, the median of the
        rounds; from `LARGE` on there is one round. On a CPU they are the process's own time on all threads, which
        other programs do not lengthen as they do the clock's. Decoding is not counted.

    Raises:
        MiloRestoreError: MILO's weights cannot be had.
    """
    rows = []
    clock = time.process_time if torch.device(settings.device).type == "cpu" else time.perf_counter
    with threads(settings.threads):
        metrics = {
            name: load_metric(name, device=settings.device) for name in ("psnr", "ssim", f"milo:{settings.weights}")
        }
        for metric in metrics.values():  # what comes with the first call, such as imports
            metric.measure(Batch([photograph], [photograph], settings.device))
        for megapixels in _QUICK_MEGAPIXELS if settings.quick else MEGAPIXELS:
            height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
            image, clean = _large_pair(photograph, height, round(height * 4 / 3))
            row = {"megapixels": megapixels}
            for name, metric in metrics.items():
                times = []
                for _ in range(1 if megapixels >= LARGE else settings.repeats):
                    start = clock()
                    metric.measure(Batch([image], [clean], settings.device))  # numbers, so that a GPU is done, too
                    times.append(clock() - start)
                row[name.partition(":")[0]] = 1e9 * median(times) / (clean.size / 3)
            rows.append(row)
    return rows


def format_evaluation_report(report: dict[str, Any]) -> str:
    """The report of `run_evaluation_bench` as text for a terminal."""
    lines = [
        f"{report['images']}, noise of sigma {SIGMA:g}; {machine_line(report)}; "
        f"medians of {report['rounds']} interleaved rounds of whole commands with cold caches",
        f"{'command':24}{'seconds':>10}{'against pyiqa':>16}",
    ]
    lines += [f"{row['name']:24}{row['seconds']:10.1f}{row['faster']:14.2f} x" for row in report["commands"]]
    names = list(report["sizes"][0])[1:]
    lines += ["", f"{'one image, in memory':24}" + "".join(f"{f'{name}, ns/pixel':>16}" for name in names)]
    lines += [
        f"{row['megapixels']:9g} megapixels    " + "".join(f"{row[name]:16.0f}" for name in names)
        for row in report["sizes"]
    ]
    return "\n".join(lines)


def _large_pair(photograph: NDArray[np.uint8], height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The noisy image and the photograph, repeated; some rows at once, so that no float array is as large as they."""
    repeats = [-(-wanted // side) for wanted, side in zip((height, width), photograph.shape)]
    clean = np.tile(photograph, (*repeats, 1))[:height, :width]
    noisy = np.empty_like(clean)
    generator = np.random.default_rng(0)
    for row in range(height):
        noise = generator.normal(0, SIGMA, clean[row].shape)
        noisy[row] = np.clip(np.round(clean[row] + noise), 0, 255)
    return noisy, clean


def _photographs() -> list[tuple[str, NDArray[np.uint8]]]:
    count, side = _QUICK
    return [(name, image[:side, :side].copy()) for name, image in held_out_photographs()[:count]]


def _ours(program: Sequence[str], folder: Path, metrics: Sequence[str], settings: BenchSettings) -> None:
    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    names = [f"milo:{settings.weights}" if name == "milo" else name for name in metrics]
    words = ["evaluate", "--pred", str(folder / "pred"), "--ref", str(folder / "ref"), "--metrics", *names]
    words += ["--cache", str(cache), "--device", settings.device, "--output", str(folder / "results.json")]
    _run([*program, *words], settings)


def _run(words: Sequence[str], settings: BenchSettings) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": str(settings.threads)}
    done = subprocess.run(words, check=False, env=environment, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise MiloRestoreError(f"ended with exit code {done.returncode} and said: {said}", where=" ".join(words[:3]))
