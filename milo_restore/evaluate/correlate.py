"""Scoring a data set of opinions with several metrics, and correlating the scores with the opinions.

Scores are cached, one line each, as soon as they are known: an interrupted run goes on where it stopped, and a second
run computes nothing. A score belongs to the contents of the two images and to the metric's identity (name, weights,
software and version); where the files lie does not matter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from milo_restore.assets.files import sha256_of
from milo_restore.data.images import read_image, to_tensor
from milo_restore.errors import DataError, MiloRestoreError
from milo_restore.evaluate.correlation import Correlation, correlate_scores
from milo_restore.evaluate.fr_metrics import FRMetric
from milo_restore.evaluate.opinion import OpinionPair


@dataclass(frozen=True)
class MetricResult:
    """What one metric said and how that follows the opinions.

    Attributes:
        metric: which.
        scores: (N,), of the pairs in their order; NaN or infinite where the metric said so.
        computed: how many of them were computed now, not read from the cache.
        overall: over all pairs.
        kinds: the same for each distortion, sorted.
        not_finite: distorted images whose score is NaN or infinite.
    """

    metric: FRMetric
    scores: NDArray[np.float64]
    computed: int
    overall: Correlation
    kinds: dict[str, Correlation]
    not_finite: tuple[str, ...]


@dataclass
class ScoreCache:
    """The scores of one metric, in a file of JSON lines that only grows.

    Attributes:
        path: the file; made with the first score.
        damaged: numbers of the lines that could not be read, from 1. Their pairs are computed again.
    """

    path: Path
    damaged: list[int] = field(default_factory=list)
    _scores: dict[tuple[str, str], float] = field(default_factory=dict)
    _ended: bool = True  # the file ends with a line's end

    @classmethod
    def open(cls, folder: Path, metric: FRMetric) -> ScoreCache:
        """The cache of a metric in a folder, which is made.

        Raises:
            DataError: the folder cannot be made, or the file cannot be read.
        """
        identity = json.dumps(metric.identity(), sort_keys=True)
        name = f"{metric.identity()['metric']}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.jsonl"
        cache = cls(folder / name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            content = cache.path.read_bytes() if cache.path.exists() else b""
        except OSError as error:
            raise DataError(
                f"cannot be used ({error.strerror or error})", where=cache.path, mend="See --cache"
            ) from error
        cache._ended = content.endswith(b"\n") or not content
        for number, line in enumerate(content.splitlines(), 1):
            try:
                entry = json.loads(line)
                cache._scores[entry["reference"], entry["distorted"]] = float(entry["score"])
            except (ValueError, KeyError, TypeError):  # cut off in the middle of a write
                cache.damaged.append(number)
        return cache

    def get(self, reference: str, distorted: str) -> float | None:
        """The score of two images, given their files' sha256; None where it is not known."""
        return self._scores.get((reference, distorted))

    def add(self, reference: str, distorted: str, score: float) -> None:
        """Append a score, in one write: several processes may share the file.

        Raises:
            DataError: the file cannot be written.
        """
        line = json.dumps({"reference": reference, "distorted": distorted, "score": str(score)}) + "\n"
        try:
            with self.path.open("ab", buffering=0) as file:
                file.write(("" if self._ended else "\n").encode() + line.encode())
        except OSError as error:
            raise DataError(f"cannot be written ({error.strerror or error})", where=self.path) from error
        self._ended = True
        self._scores[reference, distorted] = score


def hash_pairs(pairs: Sequence[OpinionPair], *, progress: bool | None = None) -> list[tuple[str, str]]:
    """The sha256 of each pair's two files, reference first: what `ScoreCache` knows them by.

    Args:
        pairs: of one data set.
        progress: show a bar; by default on terminals.

    Raises:
        DataError: a file cannot be read.
    """
    hidden = None if progress is None else not progress  # None: on terminals only
    known = {path: "" for path in dict.fromkeys(path for pair in pairs for path in (pair.reference, pair.distorted))}
    for path in tqdm(known, desc="hashing images", unit="image", leave=False, disable=hidden):
        known[path] = sha256_of(path)
    return [(known[pair.reference], known[pair.distorted]) for pair in pairs]


def correlate_metric(
    pairs: Sequence[OpinionPair],
    keys: Sequence[tuple[str, str]],
    metric: FRMetric,
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
    tensor_of = lru_cache(maxsize=1)(lambda path: to_tensor(read_image(path))[None].to(device))
    for index, pair in enumerate(tqdm(pairs, desc=metric.name, unit="pair", leave=False, disable=hidden)):
        known = cache.get(*keys[index])
        if known is None:
            image = to_tensor(read_image(pair.distorted))[None].to(device)
            known = _score(metric, pair, image, tensor_of(pair.reference))
            cache.add(*keys[index], known)
            computed += 1
        scores[index] = known
    bad = tuple(pair.distorted.name for pair, score in zip(pairs, scores) if not np.isfinite(score))
    return MetricResult(metric, scores, computed, *_correlations(pairs, scores), bad)


def _score(metric: FRMetric, pair: OpinionPair, image: Tensor, reference: Tensor) -> float:
    where = f"{metric.name}, {pair.distorted} against {pair.reference}"
    if image.shape != reference.shape:
        sizes = [f"{tensor.shape[-1]}x{tensor.shape[-2]}" for tensor in (image, reference)]
        raise DataError(f"sizes differ: {sizes[0]} and {sizes[1]} (width x height)", where=where)
    try:
        return metric.score(image, reference)
    except MiloRestoreError as error:
        raise DataError(str(error), where=where) from error
    except (RuntimeError, ValueError, AssertionError) as error:  # pyiqa's metrics refuse small images in these ways
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
