"""Tables of opinions, each line checked: the data sets' own, and those that circulate beside them.

Other tables can be given instead: lines with a header and separated by commas or tabs, with a column of distorted
names, one of opinions, and perhaps one of references, under the names that pyiqa's meta files, the IQA-Dataset
toolbox's and KADID-10k's own use (`_COLUMNS`). A table is complete or refused: each line must name an image of the data
set once, with a number within the scale, and there must be as many lines as were published.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from milo_restore.errors import DataError
from milo_restore.opinions.layouts import Layout

_COLUMNS = {
    "distorted": ("dist_name", "dist_img", "dis_img_path", "dist"),
    "reference": ("ref_name", "ref_img", "ref_img_path", "hq_name", "ref"),
    "score": ("mos", "dmos", "elo_score", "score"),
}


@dataclass(frozen=True)
class Row:
    """One line of a table; names of files, without folders."""

    reference: str
    distorted: str
    score: float
    kind: str


def read_rows(layout: Layout, root: Path, table: Path | None, *, complete: bool) -> list[Row]:
    """The lines of the data set's table, or of another one, all checked.

    Args:
        layout: of the data set.
        root: the folder that it was unpacked into.
        table: another table than its own.
        complete: refuse a table of fewer opinions than were published.

    Raises:
        DataError: a file is missing, cannot be read, or is incomplete; or a line is wrong. File and line are named.
    """
    files = [table] if table is not None else _own_tables(layout, root)
    seen: dict[str, str] = {}
    rows, where = [], str(files[-1])
    for file in files:
        for line, distorted, reference, score in _lines(file, layout):
            where = f"{file}, line {line}"
            row = _row(layout, distorted, reference, score, where)
            first = seen.setdefault(row.distorted.lower(), where)
            if first is not where:
                raise DataError(f"{row.distorted} appears again, first in {first}", where=where, mend="Keep one line")
            rows.append(row)
    if len(rows) > layout.rows or (complete and len(rows) < layout.rows):
        what = f"the table ends after {len(rows)} of the {layout.rows} opinions of {layout.name}"
        if len(rows) > layout.rows:
            what = f"the table has {len(rows)} opinions, {layout.name} {layout.rows}"
        raise DataError(what, where=where, mend="Get the whole file; --only-present accepts a part of a data set")
    if not rows:
        raise DataError("holds no opinions", where=where)
    return rows


def _own_tables(layout: Layout, root: Path) -> list[Path]:
    if not root.is_dir():
        raise DataError("no such folder", where=root, mend=f"--root is the folder that {layout.name} was unpacked into")
    for pattern in layout.tables:
        found = sorted(path for path in root.glob(pattern) if path.is_file())
        if found:
            return found
    mend = "Copy the table there, or name one with --table"
    raise DataError(f"holds no {' or '.join(layout.tables)}", where=root, mend=mend)


def _lines(file: Path, layout: Layout) -> Iterator[tuple[int, str, str | None, str]]:
    """Line number, distorted name, reference's name if there is one, and opinion of each line, as texts."""
    if file.suffix.lower() in (".xlsx", ".xls"):
        mend = (
            "Save its opinions as CSV with the columns dist_name,dmos, or give the same as pyiqa's "
            "meta_info_CSIQDataset.csv or the IQA-Dataset toolbox's CSIQ.txt with --table"
        )
        raise DataError("is an Excel workbook, which is not read", where=file, mend=mend)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no text in UTF-8"
        raise DataError(f"cannot be read ({reason})", where=file, mend="Give a table of opinions") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise DataError("is empty", where=file, mend="Give a table of opinions")
    if re.fullmatch(r"[^\s,]+ +[^\s,]+", numbered[0][1].strip()):  # TID2013's own: opinion, blank, name
        yield from ((line, fields[1], None, fields[0]) for line, fields in _split(file, numbered, None, 2))
    elif re.fullmatch(
        layout.pattern, numbered[0][1].split(",")[0].strip(), re.IGNORECASE
    ):  # PIPAL's own: name, opinion
        yield from ((line, fields[0], None, fields[1]) for line, fields in _split(file, numbered, ",", 2))
    else:
        yield from _with_header(file, numbered)


def _with_header(file: Path, numbered: list[tuple[int, str]]) -> Iterator[tuple[int, str, str | None, str]]:
    separator = "\t" if "\t" in numbered[0][1] else ","
    head = [name.strip().lower() for name in numbered[0][1].split(separator)]
    places = {
        role: next((head.index(name) for name in names if name in head), None) for role, names in _COLUMNS.items()
    }
    distorted, reference, score = places["distorted"], places["reference"], places["score"]
    if distorted is None or score is None:
        lacking = "distorted" if distorted is None else "score"
        mend = f"Expected one of {', '.join(_COLUMNS[lacking])}"
        raise DataError(
            f"no column of {lacking} values in the header", where=f"{file}, line {numbered[0][0]}", mend=mend
        )
    for line, fields in _split(file, numbered[1:], separator, len(head)):
        yield line, fields[distorted], None if reference is None else fields[reference], fields[score]


def _split(
    file: Path, numbered: list[tuple[int, str]], separator: str | None, count: int
) -> Iterator[tuple[int, list[str]]]:
    for line, text in numbered:
        fields = [field.strip() for field in text.split(separator)]
        if len(fields) != count:
            mend = "The file may be cut off or of another kind"
            raise DataError(f"expected {count} values, got {len(fields)}", where=f"{file}, line {line}", mend=mend)
        yield line, fields


def _row(layout: Layout, distorted: str, reference: str | None, score: str, where: str) -> Row:
    """One line, checked."""
    name = re.split(r"[/\\]", distorted)[-1]
    match = re.fullmatch(layout.pattern, name, re.IGNORECASE)
    if match is None:
        mend = "Check that the table belongs to --dataset"
        raise DataError(f"{name!r} is not the name of a distorted image of {layout.name}", where=where, mend=mend)
    stem, code = match.groups()
    original = f"{stem}{layout.suffix}"
    if reference is not None and re.split(r"[/\\]", reference)[-1].lower() != original.lower():
        raise DataError(f"{name} is a version of {original}, not of {reference}", where=where)
    try:
        value = float(score)
    except ValueError:
        value = math.nan
    low, high = layout.scale
    if not math.isfinite(value):
        raise DataError(f"{score!r} is not a number", where=where)
    if not low <= value <= high:
        raise DataError(f"{score} is not an opinion of {layout.name}: {low:g} to {high:g}", where=where)
    return Row(original, name, value, _kind(layout, code, where))


def _kind(layout: Layout, code: str, where: str) -> str:
    if not layout.kinds:
        return code.lower()
    if not 1 <= int(code) <= len(layout.kinds):
        raise DataError(f"{layout.name} has no distortion {code}", where=where)
    return f"{code} {layout.kinds[int(code) - 1]}"
