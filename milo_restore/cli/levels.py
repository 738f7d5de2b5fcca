"""``milo-restore levels``: KADID-10k's distortions, listed, applied, drawn, checked, scored by MILO level by level."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from milo_restore.cli.metric import add_metric_arguments, load_milo
from milo_restore.errors import ConfigError, DataError
from milo_restore.files.write import check_target, replace_file
from milo_restore.show.text import CSVWriter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from milo_restore.data.kadid import Distortion
    from milo_restore.show.levels import Prediction

    Picture = NDArray[np.uint8]

_ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``levels``."""
    parser.description = (
        "KADID-10k's 25 distortions at five levels. Without arguments: list them. With --sheet: draw them all. With "
        "--distortion: MILO's predicted mean opinion score against the level, of one distortion or of all, as a table "
        "and with --plot as a figure; or with --level and --output: write one distorted image. With --check: compare "
        "with a copy of the data set."
    )
    parser.add_argument(
        "images",
        metavar="IMAGE",
        nargs="*",
        type=Path,
        help="any number for --plot, one for --sheet and --output (default: photographs that come with scikit-image)",
    )
    parser.add_argument("--sheet", metavar="SHEET.png", type=Path, help="draw all 25 distortions x 5 levels")
    parser.add_argument("--distortion", metavar="NUMBER|NAME|all", help="one of them; for --plot and --csv also all")
    parser.add_argument("--plot", metavar="PLOT.png", type=Path, help="draw predicted MOS against level")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write predicted MOS, one line per image and level")
    parser.add_argument("--level", metavar="1..5", type=int, help="the level for --output")
    parser.add_argument("--output", "--out", metavar="OUT.png", type=Path, help="write one distorted image")
    parser.add_argument(
        "--check",
        metavar="KADID_ROOT",
        type=Path,
        help="compare with the images of this copy of KADID-10k: all (some ten minutes), or those of --distortion",
    )
    parser.add_argument(
        "--generator",
        metavar="NAME",
        default="published",
        help="published, KADID-10k's own functions, or clipped, with which the shipped mini weights were taught "
        "(default: %(default)s)",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="for the random ones (default: %(default)s)")
    add_metric_arguments(parser)


def main(arguments: argparse.Namespace) -> int:
    """List, draw, distort or score."""
    from milo_restore.data.kadid import check_generator, find_distortion

    check_generator(arguments.generator)
    _check(arguments)
    if arguments.check is not None:
        _check_copy(arguments)
        return 0
    if arguments.sheet is not None:
        _write_sheet(arguments)
    if arguments.distortion is None:
        if arguments.sheet is None:
            print(distortion_table(arguments.generator))
        return 0
    if arguments.output is not None:
        _write_one(arguments, find_distortion(arguments.distortion))
    elif arguments.distortion == _ALL:
        _predict_all(arguments)
    else:
        _predict(arguments, find_distortion(arguments.distortion))
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuse combinations that mean nothing, before any work is done."""
    if arguments.latent:
        raise ConfigError("distorts images, not latents", where="--latent", mend="Leave it out")
    drawn = [arguments.images, arguments.sheet, arguments.plot, arguments.output, arguments.level]
    if arguments.check is not None and any(drawn):
        raise ConfigError(
            "draws, writes and scores no image", where="--check", mend="Give --distortion and --csv at most"
        )
    if (arguments.level is None) != (arguments.output is None):
        raise ConfigError("--level and --output belong together", mend="Give both to write one distorted image")
    for option in ("plot", "csv", "output"):
        if getattr(arguments, option) is not None and arguments.distortion is None and arguments.check is None:
            raise ConfigError("needs a distortion", where=f"--{option}", mend="Add for example --distortion 11")
    if arguments.output is not None and arguments.distortion == _ALL:
        raise ConfigError("writes one image, of one distortion", where="--output", mend="Give --distortion NUMBER")
    if arguments.output is not None and (arguments.plot is not None or arguments.csv is not None):
        raise ConfigError("writes one image and scores nothing", where="--output", mend="Leave out --plot and --csv")
    if arguments.images and arguments.sheet is None and arguments.distortion is None:
        raise ConfigError("nothing to do with these images", mend="Add --sheet SHEET.png or --distortion NUMBER")
    _check_targets(arguments)


def _check_targets(arguments: argparse.Namespace) -> None:
    if len(arguments.images) > 1 and (arguments.sheet is not None or arguments.output is not None):
        option = "--sheet" if arguments.sheet is not None else "--output"
        raise ConfigError(f"takes one image, got {len(arguments.images)}", where=option)
    for path in (arguments.sheet, arguments.plot, arguments.output):
        if path is not None and path.suffix.lower() != ".png":
            raise DataError("pictures are written as PNG", where=path, mend="Use a name that ends in .png")
    for path in (arguments.sheet, arguments.plot, arguments.output, arguments.csv):
        if path is not None:
            check_target(path)


def _images(paths: Sequence[Path], count: int) -> list[tuple[str, Picture]]:
    """The images named, or else the first ``count`` photographs that are always at hand."""
    from milo_restore.data import read_image, training_photographs

    if not paths:
        return training_photographs()[:count]
    return [(path.name, read_image(path)) for path in paths]


def _check_copy(arguments: argparse.Namespace) -> None:
    from milo_restore.cli.kadid_check import check
    from milo_restore.data.kadid import DISTORTIONS, find_distortion

    one = arguments.distortion not in (None, _ALL)
    kinds = [find_distortion(arguments.distortion)] if one else DISTORTIONS
    check(arguments.check, kinds, seed=arguments.seed, generator=arguments.generator, table=arguments.csv)


def _distort(name: str, image: Picture, kind: Distortion, level: int, arguments: argparse.Namespace) -> Picture:
    from milo_restore.data.kadid import distort

    try:
        return distort(image, kind.number, level, seed=arguments.seed, generator=arguments.generator)
    except DataError as error:
        raise DataError(error.what, where=error.where or name, mend=error.mend) from error


def _write_one(arguments: argparse.Namespace, kind: Distortion) -> None:
    from milo_restore.data import write_png

    (name, image), *_ = _images(arguments.images, 1)
    write_png(arguments.output, _distort(name, image, kind, arguments.level, arguments))
    print(f"{arguments.output}: {name}, {kind} = {kind.levels[arguments.level - 1]:g}")


def distortion_table(generator: str = "published") -> str:
    """All 25 distortions: group, parameter with its unit, and the five levels."""
    from milo_restore.data.kadid import DISTORTIONS

    unordered = "level 3 is the image itself" if generator == "clipped" else "not ordered by level"
    rows = [("no", "distortion", "group", "parameter", *(f"L{level}" for level in range(1, 6)), "")]
    for kind in DISTORTIONS:
        parameter = f"{kind.parameter} ({kind.unit})" if kind.unit else kind.parameter
        notes = ", ".join(["random"] * kind.random + [unordered] * (not kind.ordered))
        rows.append((f"{kind.number:02d}", kind.name, kind.group, parameter, *map("{:g}".format, kind.levels), notes))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        words = [f"{cell:<{width}}" for cell, width in zip(row[:4], widths)]
        words += [f"{cell:>{width}}" for cell, width in zip(row[4:9], widths[4:])]
        lines.append("  ".join([*words, row[9]]).rstrip())
    return "\n".join(lines)


def _predict(arguments: argparse.Namespace, kind: Distortion) -> None:
    from milo_restore.data import write_png
    from milo_restore.show.levels import draw_figure, predictions

    images = _images(arguments.images, 3)
    steps = [_steps(name, image, kind, arguments) for name, image in images]
    metric, device = load_milo(arguments.weights, latent=False, device=arguments.device)
    lines = [predictions(metric, device, name, step, kind) for (name, _), step in zip(images, steps)]
    print(f"metric: {type(metric).__name__}, weights: {metric.weights}")
    print(f"predicted MOS, {kind} ({arguments.generator}); level 0 is the image itself")
    print(_table(lines, kind))
    if arguments.plot is not None:
        write_png(arguments.plot, draw_figure(lines, steps, kind))
    if arguments.csv is not None:
        replace_file(arguments.csv, _csv([(kind, lines)]))


def _predict_all(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    from milo_restore.data import write_png
    from milo_restore.data.kadid import DISTORTIONS
    from milo_restore.show.levels import draw_all, predictions
    from milo_restore.show.text import text_table

    images = _images(arguments.images, 3)
    metric, device = load_milo(arguments.weights, latent=False, device=arguments.device)
    found = [
        (kind, [predictions(metric, device, name, _steps(name, image, kind, arguments), kind)
                for name, image in images])
        for kind in tqdm(DISTORTIONS, desc="distorting", unit="distortion", leave=False, disable=None)
    ]  # fmt: skip
    print(f"metric: {type(metric).__name__}, weights: {metric.weights}")
    print(f"predicted MOS, distortions {arguments.generator}; level 0 is the image itself")
    rows = [
        (f"{kind.number:02d} {kind.name}", line[0].image, *(f"{row.mos:.4f}" for row in line))
        for kind, lines in found
        for line in lines
    ]
    print(text_table([("distortion", "image", *map(str, range(6))), *rows]))
    if arguments.plot is not None:
        write_png(arguments.plot, draw_all(found))
    if arguments.csv is not None:
        replace_file(arguments.csv, _csv(found))


def _steps(name: str, image: Picture, kind: Distortion, arguments: argparse.Namespace) -> list[Picture]:
    """The image and its five levels."""
    return [image, *(_distort(name, image, kind, level, arguments) for level in range(1, 6))]


def _table(lines: Sequence[Sequence[Prediction]], kind: Distortion) -> str:
    rows = [("level", *map(str, range(6))), (kind.parameter, "-", *map("{:g}".format, kind.levels))]
    rows += [(image[0].image, *(f"{row.mos:.4f}" for row in image)) for image in lines]
    width = max(len(row[0]) for row in rows)
    return "\n".join("  ".join([f"{row[0]:<{width}}", *(f"{cell:>7}" for cell in row[1:])]) for row in rows)


def _csv(found: Sequence[tuple[Distortion, Sequence[Sequence[Prediction]]]]) -> str:
    text = io.StringIO()
    writer = CSVWriter(text)
    parameter = found[0][0].parameter if len(found) == 1 else "value"
    writer.writerow(["image", "distortion", "name", "level", parameter, "mos"])
    writer.writerows(
        [row.image, kind.number, kind.name, row.level, row.value, row.mos]
        for kind, lines in found
        for line in lines
        for row in line
    )
    return text.getvalue()


def _write_sheet(arguments: argparse.Namespace) -> None:
    from milo_restore.data import held_out_photographs, write_png
    from milo_restore.show.levels import draw_sheet

    # The cat: fur shows blur, the smooth background noise and blocks.
    name, image = _images(arguments.images, 1)[0] if arguments.images else held_out_photographs()[0]
    write_png(arguments.sheet, draw_sheet(image, seed=arguments.seed, generator=arguments.generator))
    print(f"{arguments.sheet}: {name}, 25 distortions x 5 levels")
