"""The report: one HTML file that needs nothing else, no network and no server."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import milo_restore
from milo_restore.errors import ConfigError
from milo_restore.files.write import write_text
from milo_restore.report.collect import Group, Run, extremes, group_runs, read_runs
from milo_restore.report.pictures import MAP_TOP, RUNGS, Pictures, make_pictures
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
    write_text(out, text)
    shown = sum(map(len, pictures))
    size = len(text.encode()) / 1e6
    return f"{out}: {size:.1f} MB, {len(groups)} groups, pictures of {shown} of {total} images"


def _page(title: str, groups: Sequence[Group], pictures: Sequence[Sequence[Pictures]], rung: int) -> str:
    here = Path(__file__).parent
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    sections = [_section(number, group, made) for number, (group, made) in enumerate(zip(groups, pictures))]
    data = {"mapTop": MAP_TOP, "groups": [_data(group, made) for group, made in zip(groups, pictures)]}
    # "<" would let a file name end the script element.
    payload = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    links = "".join(f'<li><a href="#group{n}">{_text(group.title)}</a></li>' for n, group in enumerate(groups))
    contents = f'<nav aria-label="Sections"><ul>{links}</ul></nav>' if len(groups) > 1 else ""
    side, quality = RUNGS[rung]
    note = f"Pictures are WebP at quality {quality}."
    if any(picture.note for made in pictures for picture in made):
        note += (
            f" Of larger images squares of {side} pixels are shown: where the errors in the MILO maps are largest, or "
        )
        note += "the centre where there are no maps."
    template = (here / "page.html").read_text(encoding="utf-8")
    parts = {
        "TITLE": _text(title), "STYLE": style, "SCRIPT": script, "DATA": payload, "CONTENTS": contents,
        "SECTIONS": "\n".join(sections), "NOTE": note, "VERSION": milo_restore.__version__,
    }  # fmt: skip
    for name, text in parts.items():
        template = template.replace(f"<!--{name}-->", text)
    return template


def _data(group: Group, pictures: Sequence[Pictures]) -> dict[str, Any]:
    """What the script needs of a group."""
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


def _section(number: int, group: Group, pictures: Sequence[Pictures]) -> str:
    notices = dict.fromkeys(run.provenance.get("notice") for run in group.runs)
    shown = "".join(f'<p class="notice">{_text(notice.rstrip("."))}.</p>' for notice in notices if notice)
    title = _text(group.title)
    left_out = len(group.names) - len(pictures)
    about = counted(len(group.names)) + (f"; pictures of {len(pictures)} of them" if left_out else "")
    return (
        f'<section id="group{number}" data-group="{number}" aria-labelledby="title{number}">'
        f'<h2 id="title{number}">{title} <small>{about}</small></h2>{shown}'
        f"{_table(group)}{_notes(group)}"
        '<div class="charts"></div><div class="viewer"></div><div class="extremes"></div>'
        f"{_details(group)}</section>"
    )


def _table(group: Group) -> str:
    """Means with intervals; best and second best marked; sortable."""
    metrics = group.metrics
    heads = "".join(
        f'<th scope="col" data-better="{about["better"]}" aria-sort="none"><button type="button">{_text(name)} '
        f"{ARROWS[about['better']]}</button></th>"
        for name, about in metrics.items()
    )
    ranks = {name: _ranks(group, name, about["better"]) for name, about in metrics.items()}
    rows = "".join(
        f'<tr><th scope="row">{_text(run.label)}</th>'
        + "".join(_cell(run, name, ranks[name].get(place)) for name in metrics)
        + "</tr>"
        for place, run in enumerate(group.runs)
    )
    head = '<th scope="col" aria-sort="none"><button type="button">method</button></th>'
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Means of {_text(group.title)}">'
        '<table class="means">'
        f"<thead><tr>{head}{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _ranks(group: Group, metric: str, better: str) -> dict[int, int]:
    """Place of a run to 1 (best) or 2, by its mean over the same images."""
    means = {
        place: mean
        for place, run in enumerate(group.runs)
        if (mean := run.results["means"].get(metric)) is not None
        and run.results["counts"][metric] == len(run.results["images"])
    }
    known = sorted(set(means.values()), reverse=better == "higher")
    if len(known) < 2:
        return {}
    return {place: known.index(mean) + 1 for place, mean in means.items() if known.index(mean) < 2}


def _cell(run: Run, metric: str, rank: int | None) -> str:
    results = run.results
    mean = results["means"].get(metric)
    if mean is None:
        reason = results["unavailable"].get(metric, {}).get("reason", "not measured")
        return f'<td data-value="" title="{_text(reason)}">–</td>'
    interval, count, total = results["intervals"][metric], results["counts"][metric], len(results["images"])
    title = "" if interval is None else f"95% interval {interval[0]:.5g} to {interval[1]:.5g}"
    spread = "" if interval is None else f"<small>[{interval[0]:.4g}, {interval[1]:.4g}]</small>"
    partial = f"<small>{count} of {total} images</small>" if count < total else ""
    paper = run.provenance.get("paper", {}).get(metric)
    printed = f"<small>paper {_printed(run, metric)}</small>" if paper is not None and metric != _SURROGATE else ""
    mark = {1: ' class="best"', 2: ' class="second"'}.get(rank or 0, "")
    return f'<td data-value="{mean!r}" title="{title}"{mark}><span>{mean:.5g}</span>{spread}{printed}{partial}</td>'


def _notes(group: Group) -> str:
    """What a reader of the table must know."""
    lines = [
        "<b>bold</b>: best; <u>underlined</u>: second best; below each mean its 95% bootstrap interval over images"
    ]
    unavailable: dict[str, str] = {}
    for run in group.runs:
        unavailable |= {name: about["reason"] for name, about in run.results["unavailable"].items()}
        for name, about in run.results["metrics"].items():
            if "note" in about:
                lines.append(f"{_text(name)}: {_text(about['note'])}")
        failed = {
            metric: image["failures"][metric] for image in run.results["images"] for metric in image["failures"]
        }  # fmt: skip
        lines += [
            f"{_text(run.label)}: no {_text(metric)} of some images ({_text(why)})" for metric, why in failed.items()
        ]
    lines += _unmeasured(group, unavailable)
    if group.source is None and any(run.results["input"] for run in group.runs):
        lines.append("inputs are not shown: the runs name different folders of them")
    items = "".join(f"<li>{line}</li>" for line in dict.fromkeys(lines))
    return f'<ul class="notes">{items}</ul>'


def _unmeasured(group: Group, unavailable: Mapping[str, str]) -> list[str]:
    """Metrics without a value, why, and what the paper prints for them."""
    papers = [name for run in group.runs for name in run.provenance.get("paper", {})]
    lines = []
    for name in dict.fromkeys([*unavailable, *(name for name in papers if name not in group.metrics)]):
        why = f"is unavailable: {_text(unavailable[name])}" if name in unavailable else "was not measured"
        printed = [(run.label, _printed(run, name)) for run in group.runs]
        numbers = ", ".join(f"{_text(label)} {number}" for label, number in printed if number is not None)
        lines.append(f"{_text(name)} {why}" + (f"; the paper prints {numbers}" if numbers else ""))
    return lines


def _printed(run: Run, metric: str) -> str | None:
    """The paper's number with the paper's decimals."""
    value = run.provenance.get("paper", {}).get(metric)
    digits = run.provenance.get("digits", {}).get(metric)
    return None if value is None else f"{value:.{digits}f}" if isinstance(digits, int) else f"{value!r}"


def _details(group: Group) -> str:
    """Configurations, seeds, versions, weights, commands and protocol of every run."""
    blocks = "".join(
        f"<details><summary>How {_text(run.label)} was made and measured</summary>{_facts(run)}</details>"
        for run in group.runs
    )
    return f'<div class="details"><h3>Provenance</h3>{blocks}</div>'


def _facts(run: Run) -> str:
    results, provenance = run.results, run.provenance
    protocol = ", ".join(f"{key}: {value}" for key, value in results["protocol"].items())
    metrics = {
        name: f"{about['source']}, {about['name']}; weights {about['weights'] or 'none'}"
        for name, about in results["metrics"].items()
    }
    facts: dict[str, Any] = {
        "results": str(run.file), "restored images": results["pred"], "references": results["ref"],
        "inputs": results["input"], "protocol": protocol, "metrics": metrics,
        "measured": f"{results['environment']['date']} on {results['environment']['device']}",
        "versions": results["environment"]["versions"],
    }  # fmt: skip
    keys = ("scale", "budget", "seed", "weights", "overrides", "commands")
    facts |= {key: provenance[key] for key in keys if provenance.get(key)}
    rows = "".join(f"<dt>{_text(key)}</dt><dd>{_value(value)}</dd>" for key, value in facts.items() if value)
    configs = "".join(
        f"<details><summary>{_text(name)}</summary><pre>{_text(text)}</pre></details>"
        for name, text in provenance.get("configs", {}).items()
    )
    missing = (
        "" if provenance else "<p>No provenance.json lies beside these results: how they were made is not known.</p>"
    )
    return f"<dl>{rows}</dl>{configs}{missing}"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        items = {key: "none" if item is None else item for key, item in value.items()}
        return "<br>".join(f"{_text(key)}: {_text(item)}" for key, item in items.items())
    if isinstance(value, (list, tuple)):
        return "<br>".join(f"<code>{_text(item)}</code>" for item in value)
    return _text(value)


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)
