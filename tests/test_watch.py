"""The watch on gaming: it sees the runs that went wrong here, and nothing in the noise of the others."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from train_tiny import Patches, Tiny, settings

from milo_restore.train import fit
from milo_restore.train.watch import CURES, GamingWatch

# Readings (L1, MILO) of a reduced Restormer from random weights, sigma 25, official weights, batches of eight 48 px
# crops: the first step, then means over 20 steps. Through the mask (it ended at 20.1 dB), and with a constant mask.
THROUGH = [
    (0.1029, 0.00535), (0.0896, 0.00465), (0.1228, 0.00226), (0.1231, 0.00120), (0.1151, 0.00099), (0.1078, 0.00084),
    (0.1028, 0.00075), (0.1001, 0.00068), (0.0989, 0.00068), (0.0947, 0.00063), (0.0938, 0.00061), (0.0945, 0.00057),
    (0.0989, 0.00056), (0.0917, 0.00054), (0.0947, 0.00056), (0.0933, 0.00051),
]  # fmt: skip
# Blind (sigma 0 to 50), constant mask: means over 10 steps.
CONSTANT = [
    (0.1099, 0.00738), (0.0836, 0.00702), (0.0623, 0.00464), (0.0587, 0.00434), (0.0517, 0.00292), (0.0453, 0.00301),
    (0.0415, 0.00262), (0.0394, 0.00225), (0.0401, 0.00290), (0.0386, 0.00230), (0.0365, 0.00213), (0.0389, 0.00293),
    (0.0370, 0.00201), (0.0350, 0.00257), (0.0365, 0.00244), (0.0382, 0.00228), (0.0379, 0.00227), (0.0370, 0.00216),
    (0.0360, 0.00213), (0.0316, 0.00185), (0.0332, 0.00208),
]  # fmt: skip


def warnings_of(readings):
    watch = GamingWatch()
    lines = [watch.observe(step, l1, milo) for step, (l1, milo) in enumerate(readings)]
    return [(step, line) for step, line in enumerate(lines) if line is not None]


def healthy(seed, noise, count=1500):
    """A run of hundreds of thousands of steps: L1 falls to a quarter, then rises by 8 % as a curriculum lowers MILO."""
    chance = random.Random(seed)
    for k in range(count):
        t, early, late = k / count, math.exp(-k / 3), math.exp(-k / 100)
        hard, other = chance.gauss(0, noise), chance.gauss(0, noise)
        l1 = 0.02 * (1 + 3 * early) * (1 + 0.25 * late) * (1 + 0.08 * t)
        milo = 0.0015 * (1 + 3 * early) * (1 + 0.4 * late) * (1 - 0.4 * t)
        yield l1 * math.exp(hard), milo * math.exp(hard + 0.7 * other)


def test_the_run_that_failed_is_seen_once():
    found = warnings_of(THROUGH)
    assert len(found) == 1
    step, line = found[0]
    assert step <= 8
    assert line.endswith(CURES)
    assert "\n" not in line
    every_fifty = [THROUGH[0], (0.1107, 0.00300), (0.1130, 0.00095), (0.1005, 0.00071), (0.0956, 0.00063),
                   (0.0955, 0.00057), (0.0937, 0.00053)]  # fmt: skip
    assert len(warnings_of(every_fifty)) == 1


def test_a_late_collapse_is_seen():
    good = list(healthy(0, 0.02, 300))
    bad = [(0.02 * 1.02**k, 0.0013 * 0.98**k) for k in range(60)]
    found = warnings_of(good + bad)
    assert len(found) == 1
    assert 300 < found[0][0] < 340


def test_a_run_that_works_is_not_warned_of():
    assert warnings_of(CONSTANT) == []


@pytest.mark.parametrize("noise", [0.02, 0.2, 0.3])
def test_noise_is_no_gaming(noise):
    assert [seed for seed in range(20) if warnings_of(healthy(seed, noise))] == []


def test_what_is_no_gaming():
    assert warnings_of([(0.02 * 1.05**k, 0.001 * 1.05**k) for k in range(60)]) == []  # both rise: it diverges
    assert warnings_of([(0.08 * 0.97**k, 0.006 * 0.92**k) for k in range(60)]) == []  # both fall, MILO faster
    assert warnings_of([(l1, None) for l1, _ in THROUGH]) == []  # no MILO, nothing to game
    spoilt = [pair for good in THROUGH for pair in (good, (math.nan, 0.001), (0.1, 0.0), (math.inf, 0.001))]
    assert len(warnings_of(spoilt)) == 1  # unusable readings are left out


def test_an_output_below_its_input_is_said_once():
    watch = GamingWatch()
    assert watch.evaluated(1, {"psnr": 30.0, "input_psnr": 20.0}) is None
    assert watch.evaluated(1, {"psnr": 20.0, "input_psnr": 20.0}) is None
    assert watch.evaluated(1, {"psnr": 10.0}) is None
    assert watch.evaluated(1, {"psnr": math.nan, "input_psnr": 20.0}) is None
    line = watch.evaluated(7, {"psnr": 16.85, "input_psnr": 20.33})
    assert "step 7" in line
    assert "16.85" in line
    assert line.endswith(CURES)
    assert watch.evaluated(8, {"psnr": 16.85, "input_psnr": 20.33}) is None


def test_the_watch_loads_no_more_than_it_needs():
    command = [sys.executable, "-c", "import sys, milo_restore.train.watch; print(*sys.modules)"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout.split()
    assert "milo_restore.train.watch" in loaded
    assert set(loaded) & {"torch", "accelerate", "basicsr", "diffusers"} == set()


# ---------------------------------------------------------------------------------------------- in fit


def scripted(readings):
    """A step that trains as it would, and reports these."""

    def step(model, batch, number):
        loss = (model(batch["input"]) - batch["target"]).abs().mean()
        l1, milo = readings[min(number, len(readings)) - 1]
        return loss, {"l1": torch.tensor(l1), "milo": torch.tensor(milo)}

    return step


def run(tmp_path, **changes):
    fit(Tiny(), scripted(THROUGH), Patches(), settings(), tmp_path, **changes)
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_fit_warns_logs_and_goes_on(tmp_path, capsys):
    lines = run(tmp_path)
    said = capsys.readouterr().err
    assert said.count("warning: ") == 1
    assert "MILO fell from" in said
    assert [line["warning"] in said for line in lines if "warning" in line] == [True]
    steps = [line for line in lines if "loss" in line]
    assert len(steps) == 12
    for line, (l1, milo) in zip(steps, THROUGH):
        assert (line["l1"], line["milo"]) == (pytest.approx(l1, rel=1e-6), pytest.approx(milo, rel=1e-6))
    ratio = steps[0]["loss"] / THROUGH[0][0]
    assert said.count(f"loss / L1 on the first batch: {ratio:.3g}\n") == 1


def test_fit_watches_the_mean_of_the_steps_between_lines(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(GamingWatch, "observe", lambda self, *reading: seen.append(reading))
    fit(Tiny(), scripted(THROUGH), Patches(), settings(log_every=5), tmp_path)
    expected = [THROUGH[0], *([sum(v) / len(v) for v in zip(*THROUGH[a:b])] for a, b in ((1, 5), (5, 10)))]
    assert [step for step, *_ in seen] == [1, 5, 10]
    for (_, *reading), pair in zip(seen, expected):
        assert reading == pytest.approx(list(pair), rel=1e-5)


def test_fit_says_once_that_an_evaluation_is_below_its_input(tmp_path, capsys):
    evaluate = {"psnr": 16.85, "input_psnr": 20.33}
    run_settings = settings(evaluate_every=3)
    fit(Tiny(), lambda m, b, n: (m(b["input"]) - b["target"]).abs().mean(), Patches(), run_settings, tmp_path,
        evaluate=lambda model: evaluate)  # fmt: skip
    assert capsys.readouterr().err.count("below its input") == 1


@pytest.mark.parametrize(("position", "count"), [(lambda step: step / 12, 1), (lambda step: 1.0, 0)])
def test_fit_says_what_a_curriculum_does_to_the_loss(tmp_path, capsys, position, count):
    run(tmp_path, curriculum=position)
    assert capsys.readouterr().err.count("do not compare between steps") == count


def test_skipped_steps_are_not_read(tmp_path, monkeypatch):
    """Nor is a batch's NaN carried into the mean of the next reading."""
    seen = []
    data = Patches({5: math.nan})

    def step(model, batch, number):
        error = (model(batch["input"]) - batch["target"]).abs().mean()
        return error, {"l1": error, "milo": error}

    monkeypatch.setattr(GamingWatch, "observe", lambda self, *reading: seen.append(reading))
    fit(Tiny(), step, data, settings(log_every=3), tmp_path)
    assert [reading[0] for reading in seen] == [1, 3, 6, 9, 12]
    assert all(math.isfinite(value) for reading in seen for value in reading)
