"""Running what a table lacks, and writing the tables with all that is there."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from milo_restore.errors import ConfigError
from milo_restore.files.write import replace_file
from milo_restore.measure.metrics import Protocol, load_metrics
from milo_restore.measure.restorer import PROVENANCE, RESULTS
from milo_restore.measure.results import read_results
from milo_restore.paper.definition import Table
from milo_restore.paper.jobs import JobFailed, Main, run_job
from milo_restore.paper.plan import Cell, Job, jobs_of
from milo_restore.paper.provenance import provenance
from milo_restore.paper.render import render

STYLES = {"text": "txt", "markdown": "md", "latex": "tex"}


def available_metrics(names: Sequence[str], *, skip: bool) -> set[str]:
    """The metrics that can be had here, tried before anything is trained.

    Raises:
        MetricUnavailable: some cannot, and are not to be skipped.
    """
    metrics, unavailable = load_metrics(names, Protocol(), torch.device("cpu"), skip_unavailable=skip)
    for name, error in unavailable.items():
        print(f"milo-restore: {name} is unavailable: {error.what}", file=sys.stderr)
    return {metric.name for metric in metrics}


def run_missing(
    tables: Sequence[Table],
    cells: dict[int, list[Cell]],
    available: set[str],
    scale: str,
    out: Path,
    launch: str,
    main: Main,
    *,
    skip: bool,
) -> tuple[dict[Path, str], list[str]]:
    """Run what is missing. Returns why cells are missing, by folder, and what failed that should not have."""
    todo = [(table, cell) for table in tables for cell in cells[table.number] if not is_finished(cell, available)]
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
            seconds = run_job(job, out / "logs", launch, main)
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


def is_finished(cell: Cell, available: set[str]) -> bool:
    """True if the cell was measured by the current commands with every available metric.

    Raises:
        ConfigError: they were made by other commands.
    """
    if cell.absent or not (cell.folder / RESULTS).is_file():
        return bool(cell.absent)
    record = cell.folder / PROVENANCE
    if not record.is_file():
        return False  # measured by hand: what is known of it is read from the cache
    before = json.loads(record.read_text(encoding="utf-8"))["commands"]
    if before != [job.text for job in cell.jobs]:
        mend = "Move the folder away, or name another --output"
        raise ConfigError("was made by other commands than today's", where=cell.folder, mend=mend)
    measured = read_results(cell.folder / RESULTS)["metrics"]
    return all(name in measured or name not in available for name in _measured_by(cell.jobs[-1]))


def _measured_by(job: Job) -> tuple[str, ...]:
    start = job.command.index("--metrics") + 1
    return job.command[start : job.command.index("--skip-unavailable")]


def _write_provenance(table: Table, cell: Cell, scale: str) -> None:
    """Provenance of a cell, for the report and for the next call."""
    text = json.dumps(provenance(table, cell, scale), indent=1, ensure_ascii=False)
    replace_file(cell.folder / PROVENANCE, text + "\n")


def write_tables(
    tables: Sequence[Table], every: dict[int, list[Cell]], scale: Any, out: Path, reasons: dict[Path, str]
) -> None:
    """Every table with all that is there, in three formats; the text is printed."""
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
            replace_file(out / f"table{table.number}.{suffix}", text)
            if style == "text":
                print(text)
    print(f"tables: {out}/table*.txt, .md, .tex")
