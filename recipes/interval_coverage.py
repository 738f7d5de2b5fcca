r"""Do the 95 % intervals cover? A simulation with known truth, of means and of correlations, beside other methods.

    python recipes/interval_coverage.py means            # some minutes of a core
    python recipes/interval_coverage.py correlations     # half an hour
    python recipes/interval_coverage.py differences      # an hour: of two metrics on the same pairs
    python recipes/interval_coverage.py means --samples 500 --sizes 5 8    # quicker, and coarser

Each cell is the share of samples, in %, whose interval holds the true value; with S samples its standard error is
2.2 / sqrt(S / 100) % near 95 %. ``ours`` is what milo-restore prints; below n = 10, and below 25 references, it
prints "n too small" instead. The methods that resample get a tenth of the samples.

Means: values as images have them. Of 100 photographs of BSDS500 under noise, median filter, JPEG and downsampling, the
skewness of PSNR, SSIM, MAE, MILO and ST-LPIPS, and of differences of two methods, lies between -1.8 and 1.8. The
distributions below go from none to 2.9 (lognormal 0.7); ``lognormal 1`` (6.2), ``one in 20 far off`` (six standard
deviations) and ``one in 50 further`` (ten) are worse than what was met, and show where the promise ends.

Correlations: distortions in five levels, with a quality each; an opinion adds the reference's and the pair's own; the
metric's logarithm is linear in quality, with a bias per kind of distortion, a gain per reference, and noise. The shares
of variance are those of the published opinions: references 0 to 5 %, pairs of their own 7 to 14 %, in PIPAL 35 %.
``one kind`` has five pairs per reference, as a table per distortion has; in ``uneven references`` a few references are
far off (exponential gains, a quarter of the variance; of scores under KADID's distortions 5 % at most was measured).
The truth comes from 30,000 pairs.

Differences: a second metric on the same pairs. ``unlike`` has biases, gains and noise of its own, ``variant`` is the
first with more of these. Its gains and noise are 1.3 times the first's, so that the metrics differ. The truth comes
from 60,000 pairs, as a difference is small.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from milo_restore.data.keys import keyed_rng
from milo_restore.errors import run_program
from milo_restore.measure.intervals import Floats, hall_limits, mean_limits, student_limits
from milo_restore.opinions.coefficients import correlate_scores
from milo_restore.opinions.compare import COEFFICIENTS, compare_metrics

RESAMPLES = 999
SIZES = (5, 8, 10, 12, 24, 48, 100, 200)
KINDS = ("unlike", "variant")  # of a second metric
REFERENCES = (7, 10, 15, 25, 30, 81)
DISAGREES = {"first": False, "second": False}  # scores are errors
Limits = tuple[Floats, Floats]
Generator = np.random.Generator


@dataclass(frozen=True)
class Values:
    """A distribution of per-image values: how to draw, and its mean."""

    draw: Callable[[Generator, tuple[int, int]], Floats]
    mean: float


def lognormal(sigma: float) -> Values:
    """The exponential of a normal variable with this standard deviation."""
    return Values(lambda rng, shape: rng.lognormal(0, sigma, shape), float(np.exp(sigma**2 / 2)))


VALUES = {
    "normal": Values(lambda rng, shape: rng.normal(size=shape), 0.0),
    "heavy tails (t, 3)": Values(lambda rng, shape: rng.standard_t(3, shape), 0.0),
    "bounded (beta 8, 1)": Values(lambda rng, shape: rng.beta(8, 1, shape), 8 / 9),
    "ties (rounded normal)": Values(lambda rng, shape: np.round(rng.normal(2, 1, shape)), 2.0),
    "lognormal 0.5": lognormal(0.5),
    "exponential": Values(lambda rng, shape: rng.exponential(size=shape), 1.0),
    "lognormal 0.7": lognormal(0.7),
    "lognormal 1": lognormal(1),
    "one in 20 far off": Values(lambda rng, shape: rng.normal(size=shape) + 6.0 * (rng.random(shape) < 0.05), 0.3),
    "one in 50 further": Values(lambda rng, shape: rng.normal(size=shape) + 10 * (rng.random(shape) < 0.02), 0.2),
}
BEYOND = ("lognormal 1", "one in 20 far off", "one in 50 further")  # worse than what was met


def resampled_limits(values: Floats, method: str) -> Limits:
    """Limits of scipy.stats.bootstrap: (S, N) to both ends, each (S,)."""
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # samples of equal values
        found = stats.bootstrap(
            (values,), np.mean, n_resamples=RESAMPLES, batch=20, axis=-1, method=method,
            random_state=keyed_rng(0, "coverage-bootstrap"),
        )  # fmt: skip
    return found.confidence_interval.low, found.confidence_interval.high


def bootstrap_t_limits(values: Floats) -> Limits:
    """The studentised bootstrap: (S, N) to both ends, each (S,). All samples share their resamples."""
    n = values.shape[1]
    times = keyed_rng(0, "coverage-t").multinomial(n, [1 / n] * n, RESAMPLES).T / n
    away = values - values.mean(1, keepdims=True)
    means = away @ times
    spreads = np.sqrt(np.maximum(away**2 @ times - means**2, 1e-12))
    low, high = np.quantile(means / spreads, (0.025, 0.975), axis=1)
    return values.mean(1) - high * values.std(1), values.mean(1) - low * values.std(1)


METHODS: dict[str, tuple[Callable[[Floats], Limits], int]] = {  # and what part of the samples they get
    "ours": (mean_limits, 1),
    "Student's t": (student_limits, 1),
    "Hall": (hall_limits, 1),
    "bootstrap-t": (bootstrap_t_limits, 10),
    "BCa": (lambda values: resampled_limits(values, "BCa"), 10),
    "percentile": (lambda values: resampled_limits(values, "percentile"), 10),
}


def mean_coverage(name: str, n: int, method: str, samples: int) -> float:
    """The share, in [0, 1], of samples of ``n`` values whose interval holds the mean; of those with a spread."""
    values, (limits, part) = VALUES[name], METHODS[method]
    drawn = values.draw(keyed_rng(0, f"coverage-{name}", n), (max(1, samples // part), n))
    low, high = limits(drawn[np.ptp(drawn, axis=1) > 0])
    return float(((low <= values.mean) & (values.mean <= high)).mean())


@dataclass(frozen=True)
class Pairs:
    """A data set of opinions: standard deviations in units of the distortions' spread of quality.

    Attributes:
        pairs: distorted images per reference, a multiple of 5.
        opinion: of references, and of single pairs, in the opinions.
        metric: of references' gains, and of single pairs, in the metric's logarithm.
        skewed: gains are exponential, not normal.
    """

    pairs: int
    opinion: tuple[float, float]
    metric: tuple[float, float]
    skewed: bool = False

    def draw(self, rng: Generator, references: int) -> tuple[Floats, Floats]:
        """Scores and opinions, each (references, pairs); distortions are the same whatever ``rng``."""
        kinds, shape = self.pairs // 5, (references, self.pairs)
        quality = np.tile(np.linspace(-1.4, 1.4, 5), kinds)
        bias = np.repeat(keyed_rng(0, "coverage-kinds").normal(0, 0.5, kinds), 5)
        gain = rng.exponential(size=(references, 1)) - 1 if self.skewed else rng.normal(size=(references, 1))
        content = rng.normal(size=(references, 1))
        opinions = quality + self.opinion[0] * content + self.opinion[1] * rng.normal(size=shape)
        logarithm = quality + bias + self.metric[0] * gain + self.metric[1] * rng.normal(size=shape)
        return np.exp(logarithm), -opinions

    def draw_other(self, rng: Generator, scores: Floats, *, variant: bool) -> Floats:
        """A second metric's scores of the pairs that have these ``scores``, (references, pairs)."""
        kinds = self.pairs // 5
        gain = rng.exponential(size=(len(scores), 1)) - 1 if self.skewed else rng.normal(size=(len(scores), 1))
        bias = np.repeat(keyed_rng(0, "coverage-kinds-other").normal(0, 0.5, kinds), 5)
        own = bias + 1.3 * (self.metric[0] * gain + self.metric[1] * rng.normal(size=scores.shape))
        start = np.log(scores) if variant else np.tile(np.linspace(-1.4, 1.4, 5), kinds)
        return np.exp(start + own)


PAIRS = {
    "as TID2013, KADID-10k": Pairs(20, (0.15, 0.4), (0.3, 0.4)),
    "as PIPAL": Pairs(20, (0.05, 0.75), (0.3, 0.5)),
    "one kind": Pairs(5, (0.3, 0.4), (0.5, 0.4)),
    "uneven references": Pairs(20, (0.15, 0.4), (0.8, 0.4), skewed=True),
}


def true_coefficients(name: str) -> list[float]:
    """SRCC, PLCC and KRCC of very many references."""
    model = PAIRS[name]
    scores, opinions = model.draw(keyed_rng(0, f"coverage-truth-{name}"), 30_000 // model.pairs)
    found = correlate_scores(scores.ravel(), opinions.ravel(), np.zeros(scores.size))
    values = [getattr(found, key).value for key in COEFFICIENTS]
    return [float(value) for value in values]


def correlation_coverage(name: str, references: int, samples: int) -> list[float]:
    """The shares, in [0, 1], of data sets whose intervals of SRCC, PLCC and KRCC hold the true values."""
    model, truth = PAIRS[name], true_coefficients(name)
    rows, hits = np.repeat(np.arange(references), model.pairs), np.zeros(len(truth))
    for sample in range(samples):
        scores, opinions = model.draw(keyed_rng(0, f"coverage-{name}", references, sample), references)
        found = correlate_scores(scores.ravel(), opinions.ravel(), rows, fewest=3)
        for place, (key, true) in enumerate(zip(COEFFICIENTS, truth)):
            one = getattr(found, key)
            hits[place] += one.low is not None and one.low <= true <= one.high
    return [float(share) for share in hits / samples]


def two_metrics(rng: Generator, model: Pairs, references: int, *, variant: bool) -> tuple[dict[str, Floats], Floats]:
    """Scores of two metrics and opinions, each (references * pairs)."""
    scores, opinions = model.draw(rng, references)
    other = model.draw_other(rng, scores, variant=variant)
    return {"first": scores.ravel(), "second": other.ravel()}, opinions.ravel()


@cache
def true_differences(name: str, *, variant: bool) -> list[float]:
    """The differences in SRCC, PLCC and KRCC of very many references."""
    model = PAIRS[name]
    rng = keyed_rng(0, f"coverage-truth-differences-{name}", int(variant))
    scores, opinions = two_metrics(rng, model, 60_000 // model.pairs, variant=variant)
    both = compare_metrics(scores, opinions, np.zeros(len(opinions)), agrees=DISAGREES).pairs[0]
    values = [getattr(both, key).difference.mean for key in COEFFICIENTS]
    return [float(value) for value in values]


def difference_coverage(name: str, references: int, samples: int, *, variant: bool) -> list[float]:
    """The shares, in [0, 1], of data sets whose intervals hold the true differences in SRCC, PLCC and KRCC."""
    model, truth = PAIRS[name], true_differences(name, variant=variant)
    rows, hits = np.repeat(np.arange(references), model.pairs), np.zeros(len(truth))
    for sample in range(samples):
        rng = keyed_rng(int(variant), f"coverage-differences-{name}", references, sample)
        scores, opinions = two_metrics(rng, model, references, variant=variant)
        both = compare_metrics(scores, opinions, rows, agrees=DISAGREES, fewest=3).pairs[0]
        for place, (key, true) in enumerate(zip(COEFFICIENTS, truth)):
            ends = getattr(both, key).difference.ends
            hits[place] += ends is not None and ends[0] <= true <= ends[1]
    return [float(share) for share in hits / samples]


def line(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("means", "correlations", "differences"))
    parser.add_argument("--samples", type=int, help="(default: 20000 of means, 1000 of others)")
    parser.add_argument("--sizes", type=int, nargs="+", help="values of a mean, or references of the others")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="of means")
    arguments = parser.parse_args(argv)

    def act() -> None:
        if arguments.what == "means":
            sizes = arguments.sizes or SIZES
            print(line(["values", "method", *map(str, sizes)]), line(["---"] * (len(sizes) + 2)), sep="\n")
            for name in VALUES:
                for method in arguments.methods:
                    shares = [mean_coverage(name, n, method, arguments.samples or 20_000) for n in sizes]
                    print(line([name, method, *(f"{100 * share:.1f}" for share in shares)]), flush=True)
            return
        sizes = arguments.sizes or REFERENCES
        print(line(["pairs", *map(str, sizes)]), line(["---"] * (len(sizes) + 1)), sep="\n")
        measures: dict[str, Callable[[str, int, int], list[float]]] = {"": correlation_coverage}
        if arguments.what == "differences":
            measures = {f", {kind}": partial(difference_coverage, variant=kind == "variant") for kind in KINDS}
        for name in PAIRS:
            for kind, measure in measures.items():
                found = [measure(name, n, arguments.samples or 1000) for n in sizes]
                cells = [" / ".join(f"{100 * share:.1f}" for share in shares) for shares in found]
                print(line([f"{name}{kind}", *cells]), flush=True)

    return run_program(parser.prog, act)


if __name__ == "__main__":
    sys.exit(main())
