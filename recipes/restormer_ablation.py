r"""Which loss should train a denoiser? MILO's curricula and anchors against MAE, on the reduced Restormer.

    python recipes/restormer_ablation.py --output runs/ablation            # hours; a stopped one goes on
    python recipes/restormer_ablation.py --output runs/ablation --table    # what is finished, as Markdown

Every arm trains configs/restormer_bsd400_lite.yaml with its own loss and is measured on that file's test sets: PSNR,
SSIM and MILO in 8 bits, and ST-LPIPS, which no loss here knows. The table gives the mean over all test images and seeds
and, in brackets, the arm's difference to MAE of the same seeds with its 95 % interval over images (paired,
an image's differences averaged over the seeds first). An interval over images says nothing about another training run:
behind it stands each seed's difference.

The rule, set beforehand: recommended is what lowers ST-LPIPS most among the arms that lose at most 0.3 dB.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from restormer_denoise import Config
from restormer_denoise import main as denoising

from milo_restore.config import load_config
from milo_restore.errors import ConfigError, run_program
from milo_restore.measure.intervals import Interval, paired_over_seeds
from milo_restore.measure.results import read_results
from milo_restore.train.command import RunArguments

REFERENCE = "mae"
ARMS = {
    "mae": "loss.kind=mae loss.curriculum=constant",
    "linear": "loss.curriculum=linear",
    "cosine": "loss.curriculum=cosine",
    "constant": "loss.curriculum=constant",
    "l1-10milo": "loss.curriculum=constant loss.anchor=0.1 loss.loss_weight=10",
    "l1-30milo": "loss.curriculum=constant loss.anchor=0.033333 loss.loss_weight=30",
    "linear-through": "loss.curriculum=linear loss.mask_gradient=true",
    "cosine-through": "loss.curriculum=cosine loss.mask_gradient=true",
    "constant-through": "loss.curriculum=constant loss.mask_gradient=true",
}
METRICS = {"psnr": (2, 1.0), "ssim": (4, 1.0), "milo": (3, 1e3), "st-lpips": (2, 1e2)}  # digits, times
UNKNOWN = "st-lpips"  # the metric that no loss knows
MOST_LOST = 0.3  # dB that the recommended arm may lose
LITE = Path(__file__).parent / "configs" / "restormer_bsd400_lite.yaml"

Cells = dict[tuple[str, int], dict[str, "np.ndarray[Any, Any]"]]


def train(folder: Path, arm: str, seed: int, changes: Sequence[str]) -> bool:
    """Train and measure one arm with one seed, or go on with it; whether it has come to its end."""
    measured = f"metrics=[{', '.join(METRICS)}]"
    config = load_config(Config, LITE, [f"training.seed={seed}", measured, *ARMS[arm].split(), *changes])
    if not (folder / "run.json").is_file():
        print(f"{folder.name}:", flush=True)
        if denoising(config, RunArguments(folder, "latest", False)):
            return False
    return True


def finished(output: Path, arms: Iterable[str] = ARMS) -> Cells:
    """Each metric of each test image, by arm and seed, of what is finished; the same images everywhere.

    Args:
        output: holds a run folder ARM-SEED for each.
        arms: which.

    Raises:
        ConfigError: nothing is, or the runs' test images differ.
    """
    cells: Cells = {}
    names: list[str] | None = None
    for arm in arms:
        for folder in sorted(output.glob(f"{arm}-[0-9]*")):
            if not (folder / "run.json").is_file():
                continue
            results = [read_results(file) for file in sorted(folder.glob("eval/*/restored/results.json"))]
            images = [image for result in results for image in result["images"]]
            if names is not None and [image["sha256"]["ref"] for image in images] != names:
                raise ConfigError("was measured on other images", where=folder, mend="Compare like with like")
            names = [image["sha256"]["ref"] for image in images]
            cells[arm, int(folder.name.rsplit("-", 1)[1])] = {
                metric: np.array([image["values"][metric] for image in images]) for metric in METRICS
            }
    if not cells:
        raise ConfigError("holds no finished arm", where=output)
    return cells


def against(cells: Cells, arm: str, metric: str, reference: str = REFERENCE) -> tuple[Interval, list[float]]:
    """An arm's differences to MAE over the seeds that both have: their mean over images, and each seed's mean."""
    seeds = [seed for name, seed in cells if name == arm and (reference, seed) in cells]
    mine, theirs = ([cells[name, seed][metric] for seed in seeds] for name in (arm, reference))
    return paired_over_seeds(mine, theirs)


def table(cells: Cells, reference: str = REFERENCE) -> str:
    """Markdown, an arm per row."""
    lines = [("loss", "seeds", *(name if by == 1 else f"{name} x {by:g}" for name, (_, by) in METRICS.items()))]
    lines.append(("---",) * len(lines[0]))
    for arm in dict.fromkeys(arm for arm, _ in cells):
        seeds = [seed for name, seed in cells if name == arm]
        row = [arm, ", ".join(map(str, seeds))]
        for metric, (digits, by) in METRICS.items():
            text = f"{by * float(np.mean([cells[arm, seed][metric] for seed in seeds])):.{digits}f}"
            if arm != reference and any((reference, seed) in cells for seed in seeds):
                found, each = against(cells, arm, metric, reference)
                middle, *of_seeds = (f"{by * value:+.{digits}f}" for value in (float(np.mean(each)), *each))
                more = f"; {', '.join(of_seeds)}" if len(each) > 1 else ""
                text += f" ({middle} {found.text(f'+.{digits}f', by)}{more})"
            row.append(text)
        lines.append(tuple(row))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def recommended(cells: Cells) -> str:
    """The arm that the rule names; MAE where none does better."""
    best, lowest = REFERENCE, 0.0
    for arm in dict.fromkeys(arm for arm, seed in cells if arm != REFERENCE and (REFERENCE, seed) in cells):
        gained, lost = (float(np.mean(against(cells, arm, metric)[1])) for metric in (UNKNOWN, "psnr"))
        if lost >= -MOST_LOST and gained < lowest:
            best, lowest = arm, gained
    return best


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"), help="(default: %(default)s)")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[100, 101])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY.SUB=VALUE", help="changes to the configuration")
    parser.add_argument("--table", action="store_true", help="train nothing: print what is finished")
    arguments = parser.parse_args(argv)

    def act() -> None:
        if not arguments.table:
            for seed in arguments.seeds:
                for arm in arguments.arms:
                    if not train(arguments.output / f"{arm}-{seed}", arm, seed, arguments.set):
                        raise ConfigError("stopped; the same command goes on", where=arguments.output)
        cells = finished(arguments.output)
        print(f"{table(cells)}\nrecommended by the rule: {recommended(cells)}")

    return run_program(parser.prog, act)


if __name__ == "__main__":
    sys.exit(main())
