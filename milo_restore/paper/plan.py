"""Plan of a table: the commands, the folders that they make, and their order.

OUT/shared/                                 what trainings share, such as cached latents
OUT/table1/milo/10k/                        a MILO trained for a row's loss
OUT/table1/train/milo-10k[-sigma-15]/       a row's training
OUT/table1/images/sigma-15/{input,ref}/     a group's test images
OUT/table1/rows/milo-10k/sigma-15/          restored/, results.json, provenance.json: a cell
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from milo_restore.measure.metrics import find_metric
from milo_restore.measure.restorer import RESULTS
from milo_restore.paper.definition import Group, Row, Scale, ScaleName, Table, mentions
from milo_restore.show.text import slug

TRAINED = "run.json"  # what recipes write last
IMAGES = "images.json"
WEIGHTS = "milo_best.safetensors"
CONTROL = "controlnet"


@dataclass(frozen=True)
class Job:
    """A command that makes a folder.

    Attributes:
        title: for people.
        folder: what it makes.
        command: its words.
        done: the file that is there when it has ended well; None: only whoever needs it can tell.
        needs: folders of the jobs that come before.
    """

    title: str
    folder: Path
    command: tuple[str, ...]
    done: Path | None
    needs: tuple[Path, ...] = ()

    @property
    def text(self) -> str:
        """The command for a shell."""
        return shlex.join(self.command)


@dataclass(frozen=True)
class Cell:
    """A method on a group: where its results are, and the jobs that lead to them.

    Attributes:
        row: the method.
        group: the noise level or data set.
        number: place of the group in the table.
        folder: of its results.
        jobs: in order; the last but one restores, the last measures. Empty where it cannot be produced at this scale.
        absent: why it cannot be.
    """

    row: Row
    group: Group
    number: int
    folder: Path
    jobs: tuple[Job, ...]
    absent: str | None = None


def plan(table: Table, scale: ScaleName, out: Path) -> list[Cell]:
    """The cells of a table, row by row.

    Args:
        table: of which.
        scale: smoke, lite or paper.
        out: folder of all that is made.
    """
    size, base, metrics = table.scales.at(scale), out / f"table{table.number}", wanted_metrics(table, scale)
    return [
        _cell(table, size, scale, row, group, number, base, metrics)
        for row in table.rows
        for number, group in enumerate(table.groups)
    ]


def wanted_metrics(table: Table, scale: ScaleName) -> list[str]:
    """The columns and what else the scale measures, without doubles."""
    names = [column.metric for column in table.columns]
    return list(dict.fromkeys([*names, *table.scales.at(scale).metrics]))


def jobs_of(cells: Iterable[Cell]) -> list[Job]:
    """All jobs, each once, in an order that works."""
    return list({job.folder: job for cell in cells for job in cell.jobs}.values())


def _cell(
    table: Table,
    scale: Scale,
    name: ScaleName,
    row: Row,
    group: Group,
    number: int,
    base: Path,
    metrics: Sequence[str],
) -> Cell:
    folder = base / "rows" / slug(row.method) / slug(group.name)
    make_images = group.images.at(name) or scale.images
    if not make_images:
        return Cell(row, group, number, folder, (), "this scale has no test images for it")
    values = {"sigma": "" if group.sigma is None else f"{group.sigma:g}"}
    values["shared"] = shlex.quote(str(base.parent / "shared"))
    jobs: list[Job] = []
    milo = next((milo for milo in table.milos if milo.name == row.milo), None)
    if milo is not None:
        source = milo.at(name)
        if source is None:
            return Cell(row, group, number, folder, (), f"not at this scale: {milo.needs}")
        values["milo"] = source
        if " " in source:
            jobs.append(_job(f"MILO {milo.name}", base / "milo" / milo.name, source, values, TRAINED))
            values["milo"] = shlex.quote(str(jobs[-1].folder / WEIGHTS))
    values["set"] = Template(row.set).substitute(values)
    values["control"] = ""
    if name not in row.untrained:
        own = f"-{slug(group.name)}" if mentions(scale.train, "sigma") else ""
        run = base / "train" / f"{slug(row.method)}{own}"
        jobs.append(_job(f"train {row.method}", run, scale.train, values, TRAINED, jobs))
        values["run"] = shlex.quote(str(run))
        values["control"] = f"--control {shlex.quote(str(run / CONTROL))}"
    images = _job(f"images of {group.name}", base / "images" / slug(group.name), make_images, values, IMAGES)
    values["images"] = shlex.quote(str(images.folder))
    what = f"{row.method}, {group.name}"
    restored = _job(f"restore {what}", folder / "restored", scale.restore, values, None, [*jobs, images])
    measured = Job(
        f"measure {what}",
        folder,
        _evaluate(
            folder,
            images,
            metrics,
            references="--as-they-are" not in images.command or "--references" in images.command,
        ),
        folder / RESULTS,
        (restored.folder,),
    )
    return Cell(row, group, number, folder, (*jobs, images, restored, measured))


def _job(
    title: str, folder: Path, template: str, values: dict[str, str], done: str | None, needs: Sequence[Job] = ()
) -> Job:
    text = Template(template).substitute({**values, "out": shlex.quote(str(folder))})
    before = tuple(job.folder for job in needs)
    return Job(title, folder, tuple(shlex.split(text)), folder / done if done else None, before)


def _evaluate(folder: Path, images: Job, metrics: Sequence[str], *, references: bool) -> tuple[str, ...]:
    """The command that measures a cell; without references only what needs none."""
    names = [name for name in metrics if references or not find_metric(name).reference]
    words = ["milo-restore", "evaluate", "--pred", str(folder / "restored"), "--input", str(images.folder / "input")]
    if references:
        words += ["--ref", str(images.folder / "ref")]
    # --out and not --output: a finished cell's commands are compared with these, word by word.
    return (*words, "--metrics", *names, "--skip-unavailable", "--out", str(folder / RESULTS))
