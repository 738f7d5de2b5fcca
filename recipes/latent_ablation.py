r"""Does a latent MILO loss restore better than MSE? An experiment in the tiny world that can come out either way.

    python recipes/latent_ablation.py --images BSDS500 --setting one-step        # then control-unet, control-base
    python recipes/latent_ablation.py --images BSDS500 --setting one-step --table   # what is finished, as Markdown

PROTOCOL, written before any of its cells was run. Before that, runs of 20 steps on 4 crops had been seen, after which
the anchors' factors were set by the rule below (0.1 had been planned), and the steps were halved to 400 for their cost.

World: the shipped tiny one (VAE, noise predictor, cleaner ``sr``); blind super-resolution, four times, degraded as in
configs/diffbir_sr_tiny.yaml. LatentMILO's weights are ``mini`` (the only ones for these latents); the table names
their sha256, for what they learn is what is tested. Training: 400 crops of BSDS500's train, encoded once; windows of
16x16 latent cells, batches of 8, AdamW at 1e-3, constant for half of the steps and then a cosine to 1e-5, no clipping
(it would weigh losses by their scale), equal steps for all arms of a setting.

Settings: ``one-step`` (condition latent to clean latent in one pass: z0_hat is the output, the mask is exact);
``control-unet`` and ``control-base`` (IRControlNet from a copy of the UNet with zero convolutions, and from the world's
own, trained with MSE; sampled in 20 steps). Arms: `ARMS`; the factor of an anchor is the one, rounded, at which both
gradients with respect to the prediction have the same norm before training. Seeds 0, 1, 2: of the windows, and of the
noise or the network; an arm's seed sees the windows, noise and network of MSE's same seed.

Measured: the 32 first images of BSDS500's test in the order of their names, centre crops of 192 pixels, decoded to 8
bits: PSNR, MILO with the official weights, and ST-LPIPS, which no loss knows. Last weights; nothing is selected.

Statistics: for each crop the difference arm - mse, averaged over the seeds; its mean over the crops with a 95 %
interval (paired; images are the sample; Student's t, and since the first runs wider where the differences are skewed,
see milo_restore.measure.intervals). Beside it the mean difference of each seed alone: an interval over crops says
nothing about another training run.

Decision, per setting: an arm WINS if the intervals of both MILO and ST-LPIPS lie below 0, every seed agrees in sign on
both, and PSNR loses at most 0.3 dB; it LOSES if both lie above 0 and every seed agrees; else NO DIFFERENCE is claimed.
Eight comparisons or fewer per setting, not corrected: a lone win by a hair is to be repeated with other seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from latent_one_step import SETTINGS, World

from milo_restore.errors import ConfigError, run_program
from milo_restore.loss import DiffusionLossSettings
from milo_restore.measure.intervals import Interval, paired_over_seeds
from milo_restore.measure.metrics.load import load_metric
from milo_restore.measure.metrics.metric import Batch, Metric
from milo_restore.train import Stage, TrainSettings, fit

METRICS = ("milo", "st-lpips", "psnr")
REFERENCE = "mse"
PATCH, BATCH, TRAIN_CROPS, HELD_OUT, SIDE, SEEDS = 128, 8, 400, 32, 192, (0, 1, 2)
EVERY = 50  # steps between logged cosines
MOST_LOST = 0.3  # dB of PSNR that a winner may lose

Loss = DiffusionLossSettings
ONE_STEP = {
    "mse": Loss(kind="mse"),
    "mae": Loss(kind="mae"),
    "milo": Loss(weights="mini", power=1),  # LatentMILO itself over 4, the mask a constant
    "through": Loss(weights="mini", power=1, mask_gradient=True),
    "anchor": Loss(weights="mini", anchor=7),
    "anchor-through": Loss(weights="mini", anchor=1.2, mask_gradient=True),
}
CONTROL = {
    "mse": Loss(kind="mse"),
    "milo": Loss(weights="mini", curriculum="linear", normalize=True),  # as the configurations have it
    "z0": Loss(weights="mini", residual="z0", normalize=True),
    "condition": Loss(weights="mini", mask_pair="condition", normalize=True),
    "contrast2": Loss(weights="mini", contrast=2, normalize=True),
    "contrast4": Loss(weights="mini", contrast=4, normalize=True),
    "anchor": Loss(weights="mini", anchor=10),
    "through": Loss(weights="mini", mask_gradient=True),
}
ARMS = {"one-step": ONE_STEP, "control-unet": CONTROL, "control-base": CONTROL}


def protocol(arguments: argparse.Namespace, world: World, metrics: Sequence[Metric]) -> dict[str, Any]:
    """All that a cell's numbers depend on beside its arm and seed."""
    loss = SETTINGS[arguments.setting].loss(Loss(weights="mini"), 1)
    return {
        "steps": arguments.steps, "patch": PATCH, "batch": BATCH, "train_crops": arguments.train_crops,
        "held_out": len(world.pairs), "side": arguments.side, "images": world.images,
        "latent_milo": str(loss.weights), "world": world.frozen.sha256(),
        "metrics": {metric.name: metric.identity() for metric in metrics},
    }  # fmt: skip


def measure(world: World, images: Sequence[Any], metrics: Sequence[Metric]) -> dict[str, list[float]]:
    """Each metric of each crop."""
    batches = [Batch([image], [pair.target]) for image, pair in zip(images, world.pairs)]
    return {metric.name: [metric.measure(batch)[0] for batch in batches] for metric in metrics}


def cell(arguments: argparse.Namespace, world: World, arm: str, seed: int, metrics: Sequence[Metric]) -> dict[str, Any]:
    """Train one arm with one seed, restore the held-out crops, measure."""
    setting, settings, steps = SETTINGS[arguments.setting], ARMS[arguments.setting][arm], arguments.steps
    torch.manual_seed(seed)
    model = setting.build(world)
    loss = setting.loss(settings, steps)
    training = TrainSettings(
        seed=seed, stages=(Stage(steps=steps, patch=PATCH, batch=BATCH),), workers=0, learning_rate=1e-3,
        final_learning_rate=1e-5, constant_steps=steps // 2, weight_decay=1e-4, clip_norm=None, log_every=EVERY,
        checkpoint_every=steps, trackers=(),
    )  # fmt: skip
    folder = arguments.output / "cells" / f"{arguments.setting}-{arm}-{seed}"
    began = time.process_time()
    result = fit(model, setting.step(world, loss, EVERY, seed), world.windows(seed), training, folder, resume="latest")
    if not result.finished:
        raise ConfigError("stopped; the same command goes on", where=folder)
    trained = time.process_time()
    values = measure(world, setting.restore(world, model), metrics)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = {"train": round(trained - began, 1), "measure": round(time.process_time() - trained, 1)}
    cosines = [round(line["cosine_mse"], 4) for line in lines if "cosine_mse" in line]
    return {"label": loss.label, "values": values, "cosine_mse": cosines, "cpu_seconds": seconds}


def finished(file: Path, setting: str, about: dict[str, Any] | None) -> dict[tuple[str, int], dict[str, Any]]:
    """The setting's cells in the results file, by arm and seed.

    Raises:
        ConfigError: a line comes from another protocol than ``about``.
    """
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    found = [line for line in map(json.loads, lines) if line["setting"] == setting]
    about = {} if about is None else json.loads(json.dumps(about))  # as it was written
    for line in found:
        different = [key for key in about if line["protocol"].get(key) != about[key]]
        settings = ARMS[setting].get(line["arm"])
        if about and settings is not None and settings.label != line["label"]:
            different.append(f"the arm {line['arm']}")
        if different:
            mend = "Name another --output, or give what it was begun with"
            raise ConfigError(f"holds cells of another protocol: {', '.join(different)}", where=file, mend=mend)
    return {(line["arm"], line["seed"]): line for line in found}


def run(arguments: argparse.Namespace) -> None:
    """Every cell that is not finished, seed by seed, so that an early end leaves whole comparisons."""
    cache = arguments.output / "latents"
    world = World.load(arguments.images, arguments.train_crops, arguments.side, arguments.held_out, cache)
    metrics = [load_metric(name) for name in METRICS]
    about, file = protocol(arguments, world, metrics), arguments.output / "results.jsonl"
    done = finished(file, arguments.setting, about)

    def keep(arm: str, seed: int, found: dict[str, Any]) -> None:
        line = {"setting": arguments.setting, "arm": arm, "seed": seed, **found, "protocol": about}
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    if ("(start)", -1) not in done:
        torch.manual_seed(0)
        start = SETTINGS[arguments.setting].restore(world, SETTINGS[arguments.setting].build(world))
        keep("(start)", -1, {"values": measure(world, start, metrics)})
        ceiling = world.decode(world.latents["mean"])
        keep("(autoencoder)", -1, {"values": measure(world, ceiling, metrics)})
    for seed in arguments.seeds:
        for arm in arguments.arms:
            if (arm, seed) not in done:
                keep(arm, seed, cell(arguments, world, arm, seed, metrics))


def compare(cells: dict[tuple[str, int], dict[str, Any]], arm: str, metric: str) -> tuple[Interval, list[float]]:
    """The arm against MSE, over the seeds that both have: the mean over crops, and each seed's mean."""
    seeds = [seed for name, seed in cells if name == arm and (REFERENCE, seed) in cells]
    mine, theirs = ([cells[name, seed]["values"][metric] for seed in seeds] for name in (arm, REFERENCE))
    return paired_over_seeds(mine, theirs)


def verdict(found: dict[str, tuple[Interval, list[float]]]) -> str:
    """The protocol's decision; without intervals there is none."""
    perceptual = [(interval.ends, seeds) for interval, seeds in (found[metric] for metric in ("milo", "st-lpips"))]
    known = [(ends, seeds) for ends, seeds in perceptual if ends is not None]
    if len(known) == len(perceptual):
        kept = np.mean(found["psnr"][1]) >= -MOST_LOST
        if kept and all(high < 0 and max(seeds) < 0 for (_, high), seeds in known):
            return "wins"
        if all(low > 0 and min(seeds) > 0 for (low, _), seeds in known):
            return "loses"
    return "no difference"


def number_text(
    mine: Sequence[dict[str, Any]], metric: str, versus: tuple[Interval, list[float]] | None, spread: bool
) -> str:
    """An arm's mean of a metric, and what stands in brackets behind it: see `report`."""
    digits, by = {"milo": (3, 1e3), "st-lpips": (2, 1e2), "psnr": (3, 1.0)}[metric]
    seeds = [by * float(np.mean(line["values"][metric])) for line in mine]
    text = f"{np.mean(seeds):.{digits}f}"
    if versus is not None:
        interval, each = versus
        of_seeds = ", ".join(f"{by * value:+.{digits}f}" for value in each)
        text += f" ({by * np.mean(each):+.{digits}f} {interval.text(f'+.{digits}f', by)}; {of_seeds})"
    elif spread and len(seeds) > 1:
        text += f" ({', '.join(f'{value:.{digits}f}' for value in seeds)}; SD {np.std(seeds, ddof=1):.{digits}f})"
    return text


def table(cells: dict[tuple[str, int], dict[str, Any]]) -> str:
    """Markdown: means, differences to MSE with interval and seeds, the verdict."""
    head = ("arm", "loss", "seeds", "cosine with MSE, first to last", "MILO", "ST-LPIPS", "PSNR", "verdict")
    lines = [head, ("---",) * len(head)]
    for arm in dict.fromkeys(arm for arm, _ in cells):
        mine = [line for (name, _), line in cells.items() if name == arm]
        trained, versus = "label" in mine[0], {}
        if trained and arm != REFERENCE and any((REFERENCE, seed) in cells for name, seed in cells if name == arm):
            versus = {metric: compare(cells, arm, metric) for metric in METRICS}
        cosines = np.mean([line["cosine_mse"] for line in mine], 0) if mine[0].get("cosine_mse") else []
        cosine = f"{cosines[0]:.3f} to {cosines[-1]:.3f}" if len(cosines) else "-"
        numbers = [number_text(mine, metric, versus.get(metric), trained) for metric in METRICS]
        lines.append((arm, mine[0].get("label", "-"), str(len(mine)) if trained else "-", cosine, *numbers,
                      verdict(versus) if versus else "-"))  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(arguments: argparse.Namespace) -> None:
    """Print what is finished.

    Raises:
        ConfigError: nothing is.
    """
    cells = finished(arguments.output / "results.jsonl", arguments.setting, None)
    if not cells:
        raise ConfigError("holds no finished cell of this setting", where=arguments.output / "results.jsonl")
    about = next(iter(cells.values()))["protocol"]
    print(f"{arguments.setting}: {about['steps']} steps, {about['held_out']} held-out crops of {about['side']} pixels.")
    print("MILO (official) x 1000 and ST-LPIPS x 100, lower is better; PSNR in dB. In brackets arm - mse with its 95 %")
    print("interval over crops, then each seed's; for mse each seed's mean and their standard deviation.")
    print(f"LatentMILO in training: {about['latent_milo']}.\n")
    print(table(cells))


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=sorted(SETTINGS), required=True)
    parser.add_argument("--images", type=Path, help="BSDS500's folder, with train and test below it")
    parser.add_argument("--output", type=Path, default=Path("runs/latent_ablation"), help="(default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="train nothing: print what is finished")
    parser.add_argument("--arms", nargs="+", help="some of the setting's; mse is what all are compared with")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--steps", type=int, help="(default: the setting's)")
    parser.add_argument("--train-crops", type=int, default=TRAIN_CROPS)
    parser.add_argument("--held-out", type=int, default=HELD_OUT)
    parser.add_argument("--side", type=int, default=SIDE, help="of the held-out crops, in pixels")
    arguments = parser.parse_args(argv)
    arguments.steps = arguments.steps or SETTINGS[arguments.setting].steps
    arguments.arms = arguments.arms or list(ARMS[arguments.setting])

    def act() -> None:
        if unknown := [arm for arm in arguments.arms if arm not in ARMS[arguments.setting]]:
            mend = f"Take of {', '.join(ARMS[arguments.setting])}"
            raise ConfigError(f"{arguments.setting} has no arm {', '.join(unknown)}", where="--arms", mend=mend)
        if not arguments.table:
            if arguments.images is None:
                raise ConfigError("is missing", where="--images", mend="Give BSDS500's folder")
            run(arguments)
        report(arguments)

    return run_program(parser.prog, act)


if __name__ == "__main__":
    sys.exit(main())
