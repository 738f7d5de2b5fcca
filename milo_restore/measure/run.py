"""Measuring a folder of restored images with many metrics: once, whatever is interrupted, on however many processes.

Every value is written to the cache as soon as it is known, under the sha256 of the files and the metric's identity
(name, software, version, weights, protocol): a second run computes only what is new. Batches are formed before they are
dealt out, so that values do not depend on the number of processes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from milo_restore.data.images import read_image
from milo_restore.errors import ConfigError, MiloRestoreError
from milo_restore.files.hashes import sha256_of
from milo_restore.measure.cache import KnownImages, ScoreCache
from milo_restore.measure.folders import ImageFiles
from milo_restore.measure.metrics import Batch, Metric
from milo_restore.measure.scores import Values, measure_batch
from milo_restore.processes import gather, on_main, rank_and_size

_Cell = tuple[str, int]  # a metric and an image's place


@dataclass(frozen=True)
class Hashes:
    """The sha256 of an image's files; ``ref`` is empty where there is no reference."""

    pred: str
    ref: str


@dataclass(frozen=True)
class Measured:
    """Result of `measure`.

    Attributes:
        hashes: of each image, in order.
        values: of each image, by metric; None where there is none, for which `failures` has the reason.
        failures: of each image, by metric.
        computed: how many values were computed now, not read from the cache, by metric.
    """

    hashes: tuple[Hashes, ...]
    values: tuple[dict[str, float | None], ...]
    failures: tuple[dict[str, str], ...]
    computed: dict[str, int]


@dataclass(frozen=True)
class _Work:
    """Images of one size, and which metrics each of them lacks."""

    images: tuple[int, ...]
    lacking: dict[str, tuple[int, ...]]  # metric to places within `images`


def measure(
    images: Sequence[ImageFiles],
    metrics: Sequence[Metric],
    cache: Path | None,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 1,
    progress: bool | None = None,
    known_images: KnownImages | None = None,
) -> Measured:
    """Measure images, or take what is known from the cache.

    Under ``accelerate launch`` each of N processes takes every N-th batch, and all return everything: call it on every
    process, after what starts the process group (``Accelerator()``). Values do not depend on N. With a
    ``batch_size`` above 1 they depend within float rounding on who shares a batch, as networks round by its shape.

    Args:
        images: from `milo_restore.measure.folders.find_images`.
        metrics: on ``device``.
        cache: folder of values, which is made; None: nothing is kept.
        device: where the metrics compute.
        batch_size: images of equal size that go through a network at once.
        progress: show a bar with the time left on the main process; by default on terminals.
        known_images: the files' hashes, where `find_images` has had their sizes from it; by default the cache's.

    Raises:
        DataError: an image cannot be read, or the cache cannot be used; the file is named. What was computed is kept.
        ConfigError: a full-reference metric without references.
    """
    if batch_size < 1:
        raise ConfigError(f"{batch_size} is less than 1", where="batch_size")
    for metric in metrics:
        if metric.reference and any(image.ref is None for image in images):
            raise ConfigError("compares with a reference", where=metric.name, mend="Give --ref, or leave it out")
    rank, processes = rank_and_size()
    hidden = rank > 0 or (None if progress is None else not progress)  # None: on terminals only
    # Rank 0 alone looks into the cache: the others might find there what the first has just written.
    hashes, known, plan = on_main(lambda: _plan(images, metrics, cache, known_images, batch_size, hidden))
    found, failures, problem = _compute(
        plan[rank::processes], images, metrics, hashes, cache, torch.device(device), hidden
    )
    parts = gather((found, failures, problem))
    for *_, problem in parts:
        if problem is not None:
            raise problem
    computed = {metric.name: 0 for metric in metrics}
    for part, refused, _ in parts:
        known, failures = {**known, **part}, {**failures, **refused}
        for name, _number in part:
            computed[name] += 1
    return _collect(images, metrics, hashes, known, failures, computed)


def _compute(
    plan: Sequence[_Work],
    images: Sequence[ImageFiles],
    metrics: Sequence[Metric],
    hashes: Sequence[Hashes],
    cache: Path | None,
    device: torch.device,
    hidden: bool | None,
) -> tuple[dict[_Cell, float], dict[_Cell, str], MiloRestoreError | None]:
    """This process's part: values, reasons where there is none, and what stopped it, for others wait for this one."""
    found: dict[_Cell, float] = {}
    failures: dict[_Cell, str] = {}
    total = sum(len(rows) for work in plan for rows in work.lacking.values())
    try:
        caches = {} if cache is None else {metric.name: ScoreCache.open(cache, metric) for metric in metrics}
        with tqdm(total=total, desc="measuring", unit="value", leave=False, disable=hidden) as bar:
            for metric, number, value in (one for work in plan for one in _work(work, images, metrics, device)):
                if isinstance(value, str):
                    failures[metric.name, number] = value
                else:
                    found[metric.name, number] = value
                    if caches:
                        caches[metric.name].add(_key(metric, hashes[number]), hashes[number].pred, value)
                bar.update()
    except MiloRestoreError as error:
        return found, failures, error
    return found, failures, None


def _plan(
    images: Sequence[ImageFiles],
    metrics: Sequence[Metric],
    cache: Path | None,
    known_images: KnownImages | None,
    batch_size: int,
    hidden: bool | None,
) -> tuple[list[Hashes], dict[_Cell, float], list[_Work]]:
    """The files' hashes, the values that are known, and what is to be done, in batches."""
    files = None if cache is None else known_images or KnownImages(cache)
    sha256 = sha256_of if files is None else files.sha256
    hashes = []
    for image in tqdm(images, desc="hashing images", unit="image", leave=False, disable=hidden):
        hashes.append(Hashes(sha256(image.pred), sha256(image.ref) if image.ref is not None else ""))
    known: dict[_Cell, float] = {}
    lacking: dict[int, list[str]] = {}
    for metric in metrics:
        kept = None if cache is None else ScoreCache.open(cache, metric)
        if kept is not None and (damage := kept.damage()):
            tqdm.write(damage, file=sys.stderr)
        for number, key in enumerate(hashes):
            value = None if kept is None else kept.get(_key(metric, key), key.pred)
            if value is None:
                lacking.setdefault(number, []).append(metric.name)
            else:
                known[metric.name, number] = value
    if files is not None:
        files.save()
    sizes: dict[tuple[int, int], list[int]] = {}
    for number in sorted(lacking):
        sizes.setdefault(images[number].size, []).append(number)
    plan = []
    for numbers in sizes.values():
        for start in range(0, len(numbers), batch_size):
            chosen = tuple(numbers[start : start + batch_size])
            rows = {
                metric.name: tuple(row for row, number in enumerate(chosen) if metric.name in lacking[number])
                for metric in metrics
            }
            plan.append(_Work(chosen, {name: places for name, places in rows.items() if places}))
    return hashes, known, plan


def _work(
    work: _Work, images: Sequence[ImageFiles], metrics: Sequence[Metric], device: torch.device
) -> Iterator[tuple[Metric, int, float | str]]:
    """One batch: metric, image, and the value or the reason why there is none, for what is lacking."""
    files = [images[number] for number in work.images]
    arrays = [read_image(image.pred) for image in files]
    wanted = any(metric.reference for metric in metrics if metric.name in work.lacking)
    references = [read_image(image.ref) for image in files if image.ref is not None] if wanted else None
    batch = Batch(arrays, references, device)
    for metric in metrics:
        rows = work.lacking.get(metric.name)
        if rows:
            for row, value in zip(rows, measure_batch(metric, batch.select(rows))):
                yield metric, work.images[row], value


def _collect(
    images: Sequence[ImageFiles],
    metrics: Sequence[Metric],
    hashes: Sequence[Hashes],
    known: dict[_Cell, float],
    failures: dict[_Cell, str],
    computed: dict[str, int],
) -> Measured:
    rows = []
    for number in range(len(images)):
        found: dict[str, float | str] = {}
        for metric in metrics:
            cell = (metric.name, number)
            found[metric.name] = failures[cell] if cell in failures else known[cell]
        rows.append(Values.of(found))
    values, reasons = (tuple(getattr(row, part) for row in rows) for part in ("values", "failures"))
    return Measured(tuple(hashes), values, reasons, computed)


def _key(metric: Metric, hashes: Hashes) -> str:
    """The reference's hash; empty for a metric that does not look at it."""
    return hashes.ref if metric.reference else ""
