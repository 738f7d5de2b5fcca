"""``results.json``, format 1: what was measured, how, with what, and with how much certainty; and its CSV."""

from __future__ import annotations

import datetime
import importlib.metadata
import io
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import milo_restore
from milo_restore.errors import DataError
from milo_restore.files.hashes import sha256_of
from milo_restore.measure.folders import ImageFiles
from milo_restore.measure.intervals import FEWEST, LEVEL, METHOD, Floats, mean_interval
from milo_restore.measure.metrics import Metric, MetricUnavailable, Protocol
from milo_restore.measure.run import Measured
from milo_restore.show.text import CSVWriter

FORMAT = 1
_PACKAGES = ("torch", "numpy", "pillow", "basicsr", "opencv-python", "pyiqa", "stlpips-pytorch", "accelerate")


def make_results(
    folders: Mapping[str, Path | None],
    images: Sequence[ImageFiles],
    metrics: Sequence[Metric],
    unavailable: Mapping[str, MetricUnavailable],
    protocol: Protocol,
    measured: Measured,
    device: torch.device | str,
    sets: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Everything, ready for JSON: no NaN, no infinity.

    A mean is over the images that have a value; ``counts`` says how many these are, and whoever prints a mean of fewer
    than all says so. Without any value it is None. Where an interval is None, ``interval.none`` says why.

    Args:
        folders: ``pred``, ``ref``, ``input``.
        images: those measured, in order.
        metrics: those that measured.
        unavailable: those that could not, with the reason.
        protocol: of the run.
        measured: from `milo_restore.measure.run.measure`.
        device: where the metrics computed.
        sets: numbers of whole folders, FID and KID, from `milo_restore.measure.of_sets.measure_sets`.
    """
    columns = {metric.name: _column(measured.values, metric.name) for metric in metrics}
    place = {name: None if path is None else path.resolve().as_posix() for name, path in folders.items()}
    return {
        "format": FORMAT,
        "milo_restore": milo_restore.__version__,
        "pred": place["pred"],
        "ref": place["ref"],
        "input": place["input"],
        "protocol": protocol.as_dict(),
        "metrics": {metric.name: metric.as_dict() for metric in metrics},
        "unavailable": {name: {"reason": error.what, "mend": error.mend} for name, error in unavailable.items()},
        "images": [_image(folders, image, measured, number) for number, image in enumerate(images)],
        "means": {name: float(values.mean()) if len(values) else None for name, values in columns.items()},
        **_intervals(columns),
        "counts": {name: len(values) for name, values in columns.items()},
        "sets": dict(sets or {}),
        "environment": _environment(device),
    }


def to_json(results: Mapping[str, Any]) -> str:
    """The text of results.json."""
    return json.dumps(results, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def to_csv(results: Mapping[str, Any]) -> str:
    """One line per image: name, files, size, a column per metric, and its failures; empty where there is no value."""
    text = io.StringIO()
    writer = CSVWriter(text)
    names = list(results["metrics"])
    writer.writerow(("name", "pred", "ref", "input", "width", "height", *names, "failures"))
    for image in results["images"]:
        values = [image["values"][name] for name in names]
        failures = "; ".join(f"{name}: {reason}" for name, reason in image["failures"].items())
        writer.writerow((image["name"], image["pred"], image["ref"], image["input"], *image["size"], *values, failures))
    return text.getvalue()


def read_results(path: Path) -> dict[str, Any]:
    """A results.json. Intervals of an earlier version, which were too narrow, are made anew from the values; ``sets``,
    which it does not have, are empty.

    Raises:
        DataError: it cannot be read, or is of another format.
    """
    mend = "'milo-restore evaluate --output FILE' writes such files"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error})", where=path, mend=mend) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or "images" not in content:
        raise DataError(f"is no results file of format {FORMAT}", where=path, mend=mend)
    if not isinstance(content.get("interval"), dict):
        rows = [image["values"] for image in content["images"]]
        content |= _intervals({name: _column(rows, name) for name in content["metrics"]})
    content.setdefault("sets", {})
    return content


def results_table(results: Mapping[str, Any]) -> str:
    """A table for the terminal: one line per metric, and below it what a reader must know."""
    total = len(results["images"])
    head = ("metric", "better", "mean", "95% interval", "images")
    rows = [head]
    for name, about in results["metrics"].items():
        mean, count = results["means"][name], results["counts"][name]
        cells = ("-", "-") if mean is None else (f"{mean:.5g}", interval_text(results, name, 5))
        rows.append((name, about["better"], *cells, str(count) if count == total else f"{count} of {total}"))
    for name, about in results["sets"].items():
        counts = f"{about['n']} against {about['references']}"
        rows.append((name, about["better"], f"{about['value']:.5g}", "of the whole folder", counts))
    width = max(len(row[0]) for row in [*rows, *((name,) for name in results["unavailable"])])
    widths = [width, *(max(len(row[column]) for row in rows) for column in range(1, len(head)))]
    lines = ["  ".join(cell.ljust(size) for cell, size in zip(row, widths)).rstrip() for row in rows]
    lines.insert(1, "-" * max(map(len, lines)))
    lines += [f"{name:<{width}}  unavailable: {about['reason']}" for name, about in results["unavailable"].items()]
    return "\n".join(lines)


def interval_text(results: Mapping[str, Any], metric: str, digits: int) -> str:
    """A metric's interval as ``[low, high]``, or in a few words why there is none, such as ``n too small``."""
    interval = results["intervals"][metric]
    if interval is None:
        return str(results["interval"]["none"][metric]).split(":")[0]
    return "[{:.{digits}g}, {:.{digits}g}]".format(*interval, digits=digits)


def _column(rows: Sequence[Mapping[str, float | None]], name: str) -> Floats:
    """The values that there are of one metric."""
    return np.array([row[name] for row in rows if row[name] is not None], np.float64)


def _intervals(columns: Mapping[str, Floats]) -> dict[str, Any]:
    found = {name: mean_interval(values) for name, values in columns.items()}
    none = {name: interval.reason for name, interval in found.items() if interval.reason is not None}
    return {
        "intervals": {name: interval.ends for name, interval in found.items()},
        "interval": {"method": METHOD, "level": LEVEL, "fewest": FEWEST, "none": none},
    }


def _image(folders: Mapping[str, Path | None], image: ImageFiles, measured: Measured, number: int) -> dict[str, Any]:
    paths = {"pred": image.pred, "ref": image.ref, "input": image.input}
    names = {
        role: None if path is None or (folder := folders[role]) is None else path.relative_to(folder).as_posix()
        for role, path in paths.items()
    }
    hashes = measured.hashes[number]
    return {
        "name": image.name,
        **names,
        "size": list(image.size),
        "sha256": {
            "pred": hashes.pred,
            "ref": hashes.ref or None,
            "input": sha256_of(image.input) if image.input is not None else None,
        },
        "values": measured.values[number],
        "failures": measured.failures[number],
    }


def _environment(device: torch.device | str) -> dict[str, Any]:
    device = torch.device(device)
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "versions": {"python": platform.python_version(), **versions},
        "device": f"{device} ({named})",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
