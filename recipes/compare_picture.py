"""One test image of finished runs side by side: a crop, enlarged and with an inset, every pixel a square.

    python recipes/compare_picture.py runs/mae runs/milo-cosine --image kodim12 --out compare.png

The pictures are those that the runs restored at their end. ``milo-restore report`` shows all of them, with numbers.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from milo_restore.data import read_image, write_png
from milo_restore.errors import ConfigError, run_program
from milo_restore.measure.restorer import RESTORED
from milo_restore.report.collect import Run, read_runs
from milo_restore.show.grid import comparison_grid

SIDE, PIECE = 160, 24  # of the crop and of its inset, in the image's own pixels


def columns(runs: list[Run], name: str, *, degraded: bool) -> dict[str, NDArray[np.uint8]]:
    """The degraded input, if asked for, every run's output and the target of the image of this name.

    Raises:
        ConfigError: a run has no such image.
    """
    found: dict[str, NDArray[np.uint8]] = {}
    target = None
    for run in runs:
        image = next((image for image in run.results["images"] if Path(image["name"]).stem == name), None)
        if image is None:
            known = ", ".join(run.names[:8])
            raise ConfigError(f"has no image {name!r}", where=run.file, mend=f"It has {known}, ...")
        source, output, target = (run.picture(role, image) for role in ("input", "pred", "ref"))
        if degraded and source is not None:
            found.setdefault("input", read_image(source))
        if output is not None:
            found.setdefault(run.label, read_image(output))
    return found if target is None else {**found, "target": read_image(target)}


def enlarged(image: NDArray[np.uint8], crop: tuple[int, int], inset: tuple[int, int]) -> NDArray[np.uint8]:
    """The crop at twice its size, a piece of it at six times in the lower right corner.

    Raises:
        ConfigError: the crop or the inset is not in the image.
    """
    from PIL import Image, ImageDraw

    nearest = Image.Resampling.NEAREST
    (top, left), (row, column) = crop, inset
    pixels = image[top : top + SIDE, left : left + SIDE]
    if min(top, left, row, column) < 0 or row + PIECE > pixels.shape[0] or column + PIECE > pixels.shape[1]:
        what = f"the inset does not lie in the crop, nor the crop in the image of {image.shape[1]} x {image.shape[0]}"
        raise ConfigError(what, where="--crop, --inset")
    whole = Image.fromarray(pixels)
    piece = whole.crop((column, row, column + PIECE, row + PIECE)).resize((6 * PIECE, 6 * PIECE), nearest)
    shown = whole.resize((2 * whole.width, 2 * whole.height), nearest)
    x, y = shown.width - piece.width - 3, shown.height - piece.height - 3
    shown.paste(piece, (x, y))
    draw = ImageDraw.Draw(shown)
    around = (2 * column - 2, 2 * row - 2, 2 * (column + PIECE) + 1, 2 * (row + PIECE) + 1)
    draw.rectangle((x - 3, y - 3, shown.width - 1, shown.height - 1), outline="yellow", width=3)
    draw.rectangle(around, outline="yellow", width=2)
    return np.asarray(shown)


def compare(arguments: argparse.Namespace) -> None:
    """Write the picture."""
    runs = []
    for name in arguments.runs:  # of several whole runs, what they restored at their end
        found = read_runs([name])
        whole = len(found) > 1 and len(arguments.runs) > 1
        runs += [run for run in found if run.file.parent.name == RESTORED] if whole else found
    runs = [run for run in runs if arguments.image in run.names] or runs
    images = columns(runs, arguments.image, degraded=arguments.input)
    shown = {title: [enlarged(image, arguments.crop, arguments.inset)] for title, image in images.items()}
    write_png(arguments.out, comparison_grid(shown))


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, folders with a results.json, or LABEL=RUN")
    parser.add_argument("--image", required=True, metavar="NAME", help="its file name without suffix")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="PNG to write")
    parser.add_argument("--crop", type=int, nargs=2, default=(64, 64), metavar=("TOP", "LEFT"))
    parser.add_argument("--inset", type=int, nargs=2, default=(32, 32), metavar=("TOP", "LEFT"), help="in the crop")
    parser.add_argument("--input", action="store_true", help="show the degraded input, too")
    return run_program(parser.prog, lambda: compare(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
