"""``milo-restore map``: a picture of where the visible errors are."""

from __future__ import annotations

import argparse
from pathlib import Path

from milo_restore.cli.metric import add_metric_arguments, add_modcrop, load_milo, pair_error, read_pair
from milo_restore.errors import ConfigError, DataError
from milo_restore.files.write import check_target

MAP_TOP = 0.869
MASK_TOP = 4.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``map``."""
    parser.description = (
        "Draw MILO's map of visible errors, or with --mask its visibility mask, with the scale beside it. "
        "The scale is the same for every image unless --top changes it."
    )
    parser.add_argument("reference", metavar="REF", type=Path, help="the undistorted image")
    parser.add_argument("distorted", metavar="DIST", type=Path, help="the distorted image")
    parser.add_argument("--output", "--out", metavar="MAP.png", type=Path, required=True, help="the picture to write")
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


def main(arguments: argparse.Namespace) -> int:
    """Compute the map and write the picture."""
    import torch

    from milo_restore.data.images import write_png
    from milo_restore.show.grid import heat_map, with_colour_bar

    top = arguments.top if arguments.top is not None else MASK_TOP if arguments.mask else MAP_TOP
    if not 0 < top < float("inf"):
        raise ConfigError(f"must be a positive number, got {top}", where="--top")
    if arguments.output.suffix.lower() != ".png":
        raise DataError("pictures are written as PNG", where=arguments.output, mend="Use a name that ends in .png")
    check_target(arguments.output)
    for path in (arguments.reference, arguments.distorted):
        if path.is_dir():
            raise DataError("is a folder", where=path, mend="A map is of one image: give two files")
    pair = read_pair(arguments.reference, arguments.distorted, latent=arguments.latent, modcrop=arguments.modcrop)
    metric, device = load_milo(arguments.weights, latent=arguments.latent, device=arguments.device)
    image, reference = (tensor.to(device) for tensor in pair)
    try:
        with torch.no_grad():
            values = (metric.mask if arguments.mask else metric.map)(image, reference=reference)[0, 0]
    except DataError as error:
        raise pair_error(error, arguments.reference, arguments.distorted) from error
    picture = heat_map(values, top)
    if not arguments.no_scale:
        title = f"{type(metric).__name__} {'mask' if arguments.mask else 'map'}"
        picture = with_colour_bar(picture, top, title)
    write_png(arguments.output, picture)
    print(f"metric: {type(metric).__name__}, weights: {metric.weights}")
    ends = f"0 (black) to {top:g} (pale yellow)"
    print(f"{arguments.output}: {ends}; mean {values.mean():.6f}, largest {values.max():.6f}")
    return 0
