r"""95 % confidence intervals that cover: of a mean, of a mean of paired differences, of a correlation.

A mean's interval is the hull of two: Student's t, and Hall's, which inverts the t statistic after a cubic that takes
its skewness away [1]. Student's alone covers 89 % of skewed values at n = 8, Hall's alone is short where the sample
happens to look symmetric; a percentile or BCa bootstrap is below both at such n. With t the quantile of Student's
distribution with n - 1 degrees over sqrt(n), m and s the sample's mean and standard deviation and g its adjusted
skewness (G1), the ends are

    m - s * max(t, h(t))   and   m - s * min(-t, h(-t)),      h(u) = 3 / g * (cbrt(1 + g * (u - g / (6 n))) - 1).

No resampling: equal values give equal intervals. What is assumed: values that are independent, with the skewness of
per-image scores (up to 2 was measured, PSNR, SSIM, MAE, MILO and ST-LPIPS of four degradations). What no method can
see is a rare value far from all others that the sample does not hold: with one in 20 or 50 of them it covers 90 to 92 %
up to 100 values, and to refuse the samples that are skewed would leave those that miss. Below `FEWEST` values nothing
here covers 93 % of the most skewed of those scores, and there is no interval. ``recipes/interval_coverage.py`` measures
this.

[1] P. Hall, On the removal of skewness by transformation, Journal of the Royal Statistical Society B 54 (1992).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from milo_restore.errors import DataError

LEVEL = 0.95
FEWEST = 10
METHOD = "Student's t, widened by Hall's transformation where values are skewed"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean and the 95 % confidence interval around it.

    Attributes:
        mean: of the values; None of none.
        low: lower end, None where there is no interval.
        high: upper end, None where there is no interval.
        n: how many values it rests on.
        reason: why there is no interval, such as ``"n too small: 5, at least 10 are needed"``, or None. The part before
            the colon fits into a table.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    reason: str | None

    @property
    def ends(self) -> list[float] | None:
        """``[low, high]``, as results.json has it, or None."""
        return None if self.low is None or self.high is None else [self.low, self.high]

    def text(self, form: str, times: float = 1.0) -> str:
        """``[low, high]``, both multiplied and in this format, such as ``"+.2f"``; or the reason before its colon."""
        if self.low is None or self.high is None:
            return str(self.reason).split(":")[0]
        return f"[{times * self.low:{form}}, {times * self.high:{form}}]"


def mean_interval(values: ArrayLike, *, fewest: int = FEWEST) -> Interval:
    """The mean of independent values, one per image, with its interval.

    Args:
        values: (N,), finite.
        fewest: below so many there is no interval; at least 3, which the skewness needs.

    Raises:
        DataError: ``values`` is no vector, or holds NaN or infinities.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1:
        raise DataError(f"values of a mean must be (N,), got {array.shape}")
    if not np.isfinite(array).all():
        raise DataError(f"{int((~np.isfinite(array)).sum())} of {len(array)} values are NaN or infinite")
    n = len(array)
    mean = float(array.mean()) if n else None
    if n < fewest:
        return Interval(mean, None, None, n, f"n too small: {n}, at least {fewest} are needed")
    if np.ptp(array) <= 1e-12 * np.abs(array).max():
        return Interval(mean, None, None, n, f"all equal: {n} values without a spread")
    low, high = mean_limits(array)
    return Interval(mean, float(low), float(high), n, None)


def paired_interval(first: ArrayLike, second: ArrayLike) -> Interval:
    """The mean difference ``first - second`` of two methods on the same images, with its interval.

    What images have in common cancels: this is the interval to compare methods by, not those of the two means.

    Args:
        first: (N,), finite.
        second: (N,), finite, of the same images in the same order.

    Raises:
        DataError: the lengths differ, or a value is NaN or infinite.
    """
    return mean_interval(_differences(first, second))


def paired_over_seeds(first: ArrayLike, second: ArrayLike) -> tuple[Interval, list[float]]:
    """Two methods trained with several seeds, measured on the same images.

    An image's differences are averaged over the seeds first, so that the interval is over images. It says nothing about
    another training run: look at the seeds' own mean differences for that.

    Args:
        first: (seeds, N), finite.
        second: (seeds, N), finite, of the same seeds and images in the same order.

    Returns:
        The interval of ``first - second``, and each seed's mean difference.

    Raises:
        DataError: as `paired_interval`.
    """
    differences = _differences(first, second)
    return mean_interval(differences.mean(0)), [float(value) for value in differences.mean(1)]


def _differences(first: ArrayLike, second: ArrayLike) -> Floats:
    mine, theirs = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if mine.shape != theirs.shape:
        raise DataError(f"paired values must be of the same images, got {mine.shape} and {theirs.shape}")
    return np.asarray(mine - theirs)


def correlation_interval(whole: float, without: ArrayLike, *, fewest: int) -> Interval:
    """A correlation's interval over clusters, from the jackknife of Fisher's z.

    With z = artanh of the coefficient, each cluster's pseudo-value is ``G z - (G - 1) z without it`` (Tukey, 1958);
    these are treated as independent values, and the ends of their mean's interval go back through tanh.

    Args:
        whole: the coefficient of all pairs, in [-1, 1].
        without: (G,) the coefficient without each cluster; NaN where it is not defined.
        fewest: clusters that an interval needs.

    Returns:
        ``mean`` is ``whole``, ``n`` is G.
    """
    rest = np.asarray(without, np.float64)
    clusters = len(rest)
    if clusters < fewest:
        reason = f"n too small: {clusters} references, at least {fewest} are needed"
        return Interval(whole, None, None, clusters, reason)
    every = np.append(rest, whole)
    if not np.isfinite(every).all():
        return Interval(whole, None, None, clusters, "no interval: undefined without one of the references")
    if np.abs(every).max() > 1 - 1e-12:
        return Interval(whole, None, None, clusters, "no interval: it is 1 or -1, if one reference is left out")
    found = mean_interval(clusters * np.arctanh(whole) - (clusters - 1) * np.arctanh(rest), fewest=fewest)
    if found.low is None or found.high is None:
        return Interval(whole, None, None, clusters, "no interval: no reference changes it")
    return Interval(whole, float(np.tanh(found.low)), float(np.tanh(found.high)), clusters, None)


def mean_limits(values: Floats) -> tuple[Floats, Floats]:
    """Both ends of the interval of many samples at once, however small: what `mean_interval` refuses is not refused.

    Args:
        values: (..., N), N >= 3.

    Returns:
        Lower and upper ends, each of shape (...).
    """
    low, high = student_limits(values)
    of_hall = hall_limits(values)
    return np.minimum(low, of_hall[0]), np.maximum(high, of_hall[1])


def student_limits(values: Floats) -> tuple[Floats, Floats]:
    """Both ends of Student's interval, (...) of (..., N), N >= 2."""
    mean, error = values.mean(-1), values.std(-1, ddof=1)
    reach = _quantile(values.shape[-1]) * error
    return mean - reach, mean + reach


def hall_limits(values: Floats) -> tuple[Floats, Floats]:
    """Both ends of Hall's interval with Student's quantiles, (...) of (..., N), N >= 3."""
    n = values.shape[-1]
    mean, error = values.mean(-1), values.std(-1, ddof=1)
    away = values - mean[..., None]
    with np.errstate(all="ignore"):
        skewness = (away**3).mean(-1) / np.mean(away**2, -1) ** 1.5 * np.sqrt(n * (n - 1)) / (n - 2)
    skewed = np.abs(skewness) > 1e-6  # false for NaN, of equal values
    g = np.where(skewed, skewness, 1.0)

    def inverse(u: float) -> Floats:
        return np.where(skewed, 3 / g * (np.cbrt(1 + g * (u - g / (6 * n))) - 1), u)

    reach = _quantile(n)
    return mean - error * inverse(reach), mean - error * inverse(-reach)


def _quantile(n: int) -> float:
    """Student's quantile over the root of n."""
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, (1 + LEVEL) / 2) / np.sqrt(n))
