"""The logistic, the coefficients and their intervals: equal to scipy's, and honest about data that hold nothing."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.stats import kendalltau, pearsonr, spearmanr

from milo_restore.errors import DataError
from milo_restore.measure.intervals import mean_interval
from milo_restore.opinions.coefficients import correlate_scores
from milo_restore.opinions.logistic import fit_logistic


def logistic(x, beta):
    return (beta[0] - beta[1]) / (1 + np.exp(-(x - beta[2]) / abs(beta[3]))) + beta[1]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# --- the logistic


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 30.0])
@pytest.mark.parametrize("ends", [(4.5, 1.2), (1.2, 4.5)])
def test_known_parameters_are_recovered(rng, scale, ends):
    x = rng.random(300) * scale
    beta = (*ends, 0.4 * scale, 0.1 * scale)
    fit = fit_logistic(x, logistic(x, beta))
    assert fit.converged
    assert fit.reason is None
    assert fit.beta == pytest.approx(beta, rel=1e-6)
    np.testing.assert_allclose(fit.predict(x), logistic(x, beta), rtol=1e-9)
    noisy = fit_logistic(x, logistic(x, beta) + rng.normal(0, 0.1, 300))
    assert noisy.beta == pytest.approx(beta, rel=0.1)


@pytest.mark.parametrize("slope", [3.0, -3.0])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0])
def test_a_straight_line_is_an_ordinary_limit(rng, slope, scale):
    x = rng.random(200) * scale
    y = slope * x / scale + 1
    fit = fit_logistic(x, y)
    assert fit.converged
    assert "do not saturate" in fit.reason
    np.testing.assert_allclose(fit.predict(x), y, atol=1e-3)


@pytest.mark.parametrize("outlier", [1e6, -1e6])
def test_an_outlier_does_not_move_the_curve(rng, outlier):
    x = rng.random(200)
    beta = (4.5, 1.2, 0.5, 0.1)
    y = logistic(x, beta)
    fit = fit_logistic(np.append(x, outlier), np.append(y, 3.0))
    assert fit.converged
    assert np.abs(fit.predict(x) - y).max() < 0.15
    with_wrong_opinion = fit_logistic(np.append(x, 0.5), np.append(y, 1e6))
    assert np.isfinite(with_wrong_opinion.predict(x)).all()


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([1, 1, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6], "all scores of the metric are equal"),
        ([1, 2, 3, 4, 5, 6], [2, 2, 2, 2, 2, 2], "all opinion scores are equal"),
        ([0, 1], [3, 1], "2 different scores do not determine four parameters"),
        ([0, 1, 2, 3, 3], [1, 2, 3, 4, 5], "4 different scores"),
        ([1, np.nan, 3], [1, 2, 3], "1 of 3 values are NaN or infinite"),
        ([1, 2, 3], [1, np.inf, 3], "1 of 3 values are NaN or infinite"),
        ([np.nan, np.nan], [np.nan, np.nan], "2 of 2 values"),
        ([], [], "there are no scores"),
        ([7], [3], "all scores"),
    ],
)
def test_what_holds_no_curve_is_said(x, y, reason):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = fit_logistic(x, y)
    assert not fit.converged
    assert reason in fit.reason
    assert np.isfinite(fit.beta).all()
    assert fit.beta[3] > 0
    assert np.isfinite(fit.predict([0.0, 1.0])).all()


def test_hostile_numbers_never_raise(rng):
    x = rng.random(40)
    shapes = [x, -x, np.exp(20 * x), (x > 0.5) * 1.0, (x - 0.5) ** 2, rng.random(40), np.round(x)]
    for y in shapes:
        for scale in (1e-300, 1e-4, 30.0, 1e307):
            fit = fit_logistic(x * scale, y)
            assert np.isfinite(fit.beta).all()
            assert np.isfinite(fit.predict(x * scale)).all()
            assert fit.converged or fit.reason
    with pytest.raises(DataError, match="of one length"):
        fit_logistic([1, 2], [1, 2, 3])


# --- coefficients


def test_coefficients_are_scipys_with_ties_and_signs(rng):
    y = np.round(rng.random(120) * 4, 1) + 1
    x = np.round(-y + rng.normal(0, 1, 120), 1)
    assert len(np.unique(x)) < 80  # ties
    found = correlate_scores(x, y, np.arange(120) // 4)
    assert found.srcc.value == spearmanr(x, y)[0] < -0.5
    assert found.krcc.value == kendalltau(x, y)[0] < -0.4
    assert found.pearson == pytest.approx(pearsonr(x, y)[0])
    assert found.plcc.value == pytest.approx(pearsonr(found.fit.predict(x), y)[0])
    # The logistic holds the straight line, and takes the sign away.
    assert found.plcc.value >= -found.pearson - 1e-4 > 0.5
    assert (found.n, found.left_out, found.references, found.note) == (120, 0, 30, None)


def test_nan_and_infinite_scores_are_counted(rng):
    x, references = rng.random(50), np.arange(50) // 5
    y = x + 0.1 * rng.random(50)
    broken = x.copy()
    broken[[3, 20]] = np.nan, np.inf
    found, good = correlate_scores(broken, y, references), np.isfinite(broken)
    assert (found.n, found.left_out) == (48, 2)
    assert found.srcc.value == spearmanr(x[good], y[good])[0]
    nothing = correlate_scores(np.full(50, np.nan), y, references)
    assert (nothing.n, nothing.left_out, nothing.srcc.value, nothing.plcc.value) == (0, 50, None, None)
    assert nothing.note == "0 pairs have no correlation"
    with pytest.raises(DataError, match="2 of 50 opinions"):
        correlate_scores(x, broken, references)
    with pytest.raises(DataError, match="must be"):
        correlate_scores(x, y[:49], references)


def test_constants_have_no_correlation():
    same, rising, references = np.ones(20), np.arange(20.0), np.arange(20)
    for x, y, what in ((same, rising, "scores of the metric"), (rising, same, "opinion scores")):
        found = correlate_scores(x, y, references)
        assert [c.value for c in (found.srcc, found.plcc, found.krcc)] == [None] * 3
        assert found.pearson is None
        assert what in found.note


# --- intervals


def test_intervals_are_the_jackknife_of_scipys_coefficients(rng):
    groups = rng.integers(0, 26, 160)
    groups[:26] = np.arange(26)
    x = np.round(rng.random(160), 1)
    y = np.round(x + rng.random(160), 1)
    found = correlate_scores(x, y, groups)
    for coefficient, function, scores in (
        (found.srcc, spearmanr, x), (found.krcc, kendalltau, x), (found.plcc, pearsonr, found.fit.predict(x)),
    ):  # fmt: skip
        whole = function(scores, y)[0]
        rest = np.array([function(scores[groups != group], y[groups != group])[0] for group in range(26)])
        low, high = mean_interval(26 * np.arctanh(whole) - 25 * np.arctanh(rest)).ends
        assert (coefficient.low, coefficient.high) == pytest.approx((np.tanh(low), np.tanh(high)))
        assert coefficient.low < coefficient.value < coefficient.high
    assert found.note is None


def test_intervals_are_deterministic_and_by_reference(rng):
    references = np.repeat(np.arange(25), 8)
    offset = rng.normal(0, 1, 25)[references]  # what pairs of one photograph share
    x = rng.normal(0, 0.3, 200) + offset
    y = x + rng.normal(0, 1, 25)[references]
    found = correlate_scores(x, y, references)
    assert correlate_scores(x, y, references) == found
    by_pair = correlate_scores(x, y, np.arange(200))
    assert by_pair.srcc.value == found.srcc.value
    for name in ("srcc", "plcc", "krcc"):
        wide, narrow = getattr(found, name), getattr(by_pair, name)
        assert wide.low < wide.value < wide.high
        assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_few_references_have_no_interval(rng):
    x = rng.random(144)
    found = correlate_scores(x, x + rng.random(144), np.arange(144) % 24)
    assert found.srcc.value is not None
    assert found.srcc.low is found.krcc.high is None
    assert found.note == found.plcc.reason == "n too small: 24 references, at least 25 are needed"
    assert correlate_scores(x, x + rng.random(144), np.arange(144) % 24, fewest=24).srcc.low is not None


def test_a_perfect_order_has_no_interval(rng):
    x = rng.random(160)
    found = correlate_scores(x, np.exp(3 * x), np.arange(160) % 26)
    assert (found.srcc.value, found.srcc.low) == (pytest.approx(1), None)
    assert found.note == "no interval: it is 1 or -1, if one reference is left out"
