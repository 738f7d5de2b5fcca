"""``milo-restore tables``: reproduce the paper's Tables 1 to 4, row by row, and print one's own numbers beside them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milo_restore.cli.table_jobs import LAUNCH, JobFailed, run_job, terminable
from milo_restore.errors import ConfigError
from milo_restore.output import write_text

if TYPE_CHECKING:
    from milo_restore.evaluate.tables import Cell, Job, Table

RECIPES = Path("recipes")
STYLES = {"text": "txt", "markdown": "md", "latex": "tex"}
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
    parser.add_argument("number", choices=_NUMBERS, help="which table")
    parser.add_argument(
        "--scale",
        choices=_SCALES,
        default="smoke",
        help="smoke: tiny models, minutes, shows that everything runs; lite: a reduced experiment, whose budget the "
        "table states; paper: the real one, on GPUs (default: smoke)",
    )
    parser.add_argument("--only", action="append", default=[], metavar="ROW", help="this row only; may be repeated")
    parser.add_argument("--out", type=Path, metavar="DIR", help="what is made (default: runs/tables/SCALE)")
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
    """Plan, run what is missing, print."""
    from milo_restore.evaluate.tables import NUMBERS, find_rows, load_table, plan, wanted_metrics

    numbers = NUMBERS if arguments.number == "all" else (int(arguments.number),)
    if arguments.only and len(numbers) > 1:
        raise ConfigError("names a row of one table", where="--only", mend="Give the table's number in place of all")
    scale, out = arguments.scale, arguments.out or Path("runs") / "tables" / arguments.scale
    tables = [load_table(number, RECIPES) for number in numbers]
    every = {table.number: plan(table, scale, out) for table in tables}
    rows = {table.number: find_rows(table, arguments.only) for table in tables}
    cells = {number: [cell for cell in planned if cell.row in rows[number]] for number, planned in every.items()}
    if arguments.list:
        _print_commands(tables, cells)
        return 0
    names = {name for table in tables for name in wanted_metrics(table, scale)}
    skip = arguments.skip_unavailable or scale == "smoke"
    available = _available(sorted(names), skip=skip or arguments.dry_run)
    if arguments.dry_run:
        _print_plan(tables, cells, available)
        return 0
    with terminable():
        reasons, broken = _run(tables, cells, available, scale, out, arguments.launch, skip=skip)
    _write_tables(tables, every, scale, out, reasons)
    if not arguments.no_report:
        _report(every, scale, out)
    if broken:
        print(f"milo-restore: {len(broken)} commands failed: {'; '.join(broken)}", file=sys.stderr)
    return _FAILED if broken else 0


def _available(names: Sequence[str], *, skip: bool) -> set[str]:
    """The metrics that can be had here, tried before anything is trained.

    Raises:
        MetricUnavailable: some cannot, and are not to be skipped.
    """
    import torch

    from milo_restore.evaluate.metrics import Protocol, load_metrics

    metrics, unavailable = load_metrics(names, Protocol(), torch.device("cpu"), skip_unavailable=skip)
    for name, error in unavailable.items():
        print(f"milo-restore: {name} is unavailable: {error.what}", file=sys.stderr)
    return {metric.name for metric in metrics}


def _run(
    tables: Sequence[Table],
    cells: dict[int, list[Cell]],
    available: set[str],
    scale: str,
    out: Path,
    launch: str,
    *,
    skip: bool,
) -> tuple[dict[Path, str], list[str]]:
    """Run what is missing. Returns why cells are missing, by folder, and what failed that should not have."""
    from tqdm import tqdm

    from milo_restore.evaluate.tables import jobs_of

    todo = [(table, cell) for table in tables for cell in cells[table.number] if not _finished(cell, available)]
    jobs = jobs_of(cell for _, cell in todo)
    owners = {cell.folder: (table, cell) for table, cell in todo}
    failed: dict[Path, JobFailed] = {}
    broken: list[str] = []
    bar = tqdm(jobs, desc="tables", unit="command", disable=None)
    for place, job in enumerate(bar, 1):
        first = next((failed[folder] for folder in job.needs if folder in failed), None)
        if first is not None:
            failed[job.folder] = first
            continue
        if job.done is not None and job.done.is_file() and job.folder not in owners:
            continue
        bar.set_postfix_str(job.title)
        try:
            seconds = run_job(job, out / "logs", launch)
        except JobFailed as error:
            if error.mendable and not skip:
                raise
            failed[job.folder] = error
            broken += [] if error.mendable else [f"{job.title} ({error})"]
            bar.write(f"[{place}/{len(jobs)}] {job.title}: {error}", file=sys.stderr)
            continue
        if job.folder in owners:
            _write_provenance(*owners[job.folder], scale)
        bar.write(f"[{place}/{len(jobs)}] {job.title}: {seconds:.0f} s", file=sys.stderr)
    reasons = {cell.folder: cell.absent for _, cell in todo if cell.absent}
    return {**reasons, **{folder: f"not run: {error.what}" for folder, error in failed.items()}}, broken


def _finished(cell: Cell, available: set[str]) -> bool:
    """Whether a cell's results are there, with all metrics that can be had now, made by the commands of today.

    Raises:
        ConfigError: they were made by other commands.
    """
    from milo_restore.evaluate.results import read_results
    from milo_restore.evaluate.tables.plan import PROVENANCE, RESULTS

    if cell.absent or not (cell.folder / RESULTS).is_file():
        return bool(cell.absent)
    record = cell.folder / PROVENANCE
    if not record.is_file():
        return False  # measured by hand: what is known of it is read from the cache
    before = json.loads(record.read_text(encoding="utf-8"))["commands"]
    if before != [job.text for job in cell.jobs]:
        mend = "Move the folder away, or name another --out"
        raise ConfigError("was made by other commands than today's", where=cell.folder, mend=mend)
    measured = read_results(cell.folder / RESULTS)["metrics"]
    return all(name in measured or name not in available for name in _measured_by(cell.jobs[-1]))


def _measured_by(job: Job) -> tuple[str, ...]:
    start = job.command.index("--metrics") + 1
    return job.command[start : job.command.index("--skip-unavailable")]


def _write_provenance(table: Table, cell: Cell, scale: str) -> None:
    """What a cell was made by, for the report and for the next call."""
    from milo_restore.evaluate.tables.plan import PROVENANCE
    from milo_restore.evaluate.tables.provenance import provenance

    text = json.dumps(provenance(table, cell, scale), indent=1, ensure_ascii=False)
    write_text(cell.folder / PROVENANCE, text + "\n")


def _write_tables(
    tables: Sequence[Table], every: dict[int, list[Cell]], scale: Any, out: Path, reasons: dict[Path, str]
) -> None:
    """Every table with all that is there, in three formats; the text is printed."""
    from milo_restore.evaluate.results import read_results
    from milo_restore.evaluate.tables import render
    from milo_restore.evaluate.tables.plan import PROVENANCE, RESULTS

    for table in tables:
        found: dict[tuple[str, str], Any] = {}
        for cell in every[table.number]:
            key = (cell.row.method, cell.group.name)
            if cell.folder in reasons or cell.absent:
                found[key] = reasons.get(cell.folder) or cell.absent
            elif (cell.folder / PROVENANCE).is_file() and (cell.folder / RESULTS).is_file():
                found[key] = read_results(cell.folder / RESULTS)
        for style, suffix in STYLES.items():
            text = render(table, scale, found, style)  # type: ignore[arg-type]
            write_text(out / f"table{table.number}.{suffix}", text)
            if style == "text":
                print(text)
    print(f"tables: {out}/table*.txt, .md, .tex")


def _report(every: dict[int, list[Cell]], scale: str, out: Path) -> None:
    """One page of everything that is there."""
    from milo_restore.cli import main as command
    from milo_restore.evaluate.tables.plan import PROVENANCE

    folders = [str(cell.folder) for cells in every.values() for cell in cells if (cell.folder / PROVENANCE).is_file()]
    if folders:
        title = f"The paper's tables, scale {scale}"
        command(["report", *folders, "--out", str(out / "report.html"), "--title", title])


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
    for table in tables:
        print(f"Table {table.number}: {table.title}")
        for cell in cells[table.number]:
            state = cell.absent or ("finished" if _finished(cell, available) else None)
            missing = [job.title for job in cell.jobs if job.done is None or not job.done.is_file()]
            print(f"  {cell.row.method}, {cell.group.name}: {state or 'to do: ' + ', '.join(missing)}")
