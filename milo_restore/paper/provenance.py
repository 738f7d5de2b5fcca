"""Provenance of a cell's numbers: the content of ``provenance.json``, which the report shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from milo_restore.config import read_yaml
from milo_restore.paper.definition import Table
from milo_restore.paper.plan import TRAINED, Cell, Job

FORMAT = 1


def provenance(table: Table, cell: Cell, scale: Any) -> dict[str, Any]:
    """A finished cell's record.

    Args:
        table: the cell's.
        cell: with all that its jobs made.
        scale: smoke, lite or paper.

    Returns:
        Ready for JSON: ``group`` and ``method`` to put runs side by side, the paper's numbers, the commands with the
        files and overrides they name, and seeds and weights as the trainings recorded them.
    """
    configs = {name: Path(name).read_text(encoding="utf-8") for job in cell.jobs for name in _after(job, "--config")}
    trainings = [job for job in cell.jobs if job.done is not None and job.done.name == TRAINED]
    return {
        "format": FORMAT,
        "group": f"Table {table.number}, {cell.group.name}",
        "method": cell.row.method,
        "scale": scale,
        "notice": table.scales.at(scale).notice,
        "budget": table.scales.at(scale).budget,
        "order": table.rows.index(cell.row),
        "paper": dict(zip((column.metric for column in table.columns), cell.row.paper[cell.number])),
        "digits": {column.metric: column.digits for column in table.columns},
        "commands": [job.text for job in cell.jobs],
        "configs": configs,
        "overrides": [word for job in trainings for word in _after(job, "--set")],
        "seed": {job.title: _seed(job.folder) for job in trainings},
        "weights": {job.title: _weights(job.folder) for job in trainings},
    }


def _after(job: Job, option: str) -> Sequence[str]:
    """The words that follow an option, up to the next one."""
    if option not in job.command:
        return ()
    rest = job.command[job.command.index(option) + 1 :]
    end = next((place for place, word in enumerate(rest) if word.startswith("--")), len(rest))
    return rest[:end]


def _seed(run: Path) -> int | None:
    training = read_yaml(run / "config.yaml").get("training", {})
    seed: int | None = training.get("seed")
    return seed


def _weights(run: Path) -> str | None:
    """Of the MILO in the training's loss, as the recipe recorded it."""
    weights: str | None = json.loads((run / TRAINED).read_text(encoding="utf-8")).get("loss_weights")
    return weights
