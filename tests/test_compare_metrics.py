"""Two metrics on the same pairs: what their difference is, when it holds, and what is refused."""

from __future__ import annotations

import math

import micro_world  # noqa: F401  (puts the recipes on the path)
import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr, ttest_1samp

from milo_restore.errors import DataError
from milo_restore.measure.compare import holm
from milo_restore.measure.intervals import mean_interval
from milo_restore.opinions.coefficients import FEWEST_REFERENCES, correlate_scores
from milo_restore.opinions.compare import compare_metrics

import interval_coverage as coverage  # isort: skip


def opinions_and_metrics(references=FEWEST_REFERENCES, each=6):
    """A good and a bad error measure, and one that a higher score is better of; opinions of the same pairs."""
    rng = np.random.default_rng(7)
    quality, places = rng.normal(size=references * each), np.repeat(np.arange(references), each)
    shared = 0.8 * rng.normal(size=quality.size)  # what no metric sees of the opinions
    noise = rng.normal(size=(3, quality.size))
    scores = {"good": np.exp(-quality + 0.3 * noise[0]), "bad": 5 - quality + 1.2 * noise[1],
              "higher": quality + 0.3 * noise[2]}  # fmt: skip
    return scores, quality + shared, places


AGREES = {"good": False, "bad": False, "higher": True}


def compared(**changes):
    scores, opinions, places = opinions_and_metrics()
    return compare_metrics(
        **{"scores": scores, "opinions": opinions, "references": places, "agrees": AGREES, **changes}
    )


def test_the_difference_is_that_of_the_coefficients_and_of_pseudo_values():
    scores, opinions, places = opinions_and_metrics()
    found = compared()
    assert (found.n, found.left_out, found.references) == (150, 0, FEWEST_REFERENCES)
    assert [(one.first, one.second) for one in found.pairs] == [("good", "bad"), ("good", "higher"), ("bad", "higher")]
    alone = {name: correlate_scores(column, opinions, places) for name, column in scores.items()}
    for key, function in (("srcc", spearmanr), ("krcc", kendalltau)):
        one = getattr(found.pairs[0], key)
        turned = {name: (1 if AGREES[name] else -1) * getattr(alone[name], key).value for name in scores}
        assert one.difference.mean == pytest.approx(turned["good"] - turned["bad"], rel=1e-12)
        rest = []
        for place in range(FEWEST_REFERENCES):
            keep = places != place
            rest.append(
                -function(scores["good"][keep], opinions[keep])[0] + function(scores["bad"][keep], opinions[keep])[0]
            )
        pseudo = FEWEST_REFERENCES * one.difference.mean - (FEWEST_REFERENCES - 1) * np.array(rest)
        assert one.difference.ends == pytest.approx(mean_interval(pseudo).ends, rel=1e-9)
        assert one.p == pytest.approx(ttest_1samp(pseudo, 0).pvalue, rel=1e-9)
    plcc = found.pairs[0].plcc.difference.mean
    assert plcc == pytest.approx(alone["good"].plcc.value - alone["bad"].plcc.value, rel=1e-9)
    for key in ("srcc", "plcc", "krcc"):
        parts = [getattr(one, key) for one in found.pairs]
        assert [part.corrected for part in parts] == pytest.approx(holm([part.p for part in parts]))


def test_what_two_metrics_share_cancels():
    """Their own intervals overlap, and yet one is better; two that are alike are not told apart."""
    scores, opinions, places = opinions_and_metrics()
    good, bad = (correlate_scores(scores[name], opinions, places).srcc for name in ("good", "bad"))
    assert good.high > bad.low  # both are negative
    found = compared()
    assert found.pairs[0].srcc.holds
    assert found.pairs[0].srcc.difference.low > 0
    assert not found.pairs[1].srcc.holds
    assert found.pairs[2].srcc.difference.high < 0  # the bad one first


def test_a_metric_that_contradicts_its_direction_is_below_the_others():
    found = compared(agrees={**AGREES, "good": True})
    assert found.pairs[1].srcc.difference.mean < -1
    assert found.pairs[1].plcc.difference.mean == compared().pairs[1].plcc.difference.mean


def test_pairs_without_a_score_are_left_out_for_all():
    scores, opinions, places = opinions_and_metrics()
    holed = {**scores, "higher": np.where(np.arange(150) < 6, np.inf, scores["higher"])}
    found = compared(scores=holed)
    assert (found.n, found.left_out, found.references) == (144, 6, FEWEST_REFERENCES - 1)
    assert found.pairs[0].srcc.difference.reason == "n too small: 24 references, at least 25 are needed"
    assert (found.pairs[0].srcc.p, found.pairs[0].srcc.corrected, found.pairs[0].srcc.holds) == (None, None, False)
    kept = {name: column[6:] for name, column in scores.items()}
    there = compare_metrics(kept, opinions[6:], places[6:], agrees=AGREES)
    assert there.pairs[0].srcc.difference.mean == found.pairs[0].srcc.difference.mean


def test_equal_metrics_and_constant_ones_have_no_interval():
    scores, opinions, places = opinions_and_metrics()
    both = {"a": scores["good"], "b": 2 * scores["good"], "flat": np.ones(150)}
    found = compare_metrics(both, opinions, places, agrees=dict.fromkeys(both, False))
    assert found.pairs[0].srcc.difference.mean == 0
    assert found.pairs[0].srcc.difference.reason == "no interval: no reference changes it"
    assert not found.pairs[0].srcc.holds
    assert found.pairs[1].krcc.difference.mean is None
    assert found.pairs[1].krcc.difference.text(".2f") == "undefined"


def test_what_cannot_be_compared_is_refused():
    scores, opinions, places = opinions_and_metrics()
    with pytest.raises(DataError, match="needs two metrics"):
        compared(scores={"good": scores["good"]})
    with pytest.raises(DataError, match=r"must be \(N,\)"):
        compared(opinions=opinions[1:])
    with pytest.raises(DataError, match="1 of 150 opinions are NaN"):
        compared(opinions=np.where(np.arange(150) == 3, np.nan, opinions))
    with pytest.raises(DataError, match="good, bad: no pair has a finite score of every metric"):
        compared(scores={"good": scores["good"], "bad": np.full(150, np.nan)})


# --- what recipes/interval_coverage.py measures, at small size


def test_differences_are_covered_and_the_simulation_can_fail(monkeypatch):
    name, samples = "one kind", 60
    found = coverage.difference_coverage(name, FEWEST_REFERENCES, samples, variant=False)
    assert min(found) > 0.93 - 3 * math.sqrt(0.95 * 0.05 / samples)
    monkeypatch.setattr(coverage, "true_differences", lambda name, *, variant: [0.5, 0.5, 0.5])
    assert max(coverage.difference_coverage(name, FEWEST_REFERENCES, 3, variant=False)) == 0
