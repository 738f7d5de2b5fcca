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
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from restormer_denoise import Config

from milo_restore import Restormer
from milo_restore.config import load_config
from milo_restore.data import evaluation_input, load_collection, to_uint8, write_png
from milo_restore.errors import ConfigError, WeightsError, run_program
from milo_restore.measure import comparison_grid, denoise

SIDE, PIECE = 160, 24  # of the crop and of its inset, in the image's own pixels
NEAREST = Image.Resampling.NEAREST
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


def picture(runs: list[tuple[Config, Restormer]], arguments: argparse.Namespace) -> NDArray[np.uint8]:
    """One crop, enlarged and with an inset: noisy, if asked for | every run's output | target."""
    config = runs[0][0]
    clean = load_collection(arguments.data or config.data.test[0], config.data.root)[arguments.image][1]
    noisy = evaluation_input(clean, config.data.test_sigmas[0])
    columns = {"noisy": to_uint8(noisy)} if arguments.noisy else {}
    columns |= {run.loss.label.upper(): denoise(model, noisy) for run, model in runs} | {"target": clean}
    return comparison_grid({title: [enlarged(image, arguments)] for title, image in columns.items()})


def enlarged(image: NDArray[np.uint8], arguments: argparse.Namespace) -> NDArray[np.uint8]:
    """The crop at twice its size, a piece of it at six times in the lower right corner, every pixel a square.

    Raises:
        ConfigError: the crop or the inset is not in the image.
    """
    (top, left), (row, column) = arguments.crop, arguments.inset
    pixels = image[top : top + SIDE, left : left + SIDE]
    if min(top, left, row, column) < 0 or row + PIECE > pixels.shape[0] or column + PIECE > pixels.shape[1]:
        what = f"the inset does not lie in the crop, nor the crop in the image of {image.shape[1]} x {image.shape[0]}"
        raise ConfigError(what, where="--crop, --inset")
    crop = Image.fromarray(pixels)
    piece = crop.crop((column, row, column + PIECE, row + PIECE)).resize((6 * PIECE, 6 * PIECE), NEAREST)
    shown = crop.resize((2 * crop.width, 2 * crop.height), NEAREST)
    x, y = shown.width - piece.width - 3, shown.height - piece.height - 3
    shown.paste(piece, (x, y))
    draw = ImageDraw.Draw(shown)
    around = (2 * column - 2, 2 * row - 2, 2 * (column + PIECE) + 1, 2 * (row + PIECE) + 1)
    draw.rectangle((x - 3, y - 3, shown.width - 1, shown.height - 1), outline="yellow", width=3)
    draw.rectangle(around, outline="yellow", width=2)
    return np.asarray(shown)


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
    parser.add_argument("--inset", type=int, nargs=2, default=(32, 32), metavar=("TOP", "LEFT"), help="in the crop")
    parser.add_argument("--noisy", action="store_true", help="the picture shows the noisy input, too")
    return run_program(parser.prog, lambda: compare(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
