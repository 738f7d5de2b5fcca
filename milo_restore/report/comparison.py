"""Comparisons of methods as text, Markdown, LaTeX and CSV: differences, tests, wins and ranks."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

from milo_restore.measure.compare import Comparison
from milo_restore.measure.of_sets import NOTE as SETS_NOTE
from milo_restore.show.text import ARROWS, CSVWriter, counted, tex, text_table

HEAD = ("", "difference", "95% interval", "p", "p (Holm)", "wins", "losses")
NOTE = (
    "A difference holds (*) where its interval leaves out 0 and Wilcoxon's test, corrected by Holm for all pairs, is "
    "below 0.05; the best mean is marked only where it differs from all others. Over images, not over trainings."
)
Emphasis = Callable[[str], str]
Sets = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""FID and KID by name and method, from `milo_restore.measure.of_sets.shared_sets`."""
_SETS_NOTE = f"fid and kid: {SETS_NOTE}; nothing is said of how sure a difference is."


def as_text(comparisons: Sequence[Comparison], sets: Sets | None = None) -> str:
    """For the terminal."""
    parts = []
    for one in comparisons:
        parts += [_title(one), text_table(_means(one, lambda cell: f"{cell} *")), "", text_table([HEAD, *_pairs(one)])]
        parts += [*_rank_lines(one), ""]
    parts += [NOTE] if comparisons else []
    return "\n".join([*parts, *([text_table(_set_rows(sets)), _SETS_NOTE] if sets else [])])


def as_markdown(comparisons: Sequence[Comparison], sets: Sets | None = None) -> str:
    """Tables of GitHub's Markdown."""
    parts = []
    for one in comparisons:
        parts += [f"**{_title(one)}**", "", _pipes(_means(one, lambda cell: f"**{cell}**")), ""]
        parts += [_pipes([HEAD, *_pairs(one)]), "", *_rank_lines(one), ""]
    parts += [NOTE, ""] if comparisons else []
    return "\n".join([*parts, *([_pipes(_set_rows(sets)), "", _SETS_NOTE, ""] if sets else [])])


def as_latex(comparisons: Sequence[Comparison], sets: Sets | None = None) -> str:
    """Tabular environments with booktabs' rules."""
    parts = []
    for one in comparisons:
        means, *rows = _means(one, lambda cell: f"\\textbf{{{cell}}}")
        parts += [f"% {_title(one)}", _tabular(means, rows), _tabular(HEAD, _pairs(one))]
        parts += [f"% {line}" for line in _rank_lines(one)]
    parts += [f"% {NOTE}", ""] if comparisons else []
    head, *rows = _set_rows(sets or {})
    return "\n".join([*parts, *([_tabular(head, rows), f"% {_SETS_NOTE}", ""] if rows else [])])


def as_csv(comparisons: Sequence[Comparison], sets: Sets | None = None) -> str:
    """One line per metric and pair of methods; empty where there is no interval, no test, or no value per image."""
    stream = io.StringIO()
    writer = CSVWriter(stream)
    writer.writerow(
        ("metric", "better", "images", "first", "second", "difference", "low", "high", "p", "p_holm", "wins", "losses",
         "holds")
    )  # fmt: skip
    for one in comparisons:
        for pair in one.pairs:
            found = pair.difference
            writer.writerow((one.metric, _better(one), one.images, pair.first, pair.second, found.mean, found.low,
                             found.high, pair.p, pair.corrected, pair.wins, pair.losses, pair.holds))  # fmt: skip
    for name, runs in (sets or {}).items():
        for (first, mine), (second, theirs) in combinations(runs.items(), 2):
            difference = mine["value"] - theirs["value"]
            writer.writerow((name, mine["better"], mine["n"], first, second, difference, *[""] * 7))
    return stream.getvalue()


def _better(one: Comparison) -> str:
    return "lower" if one.lower_better else "higher"


def _title(one: Comparison) -> str:
    left = f", {counted(one.left_out)} left out for want of a value" if one.left_out else ""
    return f"{one.metric} {ARROWS[_better(one)]}, {counted(one.images)}{left}"


def _means(one: Comparison, emphasis: Emphasis) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("method", "mean", "mean rank")]
    for name in one.methods:
        mean = f"{one.means[name]:.5g}"
        rows.append((name, emphasis(mean) if name == one.best else mean, f"{one.ranks[name]:.2f}"))
    return rows


def _pairs(one: Comparison) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for pair in one.pairs:
        mark = " *" if pair.holds else ""
        difference = f"{pair.difference.mean:+.4g}{mark}"
        tests, counts = (f"{pair.p:.2g}", f"{pair.corrected:.2g}"), (str(pair.wins), str(pair.losses))
        rows.append((f"{pair.first} - {pair.second}", difference, pair.difference.text("+.4g"), *tests, *counts))
    return rows


def _rank_lines(one: Comparison) -> list[str]:
    if one.critical_difference is None:
        return []
    alike = "; ".join(", ".join(group) for group in one.alike) or "none"
    return [f"Critical difference of mean ranks {one.critical_difference:.2f}; not told apart by ranks: {alike}"]


def _set_rows(sets: Sets) -> list[tuple[str, ...]]:
    """A head, and a row per method."""
    heads = [f"{name} {ARROWS[one['better']]}, {one['n']} against {one['references']}"
             for name, runs in sets.items() for one in list(runs.values())[:1]]  # fmt: skip
    methods = dict.fromkeys(method for runs in sets.values() for method in runs)
    rows = [(method, *(f"{runs[method]['value']:.5g}" for runs in sets.values())) for method in methods]
    return [("method", *heads), *rows]


def _pipes(lines: Sequence[Sequence[str]]) -> str:
    head, *rows = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])


def _tabular(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" & ".join(_escaped(cell) for cell in line) + " \\\\" for line in (head, *rows)]
    body = "\n".join([lines[0], "\\midrule", *lines[1:]])
    columns = "l" + "r" * (len(head) - 1)
    return f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}"


def _escaped(cell: str) -> str:
    return cell if cell.startswith("\\textbf{") else tex(cell).replace(" *", "$^*$")
