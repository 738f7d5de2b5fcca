"""The latent ablation: what it concludes from numbers, and that it runs, goes on, and refuses to mix protocols."""

from __future__ import annotations

import json

import micro_world  # noqa: F401  (puts the recipes on the path)
import numpy as np
import pytest
import torch

from milo_restore.errors import ConfigError
from milo_restore.measure.intervals import FEWEST

import latent_ablation  # isort: skip
import latent_one_step  # isort: skip


def cells(arm, mse=(0.0, 0.0, 0.0), crops=24):
    """Three seeds of mse and of an arm that is off by ``arm`` (milo, st-lpips, psnr), on crops that differ a lot."""
    rng, found = np.random.default_rng(0), {}
    base = {metric: rng.uniform(1, 5, crops) for metric in latent_ablation.METRICS}
    for number, (name, shift) in enumerate((("mse", mse), ("arm", arm))):
        for seed in range(3):
            noise = 0.02 * np.random.default_rng([seed, number]).standard_normal(crops)
            values = {m: list(base[m] + by + noise) for m, by in zip(latent_ablation.METRICS, shift)}
            found[name, seed] = {"label": name, "values": values, "cosine_mse": [0.9, 0.8]}
    return found


@pytest.mark.parametrize(
    ("shift", "said"),
    [
        ((-0.1, -0.1, 0.0), "wins"),
        ((-0.1, -0.1, -0.2), "wins"),
        ((-0.1, -0.1, -0.5), "no difference"),  # too much PSNR
        ((-0.1, 0.0, 0.0), "no difference"),  # one metric only
        ((0.1, 0.1, 0.5), "loses"),
        ((0.0, 0.0, 0.0), "no difference"),
    ],
)
def test_it_can_come_out_either_way(shift, said):
    found = cells(shift)
    versus = {metric: latent_ablation.compare(found, "arm", metric) for metric in latent_ablation.METRICS}
    assert latent_ablation.verdict(versus) == said
    for metric, by in zip(latent_ablation.METRICS, shift):
        low, high = versus[metric][0].ends
        assert low < by < high
        assert high - low < 0.05  # paired: crops differ by far more
    line = latent_ablation.table(found).splitlines()[-1]
    assert line.startswith("| arm | arm | 3 | 0.900 to 0.800 |")
    assert line.endswith(f"| {said} |")


def test_one_seed_that_disagrees_is_enough():
    found = cells((-0.1, -0.1, 0.0))
    found["arm", 1]["values"]["milo"] = [value + 0.15 for value in found["arm", 1]["values"]["milo"]]
    versus = {metric: latent_ablation.compare(found, "arm", metric) for metric in latent_ablation.METRICS}
    assert versus["milo"][0].high < 0
    assert max(versus["milo"][1]) > 0
    assert latent_ablation.verdict(versus) == "no difference"


def test_too_few_crops_decide_nothing():
    found = cells((-0.1, -0.1, 0.0), crops=FEWEST - 1)
    versus = {metric: latent_ablation.compare(found, "arm", metric) for metric in latent_ablation.METRICS}
    assert latent_ablation.verdict(versus) == "no difference"
    assert latent_ablation.table(found).splitlines()[-1].count(" n too small; ") == 3


def test_every_arm_is_a_loss_and_no_two_are_the_same():
    for setting, arms in latent_ablation.ARMS.items():
        assert list(arms)[0] == "mse"
        labels = [latent_one_step.SETTINGS[setting].loss(arm, 10).label for arm in arms.values()]
        assert len(set(labels)) == len(labels)


def test_untrained_the_small_network_gives_the_condition_back():
    condition = torch.randn(2, 4, 16, 20)
    assert torch.equal(latent_one_step.OneStep()(condition), condition)


def test_a_protocol_is_kept(tmp_path):
    file = tmp_path / "results.jsonl"
    line = {"setting": "one-step", "arm": "mae", "seed": 0, "label": "mae", "protocol": {"steps": 4}}
    file.write_text(json.dumps(line) + "\n")
    assert list(latent_ablation.finished(file, "one-step", {"steps": 4})) == [("mae", 0)]
    assert latent_ablation.finished(file, "control-unet", {"steps": 5}) == {}
    with pytest.raises(ConfigError, match="another protocol: steps"):
        latent_ablation.finished(file, "one-step", {"steps": 5})
    file.write_text(json.dumps({**line, "label": "mse"}) + "\n")
    with pytest.raises(ConfigError, match="the arm mae"):
        latent_ablation.finished(file, "one-step", {"steps": 4})


@pytest.mark.golden
@pytest.mark.parametrize("setting", ["one-step", "control-base"])
def test_it_runs_and_goes_on(setting, shared, tmp_path, capsys, monkeypatch):
    pytest.importorskip("stlpips_pytorch")
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(shared))
    for part in ("train", "test"):
        (tmp_path / "images" / part).mkdir(parents=True)
        for path in sorted((shared / "data" / "bsds500" / part).iterdir())[:2]:
            (tmp_path / "images" / part / path.name).symlink_to(path)
    words = ["--setting", setting, "--images", str(tmp_path / "images"), "--output", str(tmp_path / "run"),
             "--seeds", "0", "--steps", "2", "--train-crops", "2", "--held-out", "2", "--side", "128"]  # fmt: skip
    assert latent_ablation.main([*words, "--arms", "mse"]) == 0
    assert latent_ablation.main([*words, "--arms", "mse", "through"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert [line["arm"] for line in lines] == ["(start)", "(autoencoder)", "mse", "through"]
    assert all(len(line["values"][metric]) == 2 for line in lines for metric in latent_ablation.METRICS)
    printed = capsys.readouterr().out
    assert "| mse | mse | 1 |" in printed
    assert "sha256" in printed
    assert latent_ablation.main([*words[:-4], "--held-out", "1", "--side", "128"]) == 2
    assert "another protocol" in capsys.readouterr().err
