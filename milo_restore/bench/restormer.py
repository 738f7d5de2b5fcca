"""A step of a reduced Restormer: compiled, in channels-last layout, and in the recipe against BasicSR's program."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from milo_restore.bench.timing import interleaved, ratio
from milo_restore.data import NoisyPatches, training_photographs, write_png
from milo_restore.loss import LossSettings, build_loss
from milo_restore.models import Restormer
from milo_restore.train import Stage, TrainSettings, fit

# The network, patches and batch of recipes/configs/restormer_bsd400_lite.yaml
NETWORK: dict[str, Any] = {
    "dim": 16, "num_blocks": (1, 1, 1, 2), "num_refinement_blocks": 1, "heads": (1, 2, 4, 8),
    "ffn_expansion_factor": 2.0,
}  # fmt: skip
PATCH, BATCH, SIGMA = 64, 8, 25
STEPS = 8  # by which the two lengths of a run differ
PLAIN, CHANNELS_LAST, COMPILED = "plain", "channels_last", "compile"


def measure_settings(rounds: int, device: torch.device, *, quick: bool) -> dict[str, dict[str, float]]:
    """A step (forward, L1, backward, AdamW) of one network, as it is and under each setting that shall speed it up.

    Args:
        rounds: timed ones.
        device: where.
        quick: small crops, and no compiled one, which takes a minute to compile.

    Returns:
        By setting: ``ms``, and ``vs_plain``, how many times as long as without (below 1 is faster).
    """
    torch.manual_seed(0)
    plain = Restormer(**NETWORK).to(device).train()
    networks: dict[str, nn.Module] = {PLAIN: plain, CHANNELS_LAST: deepcopy(plain)}
    networks[CHANNELS_LAST].to(memory_format=torch.channels_last)
    if not quick:
        networks[COMPILED] = torch.compile(deepcopy(plain))  # type: ignore[assignment]
    batch, patch = _sizes(quick)
    image, target = (torch.rand(batch, 3, patch, patch).to(device) for _ in range(2))

    def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        (network(image) - target).abs().mean().backward()
        optimizer.step()

    steps: dict[str, Callable[[], Any]] = {
        name: partial(step, network, torch.optim.AdamW(network.parameters(), lr=1e-4))
        for name, network in networks.items()
    }
    interleaved(steps, 1, device, "Restormer, warm-up")
    times = interleaved(steps, rounds, device, "Restormer")
    return {name: {"ms": 1e3 * median(t), "vs_plain": ratio(t, times[PLAIN])} for name, t in times.items()}


def measure_programs(rounds: int, weights: str, device: torch.device, *, quick: bool) -> dict[str, float]:
    """A step of the whole recipe, from crops and noise to AdamW, and one of BasicSR's own program.

    The same network, images, crops, noise level, clipping, optimiser and loss (MILO, linear, constant mask). Each runs
    to two lengths, so that what a program does once cancels out. Both take the GPU where there is one.

    Returns:
        ``recipe_ms`` and ``basicsr_ms`` of a step, and ``ratio``, the first over the second.

    Raises:
        WeightsError: MILO's weights cannot be had.
    """
    steps, sizes = 2 if quick else STEPS, _sizes(quick)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = training_photographs()
        for file, image in images:
            write_png(folder / "images" / f"{Path(file).stem}.png", image)
        runs: dict[str, Callable[[], Any]] = {}
        for length, count in (("short", 1), ("long", 1 + steps)):
            runs[f"recipe {length}"] = partial(_recipe, images, weights, count, sizes, folder)
            runs[f"basicsr {length}"] = partial(_basicsr, weights, count, sizes, folder)
        times = interleaved(runs, rounds, device, "recipe and BasicSR")
    per_step = {
        program: [long - short for long, short in zip(times[f"{program} long"], times[f"{program} short"])]
        for program in ("recipe", "basicsr")
    }
    found = {f"{program}_ms": 1e3 * median(taken) / steps for program, taken in per_step.items()}
    return {**found, "ratio": ratio(per_step["recipe"], per_step["basicsr"])}


def _sizes(quick: bool) -> tuple[int, int]:
    return (2, 32) if quick else (BATCH, PATCH)


def _recipe(images: list[Any], weights: str, steps: int, sizes: tuple[int, int], folder: Path) -> None:
    """The training of recipes/restormer_denoise.py, up to the evaluation."""
    torch.manual_seed(0)
    settings = TrainSettings(
        stages=(Stage(steps, sizes[1], sizes[0]),), workers=0, trackers=(), log_every=10**6, checkpoint_every=10**6
    )
    loss = build_loss(LossSettings("milo", weights, "linear"), steps)
    loss.to("cuda" if torch.cuda.is_available() else "cpu")

    def step(model: nn.Module, batch: dict[str, Any], number: int) -> tuple[Tensor, dict[str, Tensor]]:
        return loss.terms(model(batch["input"]), batch["target"], step=number)

    with tempfile.TemporaryDirectory(dir=folder) as output, _quiet():
        fit(Restormer(**NETWORK), step, NoisyPatches(images, sigma=SIGMA, seed=0), settings, Path(output) / "run")


def _basicsr(weights: str, steps: int, sizes: tuple[int, int], folder: Path) -> None:
    """``milo-restore basicsr -opt`` of the same training."""
    from basicsr.utils.logger import initialized_logger

    from milo_restore.basicsr.launch import run
    from milo_restore.basicsr.options import add_options

    parser = argparse.ArgumentParser()
    add_options(parser)
    logger = logging.getLogger("basicsr")
    kept = set(logger.handlers)
    before, benchmark = Path.cwd(), torch.backends.cudnn.benchmark
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name) / "bench.yml"
        path.write_text(yaml.safe_dump(_options(weights, steps, sizes, folder / "images")), encoding="utf-8")
        os.chdir(name)
        try:
            with _quiet():
                run(parser.parse_args(["-opt", str(path), "--launcher", "none", "--no-image-check"]))
        finally:
            for handler in set(logger.handlers) - kept:  # of a run that has ended, in a folder that goes
                logger.removeHandler(handler)
                handler.close()
            initialized_logger.clear()
            os.chdir(before)
            torch.backends.cudnn.benchmark = benchmark


def _options(weights: str, steps: int, sizes: tuple[int, int], images: Path) -> dict[str, Any]:
    """BasicSR's, with the recipe's optimiser, clipping and loss. An epoch is long enough for any of its lengths."""
    train = {
        "name": "bench", "type": "Dataset_GaussianDenoising", "dataroot_gt": str(images), "gt_size": sizes[1],
        "sigma_type": "constant", "sigma_range": SIGMA, "geometric_augs": True, "check_images": False,
        "use_shuffle": True, "num_worker_per_gpu": 0, "batch_size_per_gpu": sizes[0], "dataset_enlarge_ratio": 100,
        "prefetch_mode": None, "io_backend": {"type": "disk"},
    }  # fmt: skip
    return {
        "name": "bench", "model_type": "ImageCleanModel", "scale": 1, "num_gpu": int(torch.cuda.is_available()),
        "manual_seed": 0, "datasets": {"train": train},
        "network_g": {"type": "Restormer", **{k: list(v) if isinstance(v, tuple) else v for k, v in NETWORK.items()}},
        "path": {"pretrain_network_g": None, "strict_load_g": True, "resume_state": None},
        "train": {
            "total_iter": steps, "warmup_iter": -1, "use_grad_clip": True, "grad_clip_norm": 0.01,
            "optim_g": {"type": "AdamW", "lr": 3e-4, "weight_decay": 1e-4, "betas": [0.9, 0.999]},
            "scheduler": {"type": "MultiStepLR", "milestones": [10**6], "gamma": 0.5},
            "pixel_opt": {"type": "MILOLoss", "weights": weights, "curriculum": "linear", "mask_gradient": False},
        },
        "logger": {"print_freq": 10**6, "save_checkpoint_freq": 10**6, "use_tb_logger": False},
        "dist_params": {"backend": "nccl", "port": 29500},
    }  # fmt: skip


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Neither program's log: not what is looked for here."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
