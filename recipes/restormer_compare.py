"""Put finished runs of restormer_denoise.py side by side: a table of their scores and a picture of one image.

    python recipes/restormer_compare.py runs/mae runs/milo runs/milo-cosine --picture compare.png

Every run is scored with its final weights on its own test sets; all must name the same data, noise and metric.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from restormer_denoise import Config

from milo_restore import MILO, Restormer
from milo_restore.config import load_config
from milo_restore.data import evaluation_input, load_collection, to_tensor, to_uint8, write_png
from milo_restore.errors import ConfigError, MiloRestoreError, WeightsError
from milo_restore.evaluate import comparison_grid, denoise, evaluate_denoiser, heat_map

HEAD = f"{'loss':14}{'data':22}{'sigma':>6}{'PSNR (dB)':>11}{'SSIM':>8}{'MILO':>9}"


def load_run(folder: Path) -> tuple[Config, Restormer]:
    """A run's configuration and its final network.

    Raises:
        WeightsError: the run has not finished.
    """
    config = load_config(Config, folder / "config.yaml")
    weights = folder / "final" / "model.safetensors"
    if not weights.is_file():
        raise WeightsError("the run has no final weights", where=weights, mend="Finish it with --resume latest")
    return config, Restormer.from_checkpoint(weights).eval()


def picture(runs: list[tuple[Config, Restormer]], arguments: argparse.Namespace, milo: MILO) -> np.ndarray:
    """One 192-pixel crop: noisy | every run's output | target | MILO's mask of the last output."""
    config = runs[0][0]
    clean = load_collection(arguments.data or config.data.test[0], config.data.root)[arguments.image][1]
    noisy = evaluation_input(clean, config.data.test_sigmas[0])
    outputs = {run.loss.label.upper(): denoise(model, noisy) for run, model in runs}
    with torch.no_grad():
        last = list(outputs.values())[-1]
        mask = milo.mask(to_tensor(last)[None], reference=to_tensor(clean)[None])[0, 0]
    columns = {"noisy": to_uint8(noisy), **outputs, "target": clean, "MILO mask": heat_map(mask, 1.0)}
    top, left = arguments.crop
    return comparison_grid({title: [image[top : top + 192, left : left + 192]] for title, image in columns.items()})


def compare(arguments: argparse.Namespace) -> None:
    """Print the table, write the picture."""
    runs = [load_run(folder) for folder in arguments.runs]
    for folder, (config, _) in zip(arguments.runs, runs):
        for key in ("data", "metric_weights"):
            if getattr(config, key) != getattr(runs[0][0], key):
                raise ConfigError(f"{key} differs from the first run's", where=folder, mend="Compare like with like")
    config = runs[0][0]
    milo = MILO.from_pretrained(config.metric_weights)
    print(f"measured with MILO {milo.weights}\n{HEAD}")
    for name in config.data.test:
        images = load_collection(name, config.data.root)
        for sigma in config.data.test_sigmas:
            for run, model in runs:
                means = evaluate_denoiser(model, images, sigma, milo).means()
                row = f"{means['psnr']:11.2f}{means['ssim']:8.4f}{means['milo']:9.5f}"
                print(f"{run.loss.label:14}{name:22}{sigma:6g}{row}", flush=True)
            noisy = f"{means['input_psnr']:11.2f}{means['input_ssim']:8.4f}{means['input_milo']:9.5f}"
            print(f"{'noisy input':14}{name:22}{sigma:6g}{noisy}")
    if arguments.picture:
        write_png(arguments.picture, picture(runs, arguments, milo))


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of restormer_denoise.py")
    parser.add_argument("--picture", type=Path, help="PNG to write")
    parser.add_argument("--data", help="the picture's data set (default: the first test set)")
    parser.add_argument("--image", type=int, default=0, help="its number in that set (default: 0)")
    parser.add_argument("--crop", type=int, nargs=2, default=(64, 64), metavar=("TOP", "LEFT"))
    try:
        compare(parser.parse_args())
    except MiloRestoreError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
