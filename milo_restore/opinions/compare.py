"""Metrics compared on the same pairs: by how much one follows people better than another, and how sure that is.

Two metrics see the same photographs and the same opinions, so that their correlations rise and fall together: their own
intervals say little about the difference. Here each reference image is left out for both at once (the jackknife, as in
`milo_restore.opinions.coefficients`), and the pseudo-values of the difference,

    G (first - second) - (G - 1) (first - second, both without reference g),        g = 1 .. G,

are treated as independent values: `milo_restore.measure.intervals.mean_interval` gives the difference's interval, and
Student's t test of the same values its p, corrected by Holm for all pairs of metrics. A difference *holds* where the
interval leaves out 0 and the corrected p stays below 0.05, as in `milo_restore.measure.compare`. Below
`FEWEST_REFERENCES` references there is neither. ``recipes/interval_coverage.py differences`` measures the coverage.

A coefficient counts as agreement: SRCC and KRCC are turned where the metric's stated direction is against the
opinions', so that a metric that contradicts itself is below 0. PLCC has its logistic fitted once, on all pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from milo_restore.errors import DataError
from milo_restore.measure.compare import ALPHA, holm
from milo_restore.measure.intervals import Floats, Interval, mean_interval
from milo_restore.opinions.coefficients import FEWEST_REFERENCES, coefficient, without_each
from milo_restore.opinions.logistic import fit_logistic

COEFFICIENTS = ("srcc", "plcc", "krcc")
METHOD = "jackknife over reference images, both metrics at once; p of Student's t on the same pseudo-values"


@dataclass(frozen=True)
class Difference:
    """One coefficient of one metric against another's.

    Attributes:
        difference: first minus second, with its interval; ``n`` counts references; ``mean`` is None where a coefficient
            is undefined.
        p: two-sided; None where there is no interval.
        corrected: the same after Holm's correction for all pairs of metrics, by this coefficient.
    """

    difference: Interval
    p: float | None
    corrected: float | None

    @property
    def holds(self) -> bool:
        """Whether the difference can be relied on, over references: see the module."""
        ends = self.difference.ends
        return (
            ends is not None and self.corrected is not None and not ends[0] <= 0 <= ends[1] and self.corrected < ALPHA
        )


@dataclass(frozen=True)
class MetricPair:
    """One metric against another.

    Attributes:
        first: its name.
        second: the other's.
        srcc: difference of Spearman's rank correlations.
        plcc: of Pearson's correlations after the logistic.
        krcc: of Kendall's tau-b.
    """

    first: str
    second: str
    srcc: Difference
    plcc: Difference
    krcc: Difference


@dataclass(frozen=True)
class MetricComparison:
    """Metrics on the pairs that all of them have a finite score of.

    Attributes:
        n: pairs compared.
        left_out: pairs that are not.
        references: how many reference images these have.
        pairs: every two metrics, in the order given.
    """

    n: int
    left_out: int
    references: int
    pairs: tuple[MetricPair, ...]


def compare_metrics(
    scores: Mapping[str, ArrayLike],
    opinions: ArrayLike,
    references: ArrayLike,
    *,
    agrees: Mapping[str, bool],
    fewest: int = FEWEST_REFERENCES,
) -> MetricComparison:
    """Compare metrics by how they follow the same opinions.

    Args:
        scores: (N,) of each metric. Pairs that one has no finite score of are left out for all.
        opinions: (N,) finite.
        references: (N,) which reference each pair has: strings or numbers.
        agrees: of each metric, whether a higher score means a higher opinion.
        fewest: references that intervals need, at least 3.

    Raises:
        DataError: fewer than two metrics, lengths differ, an opinion is not finite, or no pair has all scores.
    """
    names = tuple(scores)
    if len(names) < 2:
        raise DataError("a comparison needs two metrics", mend="Name a second one")
    columns = np.array([np.asarray(column, np.float64) for column in scores.values()])
    y, places = np.asarray(opinions, np.float64), np.asarray(references)
    if columns.ndim != 2 or not columns.shape[1:] == y.shape == places.shape:
        raise DataError(
            f"scores, opinions and references must be (N,), got {columns.shape[1:]}, {y.shape}, {places.shape}"
        )
    if not np.isfinite(y).all():
        raise DataError(f"{int((~np.isfinite(y)).sum())} of {len(y)} opinions are NaN or infinite")
    good = np.isfinite(columns).all(0)
    if not good.any():
        raise DataError("no pair has a finite score of every metric", where=", ".join(names))
    groups = np.unique(places[good], return_inverse=True)[1].reshape(-1)
    found = {
        name: _agreements(column[good], y[good], groups, 1 if agrees[name] else -1, fewest)
        for name, column in zip(names, columns)
    }
    every = list(combinations(names, 2))
    parts = {key: _differences([(found[a][key], found[b][key]) for a, b in every], fewest) for key in COEFFICIENTS}
    pairs = tuple(MetricPair(*two, *(parts[key][place] for key in COEFFICIENTS)) for place, two in enumerate(every))
    return MetricComparison(int(good.sum()), int((~good).sum()), int(groups.max()) + 1, pairs)


_Agreement = tuple[float | None, Floats]  # of all pairs, and without each reference


def _agreements(x: Floats, y: Floats, groups: NDArray[np.intp], sign: int, fewest: int) -> dict[str, _Agreement]:
    """Each coefficient, turned by the metric's direction."""
    found: dict[str, _Agreement] = {}
    for key in COEFFICIENTS:
        turn = 1 if key == "plcc" else sign  # which the logistic has done
        values = fit_logistic(x, y).predict(x) if key == "plcc" else x
        whole = coefficient(key, values, y)
        rest = without_each(key, values, y, groups, fewest)
        found[key] = (None if whole is None else turn * whole, turn * rest)
    return found


def _differences(pairs: list[tuple[_Agreement, _Agreement]], fewest: int) -> list[Difference]:
    from scipy.stats import ttest_1samp

    intervals: list[Interval] = []
    values: dict[int, float] = {}  # p of those that have one
    for place, ((first, without), (second, without_too)) in enumerate(pairs):
        count = len(without)
        if first is None or second is None:
            intervals.append(Interval(None, None, None, count, "undefined: one of the coefficients is"))
            continue
        whole, rest = first - second, without - without_too
        interval, pseudo = _interval(whole, rest, fewest)
        intervals.append(interval)
        if interval.ends is not None:
            values[place] = float(ttest_1samp(pseudo, 0).pvalue)
    corrected = dict(zip(values, holm(list(values.values()))))
    return [Difference(one, values.get(n), corrected.get(n)) for n, one in enumerate(intervals)]


def _interval(whole: float, rest: Floats, fewest: int) -> tuple[Interval, Floats]:
    """The interval of a difference, and the pseudo-values that it is of."""
    count = len(rest)
    if count < fewest:
        reason = f"n too small: {count} references, at least {fewest} are needed"
        return Interval(whole, None, None, count, reason), rest
    if not np.isfinite(rest).all():
        return Interval(whole, None, None, count, "no interval: undefined without one of the references"), rest
    pseudo = count * whole - (count - 1) * rest
    if np.ptp(rest) <= 1e-12:
        return Interval(whole, None, None, count, "no interval: no reference changes it"), pseudo
    found = mean_interval(pseudo, fewest=fewest)
    return Interval(whole, found.low, found.high, count, found.reason), pseudo
