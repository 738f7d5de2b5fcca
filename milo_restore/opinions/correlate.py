"""Scoring a data set of opinions with several metrics, and correlating the scores with the opinions.

Scores are kept in `milo_restore.measure.cache`: an interrupted run goes on where it stopped, and a second run
computes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from milo_restore.data.images import read_image
from milo_restore.errors import DataError, MiloRestoreError
from milo_restore.files.hashes import sha256_of
from milo_restore.measure.cache import KnownImages, ScoreCache
from milo_restore.measure.metrics import REFUSALS, Batch, Metric
from milo_restore.opinions.coefficients import Correlation, correlate_scores
from milo_restore.opinions.compare import MetricComparison, compare_metrics
from milo_restore.opinions.datasets import OpinionPair


@dataclass(frozen=True)
class MetricResult:
    """Scores of one metric, and their correlation with the opinions.

    Attributes:
        metric: which.
        scores: (N,), of the pairs in their order; NaN or infinite where the metric said so.
        computed: how many of them were computed now, not read from the cache.
        overall: over all pairs.
        kinds: the same for each distortion, sorted.
        not_finite: distorted images whose score is NaN or infinite.
    """

    metric: Metric
    scores: NDArray[np.float64]
    computed: int
    overall: Correlation
    kinds: dict[str, Correlation]
    not_finite: tuple[str, ...]


def hash_pairs(
    pairs: Sequence[OpinionPair], *, known_images: KnownImages | None = None, progress: bool | None = None
) -> list[tuple[str, str]]:
    """The sha256 of each pair's two files, reference first: what `ScoreCache` knows them by.

    Args:
        pairs: of one data set.
        known_images: those that have not changed since they were last hashed are not read; by default all are.
        progress: show a bar; by default on terminals.

    Raises:
        DataError: a file cannot be read.
    """
    hidden = None if progress is None else not progress  # None: on terminals only
    known = {path: "" for path in dict.fromkeys(path for pair in pairs for path in (pair.reference, pair.distorted))}
    for path in tqdm(known, desc="hashing images", unit="image", leave=False, disable=hidden):
        known[path] = sha256_of(path) if known_images is None else known_images.sha256(path)
    if known_images is not None:
        known_images.save()
    return [(known[pair.reference], known[pair.distorted]) for pair in pairs]


def correlate_metric(
    pairs: Sequence[OpinionPair],
    keys: Sequence[tuple[str, str]],
    metric: Metric,
    cache: ScoreCache,
    *,
    device: torch.device | str = "cpu",
    progress: bool | None = None,
) -> MetricResult:
    """Score all pairs and correlate the scores with the opinions, over all and per distortion.

    Args:
        pairs: of one data set; those of one reference next to each other read it once.
        keys: of the pairs, from `hash_pairs`.
        metric: on ``device``.
        cache: the metric's.
        device: where the metric computes.
        progress: show a bar; by default on terminals.

    Raises:
        DataError: an image cannot be read, the two differ in size, or the metric refuses them; the files are named.
    """
    hidden = None if progress is None else not progress  # None: on terminals only
    scores, computed = np.empty(len(pairs)), 0
    read_reference = lru_cache(maxsize=1)(read_image)
    for index, pair in enumerate(tqdm(pairs, desc=metric.name, unit="pair", leave=False, disable=hidden)):
        known = cache.get(*keys[index])
        if known is None:
            known = _score(metric, pair, read_image(pair.distorted), read_reference(pair.reference), device)
            cache.add(*keys[index], known)
            computed += 1
        scores[index] = known
    bad = tuple(pair.distorted.name for pair, score in zip(pairs, scores) if not np.isfinite(score))
    return MetricResult(metric, scores, computed, *_correlations(pairs, scores), bad)


def compare_results(pairs: Sequence[OpinionPair], results: Sequence[MetricResult]) -> MetricComparison | None:
    """The metrics against each other, over all pairs; None of fewer than two, or where no pair has all scores.

    Args:
        pairs: of one data set.
        results: of these pairs.
    """
    scores = {result.metric.name: result.scores for result in results}
    if len(scores) < 2 or not np.isfinite(np.array(list(scores.values()))).all(0).any():
        return None
    agrees = {one.metric.name: one.metric.lower_better != pairs[0].higher_better for one in results}
    opinions = [pair.score for pair in pairs]
    return compare_metrics(scores, opinions, [pair.reference.name.lower() for pair in pairs], agrees=agrees)


def _score(
    metric: Metric,
    pair: OpinionPair,
    image: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    device: torch.device | str,
) -> float:
    where = f"{metric.name}, {pair.distorted} against {pair.reference}"
    if image.shape != reference.shape:
        sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (image, reference)]
        raise DataError(f"sizes differ: {sizes[0]} and {sizes[1]} (width x height)", where=where)
    try:
        return metric.measure(Batch([image], [reference], device))[0]
    except MiloRestoreError as error:
        raise DataError(str(error), where=where) from error
    except REFUSALS as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise DataError(f"the metric cannot score this pair ({reason})", where=where) from error


def _correlations(
    pairs: Sequence[OpinionPair], scores: NDArray[np.float64]
) -> tuple[Correlation, dict[str, Correlation]]:
    opinions = np.array([pair.score for pair in pairs])
    references = np.array([pair.reference.name.lower() for pair in pairs])
    kinds = np.array([pair.kind for pair in pairs])
    overall = correlate_scores(scores, opinions, references)
    chosen = {str(kind): kinds == kind for kind in np.unique(kinds)}
    return overall, {
        kind: correlate_scores(scores[rows], opinions[rows], references[rows]) for kind, rows in chosen.items()
    }
