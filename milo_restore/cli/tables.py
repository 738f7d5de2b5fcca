"""``milo-restore tables``: reproduce the paper's Tables 1 to 4, row by row, and print one's own numbers beside them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from milo_restore.errors import ConfigError
from milo_restore.paper.jobs import LAUNCH, Main, terminable

if TYPE_CHECKING:
    from milo_restore.paper import Cell, Table

RECIPES = Path("recipes")
_NUMBERS = ("1", "2", "3", "4", "all")
_SCALES = ("smoke", "lite", "paper")
_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``tables``."""
    parser.description = (
        "Train what is missing, restore the test images, measure them, and print paper | ours | difference. To be run "
        "in a clone of the repository. What is finished is never computed again; after an interruption the same "
        "command goes on. Tables are written as text, Markdown and LaTeX, with an HTML report beside them."
    )
    parser.add_argument(
        "what",
        nargs="+",
        metavar="NUMBER|RUN",
        help="1, 2, 3, 4 or all: which table; or run folders, whose measurements are printed side by side",
    )
    parser.add_argument(
        "--scale",
        choices=_SCALES,
        default="smoke",
        help="smoke: tiny models, minutes, shows that everything runs; lite: a reduced experiment, whose budget the "
        "table states; paper: the real one, on GPUs (default: smoke)",
    )
    parser.add_argument("--only", action="append", default=[], metavar="ROW", help="this row only; may be repeated")
    parser.add_argument("--output", "--out", type=Path, metavar="DIR", help="what is made (default: runs/tables/SCALE)")
    parser.add_argument("--dry-run", action="store_true", help="say what is finished and what would be run")
    parser.add_argument(
        "--list", action="store_true", help="print the plain commands, row by row, for a cluster to run side by side"
    )
    parser.add_argument(
        "--skip-unavailable",
        action="store_true",
        help="go on without metrics, weights and data that cannot be had; smoke always does",
    )
    parser.add_argument(
        "--launch", default=LAUNCH, metavar="COMMAND", help=f"in place of '{LAUNCH}', such as with --num_processes 8"
    )
    parser.add_argument("--no-report", action="store_true", help="make no report.html")


def main(arguments: argparse.Namespace) -> int:
    """Plan, run what is missing, print; or print what runs have measured."""
    if not set(arguments.what) & set(_NUMBERS):
        return _print_runs(arguments.what)
    if len(arguments.what) > 1:
        raise ConfigError(f"got {' '.join(arguments.what)}", where="NUMBER", mend="Give one table's number, or all")
    from milo_restore.paper import NUMBERS, find_rows, load_table, plan, wanted_metrics
    from milo_restore.paper.reproduce import available_metrics, run_missing, write_tables

    (number,) = arguments.what
    numbers = NUMBERS if number == "all" else (int(number),)
    if arguments.only and len(numbers) > 1:
        raise ConfigError("names a row of one table", where="--only", mend="Give the table's number in place of all")
    scale, out = arguments.scale, arguments.output or Path("runs") / "tables" / arguments.scale
    tables = [load_table(number, RECIPES) for number in numbers]
    every = {table.number: plan(table, scale, out) for table in tables}
    rows = {table.number: find_rows(table, arguments.only) for table in tables}
    cells = {number: [cell for cell in planned if cell.row in rows[number]] for number, planned in every.items()}
    if arguments.list:
        _print_commands(tables, cells)
        return 0
    names = {name for table in tables for name in wanted_metrics(table, scale)}
    skip = arguments.skip_unavailable or scale == "smoke"
    available = available_metrics(sorted(names), skip=skip or arguments.dry_run)
    if arguments.dry_run:
        _print_plan(tables, cells, available)
        return 0
    main: Main = arguments.main
    with terminable():
        reasons, broken = run_missing(tables, cells, available, scale, out, arguments.launch, main, skip=skip)
    write_tables(tables, every, scale, out, reasons)
    if not arguments.no_report:
        _report(every, scale, out, main)
    if broken:
        print(f"milo-restore: {len(broken)} commands failed: {'; '.join(broken)}", file=sys.stderr)
    return _FAILED if broken else 0


def _print_runs(names: Sequence[str]) -> int:
    """The results.json of run folders, methods on the same images side by side."""
    from milo_restore.measure import comparison_table
    from milo_restore.report.collect import group_runs, read_runs

    for group in group_runs(read_runs(names)):
        print(comparison_table({group.title: {run.label: run.results for run in group.runs}}, {}))
    return 0


def _report(every: dict[int, list[Cell]], scale: str, out: Path, main: Main) -> None:
    """One page of everything that is there."""
    from milo_restore.measure.restorer import PROVENANCE

    folders = [str(cell.folder) for cells in every.values() for cell in cells if (cell.folder / PROVENANCE).is_file()]
    if folders:
        title = f"The paper's tables, scale {scale}"
        main(["report", *folders, "--output", str(out / "report.html"), "--title", title])


def _print_commands(tables: Sequence[Table], cells: dict[int, list[Cell]]) -> None:
    """Shell commands, each once."""
    print("# A row's commands need each other's results. What several rows need stands with the first of them.")
    printed: set[Path] = set()
    for table in tables:
        print(f"# Table {table.number}: {table.title}")
        for cell in cells[table.number]:
            print(f"# {cell.row.method}, {cell.group.name}" + (f": {cell.absent}" if cell.absent else ""))
            for job in cell.jobs:
                if job.folder not in printed:
                    print(job.text)
                printed.add(job.folder)


def _print_plan(tables: Sequence[Table], cells: dict[int, list[Cell]], available: set[str]) -> None:
    from milo_restore.paper.reproduce import is_finished

    for table in tables:
        print(f"Table {table.number}: {table.title}")
        for cell in cells[table.number]:
            state = cell.absent or ("finished" if is_finished(cell, available) else None)
            missing = [job.title for job in cell.jobs if job.done is None or not job.done.is_file()]
            print(f"  {cell.row.method}, {cell.group.name}: {state or 'to do: ' + ', '.join(missing)}")
