"""The paper's numbers beside one's own: as text, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from milo_restore.measure.compare import compare_values
from milo_restore.paper.definition import Column, Group, ScaleName, Table
from milo_restore.show.text import ARROWS, counted, tex, text_table

NONE = "-"
SMOKE = "smoke"
BOLD = "bold: the best of ours, where it differs from each of the others over the images (see milo-restore compare)"
_EXTRA_DIGITS = 5
_NOT_YET = "not run yet"

Found = Mapping[tuple[str, str], "Mapping[str, Any] | str"]
"""By method and group: the content of results.json, or the reason why there is none."""


@dataclass(frozen=True)
class Entry:
    """A number of the table.

    Attributes:
        paper: as printed; None for what the paper does not print.
        ours: None where there is none.
        digits: decimals.
        better: direction.
        partial: how many images of how many the mean is of, where not all; None: of all.
        best: the best of ours in its column and group, and its difference to all others holds.
        compares: with the paper's number; smoke's do not.
    """

    paper: float | None
    ours: float | None
    digits: int
    better: Literal["higher", "lower"]
    partial: str | None = None
    best: bool = False
    compares: bool = True

    @property
    def difference(self) -> str:
        """Ours minus the paper's: ▲ where that is better and ▼ where it is worse, whichever way the arrow points."""
        if self.paper is None or self.ours is None or not self.compares:
            return NONE
        text = f"{self.ours - self.paper:+.{self.digits}f}"
        if float(text) == 0:
            return text.replace("-", "+")
        return f"{text} {'▲' if (self.ours > self.paper) == (self.better == 'higher') else '▼'}"

    def number(self, value: float | None) -> str:
        """A value with the column's decimals."""
        return NONE if value is None else f"{value:.{self.digits}f}"

    @property
    def own(self) -> str:
        """Ours, with † where it is a mean of some of the images only."""
        return self.number(self.ours) + ("†" if self.partial else "")


def render(table: Table, scale: ScaleName, found: Found, style: Literal["text", "markdown", "latex"]) -> str:
    """A table.

    Args:
        table: with the paper's numbers.
        scale: of the numbers found.
        found: one's own; what is missing has not been run yet.
        style: of the result.

    Returns:
        The text, with a line end. It starts with what a reader must know about the scale; a number that could not be
        had is ``-``, and the reason stands below.
    """
    return {"text": _text, "markdown": _markdown, "latex": _latex}[style](table, scale, found)


def entries(table: Table, scale: ScaleName, group: Group, number: int, found: Found) -> dict[str, dict[str, Entry]]:
    """By method, by metric: the printed columns first, then what else was measured."""
    compares = scale != SMOKE
    best = {column.metric: _best(column, table, group, found) if compares else None for column in table.columns}
    columns = [*table.columns, *_extras(table, group, found)]
    rows: dict[str, dict[str, Entry]] = {}
    for row in table.rows:
        results = found.get((row.method, group.name), _NOT_YET)
        rows[row.method] = {}
        for place, column in enumerate(columns):
            printed = row.paper[number][place] if place < len(table.columns) else None
            entry = _entry(column, printed, results)
            is_best = row.method == best.get(column.metric)
            rows[row.method][column.metric] = replace(entry, best=is_best, compares=compares)
    return rows


def _entry(column: Column, printed: float | None, results: Mapping[str, Any] | str) -> Entry:
    if isinstance(results, str) or column.metric not in results["means"]:
        return Entry(printed, None, column.digits, column.better)
    total, count = len(results["images"]), results["counts"][column.metric]
    partial = None if count == total else f"{count} of {total}"
    return Entry(printed, results["means"][column.metric], column.digits, column.better, partial)


def _best(column: Column, table: Table, group: Group, found: Found) -> str | None:
    """The method whose mean is best, where it differs from all others; see `milo_restore.measure.compare`."""
    values: dict[str, list[float | None]] = {}
    for row in table.rows:
        results = found.get((row.method, group.name), _NOT_YET)
        if not isinstance(results, str) and column.metric in results["means"]:
            values[row.method] = [image["values"][column.metric] for image in results["images"]]
    shared = [row for row in zip(*values.values()) if None not in row]
    if len(values) < 2 or not shared or len({len(rows) for rows in values.values()}) > 1:
        return None
    return compare_values(column.metric, values, lower_better=column.better == "lower").best


def _extras(table: Table, group: Group, found: Found) -> list[Column]:
    known = {column.metric for column in table.columns}
    extras: dict[str, Column] = {}
    for row in table.rows:
        results = found.get((row.method, group.name), _NOT_YET)
        if not isinstance(results, str):
            for name, about in results["metrics"].items():
                if name not in known:
                    extras.setdefault(name, Column(name, name, about["better"], _EXTRA_DIGITS))
    return list(extras.values())


def _heading(table: Table, scale: ScaleName) -> list[str]:
    size = table.scales.at(scale)
    lines = [f"Table {table.number}, scale {scale}: {table.title}"]
    if size.notice:
        lines.append(f"NOTE: {size.notice}.")
    lines.append(f"Budget: {' '.join(size.budget.split())}.")
    return lines


def _group_title(table: Table, group: Group, found: Found) -> str:
    counts = {
        len(results["images"])
        for row in table.rows
        if not isinstance(results := found.get((row.method, group.name), _NOT_YET), str)
    }
    return f"{group.name} ({' or '.join(map(counted, sorted(counts)))})" if counts else group.name


def _lines(
    table: Table, scale: ScaleName, group: Group, number: int, found: Found, cell: Callable[[Entry], str]
) -> list[list[str]]:
    """Head and rows: paper, ours and difference of each printed column, ours alone of the others."""
    rows = entries(table, scale, group, number, found)
    columns = [*table.columns, *_extras(table, group, found)]
    head = ["method"]
    for column in columns:
        title = f"{column.title} {ARROWS[column.better]}"
        printed = column in table.columns
        head += [f"{title} paper", "ours", "difference"] if printed else [f"{title} ours"]
    lines = [head]
    for row in table.rows:
        line = [row.method]
        for column in columns:
            entry = rows[row.method][column.metric]
            printed = column in table.columns
            line += [entry.number(entry.paper), cell(entry), entry.difference] if printed else [cell(entry)]
        lines.append(line)
    return lines


def _notes(table: Table, scale: ScaleName, found: Found) -> list[str]:
    """Notes of a table: what rows settle, why numbers are missing, what others are means of; each once."""
    reasons: dict[str, list[str]] = {}
    for row in table.rows:
        if row.note:
            reasons.setdefault(row.note, []).extend(f"{row.method}, {group.name}" for group in table.groups)
    reasons |= _reasons(table, found)
    lines = []
    for reason, places in reasons.items():
        methods = list(dict.fromkeys(place.rsplit(", ", 1)[0] for place in places))
        everywhere = all(f"{method}, {group.name}" in places for method in methods for group in table.groups)
        where = ", ".join(methods) if everywhere else "; ".join(places)
        lines.append(f"{where}: {reason}" if places else reason)
    if scale == SMOKE:
        return [*lines, "no difference to the paper and no best is shown: these numbers compare with nothing"]
    return [*lines, "▲ better than the paper's number, ▼ worse, whichever way the arrow points"]


def _reasons(table: Table, found: Found) -> dict[str, list[str]]:
    """Missing or partial results of one's own, with their rows and groups; without, where it is all of them."""
    reasons: dict[str, list[str]] = {}
    for group in table.groups:
        for row in table.rows:
            results = found.get((row.method, group.name), _NOT_YET)
            place = f"{row.method}, {group.name}"
            if isinstance(results, str):
                reasons.setdefault(results, []).append(place)
                continue
            for name, about in results["unavailable"].items():
                reasons.setdefault(f"{name} is unavailable: {about['reason']}", [])
            for name, count in results["counts"].items():
                total = len(results["images"])
                if count < total:
                    reasons.setdefault(f"† {name}: mean of {count} of {total} images", []).append(place)
            for about in results["metrics"].values():
                if "note" in about:
                    reasons.setdefault(about["note"], [])
    return reasons


def _text(table: Table, scale: ScaleName, found: Found) -> str:
    parts = ["\n".join(_heading(table, scale))]
    for number, group in enumerate(table.groups):
        lines = _lines(table, scale, group, number, found, lambda entry: entry.own)
        parts.append(f"{_group_title(table, group, found)}\n{text_table(lines)}")
    return "\n\n".join([*parts, "\n".join(_notes(table, scale, found))]) + "\n"


def _markdown(table: Table, scale: ScaleName, found: Found) -> str:
    def cell(entry: Entry) -> str:
        return f"**{entry.own}**" if entry.best else entry.own

    title, *about = _heading(table, scale)
    parts = [f"### {title}", *about]
    for number, group in enumerate(table.groups):
        head, *rows = _lines(table, scale, group, number, found, cell)
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
        text = "\n".join("| " + " | ".join(word.replace("|", "\\|").replace("*)", "\\*)") for word in line) + " |"
                         for line in lines)  # fmt: skip
        parts.append(f"**{_group_title(table, group, found)}**\n\n{text}")
    notes = "\n".join(f"- {_plain(note)}" for note in [*_notes(table, scale, found), BOLD])
    return "\n\n".join([*parts, notes]) + "\n"


def _plain(text: str) -> str:
    return text.replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


def _latex(table: Table, scale: ScaleName, found: Found) -> str:
    """A table environment; booktabs, and amssymb for the triangles."""
    parts = ["% needs \\usepackage{booktabs} and \\usepackage{amssymb}"]
    for number, group in enumerate(table.groups):
        rows = entries(table, scale, group, number, found)
        columns = [*table.columns, *_extras(table, group, found)]
        parts.append(_latex_block(table, scale, group, found, columns, rows))
    return "\n\n".join([*parts, "\n".join(f"% {note}" for note in _notes(table, scale, found))]) + "\n"


def _latex_block(
    table: Table,
    scale: ScaleName,
    group: Group,
    found: Found,
    columns: Sequence[Column],
    rows: Mapping[str, Mapping[str, Entry]],
) -> str:
    def cell(entry: Entry) -> str:
        return rf"\textbf{{{tex(entry.own)}}}" if entry.best else tex(entry.own)

    spans = [3 if column in table.columns else 1 for column in columns]
    tops = [
        f"\\multicolumn{{{span}}}{{c}}{{{tex(f'{column.title} {ARROWS[column.better]}')}}}"
        for column, span in zip(columns, spans)
    ]
    below = ["paper & ours & diff." if span > 1 else "ours" for span in spans]
    lines = [" & ".join(["", *tops]) + r" \\", " & ".join(["Method", *below]) + r" \\ \midrule"]
    for row in table.rows:
        words = [tex(row.method)]
        for column, span in zip(columns, spans):
            entry = rows[row.method][column.metric]
            words += [entry.number(entry.paper), cell(entry), tex(entry.difference)] if span > 1 else [cell(entry)]
        lines.append(" & ".join(words) + r" \\")
    caption = tex(" ".join([*_heading(table, scale), f"{_group_title(table, group, found)}."]))
    shape = "l" + "r" * sum(spans)
    body = "\n".join(lines)
    return (
        f"\\begin{{table*}}\n\\caption{{{caption}}}\n\\resizebox{{\\textwidth}}{{!}}{{%\n\\begin{{tabular}}{{{shape}}}\n"
        f"\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}}}\n\\end{{table*}}"
    )
