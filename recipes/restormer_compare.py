"""Put finished runs of restormer_denoise.py side by side: a table of their scores and a picture of one image.

    python recipes/restormer_compare.py runs/mae runs/milo runs/milo-cosine --picture compare.png

The scores are those that each run measured at its end; all must have been given the same data, noise and metric.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from restormer_denoise import Config

from milo_restore import MILO, Restormer
from milo_restore.config import load_config
from milo_restore.data import evaluation_input, load_collection, to_tensor, to_uint8, write_png
from milo_restore.errors import ConfigError, WeightsError, run_program
from milo_restore.evaluate import comparison_grid, denoise, heat_map

HEAD = f"{'loss':32}{'data':22}{'sigma':>6}{'PSNR (dB)':>11}{'SSIM':>8}{'MILO':>9}"


def load_run(folder: Path) -> tuple[Config, Restormer, list[dict[str, Any]]]:
    """A run's configuration, its final network and the results in its metrics.json, one per data set and sigma.

    Raises:
        WeightsError: the run has not finished.
    """
    config = load_config(Config, folder / "config.yaml")
    weights, metrics = folder / "final" / "model.safetensors", folder / "metrics.json"
    for file in (weights, metrics):
        if not file.is_file():
            raise WeightsError("the run has not finished", where=file, mend="Finish it with --resume latest")
    results = json.loads(metrics.read_text(encoding="utf-8"))["results"]
    return config, Restormer.from_checkpoint(weights).eval(), results


def picture(runs: list[tuple[Config, Restormer]], arguments: argparse.Namespace) -> np.ndarray:
    """One 192-pixel crop: noisy | every run's output | target | MILO's mask of the last output."""
    config = runs[0][0]
    milo = MILO.from_pretrained(config.metric_weights)
    clean = load_collection(arguments.data or config.data.test[0], config.data.root)[arguments.image][1]
    noisy = evaluation_input(clean, config.data.test_sigmas[0])
    outputs = {run.loss.label.upper(): denoise(model, noisy) for run, model in runs}
    with torch.no_grad():
        last = list(outputs.values())[-1]
        mask = milo.mask(to_tensor(last)[None], reference=to_tensor(clean)[None])[0, 0]
    columns = {"noisy": to_uint8(noisy), **outputs, "target": clean, "MILO mask": heat_map(mask, 1.0)}
    top, left = arguments.crop
    return comparison_grid({title: [image[top : top + 192, left : left + 192]] for title, image in columns.items()})


def scores(means: dict[str, float], of: str = "") -> str:
    return f"{means[f'{of}psnr']:11.2f}{means[f'{of}ssim']:8.4f}{means[f'{of}milo']:9.5f}"


def compare(arguments: argparse.Namespace) -> None:
    """Print the table, write the picture."""
    runs = [load_run(folder) for folder in arguments.runs]
    first, _, measured = runs[0]
    for folder, (config, _, results) in zip(arguments.runs, runs):
        same = {"data": config.data == first.data}
        same["MILO weights"] = results[0]["milo_weights"] == measured[0]["milo_weights"]  # auto may choose others
        for what in (name for name, equal in same.items() if not equal):
            raise ConfigError(f"{what} differ from the first run's", where=folder, mend="Compare like with like")
    print(f"measured with MILO {measured[0]['milo_weights']}\n{HEAD}")
    for rows in zip(*(results for _, _, results in runs)):
        place = f"{rows[0]['data']:22}{rows[0]['sigma']:6g}"
        for (config, _, _), row in zip(runs, rows):
            print(f"{config.loss.label:32}{place}{scores(row['means'])}")
        print(f"{'noisy input':32}{place}{scores(rows[0]['means'], 'input_')}")
    if arguments.picture:
        write_png(arguments.picture, picture([run[:2] for run in runs], arguments))


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of restormer_denoise.py")
    parser.add_argument("--picture", type=Path, help="PNG to write")
    parser.add_argument("--data", help="the picture's data set (default: the first test set)")
    parser.add_argument("--image", type=int, default=0, help="its number in that set (default: 0)")
    parser.add_argument("--crop", type=int, nargs=2, default=(64, 64), metavar=("TOP", "LEFT"))
    return run_program(parser.prog, lambda: compare(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
