"""Restorers on test images: means in memory while a network trains, pictures and results.json at its end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from milo_restore.data import to_uint8, write_png
from milo_restore.data.restoration_pairs import RestorationPair, Restore
from milo_restore.errors import DataError, NumericsError
from milo_restore.files.write import replace_file
from milo_restore.measure.folders import find_images
from milo_restore.measure.metrics import Metric, Protocol
from milo_restore.measure.results import make_results, to_json
from milo_restore.measure.run import measure
from milo_restore.measure.scores import Values, means, measure_image
from milo_restore.processes import over_processes, rank_and_size
from milo_restore.show.text import ARROWS, slug, text_table

INPUT, REFERENCE, RESTORED = "input", "ref", "restored"
RESULTS, PROVENANCE = "results.json", "provenance.json"
_DIGITS = {"psnr": ".2f", "ssim": ".4f"}


def given(pair: RestorationPair, number: int) -> NDArray[np.uint8]:
    """The degraded image itself, clamped and rounded like an output."""
    return to_uint8(pair.degraded)


def restored(restore: Restore, pair: RestorationPair, number: int) -> NDArray[np.uint8]:
    """One image restored.

    Raises:
        NumericsError: it holds NaN or infinite values; the image is named.
        DataError: it came out in another size; the image is named.
    """
    try:
        array = restore(pair, number)
    except NumericsError as error:
        mend = "The network has diverged, or its weights do not fit"
        raise NumericsError("the restored image holds NaN or infinite values", where=pair.name, mend=mend) from error
    except DataError as error:
        raise DataError(error.what, where=pair.name, mend=error.mend) from error
    if array.shape != pair.target.shape:
        raise DataError(f"came out as {array.shape}, the target is {pair.target.shape}", where=pair.name)
    return array


def score_restorer(
    restore: Restore,
    pairs: Sequence[RestorationPair],
    metrics: Sequence[Metric],
    *,
    device: torch.device | str = "cpu",
    title: str = "restoring",
    progress: bool | None = None,
) -> dict[str, float]:
    """Restore images and measure them in memory: what an evaluation during training logs.

    Images are clamped to [0, 1] and rounded to 8 bits, so that the numbers are those that `evaluate_restorers` takes
    from files. Under ``accelerate launch`` each of N processes takes every N-th image, and all return the same means:
    call it on every process. They do not depend on N.

    Args:
        restore: see `Restore`.
        pairs: the images.
        metrics: on ``device``.
        device: where the metrics compute.
        title: of the progress bar.
        progress: show it on the main process; by default where standard error is a terminal.

    Returns:
        The mean of each metric, by its name, over the images that have a value.

    Raises:
        DataError: no image, one whose sizes differ, or which no metric can measure; it is named.
        NumericsError: the output is not finite; the image is named.
    """
    if not pairs:
        raise DataError("there are no images to evaluate on")

    def work(number: int) -> Values:
        image = restored(restore, pairs[number], number)
        return measure_image(image, pairs[number].target, metrics, torch.device(device))

    rows = over_processes(len(pairs), work, title=title, progress=progress)
    return means(rows, [pair.name for pair in pairs])


def evaluate_restorers(
    methods: Mapping[str, Restore],
    sets: Mapping[str, Sequence[RestorationPair]],
    metrics: Sequence[Metric],
    folder: Path,
    *,
    labels: Mapping[str, str] | None = None,
    cache: Path | None = None,
    device: torch.device | str = "cpu",
    progress: bool | None = None,
    notice: str | None = None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Restore test sets with every method, write the pictures, and measure them as ``milo-restore evaluate`` does.

    FOLDER/SET/ref/ and FOLDER/SET/METHOD/ hold PNG files; a method's folder also holds its results.json, which
    ``milo-restore report`` and ``compare`` read. The degraded input is a method, too, the first one.

    Call it on every process, as `score_restorer`.

    Args:
        methods: by a short name, such as ``restored``.
        sets: by what to call them, such as ``Kodak24, sigma 25``.
        metrics: on ``device``.
        folder: where the pictures go.
        labels: what to call a method in the report, where another name than its own.
        cache: folder of values by the hashes of the files; what several runs share, such as the degraded input, is
            measured once. None: nothing is kept.
        device: where the metrics compute.
        progress: show a bar on the main process; by default where standard error is a terminal.
        notice: what a reader of the report must know of the methods, such as that a run was changed on its way.

    Returns:
        The content of results.json, by set and method.

    Raises:
        DataError: as `score_restorer`; two images of a set have one name; a file cannot be written.
        NumericsError: an output is not finite; the image is named.
    """
    everything, labels = {INPUT: given, **methods}, {INPUT: "degraded input", **(labels or {})}
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for name, pairs in sets.items():
        if not pairs:
            raise DataError("there are no images to evaluate on", where=name)
        place = folder / slug(name)
        _write_pictures(everything, pairs, place, title=name, progress=progress)
        results[name] = {}
        for order, method in enumerate(everything):
            folders = {"pred": place / method, "ref": place / REFERENCE, "input": place / INPUT}
            images = find_images(folders["pred"], folders["ref"], folders["input"])
            measured = measure(images, metrics, cache, device=device, progress=progress)
            found = make_results(folders, images, metrics, {}, Protocol(), measured, device)
            results[name][method] = found
            if rank_and_size()[0] == 0:
                about: dict[str, Any] = {"method": labels.get(method, method), "title": name, "order": order}
                if notice is not None and method != INPUT:
                    about["notice"] = notice
                replace_file(place / method / PROVENANCE, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
                replace_file(place / method / RESULTS, to_json(found))
    return results


def comparison_table(results: Mapping[str, Mapping[str, Mapping[str, Any]]], words: Mapping[str, str]) -> str:
    """A table for the terminal: each set's methods, one below the other, with the mean of each metric.

    Args:
        results: from `evaluate_restorers`, by set and method.
        words: what to call a method, where another name than its own.
    """
    runs = [one for found in results.values() for one in found.values()]
    metrics = {name: about for one in runs for name, about in {**one["metrics"], **one["sets"]}.items()}
    heads = [f"{name} {ARROWS[about['better']]}" for name, about in metrics.items()]
    lines: list[tuple[str, ...]] = [("images", "", *heads)]
    for name, methods in results.items():
        for place, (method, found) in enumerate(methods.items()):
            count = len(found["images"])
            cells = [_cell(found, metric, count) for metric in metrics]
            lines.append(("" if place else f"{name} ({count})", words.get(method, method), *cells))
    return text_table(lines)


def _cell(found: Mapping[str, Any], metric: str, count: int) -> str:
    if metric in found["sets"]:
        return f"{found['sets'][metric]['value']:{_DIGITS.get(metric, '.4g')}}"
    mean, known = found["means"].get(metric), found["counts"].get(metric)
    if mean is None:
        return "-"
    return f"{mean:{_DIGITS.get(metric, '.4g')}}" + ("" if known == count else f" ({known} of {count})")


def _write_pictures(
    methods: Mapping[str, Restore],
    pairs: Sequence[RestorationPair],
    place: Path,
    *,
    title: str,
    progress: bool | None,
) -> None:
    """Each process's share of the targets and of what the methods make; all are on disk when it returns."""

    def work(number: int) -> None:
        pair = pairs[number]
        file = f"{Path(pair.name).stem}.png"
        for method, restore in methods.items():
            write_png(place / method / file, restored(restore, pair, number))
        write_png(place / REFERENCE / file, pair.target)

    over_processes(len(pairs), work, title=f"restoring {title}", progress=progress)
