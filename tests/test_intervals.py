"""Confidence intervals: the published formulas, what is refused, and that they cover what they promise."""

from __future__ import annotations

import json
import math

import micro_world  # noqa: F401  (puts the recipes on the path)
import numpy as np
import pytest
from scipy import stats

from milo_restore.errors import DataError
from milo_restore.measure.intervals import (
    FEWEST,
    correlation_interval,
    mean_interval,
    mean_limits,
    paired_interval,
    paired_over_seeds,
)
from milo_restore.measure.results import read_results, results_table
from milo_restore.opinions.coefficients import FEWEST_REFERENCES

import interval_coverage as coverage  # isort: skip


def students(values):
    return stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))


def halls(values):
    """Both ends, each by solving Hall's cubic for the mean instead of inverting it."""
    n, mean, spread = len(values), np.mean(values), np.std(values, ddof=1)
    g, quantile = stats.skew(values, bias=False), stats.t.ppf(0.975, n - 1) / math.sqrt(n)

    def solve(target):
        # With T = (mean - mu) / s: T + g T^2 / 3 + g^2 T^3 / 27 + g / (6 n) = target, rising in T.
        roots = np.roots([g**2 / 27, g / 3, 1, g / (6 * n) - target])
        return mean - spread * float(roots[np.abs(roots.imag).argmin()].real)

    return solve(quantile), solve(-quantile)


@pytest.mark.parametrize("n", [FEWEST, 24, 200])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_interval_is_the_hull_of_students_and_halls(n, sign):
    values = sign * np.random.default_rng(n).lognormal(0, 0.7, n)
    t, hall = students(values), halls(values)
    found = mean_interval(values)
    assert found.mean == values.mean()
    assert found.ends == pytest.approx([min(t[0], hall[0]), max(t[1], hall[1])], rel=1e-9)
    assert found.high - found.low > 1.02 * (t[1] - t[0])  # longer, on the side of the tail
    assert (found.n, found.reason, found) == (n, None, mean_interval(values))


def test_without_skewness_it_is_students():
    values = 30 + np.linspace(-2, 2, 41)
    assert mean_interval(values).ends == pytest.approx(students(values), rel=1e-12)
    assert mean_interval(1e6 * values).ends == pytest.approx(1e6 * np.array(students(values)), rel=1e-12)
    assert mean_interval(values).text("+.2f", 10) == "[+296.22, +303.78]"


def test_where_there_is_no_interval_it_is_said():
    few = mean_interval(np.arange(FEWEST - 1.0))
    assert (few.mean, few.ends, few.n) == (4.0, None, 9)
    assert few.reason == "n too small: 9, at least 10 are needed"
    assert few.text(".2f") == "n too small"
    assert mean_interval([]).mean is None
    equal = mean_interval(np.full(20, 0.1))
    assert (equal.ends, equal.text(".2f")) == (None, "all equal")
    with pytest.raises(DataError, match="1 of 9 values"):
        mean_interval([*range(8), np.nan])
    with pytest.raises(DataError, match=r"must be \(N,\)"):
        mean_interval(np.ones((9, 2)))
    with pytest.raises(DataError, match="of the same images"):
        paired_interval(np.ones(9), np.ones(8))


def test_pairs_leave_out_what_images_share():
    rng = np.random.default_rng(1)
    images = rng.normal(30, 5, 24)
    first, second = images + 0.1 + rng.normal(0, 0.1, 24), images + rng.normal(0, 0.1, 24)
    assert paired_interval(first, second) == mean_interval(first - second)
    assert 0 < paired_interval(first, second).low < 0.1 < paired_interval(first, second).high
    assert mean_interval(first).low < mean_interval(second).mean  # the unpaired ones overlap
    interval, seeds = paired_over_seeds([first, first + 1], [second, second])
    assert interval.ends == pytest.approx(mean_interval(first - second + 0.5).ends)
    assert seeds == pytest.approx([np.mean(first - second), np.mean(first - second) + 1])


def test_a_correlations_interval_is_that_of_pseudo_values():
    rest = np.tanh(np.random.default_rng(2).normal(-1, 0.01, 20))
    whole = float(np.tanh(np.mean(np.arctanh(rest)) + 0.001))
    found = correlation_interval(whole, rest, fewest=15)
    pseudo = 20 * np.arctanh(whole) - 19 * np.arctanh(rest)
    assert found.ends == pytest.approx(np.tanh(mean_interval(pseudo).ends))
    assert (found.mean, found.n) == (whole, 20)
    # With a mean for the coefficient, and no z to bend it, pseudo-values are the values themselves.
    values = np.random.default_rng(3).normal(0, 1e-4, 30)
    of_mean = correlation_interval(values.mean(), (values.sum() - values) / 29, fewest=15)
    assert of_mean.ends == pytest.approx(mean_interval(values).ends, rel=1e-4)


@pytest.mark.parametrize(
    ("whole", "rest", "reason"),
    [
        (0.5, [0.5] * 14, "n too small: 14 references, at least 15 are needed"),
        (0.5, [0.4] * 15 + [np.nan], "no interval: undefined without one of the references"),
        (1.0, [1.0] * 16, "no interval: it is 1 or -1, if one reference is left out"),
        (0.5, [0.5] * 16, "no interval: no reference changes it"),
    ],
)
def test_correlations_without_an_interval(whole, rest, reason):
    found = correlation_interval(whole, rest, fewest=15)
    assert (found.mean, found.ends, found.reason) == (whole, None, reason)


# --- what recipes/interval_coverage.py measures, at small size: 2,500 samples have a standard error of 0.44 %

SLACK = 3 * math.sqrt(0.95 * 0.05 / 2500)


@pytest.mark.parametrize("n", [FEWEST, 24, 200])
@pytest.mark.parametrize("name", [name for name in coverage.VALUES if name not in coverage.BEYOND])
def test_means_are_covered(name, n):
    assert coverage.mean_coverage(name, n, "ours", 2500) > 0.93 - SLACK


def test_the_simulation_can_fail():
    assert coverage.mean_coverage("normal", 5, "Student's t", 20_000) == pytest.approx(0.95, abs=0.006)  # exact
    assert coverage.mean_coverage("normal", 5, "percentile", 10_000) < 0.87  # 84 % was measured
    assert coverage.mean_coverage("lognormal 0.7", FEWEST, "Student's t", 2500) < 0.91
    assert coverage.mean_coverage("lognormal 0.7", FEWEST, "BCa", 10_000) < 0.90


def test_correlations_are_covered_and_the_simulation_can_fail(monkeypatch):
    found = coverage.correlation_coverage("as TID2013, KADID-10k", FEWEST_REFERENCES, 120)
    assert min(found) > 0.93 - 3 * math.sqrt(0.95 * 0.05 / 120)
    monkeypatch.setattr(coverage, "true_coefficients", lambda name: [0.0, 0.0, 0.0])
    assert max(coverage.correlation_coverage("as TID2013, KADID-10k", FEWEST_REFERENCES, 5)) == 0


def test_the_command_prints_a_table(capsys):
    words = ["means", "--samples", "50", "--sizes", "8", "12", "--methods", "ours", "Hall"]
    assert coverage.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| values | method | 8 | 12 |"
    assert len(lines) == 2 + 2 * len(coverage.VALUES)
    assert coverage.main(["correlations", "--samples", "2", "--sizes", "5"]) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("| as TID2013, KADID-10k | ")


def test_many_samples_at_once_are_each_alone():
    values = np.random.default_rng(5).lognormal(size=(3, 4, 10))
    low, high = mean_limits(values)
    assert low.shape == (3, 4)
    assert mean_interval(values[1, 2]).ends == [low[1, 2], high[1, 2]]


# --- results.json


def test_older_results_get_these_intervals(tmp_path):
    values = np.random.default_rng(4).lognormal(size=12)
    images = [{"name": str(value), "values": {"mae": value, "niqe": None}} for value in values]
    about = {"better": "lower"}
    older = {
        "format": 1, "images": images, "metrics": {"mae": about, "niqe": about}, "unavailable": {},
        "means": {"mae": values.mean(), "niqe": None}, "counts": {"mae": 12, "niqe": 0},
        "intervals": {"mae": [0.0, 1.0], "niqe": None}, "interval": "95% percentile bootstrap",
    }  # fmt: skip
    file = tmp_path / "results.json"
    file.write_text(json.dumps(older))
    found = read_results(file)
    assert found["intervals"] == {"mae": mean_interval(values).ends, "niqe": None}
    assert found["interval"]["none"] == {"niqe": "n too small: 0, at least 10 are needed"}
    assert found["interval"]["level"] == 0.95
    assert mean_interval(values).text(".5g") in results_table(found)
    file.write_text(json.dumps(found))
    assert read_results(file) == found
