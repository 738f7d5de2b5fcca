"""The four-parameter logistic that maps a metric's scores onto opinion scores before Pearson's correlation.

    f(x) = (b1 - b2) / (1 + exp(-(x - b3) / |b4|)) + b2

is what the image quality literature uses (Sheikh et al. 2006; Ding et al. 2020). scipy's ``curve_fit``, as usually
called, raises on data that do not saturate and loses its way at scales such as MILO's 1e-3. Here the data are
standardised, and for every place and slope (b3, b4) the best b1 and b2 follow by linear least squares. Two parameters
are left to search, both directions are found without being asked for, and a straight line is an ordinary limit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from milo_restore.errors import DataError

_PLACES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)  # quantiles of x tried for b3
_WIDTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # tried for |b4|, in spreads of x
_STARTS = 3  # the best of these combinations, from which the search starts
_NARROWEST, _WIDEST = 1e-3, 100.0  # at 100 spreads a logistic is a straight line to 1e-4
_STRAIGHT = 10.0  # spreads from which on b1, b2 and b4 trade off against each other
_PARAMETERS = 4


@dataclass(frozen=True)
class LogisticFit:
    """A fitted curve. It predicts finite numbers whether or not it converged.

    Attributes:
        beta: b1 to b4. b1 is what high scores approach and b2 what low scores approach; b4 is positive.
        converged: the least squares were minimised and the data determine the curve.
        reason: why it did not converge; where it did, what is unusual about the parameters; else None.
    """

    beta: tuple[float, float, float, float]
    converged: bool
    reason: str | None = None

    def predict(self, x: ArrayLike) -> NDArray[np.float64]:
        """The curve at ``x``, in the units of the opinion scores; same shape. NaN stays NaN."""
        from scipy.special import expit

        top, bottom, place, width = self.beta
        return np.asarray((top - bottom) * expit((np.asarray(x, np.float64) - place) / abs(width)) + bottom)


def fit_logistic(x: ArrayLike, y: ArrayLike) -> LogisticFit:
    """Fit the logistic by least squares. No data make this raise or return NaN; what went wrong is in ``reason``.

    Args:
        x: (N,) scores of a metric, of any scale and direction.
        y: (N,) opinion scores.

    Returns:
        The best of three searches, started from the best of 42 curves. Where x or y is constant, empty or not finite,
        the constant curve through the mean opinion.

    Raises:
        DataError: x and y are not two arrays (N,) of one length.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise DataError(f"a fit needs two arrays (N,) of one length, got {x.shape} and {y.shape}")
    reason = _unfit(x, y)
    if reason is not None:
        return _constant(x, y, reason)
    with np.errstate(all="ignore"):
        (u, x_centre, x_spread), (v, y_centre, y_spread) = _standardised(x), _standardised(y)
        if not (np.isfinite(u).all() and np.isfinite(v).all()):
            return _constant(x, y, "the values are too large or too close to each other for double precision")
        place, width, converged, reason = _search(u, v)
        bottom, top = _levels(u, v, place, width)
        beta = (y_centre + y_spread * top, y_centre + y_spread * bottom, x_centre + x_spread * place, x_spread * width)
    if not np.isfinite(beta).all() or not beta[3] > 0:
        return _constant(x, y, "the curve's parameters left the finite numbers")
    distinct = len(np.unique(x))
    if distinct <= _PARAMETERS:
        converged, reason = False, f"{distinct} different scores do not determine four parameters"
    return LogisticFit((float(beta[0]), float(beta[1]), float(beta[2]), float(beta[3])), converged, reason)


def _unfit(x: NDArray[np.float64], y: NDArray[np.float64]) -> str | None:
    """Why these data hold no curve at all, or None."""
    if len(x) == 0:
        return "there are no scores"
    bad = int((~np.isfinite(x) | ~np.isfinite(y)).sum())
    if bad:
        return f"{bad} of {len(x)} values are NaN or infinite"
    if x.min() == x.max():
        return "all scores of the metric are equal"
    return "all opinion scores are equal" if y.min() == y.max() else None


def _constant(x: NDArray[np.float64], y: NDArray[np.float64], reason: str) -> LogisticFit:
    """A curve without slope, at the mean opinion; at their median where the mean overflows."""
    places, levels = x[np.isfinite(x)], y[np.isfinite(y)]
    with np.errstate(all="ignore"):
        level = float(levels.mean()) if len(levels) else 0.0
    if not np.isfinite(level):
        level = float(np.sort(levels)[len(levels) // 2])
    return LogisticFit((level, level, float(places[0]) if len(places) else 0.0, 1.0), False, reason)


def _standardised(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], float, float]:
    """Values with median 0 and most of them within (-1, 1); the centre and spread that were taken out.

    Quantiles: one outlier would make mean and standard deviation its own.
    """
    low, centre, high = np.quantile(values, (0.1, 0.5, 0.9))
    spread = (high - low) / 2
    if not spread > 0:
        spread = values.std()
    return (values - centre) / spread, float(centre), float(spread)


def _search(u: NDArray[np.float64], v: NDArray[np.float64]) -> tuple[float, float, bool, str | None]:
    """Place and width of the best curve, whether the search ended at a minimum, and what is unusual about it."""
    from scipy.optimize import least_squares

    reach = 3 * (u.max() - u.min())
    lower = np.array([u.min() - reach, np.log(_NARROWEST)])
    upper = np.array([u.max() + reach, np.log(_WIDEST)])
    tried = [(place, np.log(width)) for place in np.quantile(u, _PLACES) for width in _WIDTHS]
    starts = sorted(tried, key=lambda start: float((_residuals(np.array(start), u, v) ** 2).sum()))[:_STARTS]
    found = [least_squares(_residuals, start, bounds=(lower, upper), args=(u, v)) for start in starts]
    best = min(found, key=lambda result: float(result.cost))
    place, width = float(best.x[0]), float(np.exp(best.x[1]))
    edge = 1e-3 * (upper - lower)
    note = None
    if width > _STRAIGHT or min(place - lower[0], upper[0] - place) < edge[0]:
        note = "the data do not saturate: b1, b2 and b4 are one of many choices for nearly the same curve"
    elif best.x[1] < lower[1] + edge[1]:
        note = "the data jump rather than rise: b3 and b4 are one of many choices for nearly the same step"
    if best.status <= 0:
        return place, width, False, "the search reached its limit of steps before a minimum"
    return place, width, True, note


def _residuals(parameters: NDArray[np.float64], u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    """Residual of v after the best curve of this place and width."""
    from scipy.special import expit

    curve = expit((u - parameters[0]) / np.exp(parameters[1]))
    return v - v.mean() - _slope(curve, v) * (curve - curve.mean())


def _levels(u: NDArray[np.float64], v: NDArray[np.float64], place: float, width: float) -> tuple[float, float]:
    """The values, of low and high scores, of the best curve of this place and width."""
    from scipy.special import expit

    curve = expit((u - place) / width)
    slope = _slope(curve, v)
    bottom = float(v.mean() - slope * curve.mean())
    return bottom, bottom + slope


def _slope(curve: NDArray[np.float64], v: NDArray[np.float64]) -> float:
    centred = curve - curve.mean()
    power = float(centred @ centred)
    # A curve that is flat over all data explains nothing; dividing by its rounding errors would say otherwise.
    return float(centred @ (v - v.mean())) / power if power > 1e-20 * len(curve) else 0.0
