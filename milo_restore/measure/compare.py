"""Methods compared on the same images: paired differences, Wilcoxon's test, wins, ranks.

What images have in common, their difficulty, cancels in a paired difference: two means whose own intervals overlap may
well differ. A difference *holds* where its 95 % interval leaves out zero and Wilcoxon's signed-rank test, corrected by
Holm for all pairs of methods, stays below 0.05.

Ranks follow Demsar, Statistical comparisons of classifiers over multiple data sets, JMLR 7 (2006), with images in place
of data sets: methods whose mean ranks differ by less than the critical difference (Nemenyi's) cannot be told apart by
ranks. Intervals and tests are over images; they say nothing about another training run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from milo_restore.errors import DataError
from milo_restore.measure.intervals import Interval, paired_interval
from milo_restore.measure.of_sets import shared_sets

ALPHA = 0.05
FEWEST_RANKS = 3  # methods that a critical difference is for

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """One method against another.

    Attributes:
        first: its name.
        second: the other's.
        difference: first minus second, over images.
        p: of Wilcoxon's signed-rank test, two-sided; 1 where all values are equal.
        corrected: the same after Holm's correction for all pairs of the comparison.
        wins: images on which the first is better.
        losses: images on which the second is.
    """

    first: str
    second: str
    difference: Interval
    p: float
    corrected: float
    wins: int
    losses: int

    @property
    def holds(self) -> bool:
        """Whether the difference can be relied on, over images: see the module."""
        ends = self.difference.ends
        return ends is not None and not ends[0] <= 0 <= ends[1] and self.corrected < ALPHA


@dataclass(frozen=True)
class Comparison:
    """Methods on the images that all of them have a value of.

    Attributes:
        metric: its name.
        lower_better: its direction.
        methods: in the order given.
        images: how many are compared.
        left_out: how many are not, because a method has no value of them.
        means: of each method, over the images compared.
        ranks: mean rank of each method, 1 is best; ties share theirs.
        critical_difference: of mean ranks; None for fewer than three methods.
        pairs: every two methods.
    """

    metric: str
    lower_better: bool
    methods: tuple[str, ...]
    images: int
    left_out: int
    means: dict[str, float]
    ranks: dict[str, float]
    critical_difference: float | None
    pairs: tuple[Pair, ...]

    @property
    def best(self) -> str | None:
        """The best method by its mean, where its differences to all others hold; else None."""
        order = sorted(self.methods, key=lambda name: self.means[name], reverse=not self.lower_better)
        mine = [pair for pair in self.pairs if order[0] in (pair.first, pair.second)]
        return order[0] if all(pair.holds for pair in mine) else None

    @property
    def alike(self) -> list[tuple[str, ...]]:
        """Methods that ranks do not tell apart: the widest groups within the critical difference, best first."""
        if self.critical_difference is None:
            return []
        order = sorted(self.methods, key=lambda name: self.ranks[name])
        groups: list[tuple[str, ...]] = []
        for start, first in enumerate(order):
            reach = self.ranks[first] + self.critical_difference
            group = tuple(name for name in order[start:] if self.ranks[name] < reach)
            if len(group) > 1 and not any(set(group) <= set(other) for other in groups):
                groups.append(group)
        return groups


def compare_runs(runs: Mapping[str, Mapping[str, Any]]) -> list[Comparison]:
    """Compare measured runs by every metric that all of them have; FID and KID, which have no values per image, are
    left to `milo_restore.measure.of_sets.shared_sets`, and where they are all that is shared, nothing is found.

    Args:
        runs: the content of results.json by the method's name, at least two, of the same images.

    Raises:
        DataError: fewer than two runs, other images or references, or no metric that all have measured alike.
    """
    if len(runs) < 2:
        raise DataError("a comparison needs two runs", mend="Name a second run folder or results.json")
    first, *others = runs.items()
    for name, results in others:
        if _images(results) != _images(first[1]):
            raise DataError(f"other images or references than {first[0]}'s", where=name, mend="Compare like with like")
    shared = [metric for metric in first[1]["metrics"] if all(_same(metric, first[1], other) for _, other in others)]
    if not shared and not shared_sets(runs):
        mend = "Measure them with one metric, of the same weights and software"
        raise DataError("no metric was measured alike by all runs", where=", ".join(runs), mend=mend)
    return [
        compare_values(
            metric,
            {name: [image["values"][metric] for image in results["images"]] for name, results in runs.items()},
            lower_better=first[1]["metrics"][metric]["better"] == "lower",
        )
        for metric in shared
    ]


def compare_values(metric: str, values: Mapping[str, Sequence[float | None]], *, lower_better: bool) -> Comparison:
    """Compare methods by one metric.

    Args:
        metric: its name.
        values: of each method, one per image, in the same order; None where there is none.
        lower_better: its direction.

    Raises:
        DataError: the methods have values of different numbers of images, or none in common.
    """
    columns = np.array([[np.nan if value is None else value for value in column] for column in values.values()])
    known = np.isfinite(columns).all(0)
    if not known.any():
        raise DataError("no image has a value of every method", where=metric)
    columns, names = columns[:, known], tuple(values)
    tests = {pair: _wilcoxon(columns[pair[0]], columns[pair[1]]) for pair in combinations(range(len(names)), 2)}
    corrected = dict(zip(tests, holm(list(tests.values()))))
    pairs = []
    for (one, other), p in tests.items():
        ahead = (columns[other] - columns[one]) * (1 if lower_better else -1)
        difference = paired_interval(columns[one], columns[other])
        wins, losses = int((ahead > 0).sum()), int((ahead < 0).sum())
        pairs.append(Pair(names[one], names[other], difference, p, corrected[one, other], wins, losses))
    ranks = stats.rankdata(columns if lower_better else -columns, axis=0).mean(1)
    images = columns.shape[1]
    return Comparison(
        metric, lower_better, names, images, int((~known).sum()), dict(zip(names, columns.mean(1).tolist())),
        dict(zip(names, ranks.tolist())), critical_difference(len(names), images), tuple(pairs),
    )  # fmt: skip


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p-values of one family, in the order given (Holm 1979)."""
    order = np.argsort(values)
    corrected, above = np.empty(len(values)), 0.0
    for place, number in enumerate(order):
        above = max(above, min(1.0, (len(values) - place) * values[number]))
        corrected[number] = above
    return [float(value) for value in corrected]


def critical_difference(methods: int, images: int) -> float | None:
    """Nemenyi's critical difference of mean ranks at 5 %; None for fewer than three methods."""
    if methods < FEWEST_RANKS:
        return None
    quantile = float(stats.studentized_range.ppf(1 - ALPHA, methods, np.inf)) / np.sqrt(2)
    return float(quantile * np.sqrt(methods * (methods + 1) / (6 * images)))


def _wilcoxon(first: Floats, second: Floats) -> float:
    difference = first - second
    return float(stats.wilcoxon(difference).pvalue) if difference.any() else 1.0


def _images(results: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    return [(image["name"].rsplit(".", 1)[0], image["sha256"]["ref"]) for image in results["images"]]


def _same(metric: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether both measured it, with the same software and weights, of the same part of the images.

    What a metric is called there says the border and the cap, too.
    """
    mine, theirs = one["metrics"].get(metric), other["metrics"].get(metric)
    if mine is None or theirs is None:
        return False
    alike = all(mine[key] == theirs[key] for key in ("better", "name", "weights_sha256"))
    keys = ("modcrop", "colour") if metric in ("psnr", "ssim") else ("modcrop",)
    return alike and all(one["protocol"].get(key, 1) == other["protocol"].get(key, 1) for key in keys)
