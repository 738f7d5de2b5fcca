r"""Does a latent MILO restore better than MSE? An experiment in FLUX.2's latents that can come out either way.

    python recipes/latent_ablation.py --output runs/latent            # both tasks; a stopped one goes on
    python recipes/latent_ablation.py --output runs/latent --table    # what is finished, as Markdown

PROTOCOL, written before any of its cells was run with the shipped weights. Before that, single runs with MSE and with
an early export of the weights had been seen, by which the steps and the anchor's factor were set.

Every arm trains configs/latent_restore.yaml with its own loss, for the same steps, from the same start, on the same
windows. Tasks: white noise of sigma 25, and four times super-resolution. Seeds 1 and 2: of the windows and of the
network's start. Measured after the last step: 32 photographs of CBSD68, centre squares of 256 pixels, decoded to 8
bits: PSNR, SSIM, MILO with the official weights, and ST-LPIPS, which no loss here knows. The anchor's factor is the
one, rounded, at which the gradients of L1 and of LatentMILO with respect to the latents have the same norm: at sigma
25 it is 98 before training, and 222 after 400 steps with MSE. LatentMILO alone has the same factor, for Adam's epsilon.

Statistics: for each photograph the difference arm - mse, averaged over the seeds; its mean with a 95 % interval
(paired, photographs are the sample), and beside it each seed's mean. An interval over photographs says nothing about
another training run.

Decision, per task: an arm WINS if the intervals of MILO and of ST-LPIPS both lie below 0, every seed agrees in sign on
both, and PSNR loses at most 0.3 dB; it LOSES if both lie above 0 and every seed agrees; else NO DIFFERENCE is claimed.
Six comparisons, not corrected.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from latent_restore import Config
from latent_restore import main as restoring
from latent_world import TITLES
from restormer_ablation import METRICS, MOST_LOST, UNKNOWN, Cells, against, finished, table

from milo_restore.config import dump_config, load_config
from milo_restore.errors import ConfigError, run_program
from milo_restore.train.command import RunArguments

REFERENCE = "mse"
ARMS = {
    "mse": "loss.kind=mse loss.loss_weight=1",
    "l1": "loss.kind=mae loss.loss_weight=1",
    "milo": "loss.kind=milo loss.loss_weight=200",  # the mask a constant, as by default
    "l1-milo": "loss.kind=milo loss.anchor=0.005 loss.loss_weight=200",  # L1 + 200 LatentMILO
}
BASE = Path(__file__).parent / "configs" / "latent_restore.yaml"


@dataclass(frozen=True)
class Experiment:
    """Losses that are compared on tasks.

    Attributes:
        config: the recipe's configuration.
        recipe: its main.
        base: its file.
        tasks: by name: the table's title, and what it changes in the configuration.
        fixed: changes of all cells.
    """

    config: type[Any]
    recipe: Callable[[Any, RunArguments], int]
    base: Path
    tasks: Mapping[str, tuple[str, str]]
    fixed: tuple[str, ...] = ()


LATENT = Experiment(Config, restoring, BASE, {task: (title, f"task={task}") for task, title in TITLES.items()})


def train(folder: Path, of: Experiment, task: str, arm: str, seed: int, changes: Sequence[str]) -> bool:
    """Train and measure one arm with one seed, or go on with it; whether it has come to its end.

    Raises:
        ConfigError: the folder holds a run with other settings.
    """
    words = [f"training.seed={seed}", f"metrics=[{', '.join(METRICS)}]", "training.trackers=[]", *of.fixed]
    config = load_config(of.config, of.base, [of.tasks[task][1], *words, *ARMS[arm].split(), *changes])
    if (folder / "run.json").is_file():
        if (folder / "config.yaml").read_text(encoding="utf-8") != dump_config(config):
            raise ConfigError("was trained with other settings", where=folder, mend="Name another --output")
        return True
    print(f"{task} {folder.name}:", flush=True)
    return of.recipe(config, RunArguments(folder, "latest", False)) == 0


def verdict(cells: Cells, arm: str) -> str:
    """The protocol's decision; without intervals there is none."""
    perceptual = [against(cells, arm, metric, REFERENCE) for metric in ("milo", UNKNOWN)]
    known = [(interval.ends, seeds) for interval, seeds in perceptual if interval.ends is not None]
    if len(known) == len(perceptual):
        kept = np.mean(against(cells, arm, "psnr", REFERENCE)[1]) >= -MOST_LOST
        if kept and all(high < 0 and max(seeds) < 0 for (_, high), seeds in known):
            return "wins"
        if all(low > 0 and min(seeds) > 0 for (low, _), seeds in known):
            return "loses"
    return "no difference"


def trained_with(output: Path) -> str:
    """LatentMILO's weights, as the finished runs name them; the same in all, as what they learn is what is tested.

    Raises:
        ConfigError: they differ.
    """
    records = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(output.glob("*/run.json"))]
    used = sorted({record["loss_weights"] for record in records} - {None})
    if len(used) > 1:
        raise ConfigError(f"holds runs with {' and '.join(used)}", where=output, mend="Name another --output")
    return "".join(used) or "none"


def report(output: Path, title: str) -> str:
    """A task's table and what is concluded from it."""
    cells = finished(output, ARMS)
    compared = [arm for arm in ARMS for name, seed in cells if name == arm and (REFERENCE, seed) in cells]
    said = {arm: verdict(cells, arm) for arm in compared if arm != REFERENCE}
    lines = [
        f"{output.name} ({title}). LatentMILO in training: {trained_with(output)}.",
        "",
        table(cells, REFERENCE),
        "",
    ]
    return "\n".join([*lines, *(f"{arm}: {word}" for arm, word in said.items())])


def run(of: Experiment, description: str, output: Path, argv: Sequence[str] | None = None) -> int:
    """The command line of an experiment; see `main`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=output, help="(default: %(default)s)")
    parser.add_argument("--tasks", nargs="+", choices=list(of.tasks), default=list(of.tasks))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY.SUB=VALUE", help="changes to the configuration")
    parser.add_argument("--table", action="store_true", help="train nothing: print what is finished")
    arguments = parser.parse_args(argv)

    def act() -> None:
        output = arguments.output
        for task in arguments.tasks:
            for seed in [] if arguments.table else arguments.seeds:  # an early end leaves whole comparisons
                for arm in arguments.arms:
                    if not train(output / task / f"{arm}-{seed}", of, task, arm, seed, arguments.set):
                        raise ConfigError("stopped; the same command goes on", where=output)
            print(f"{report(output / task, of.tasks[task][0])}\n", flush=True)

    return run_program(parser.prog, act)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line."""
    return run(LATENT, __doc__ or "", Path("runs/latent_ablation"), argv)


if __name__ == "__main__":
    sys.exit(main())
