"""How well a metric's scores follow people's: SRCC, PLCC after the logistic, KRCC, each with a bootstrap interval.

Signs are kept: an error measure follows a mean opinion score with an SRCC of -1. PLCC is taken after the logistic of
`milo_restore.opinions.logistic`, which takes the sign away; ``pearson`` is the same without the logistic.

Intervals are 95% percentile intervals of a bootstrap over reference images, not over pairs: the distorted versions of
one photograph are not independent of each other, and resampling pairs would promise intervals that are too narrow. The
logistic is fitted once, on all pairs, and kept for the resamples. With fewer than `FEWEST_REFERENCES` references
there are no intervals.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from milo_restore.data.keys import keyed_rng
from milo_restore.errors import DataError
from milo_restore.opinions.logistic import LogisticFit, fit_logistic

RESAMPLES = 1000
FEWEST_REFERENCES = 5
_LEVEL = 0.95
_CHUNK = 4_000_000  # numbers held at a time, 32 MB


@dataclass(frozen=True)
class Coefficient:
    """One coefficient and its interval; None where it is undefined.

    Attributes:
        value: in [-1, 1].
        low: lower end of the 95% bootstrap interval.
        high: its upper end.
    """

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Correlation:
    """How scores follow opinions.

    Attributes:
        n: pairs used.
        left_out: pairs whose score is NaN or infinite.
        references: how many references these pairs have; what the bootstrap resamples.
        srcc: Spearman's rank correlation; ties get mean ranks.
        plcc: Pearson's correlation of ``fit`` 's prediction with the opinions; never negative by construction.
        krcc: Kendall's tau-b, which accounts for ties.
        pearson: Pearson's correlation without the logistic.
        fit: the logistic.
        note: why coefficients or intervals are missing, or None.
    """

    n: int
    left_out: int
    references: int
    srcc: Coefficient
    plcc: Coefficient
    krcc: Coefficient
    pearson: float | None
    fit: LogisticFit
    note: str | None


def correlate_scores(
    scores: ArrayLike, opinions: ArrayLike, references: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> Correlation:
    """Correlate one metric's scores with opinions.

    Args:
        scores: (N,) of the metric. NaN and infinite ones are left out and counted.
        opinions: (N,) finite.
        references: (N,) which reference each pair has: strings or numbers.
        resamples: bootstrap resamples.
        seed: of the bootstrap. One seed, one answer; metrics on the same pairs get the same resamples.

    Raises:
        DataError: the arrays differ in length, or an opinion is not finite.
    """
    x, y, names = np.asarray(scores, np.float64), np.asarray(opinions, np.float64), np.asarray(references)
    if x.ndim != 1 or not x.shape == y.shape == names.shape:
        raise DataError(f"scores, opinions and references must be (N,), got {x.shape}, {y.shape}, {names.shape}")
    if not np.isfinite(y).all():
        raise DataError(f"{int((~np.isfinite(y)).sum())} of {len(y)} opinions are NaN or infinite")
    good = np.isfinite(x)
    x, y = x[good], y[good]
    groups = np.unique(names[good], return_inverse=True)[1].reshape(-1)
    count = int(groups.max()) + 1 if len(groups) else 0
    fit = fit_logistic(x, y)
    predicted = fit.predict(x)
    values = (_spearman(x, y), _pearson(predicted, y), _kendall(x, y))
    note = _note(x, y, count)
    intervals: tuple[tuple[float | None, float | None], ...] = ((None, None),) * 3
    if note is None:
        times = keyed_rng(seed, "correlation-bootstrap").multinomial(count, [1 / count] * count, size=resamples)
        draws = (
            _spearman_draws(x, y, groups, times), _pearson_draws(predicted, y, groups, times),
            _kendall_draws(x, y, groups, times),
        )  # fmt: skip
        intervals = tuple(_interval(draw) for draw in draws)
    srcc, plcc, krcc = (Coefficient(value, *interval) for value, interval in zip(values, intervals))
    return Correlation(len(x), int((~good).sum()), count, srcc, plcc, krcc, _pearson(x, y), fit, note)


def _note(x: NDArray[np.float64], y: NDArray[np.float64], references: int) -> str | None:
    if len(x) < 2:
        return f"{len(x)} pairs have no correlation"
    if x.min() == x.max():
        return "all scores of the metric are equal: no correlation is defined"
    if y.min() == y.max():
        return "all opinion scores are equal: no correlation is defined"
    if references < FEWEST_REFERENCES:
        return f"{references} references are too few for an interval"
    return None


def _spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    from scipy.stats import spearmanr

    return _defined(spearmanr, x, y)


def _kendall(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    from scipy.stats import kendalltau

    return _defined(kendalltau, x, y)


def _pearson(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    from scipy.stats import pearsonr

    return _defined(pearsonr, x, y)


def _defined(function: object, x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    """What scipy says, or None where scipy would warn and say NaN, or raise."""
    if len(x) < 2 or x.min() == x.max() or y.min() == y.max():
        return None
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # nearly constant input
        value = float(function(x, y)[0])  # type: ignore[operator]
    return value if np.isfinite(value) else None


def _interval(draws: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """The percentile interval. Resamples without a coefficient (one reference only, all tied) are passed over."""
    defined = draws[np.isfinite(draws)]
    if 2 * len(defined) < len(draws):
        return None, None
    low, high = np.quantile(defined, ((1 - _LEVEL) / 2, (1 + _LEVEL) / 2))
    return float(low), float(high)


# A resample is told by how often it takes each reference, (resamples, references). A pair taken k times is k tied
# pairs, so that every coefficient below is exactly scipy's on the repeated pairs.


def _pearson_draws(
    x: NDArray[np.float64], y: NDArray[np.float64], groups: NDArray[np.intp], times: NDArray[np.int64]
) -> NDArray[np.float64]:
    x, y = x - x.mean(), y - y.mean()  # the sums of squares would lose digits otherwise
    sums = [np.bincount(groups, column, times.shape[1]) for column in (np.ones_like(x), x, y, x * x, y * y, x * y)]
    numbers = times.astype(np.float64)
    return _from_moments(*(numbers @ column for column in sums))


def _from_moments(
    n: NDArray[np.float64],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    xx: NDArray[np.float64],
    yy: NDArray[np.float64],
    xy: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Pearson's coefficient from sums; NaN where one variable is constant but for rounding."""
    spread_x, spread_y = xx - x * x / n, yy - y * y / n
    with np.errstate(all="ignore"):
        value = (xy - x * y / n) / np.sqrt(spread_x * spread_y)
    defined = (spread_x > 1e-12 * xx) & (spread_y > 1e-12 * yy)
    return np.where(defined, np.clip(value, -1, 1), np.nan)


def _spearman_draws(
    x: NDArray[np.float64], y: NDArray[np.float64], groups: NDArray[np.intp], times: NDArray[np.int64]
) -> NDArray[np.float64]:
    codes = [np.unique(values, return_inverse=True)[1].reshape(-1) for values in (x, y)]
    step = max(1, _CHUNK // len(x))
    draws = []
    for start in range(0, len(times), step):
        weights = times[start : start + step, groups].astype(np.float64)  # (resamples, pairs)
        n = weights.sum(1)
        first, second = (_mid_ranks(weights, code) - (n[:, None] + 1) / 2 for code in codes)
        columns = (np.ones_like(first), first, second, first * first, second * second, first * second)
        draws.append(_from_moments(*((weights * column).sum(1) for column in columns)))
    return np.concatenate(draws)


def _mid_ranks(weights: NDArray[np.float64], codes: NDArray[np.intp]) -> NDArray[np.float64]:
    """Mean ranks of repeated values: those before, and half of those equal. Same shape as ``weights``."""
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    equal = np.add.reduceat(weights[:, order], starts, axis=1)  # (resamples, different values)
    ranks = np.cumsum(equal, axis=1) - (equal - 1) / 2
    return np.asarray(ranks[:, codes])


def _kendall_draws(
    x: NDArray[np.float64], y: NDArray[np.float64], groups: NDArray[np.intp], times: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Tau-b. Concordance is summed once per pair of references; a resample is then a quadratic form in its counts."""
    order = np.argsort(groups, kind="stable")
    x, y = x[order], y[order]
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    ends = np.append(starts[1:], len(x))
    concordance, untied_x, untied_y = (np.empty((len(starts), len(starts))) for _ in range(3))
    for row, (start, end) in enumerate(zip(starts, ends)):
        dx = _signs(x[start:end], x)
        dy = _signs(y[start:end], y)
        for matrix, signs in ((concordance, dx * dy), (untied_x, dx * dx), (untied_y, dy * dy)):
            matrix[row] = np.add.reduceat(signs.sum(0, dtype=np.int64), starts)
    numbers = times.astype(np.float64)
    both, first, second = (((numbers @ matrix) * numbers).sum(1) for matrix in (concordance, untied_x, untied_y))
    with np.errstate(all="ignore"):
        return np.asarray(both / np.sqrt(first * second))


def _signs(rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.int8]:
    """(len(rows), len(columns)): 1 where the row's value is larger, -1 where it is smaller."""
    larger, smaller = rows[:, None] > columns, rows[:, None] < columns
    return larger.astype(np.int8) - smaller.astype(np.int8)
