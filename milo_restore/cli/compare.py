"""``milo-restore compare``: measured runs against each other, image by image."""

from __future__ import annotations

import argparse
from pathlib import Path

from milo_restore.errors import ConfigError
from milo_restore.files.write import check_target, replace_file

_STYLES = ("text", "markdown", "latex", "csv")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``compare``."""
    parser.description = (
        "Compare methods on the same images, metric by metric: paired differences with 95 % intervals, Wilcoxon's test "
        "with Holm's correction, wins per image, and mean ranks with their critical difference. Differences are over "
        "images; another training run may differ. fid and kid are shown, and not tested: they have no values per image."
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run folders of recipes, folders with a results.json, or such files; LABEL=RUN names the method",
    )
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="of these only (default: all that every run has)")
    parser.add_argument("--style", choices=_STYLES, default="text", help="what is printed (default: text)")
    parser.add_argument("--output", "--out", type=Path, metavar="FILE", help="write it there, too")
    parser.add_argument("--diagram", type=Path, metavar="FILE.svg", help="draw mean ranks; for one metric")


def main(arguments: argparse.Namespace) -> int:
    """Read, compare, print."""
    for file in (arguments.output, arguments.diagram):
        if file is not None:
            check_target(file)

    from milo_restore.measure.compare import compare_runs
    from milo_restore.measure.of_sets import shared_sets
    from milo_restore.report import comparison
    from milo_restore.report.collect import group_runs, read_runs
    from milo_restore.show.ranks import rank_diagram

    render = {"text": comparison.as_text, "markdown": comparison.as_markdown, "latex": comparison.as_latex,
              "csv": comparison.as_csv}[arguments.style]  # fmt: skip
    groups = group_runs(read_runs(arguments.runs))
    parts = []
    for group in groups:
        runs = {run.label: run.results for run in group.runs}
        found, sets = compare_runs(runs), shared_sets(runs)
        if arguments.metrics:
            known = [*(one.metric for one in found), *sets]
            if unknown := [name for name in arguments.metrics if name not in known]:
                raise ConfigError(f"not measured by all runs: {', '.join(unknown)}", where="--metrics",
                                  mend=f"They share {', '.join(known)}")  # fmt: skip
            found = [one for one in found if one.metric in arguments.metrics]
            sets = {name: values for name, values in sets.items() if name in arguments.metrics}
        if len(groups) > 1 and arguments.style != "csv":
            parts.append(f"{'%' if arguments.style == 'latex' else '#'} {group.title}\n")
        parts.append(render(found, sets))
        if arguments.diagram is not None:
            if len(found) != 1 or len(groups) > 1 or found[0].critical_difference is None:
                mend = "Name one with --metrics, of three or more methods on the same images"
                raise ConfigError("a diagram is of one metric", where="--diagram", mend=mend)
            replace_file(arguments.diagram, rank_diagram(found[0].ranks, found[0].alike, found[0].critical_difference))
    text = "\n".join(parts)
    print(text)
    if arguments.output is not None:
        replace_file(arguments.output, text + "\n")
    return 0
