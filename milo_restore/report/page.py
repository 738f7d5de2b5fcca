"""The report: one HTML file that needs nothing else, no network and no server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

import milo_restore
from milo_restore.errors import ConfigError, DataError
from milo_restore.files.write import replace_file
from milo_restore.measure.compare import Comparison, compare_runs
from milo_restore.measure.intervals import METHOD
from milo_restore.measure.of_sets import describe_sets
from milo_restore.measure.results import interval_text
from milo_restore.report.collect import Group, Run, extremes, group_runs, read_runs
from milo_restore.report.comparison import as_text
from milo_restore.report.pictures import MAP_TOP, RUNGS, Pictures, make_pictures
from milo_restore.show.ranks import rank_diagram
from milo_restore.show.text import ARROWS, counted

_ALL = 50  # images that get pictures by default
_FEWEST = 2  # of every group
_MOST = 1e6
_PER_PICTURE = 200  # bytes of what is written beside a picture
_SURROGATE = "ens-surrogate"


def write_report(
    names: Sequence[str],
    out: Path,
    *,
    title: str = "Restoration report",
    max_mb: float = 20.0,
    images: int | None = None,
    maps: bool = True,
    progress: bool | None = None,
) -> str:
    """Make the page.

    Args:
        names: runs, see `milo_restore.report.collect.read_runs`.
        out: the HTML file.
        title: of the page.
        max_mb: how large the file may become, in 10^6 bytes. Pictures are cropped and compressed to fit.
        images: pictures of so many images per group, the worst and the best; None: of all, or of 50 in all where there
            are more.
        maps: draw MILO's maps, with the weights that measured.
        progress: show bars; by default on terminals.

    Returns:
        A line that says what was written.

    Raises:
        DataError: a run or an image is missing, changed or damaged, or the pictures do not fit.
        ConfigError: runs of a group cannot be compared.
    """
    for name, value in (("--max-mb", max_mb), ("--images", images)):
        if value is not None and not 0 < value < _MOST:
            raise ConfigError(f"{value} is not between 0 and {_MOST:g}", where=name)
    groups = group_runs(read_runs(names))
    total = sum(len(group.names) for group in groups)
    count = images or (total if total <= _ALL else max(_ALL // len(groups), _FEWEST))
    chosen = [(group, extremes(group, count)) for group in groups]
    bare = _page(title, groups, [[Pictures(n, {}, {}, "", (1, 1)) for n in numbers] for _, numbers in chosen], 1)
    notes = _PER_PICTURE * sum(len(numbers) * (len(group.runs) + 1) for group, numbers in chosen)
    budget = int(max_mb * 1e6) - len(bare.encode()) - notes
    pictures, rung = make_pictures(chosen, budget, maps=maps, progress=progress)
    text = _page(title, groups, pictures, rung)
    replace_file(out, text)
    shown = sum(map(len, pictures))
    size = len(text.encode()) / 1e6
    return f"{out}: {size:.1f} MB, {len(groups)} groups, pictures of {shown} of {total} images"


def _page(title: str, groups: Sequence[Group], pictures: Sequence[Sequence[Pictures]], rung: int) -> str:
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":"), "allow_nan": False}
    tools = (zip, counted, interval_text, as_text, rank_diagram, _comparisons, _printed, _notes, _facts)
    environment.globals.update(
        {tool.__name__.lstrip("_"): tool for tool in tools}, arrows=ARROWS, surrogate=_SURROGATE, method=METHOD
    )
    side, quality = RUNGS[rung]
    return environment.get_template("page.html").render(
        title=title, groups=groups, pictures=pictures, version=milo_restore.__version__, side=side, quality=quality,
        cut=any(picture.note for made in pictures for picture in made),
        style=(folder / "page.css").read_text(encoding="utf-8"),
        script=(folder / "page.js").read_text(encoding="utf-8"),
        data={"mapTop": MAP_TOP, "groups": [_data(group, made) for group, made in zip(groups, pictures)]},
    )  # fmt: skip


def _data(group: Group, pictures: Sequence[Pictures]) -> dict[str, Any]:
    """Data of a group for the page's script."""
    return {
        "runs": [run.label for run in group.runs],
        "names": list(group.names),
        "metrics": {name: about["better"] for name, about in group.metrics.items()},
        "values": {name: [[_short(v) for v in row] for row in group.values(name)] for name in group.metrics},
        "map": group.milo,
        "ranking": group.ranking,
        "pictures": [
            {"image": p.number, "shown": p.shown, "missing": p.missing, "note": p.note, "size": list(p.size)}
            for p in pictures
        ],
    }  # fmt: skip


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _comparisons(group: Group) -> list[Comparison]:
    """The runs against each other by every metric that all measured alike; empty where there is nothing to compare."""
    labels = {run.label: run.results for run in group.runs}
    try:
        return compare_runs(labels) if len(labels) > 1 else []
    except DataError:
        return []


def _notes(group: Group) -> list[str]:
    """Notes under the table."""
    lines = []
    unavailable: dict[str, str] = {}
    for run in group.runs:
        unavailable |= {name: about["reason"] for name, about in run.results["unavailable"].items()}
        lines += [f"{name}: {about['note']}" for name, about in run.results["metrics"].items() if "note" in about]
        failed = {name: why for image in run.results["images"] for name, why in image["failures"].items()}
        lines += [f"{run.label}: no {metric} of some images ({why})" for metric, why in failed.items()]
    lines += [f"{run.label}: {line}" for run in group.runs for line in describe_sets(run.results)]
    lines += _unmeasured(group, unavailable)
    if group.source is None and any(run.results["input"] for run in group.runs):
        lines.append("inputs are not shown: the runs name different folders of them")
    return list(dict.fromkeys(lines))


def _unmeasured(group: Group, unavailable: Mapping[str, str]) -> list[str]:
    """Metrics without a value, why, and what the paper prints for them."""
    papers = [name for run in group.runs for name in run.provenance.get("paper", {})]
    lines = []
    for name in dict.fromkeys([*unavailable, *(name for name in papers if name not in group.metrics)]):
        why = f"is unavailable: {unavailable[name]}" if name in unavailable else "was not measured"
        printed = [(run.label, _printed(run, name)) for run in group.runs]
        numbers = ", ".join(f"{label} {number}" for label, number in printed if number is not None)
        lines.append(f"{name} {why}" + (f"; the paper prints {numbers}" if numbers else ""))
    return lines


def _printed(run: Run, metric: str) -> str | None:
    """The paper's number with the paper's decimals."""
    value = run.provenance.get("paper", {}).get(metric)
    digits = run.provenance.get("digits", {}).get(metric)
    return None if value is None else f"{value:.{digits}f}" if isinstance(digits, int) else f"{value!r}"


def _facts(run: Run) -> dict[str, Any]:
    """Provenance of a run and its measurement, by name; what is empty is not shown."""
    results, provenance = run.results, run.provenance
    protocol = ", ".join(f"{key}: {value}" for key, value in results["protocol"].items())
    metrics = {
        name: f"{about['source']}, {about['name']}; weights {about['weights'] or 'none'}"
        for name, about in results["metrics"].items()
    }
    keys = ("scale", "budget", "seed", "weights", "overrides", "commands")
    return {
        "results": str(run.file), "restored images": results["pred"], "references": results["ref"],
        "inputs": results["input"], "protocol": protocol, "metrics": metrics,
        "measured": f"{results['environment']['date']} on {results['environment']['device']}",
        "versions": results["environment"]["versions"], **{key: provenance.get(key) for key in keys},
    }  # fmt: skip
