"""``milo-restore report``: one HTML page of measured runs, with their pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

from milo_restore.files.write import check_target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``report``."""
    parser.description = (
        "Put measured runs side by side on one page that needs no network: means with the best marked, bars per image, "
        "pictures with synchronised zoom and a before/after slider, MILO's maps, best and worst images, and how it all "
        "was made. Runs on the same images become one section."
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a recipe's run folder, a folder with a results.json of 'milo-restore evaluate', or that file; LABEL=RUN "
        "names the method",
    )
    parser.add_argument("--output", "--out", required=True, type=Path, metavar="FILE", help="the HTML file to write")
    parser.add_argument("--title", default="Restoration report", help="of the page (default: %(default)s)")
    parser.add_argument(
        "--max-mb",
        type=float,
        default=20.0,
        metavar="MB",
        help="how large the file may become; pictures are cut and compressed to fit (default: 20)",
    )
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="pictures of N images per section, the worst and the best (default: all; where there are more than 50 "
        "in all, 50)",
    )
    parser.add_argument("--no-maps", action="store_true", help="without MILO's maps, which take a moment each")


def main(arguments: argparse.Namespace) -> int:
    """Read, draw, write."""
    check_target(arguments.output)

    from milo_restore.report import write_report

    line = write_report(
        arguments.runs,
        arguments.output,
        title=arguments.title,
        max_mb=arguments.max_mb,
        images=arguments.images,
        maps=not arguments.no_maps,
    )
    print(line)
    return 0
