"""``milo-restore map``: pictures of where the visible errors are."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from milo_restore.cli.metric import (
    add_metric_arguments,
    add_modcrop,
    add_pairing,
    load_milo,
    matched_pairs,
    of_pair,
)
from milo_restore.errors import ConfigError, DataError
from milo_restore.files.write import check_target

if TYPE_CHECKING:
    from torch import Tensor

MAP_TOP = 0.869
MASK_TOP = 4.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``map``."""
    parser.description = (
        "Draw MILO's map of visible errors, or with --mask its visibility mask, with the scale beside it. "
        "The scale is the same for every image unless --top changes it."
    )
    parser.add_argument("reference", metavar="REF", type=Path, help="the undistorted image, or a folder of them")
    parser.add_argument(
        "distorted", metavar="DIST", type=Path, help="the distorted image, or a folder: files are paired by name"
    )
    parser.add_argument(
        "--output",
        "--out",
        metavar="MAP.png|DIR",
        type=Path,
        required=True,
        help="the picture, or of folders the folder",
    )
    parser.add_argument("--mask", action="store_true", help="the mask, how visible an error would be, in (0, 4)")
    parser.add_argument(
        "--top",
        type=float,
        metavar="VALUE",
        help=f"value of the brightest colour (default: {MAP_TOP} for the map, {MASK_TOP:g} for the mask)",
    )
    parser.add_argument("--no-scale", action="store_true", help="only the map: one pixel per image pixel, no scale")
    add_metric_arguments(parser)
    add_modcrop(parser)
    add_pairing(parser)


def main(arguments: argparse.Namespace) -> int:
    """Compute the maps and write the pictures."""
    top = arguments.top if arguments.top is not None else MASK_TOP if arguments.mask else MAP_TOP
    if not 0 < top < float("inf"):
        raise ConfigError(f"must be a positive number, got {top}", where="--top")
    pairs = _pairs(arguments)
    metric, device = load_milo(arguments.weights, latent=arguments.latent, device=arguments.device)
    print(f"metric: {type(metric).__name__}, weights: {metric.weights}")
    compute = metric.mask if arguments.mask else metric.map
    for reference, distorted, target in pairs:
        values = of_pair(compute, reference, distorted, device, arguments)[0, 0]
        _draw(values, type(metric).__name__, target, top, arguments)
        ends = f"0 (black) to {top:g} (pale yellow)"
        print(f"{target}: {ends}; mean {values.mean():.6f}, largest {values.max():.6f}")
    return 0


def _pairs(arguments: argparse.Namespace) -> list[tuple[Path, Path, Path]]:
    """Reference, distorted file and picture of each pair.

    Raises:
        DataError: files have no counterpart, or the output cannot be what is asked for.
    """
    output: Path = arguments.output
    pairs = matched_pairs(arguments)
    picture = output.suffix.lower() == ".png"
    if arguments.reference.is_dir():
        if picture:
            mend = "Name a folder: --output maps/"
            raise DataError("is a folder, of which one picture cannot be drawn", where=arguments.reference, mend=mend)
        found = [(reference, distorted, output / f"{name}.png") for name, reference, distorted in pairs]
    elif not picture:
        raise DataError("pictures are written as PNG", where=output, mend="Use a name that ends in .png")
    else:
        found = [(pairs[0][1], pairs[0][2], output)]
    for *_, target in found:
        check_target(target)
    return found


def _draw(values: Tensor, metric: str, target: Path, top: float, arguments: argparse.Namespace) -> None:
    """Write the picture of one map (H, W)."""
    from milo_restore.data.images import write_png
    from milo_restore.show.grid import heat_map, with_colour_bar

    picture = heat_map(values, top)
    if not arguments.no_scale:
        picture = with_colour_bar(picture, top, f"{metric} {'mask' if arguments.mask else 'map'}")
    write_png(target, picture)
