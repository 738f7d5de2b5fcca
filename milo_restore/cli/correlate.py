"""``milo-restore correlate``: SRCC, PLCC and KRCC of full-reference metrics with people's opinions, as one table."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milo_restore.cli.metric import add_list_metrics
from milo_restore.errors import ConfigError, listed
from milo_restore.files.write import check_target, replace_file
from milo_restore.show.text import CSVWriter

if TYPE_CHECKING:
    from milo_restore.opinions.coefficients import Correlation
    from milo_restore.opinions.compare import MetricComparison
    from milo_restore.opinions.correlate import MetricResult
    from milo_restore.opinions.datasets import OpinionPair

_DATASETS = ("csiq", "tid2013", "kadid10k", "pipal")
_SPLITS = ("kadid-train", "kadid-test")
_COEFFICIENTS = ("srcc", "plcc", "krcc")


@dataclass(frozen=True)
class Run:
    """The pairs, how many the data set has, the metrics' results, what could not be measured, and the comparison."""

    pairs: list[OpinionPair]
    of: int
    results: list[MetricResult]
    unavailable: dict[str, str]
    comparison: MetricComparison | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``correlate``."""
    parser.description = (
        "Measure how well full-reference metrics follow people's opinions: Spearman's rank correlation (SRCC), "
        "Pearson's after a four-parameter logistic (PLCC) and Kendall's (KRCC), with 95% intervals over reference "
        "images; and every two metrics against each other on the same pairs."
    )
    parser.add_argument(
        "--dataset", required=True, choices=_DATASETS, help="which data set's folders and scores to read"
    )
    parser.add_argument("--root", required=True, type=Path, metavar="DIR", help="the folder that it was unpacked into")
    parser.add_argument(
        "--metrics",
        required=True,
        nargs="+",
        metavar="NAME",
        help="full-reference metrics as for evaluate, see --list-metrics; all: every one that can be measured here, "
        "the rest listed with the reason",
    )
    add_list_metrics(parser)
    parser.add_argument("--split", choices=_SPLITS, help="a part of kadid10k, split 80-20 by reference image")
    parser.add_argument("--table", type=Path, metavar="FILE", help="another table of opinions than the data set's own")
    parser.add_argument("--only-present", action="store_true", help="leave out pairs whose images are not there")
    parser.add_argument(
        "--skip-unavailable", action="store_true", help="go on without metrics whose weights or package are missing"
    )
    parser.add_argument("--per-type", action="store_true", help="print a table per type of distortion, too")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="where scores are kept (default: the cache's scores/)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one, else cpu)")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write one line per metric and type of distortion")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything: fits, weights' sha256, all scores")


def main(arguments: argparse.Namespace) -> int:
    """Score, correlate, print the tables, write the files asked for."""
    for file in (arguments.csv, arguments.json):
        if file is not None:
            check_target(file)
    run = _measure(arguments)
    print(_heading(arguments, run))
    print(_table([(result.metric.name, result, result.overall) for result in run.results], run.unavailable))
    for line in [*_notes(run), *_differences(run)]:
        print(line)
    if arguments.per_type:
        for kind in sorted({pair.kind for pair in run.pairs}):
            print(f"\n{kind}")
            print(_table([(result.metric.name, result, result.kinds[kind]) for result in run.results], {}))
    if arguments.csv is not None:
        replace_file(arguments.csv, _csv(run))
    if arguments.json is not None:
        replace_file(arguments.json, _json(arguments, run))
    return 0


def _measure(arguments: argparse.Namespace) -> Run:
    from milo_restore.files import cache_folder
    from milo_restore.measure.cache import KnownImages, ScoreCache
    from milo_restore.measure.metrics import FULL_REFERENCE, Protocol, find_metric, load_metrics
    from milo_restore.opinions.correlate import compare_results, correlate_metric, hash_pairs
    from milo_restore.opinions.datasets import opinion_pairs, present_pairs
    from milo_restore.processes import choose_device

    everything = arguments.metrics == ["all"]
    names = list(FULL_REFERENCE) if everything else list(dict.fromkeys(arguments.metrics))
    for name in names:
        if not find_metric(name).reference:
            raise ConfigError("does not look at the reference", where=repr(name), mend="Give full-reference metrics")
    place = (arguments.dataset, arguments.root, arguments.split)
    if arguments.only_present:
        pairs, of = present_pairs(*place, table=arguments.table)
    else:
        pairs = opinion_pairs(*place, table=arguments.table)
        of = len(pairs)
    device = choose_device(arguments.device)
    skip = everything or arguments.skip_unavailable
    metrics, unavailable = load_metrics(names, Protocol(), device, skip_unavailable=skip)
    folder = arguments.cache or cache_folder() / "scores"
    caches = [ScoreCache.open(folder, metric) for metric in metrics]
    for cache in caches:
        if damage := cache.damage():
            print(damage)
    keys = hash_pairs(pairs, known_images=KnownImages(folder))
    results = [correlate_metric(pairs, keys, metric, cache, device=device) for metric, cache in zip(metrics, caches)]
    reasons = {name: error.what for name, error in unavailable.items()}
    return Run(pairs, of, results, reasons, compare_results(pairs, results))


def _heading(arguments: argparse.Namespace, run: Run) -> str:
    count = f"{len(run.pairs)} pairs" if len(run.pairs) == run.of else f"{len(run.pairs)} of {run.of} pairs are there"
    part = f", {arguments.split}" if arguments.split else ""
    better = "higher" if run.pairs[0].higher_better else "lower"
    references = len({pair.reference for pair in run.pairs})
    return f"{arguments.dataset}{part}: {count}, {references} references; opinions: {better} is better"


def _table(rows: Sequence[tuple[str, MetricResult, Correlation]], unavailable: dict[str, str]) -> str:
    width = max(6, *(len(name) for name in (*(row[0] for row in rows), *unavailable)))
    lines = [f"{'metric':<{width}}  {'better':<6}  {'n':>5}  {'SRCC':<24}  {'PLCC':<24}  KRCC"]
    for name, result, found in rows:
        better = "lower" if result.metric.lower_better else "higher"
        cells = [f"{getattr(found, key)!s:<24}" for key in _COEFFICIENTS]
        lines.append(f"{name:<{width}}  {better:<6}  {found.n:>5}  {'  '.join(cells)}".rstrip())
    lines += [f"{name:<{width}}  unavailable: {reason}" for name, reason in unavailable.items()]
    return "\n".join(lines)


def _notes(run: Run) -> list[str]:
    """Notes under the table."""
    lines = []
    for result in run.results:
        name, found = result.metric.name, result.overall
        work = f"{result.computed} scores computed, {len(run.pairs) - result.computed} from the cache"
        about = result.metric
        lines.append(f"{name}: {about.source}, {about.formal}; weights: {about.weights or 'none'}; {work}")
        if about.note is not None:
            lines.append(f"{name}: {about.note}")
        if result.not_finite:
            count, named = len(result.not_finite), listed(result.not_finite)
            lines.append(f"{name}: {count} scores are NaN or infinite and left out: {named}")
        if found.fit.reason is not None:
            state = "converged, but" if found.fit.converged else "did not converge:"
            lines.append(f"{name}: the logistic {state} {found.fit.reason}")
        if found.note is not None:
            lines.append(f"{name}: {found.note}")
        agrees = result.metric.lower_better != run.pairs[0].higher_better
        if found.srcc.value is not None and found.srcc.value != 0 and (found.srcc.value > 0) != agrees:
            lines.append(f"{name}: the sign of SRCC contradicts the metric's stated direction")
    return lines


def _differences(run: Run) -> list[str]:
    """Every two metrics against each other."""
    from milo_restore.show.text import text_table

    found = run.comparison
    if found is None:
        return []
    left = f", {found.left_out} left out for want of a score" if found.left_out else ""
    rows: list[tuple[str, ...]] = [("", "", "difference", "95% interval", "p", "p (Holm)")]
    for pair in found.pairs:
        for key in _COEFFICIENTS:
            one, name = getattr(pair, key), f"{pair.first} - {pair.second}" if key == _COEFFICIENTS[0] else ""
            mean = "undefined" if one.difference.mean is None else f"{one.difference.mean:+.4f}"
            tests = ["-" if p is None else f"{p:.2g}" for p in (one.p, one.corrected)]
            mark = " *" if one.holds else ""
            rows.append((name, key.upper(), f"{mean}{mark}", one.difference.text("+.4f"), *tests))
    return [
        f"\nmetrics against each other, {found.n} pairs of {found.references} references{left}; SRCC and KRCC count as "
        "agreement with the opinions",
        text_table(rows),
        "A difference holds (*) where its interval leaves out 0 and p, corrected by Holm for all pairs, is below 0.05: "
        "over reference images.",
    ]


def _csv(run: Run) -> str:
    text = io.StringIO()
    writer = CSVWriter(text)
    ends = [f"{key}{end}" for key in _COEFFICIENTS for end in ("", "_low", "_high")]
    fit = ("b1", "b2", "b3", "b4", "converged", "fit_reason")
    writer.writerow(("metric", "better", "kind", "n", "left_out", "references", *ends, "pearson", *fit, "note"))
    for result in run.results:
        better = "lower" if result.metric.lower_better else "higher"
        for kind, found in (("all", result.overall), *result.kinds.items()):
            coefficients = [getattr(found, key) for key in _COEFFICIENTS]
            numbers = [number for one in coefficients for number in (one.value, one.low, one.high)]
            counts = (found.n, found.left_out, found.references)
            curve = (*found.fit.beta, found.fit.converged, found.fit.reason)
            writer.writerow((result.metric.name, better, kind, *counts, *numbers, found.pearson, *curve, found.note))
    empty = [""] * (2 + len(ends) + 1 + len(fit))
    for name, reason in run.unavailable.items():
        writer.writerow((name, "", "all", 0, *empty, f"unavailable: {reason}"))
    return text.getvalue()


def _json(arguments: argparse.Namespace, run: Run) -> str:
    from milo_restore.measure.intervals import LEVEL
    from milo_restore.opinions.coefficients import FEWEST_REFERENCES, METHOD

    metrics = []
    for result in run.results:
        metric = result.metric
        about: dict[str, Any] = {
            "name": metric.name, "better": "lower" if metric.lower_better else "higher", "software": metric.source,
            "formal": metric.formal, "note": metric.note,
            "weights": metric.weights, "weights_sha256": metric.weights_sha256, "computed": result.computed,
        }  # fmt: skip
        kinds = {kind: dataclasses.asdict(found) for kind, found in result.kinds.items()}
        about |= {"not_finite": result.not_finite, "all": dataclasses.asdict(result.overall), "kinds": kinds}
        metrics.append(about)
    content = {
        "dataset": arguments.dataset,
        "split": arguments.split,
        "table": None if arguments.table is None else str(arguments.table),
        "pairs_found": len(run.pairs),
        "pairs_of": run.of,
        "opinions_better": "higher" if run.pairs[0].higher_better else "lower",
        "interval": {"method": METHOD, "level": LEVEL, "fewest": FEWEST_REFERENCES},
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy")},
        "metrics": metrics,
        "comparison": _comparison(run),
        "unavailable": run.unavailable,
        "pairs": [_pair(pair, index, run.results) for index, pair in enumerate(run.pairs)],
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _comparison(run: Run) -> dict[str, Any] | None:
    from milo_restore.opinions.compare import METHOD

    if run.comparison is None:
        return None
    content = {"method": METHOD, **dataclasses.asdict(run.comparison)}
    for pair, written in zip(run.comparison.pairs, content["pairs"]):
        for key in _COEFFICIENTS:
            written[key]["holds"] = getattr(pair, key).holds
    return content


def _pair(pair: OpinionPair, index: int, results: Sequence[MetricResult]) -> dict[str, Any]:
    """One pair's scores; JSON has no NaN and no infinity, so these become None (they are listed as not finite)."""
    scores = {result.metric.name: float(result.scores[index]) for result in results}
    return {
        "reference": str(pair.reference),
        "distorted": str(pair.distorted),
        "kind": pair.kind,
        "opinion": pair.score,
        "scores": {name: score if math.isfinite(score) else None for name, score in scores.items()},
    }
