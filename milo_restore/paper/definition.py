"""The paper's tables as files: every printed number, and the commands that produce each row.

``recipes/tables/table1.yaml`` to ``table4.yaml`` hold one table each. A row is a method, a group is a noise level or a
data set: one block of columns of the printed table. Each of the three scales has templates of commands, in which

    $out      is the folder that the command makes
    $set      the row's settings, in which $milo is the weights of the MILO in its loss
    $run      the row's training                     $control  ``--control`` and its network; nothing where untrained
    $images   the group's test images                $sigma    the group's noise level
    $shared   a folder that all trainings of a scale may share

A training whose command mentions ``$sigma`` is one per row and group, another one per row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Literal, TypeAlias, get_args

from milo_restore.config import load_config
from milo_restore.errors import ConfigError, DataError

ScaleName: TypeAlias = Literal["smoke", "lite", "paper"]
SCALES: tuple[ScaleName, ...] = get_args(ScaleName)
NUMBERS = (1, 2, 3, 4)
PLACEHOLDERS = ("out", "set", "milo", "run", "control", "images", "sigma", "shared")


@dataclass(frozen=True)
class Column:
    """A metric of the printed table.

    Attributes:
        metric: its name in ``milo-restore evaluate``; ``ens`` is the paper's ensemble, which cannot be measured.
        title: as printed.
        better: the arrow.
        digits: decimals as printed.
    """

    metric: str
    title: str
    better: Literal["higher", "lower"]
    digits: int


@dataclass(frozen=True)
class Commands:
    """A command template per scale; None: there is none at that scale."""

    smoke: str | None = None
    lite: str | None = None
    paper: str | None = None

    def at(self, scale: ScaleName) -> str | None:
        """The one of a scale."""
        command: str | None = getattr(self, scale)
        return command


@dataclass(frozen=True)
class Group:
    """A block of columns: a noise level or a data set.

    Attributes:
        name: of the block.
        sigma: noise level in 8-bit units, where it is one.
        images: what makes its test images, where the scale's own command does not.
    """

    name: str
    sigma: float | None = None
    images: Commands = Commands()


@dataclass(frozen=True)
class Row:
    """A method.

    Attributes:
        method: as printed.
        paper: the printed numbers, one tuple per group, in the order of the columns.
        set: what ``$set`` stands for.
        milo: name of the MILO in its loss, one of the table's ``milos``; None: it has none.
        untrained: scales at which the base model is taken as it is.
        note: printed below the table: what the row's training settles that the paper leaves open.
    """

    method: str
    paper: tuple[tuple[float, ...], ...]
    set: str = ""
    milo: str | None = None
    untrained: tuple[ScaleName, ...] = ()
    note: str | None = None


@dataclass(frozen=True)
class Milo(Commands):
    """The MILO in a loss: per scale a name of published weights, or the command that trains it.

    Attributes:
        name: what rows call it.
        needs: what training it takes, told where a scale has none.
    """

    name: str = ""
    needs: str = ""


@dataclass(frozen=True)
class Scale:
    """Size of an experiment and the commands that run it.

    Attributes:
        budget: what a row costs, and what it is tested on.
        train: command template.
        restore: command template.
        images: command template, for groups without one of their own.
        notice: what a reader of the numbers must know before the numbers.
        metrics: measured beside the columns; full-reference ones only where there are references.
    """

    budget: str
    train: str
    restore: str
    images: str = ""
    notice: str | None = None
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scales:
    """The three scales."""

    smoke: Scale
    lite: Scale
    paper: Scale

    def at(self, name: ScaleName) -> Scale:
        """One of them."""
        scale: Scale = getattr(self, name)
        return scale


@dataclass(frozen=True)
class Table:
    """One of the paper's tables."""

    number: int
    title: str
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    rows: tuple[Row, ...]
    scales: Scales
    milos: tuple[Milo, ...] = ()

    def __post_init__(self) -> None:
        names = {milo.name for milo in self.milos}
        for row in self.rows:
            if len(row.paper) != len(self.groups) or any(len(part) != len(self.columns) for part in row.paper):
                expected = f"{len(self.groups)} groups of {len(self.columns)}"
                raise ValueError(f"{row.method} needs {expected} printed numbers")
            if row.milo is not None and row.milo not in names:
                raise ValueError(f"{row.method} needs a MILO {row.milo!r} under milos")
        for command in self._templates():
            if unknown := [name for name in _identifiers(command) if name not in PLACEHOLDERS]:
                raise ValueError(f"${unknown[0]} is none of {', '.join(f'${name}' for name in PLACEHOLDERS)}")

    def _templates(self) -> list[str]:
        scales = [self.scales.at(name) for name in SCALES]
        found = [text for scale in scales for text in (scale.train, scale.restore, scale.images)]
        found += [row.set for row in self.rows]
        found += [text for milo in self.milos for name in SCALES if (text := milo.at(name))]
        found += [text for group in self.groups for name in SCALES if (text := group.images.at(name))]
        return found


def load_table(number: int, recipes: Path) -> Table:
    """A table's file.

    Args:
        number: 1 to 4.
        recipes: the folder ``recipes`` of a clone.

    Raises:
        DataError: there is no such folder.
        ConfigError: the file says something that cannot be.
    """
    path = recipes / "tables" / f"table{number}.yaml"
    if not path.is_file():
        mend = "Run it in a clone of the repository: the installed package has no recipes/"
        raise DataError("no such file", where=path, mend=mend)
    table = load_config(Table, path)
    if table.number != number:
        raise ConfigError(f"is table {table.number}", where=path)
    return table


def find_rows(table: Table, wanted: list[str]) -> list[Row]:
    """The rows that are asked for; all where none is.

    Args:
        table: of which.
        wanted: methods as printed, in any case; a part of the name will do where it is of one row only.

    Raises:
        ConfigError: no row, or several, are called so.
    """
    if not wanted:
        return list(table.rows)
    chosen = []
    for name in wanted:
        exact = [row for row in table.rows if row.method.lower() == name.lower()]
        found = exact or [row for row in table.rows if name.lower() in row.method.lower()]
        if len(found) != 1:
            what = "no row is called so" if not found else f"{len(found)} rows are called so"
            mend = f"Rows: {', '.join(row.method for row in table.rows)}"
            raise ConfigError(what, where=f"--only {name!r} in table {table.number}", mend=mend)
        chosen.append(found[0])
    return [row for row in table.rows if row in chosen]


def mentions(template: str, placeholder: str) -> bool:
    """True if a command template holds ``$placeholder``."""
    return placeholder in _identifiers(template)


def _identifiers(template: str) -> list[str]:
    return [match["named"] or match["braced"] for match in Template.pattern.finditer(template)]
