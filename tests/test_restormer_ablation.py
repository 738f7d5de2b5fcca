"""The experiment on losses for denoisers: its arms, its statistics, its rule, and that it runs and goes on."""

from __future__ import annotations

import json

import micro_world  # noqa: F401  (puts the recipes on the path)
import numpy as np
import pytest
from scipy import stats

from milo_restore.config import load_config
from milo_restore.loss import LossSettings

import restormer_ablation as ablation  # isort: skip

TINY = [
    "training.stages=[{steps: 2, patch: 32, batch: 2}]", "training.constant_steps=1", "training.trackers=[]",
    "network.dim=8", "network.heads=[1, 2, 2, 4]", "loss.weights=mini",
    "data.train=[photographs]", "data.test=[held-out-photographs]", "data.test_side=64",
]  # fmt: skip


def cells(**arms):
    """Ten images of two seeds; MAE's scores are 30 dB and 0.1, an arm's differ by (PSNR, ST-LPIPS), and by image."""
    found = {}
    for seed, shift in ((1, 0.0), (2, 0.02)):
        for arm, (psnr, st_lpips) in {"mae": (0.0, 0.0), **arms}.items():
            images = shift + np.linspace(-0.01, 0.01, 10)
            spread = 0.0 if arm == "mae" else 0.1
            found[arm, seed] = {
                "psnr": 30 + psnr + (1 + spread) * images - spread * shift, "ssim": 0.8 + images,
                "milo": 0.001 + 0 * images, "st-lpips": 0.1 + st_lpips + (1 + spread) * images - spread * shift,
            }  # fmt: skip
    return found


def test_every_arm_is_a_loss_of_its_own():
    settings = [load_config(ablation.Config, ablation.LITE, changes.split()).loss for changes in ablation.ARMS.values()]
    assert all(isinstance(loss, LossSettings) for loss in settings)
    assert len({loss.label for loss in settings}) == len(ablation.ARMS)
    assert settings[0].kind == "mae"


def test_the_rule_takes_the_lowest_that_does_not_lose_too_much():
    found = cells(linear=(-0.29, -0.01), cosine=(-0.31, -0.05), constant=(0.1, -0.005))
    assert ablation.recommended(found) == "linear"
    assert ablation.recommended(cells(linear=(0.2, 0.001))) == "mae"
    del found["mae", 1], found["mae", 2]
    assert ablation.recommended(found) == "mae"  # nothing to compare with


def test_differences_are_paired_by_image_and_seed():
    found = cells(linear=(-0.2, -0.01))
    interval, seeds = ablation.against(found, "linear", "psnr")
    # What images and seeds have in common cancels; what is left has no skewness, so that Student's t is all there is.
    differences = -0.2 + 0.1 * np.linspace(-0.01, 0.01, 10)
    expected = stats.t.interval(0.95, 9, differences.mean(), stats.sem(differences))
    assert interval.mean == pytest.approx(-0.2)
    assert interval.ends == pytest.approx(expected, rel=1e-6)
    assert seeds == pytest.approx([-0.2, -0.2])
    lines = ablation.table(found).splitlines()
    assert lines[2].startswith("| mae | 1, 2 | 30.01 | 0.8100 | 1.000 | 11.00 |")
    assert "29.81 (-0.20 [-0.20, -0.20]; -0.20, -0.20)" in lines[3]
    assert "10.00 (-1.00 [-1.05, -0.95]; -1.00, -1.00)" in lines[3]
    assert "1.000 (+0.000 all equal; +0.000, +0.000)" in lines[3]


def test_it_runs_and_goes_on(tmp_path, capsys):
    pytest.importorskip("stlpips_pytorch")
    words = ["--output", str(tmp_path), "--seeds", "3", "--set", *TINY]
    assert ablation.main([*words, "--arms", "mae"]) == 0
    assert "recommended by the rule: mae" in capsys.readouterr().out
    before = (tmp_path / "mae-3" / "run.json").stat().st_mtime_ns
    assert ablation.main([*words, "--arms", "mae", "l1-10milo"]) == 0
    assert (tmp_path / "mae-3" / "run.json").stat().st_mtime_ns == before
    printed = capsys.readouterr().out
    assert "| mae | 3 |" in printed
    assert "| l1-10milo | 3 |" in printed
    assert ablation.main(["--output", str(tmp_path), "--table"]) == 0
    assert "| l1-10milo | 3 |" in capsys.readouterr().out
    (file,) = (tmp_path / "l1-10milo-3").glob("eval/*/restored/results.json")
    numbers = json.loads(file.read_text())
    numbers["images"][0]["sha256"]["ref"] = "another"
    file.write_text(json.dumps(numbers))
    assert ablation.main(["--output", str(tmp_path), "--table"]) == 2
    assert "other images" in capsys.readouterr().err
    assert ablation.main(["--output", str(tmp_path / "none"), "--table"]) == 2


def test_nothing_finished_is_said(tmp_path, capsys):
    assert ablation.main(["--output", str(tmp_path), "--table"]) == 2
    assert "no finished arm" in capsys.readouterr().err
