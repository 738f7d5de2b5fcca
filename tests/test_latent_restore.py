"""Restoration in latents: what is degraded, encoded and trained, what is concluded, and that it runs and goes on."""

from __future__ import annotations

import json

import micro_world  # noqa: F401  (puts the recipes on the path)
import numpy as np
import pytest
import torch

from milo_restore.cli import main as milo_restore
from milo_restore.config import load_config
from milo_restore.data import SampleKey, load_collection
from milo_restore.errors import ConfigError
from milo_restore.files import download
from milo_restore.loss import LatentMILOLoss, LossSettings, MSELoss, build_loss
from milo_restore.measure.intervals import FEWEST
from milo_restore.metric.weights import SHIPPED
from milo_restore.train.command import run_recipe

import latent_ablation  # isort: skip
import latent_restore  # isort: skip
import latent_world  # isort: skip

TINY = (
    "training.stages=[{steps: 4, patch: 128, batch: 2}]", "training.constant_steps=1", "training.log_every=2",
    "training.trackers=[]", "training.checkpoint_every=2", "training.evaluate_every=4", "network.width=8",
    "network.blocks=1", "data.train=[photographs]", "data.test=[held-out-photographs]", "data.crops=2",
    "data.crop=128", "data.test_side=128", "data.test_images=2", "data.quick_images=1", "loss.weights=mini",
    f"vae={SHIPPED / 'tiny_world'}",
)  # fmt: skip


def recipe(tmp_path, *words, resume=False):
    """The recipe in the shipped tiny world's VAE."""
    words = ["--set", *TINY, f"data.cache={tmp_path / 'latents'}", "metrics=[psnr, milo:mini]", *words]
    flags = ["--resume", "latest"] if resume else []
    return run_recipe(latent_restore.main, latent_restore.Config, latent_ablation.BASE, "latents",
                      ["--output", str(tmp_path / "run"), *flags, *words])  # fmt: skip


def test_a_run_leaves_what_other_recipes_leave(tmp_path, capsys):
    assert recipe(tmp_path, "task=x4") == 0
    printed = capsys.readouterr().out
    place = tmp_path / "run" / "eval" / "held-out-photographs-4x"
    methods = ("input", "untouched", "restored", "autoencoder")
    found = {name: json.loads((place / name / "results.json").read_text()) for name in methods}
    assert all(len(each["images"]) == 2 for each in found.values())
    assert found["autoencoder"]["means"]["psnr"] > found["untouched"]["means"]["psnr"]
    assert f"{found['restored']['means']['psnr']:.2f}" in printed
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (about["steps"], about["loss"], about["task"]) == (4, "milo", "x4")
    assert about["loss_weights"].startswith("mini")
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    cosines = [line["cosine_mse"] for line in steps if "cosine_mse" in line]
    assert len(cosines) == 2
    assert all(0.1 < cosine < 0.99 for cosine in cosines)
    assert "psnr" in next(line["evaluation"] for line in steps if "evaluation" in line)
    assert milo_restore(["report", str(tmp_path / "run"), "--out", str(tmp_path / "r.html")]) == 0
    assert "encoded and decoded" in (tmp_path / "r.html").read_text()


def test_a_stopped_run_goes_on_and_another_loss_is_refused(tmp_path, capsys, monkeypatch):
    real = latent_restore.fit
    monkeypatch.setattr(latent_restore, "fit", lambda *given, **named: real(*given, **named, until=2))
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(latent_restore, "evaluate", lambda *given: None)
        assert recipe(tmp_path) == 0
    monkeypatch.setattr(latent_restore, "fit", real)
    assert not (folder / "run.json").exists()
    assert recipe(tmp_path, resume=True) == 0
    assert json.loads((folder / "run.json").read_text())["steps"] == 4
    assert recipe(tmp_path, "loss.kind=mse", resume=True) == 2
    assert "loss" in capsys.readouterr().err


def test_a_loss_of_other_latents_is_refused_before_anything_is_trained(tmp_path, capsys):
    from diffusers import AutoencoderKL

    other = AutoencoderKL(latent_channels=16, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=4,
                          down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                          scaling_factor=0.3611, shift_factor=0.1159)  # fmt: skip
    other.save_pretrained(tmp_path / "flux" / "vae")
    assert recipe(tmp_path, f"vae={tmp_path / 'flux'}") == 2
    assert "16 channels, not 4" in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == [tmp_path / "flux"]  # nor encoded
    assert recipe(tmp_path, f"vae={tmp_path / 'flux'}", "loss.kind=mse") == 0  # which knows no VAE


def test_without_taef2_one_line_says_what_to_fetch(tmp_path, capsys, monkeypatch):
    (tmp_path / "assets").mkdir()
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(tmp_path / "assets"))
    monkeypatch.setenv("MILO_RESTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "download", no_network)
    assert recipe(tmp_path, "vae=taef2", "metrics=[psnr]") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "run 'milo-restore assets fetch taef2'" in error
    assert "taef2_encoder.pth" in error


def no_network(file, folder, kind, mend, **options):
    raise kind("cannot be downloaded", where=file.name, mend=mend)


def test_a_dry_run_names_what_it_found(tmp_path, capsys):
    words = ["--dry-run", "--set", *TINY, "metrics=[psnr]"]
    assert run_recipe(latent_restore.main, latent_restore.Config, latent_ablation.BASE, "latents", words) == 0
    printed = capsys.readouterr().out
    assert "held-out-photographs: 2" in printed
    assert "milo, mini (milo_latent_mini.safetensors" in printed
    assert "4 channels, sha256" in printed


@pytest.mark.parametrize("task", list(latent_world.TITLES))
def test_degradations_are_those_of_files(task):
    ((_, image), *_) = load_collection("held-out-photographs")
    clean = torch.from_numpy(image[:128, :128].copy()).permute(2, 0, 1).float() / 255
    made = [latent_world.degrade(clean, task, np.random.default_rng(3)) for _ in range(2)]
    assert torch.equal(*made)
    assert made[0].shape == clean.shape
    assert 0 <= made[0].min() <= made[0].max() <= 1
    torch.testing.assert_close((255 * made[0]).round() / 255, made[0])
    error = 255 * (made[0] - clean)
    if task == "denoise":
        inner = (clean > 0.35) & (clean < 0.65)  # where nothing is clipped
        assert error[inner].std().item() == pytest.approx(25, rel=0.03)
    else:
        small = torch.nn.functional.interpolate(made[0][None], scale_factor=0.25, mode="bicubic", antialias=True)
        again = torch.nn.functional.interpolate(clean[None], scale_factor=0.25, mode="bicubic", antialias=True)
        assert (small - again).abs().mean() < 0.02
        assert error.abs().mean() > 1


def test_crops_are_a_function_of_their_key():
    pairs = latent_world.Degraded(load_collection("photographs"), "denoise")
    one, same, other = (pairs[SampleKey(0, number, number, 64)] for number in (4, 4, 5))
    assert torch.equal(one["input"], same["input"])
    assert not torch.equal(one["input"], other["input"])
    assert 20 < 255 * (one["input"] - one["target"]).std() < 26


def test_untrained_the_network_gives_the_condition_back():
    condition = torch.randn(2, 32, 16, 20)
    assert torch.equal(latent_world.OneStep(32, 8, 2)(condition), condition)


def test_the_cosine_with_mse_is_of_the_two_gradients():
    said, target = torch.randn(2, 2, 4, 16, 16)
    assert latent_restore.cosine_with_mse(MSELoss(), said, target, 1).item() == pytest.approx(1)
    l1 = build_loss(LossSettings(kind="mae"), 1, latents=True)
    error = said - target
    expected = error.abs().sum() / error.norm() / error.numel() ** 0.5
    assert latent_restore.cosine_with_mse(l1, said, target, 1).item() == pytest.approx(expected.item())


# ------------------------------------------------------------------------------------------------ the experiment


def cells(arm, photographs=24):
    """Two seeds of mse and of an arm that is off by ``arm`` (milo, st-lpips, psnr); photographs differ by far more."""
    rng, found = np.random.default_rng(0), {}
    names = ("milo", "st-lpips", "psnr", "ssim")
    base = {metric: rng.uniform(1, 5, photographs) for metric in names}
    for number, (name, shift) in enumerate((("mse", (0.0,) * 4), ("milo", (*arm, 0.0)))):
        for seed in (1, 2):
            noise = 0.02 * np.random.default_rng([seed, number]).standard_normal(photographs)
            found[name, seed] = {metric: base[metric] + by + noise for metric, by in zip(names, shift)}
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
    assert latent_ablation.verdict(found, "milo") == said
    interval, seeds = latent_ablation.against(found, "milo", "milo", "mse")
    assert interval.low < shift[0] < interval.high
    assert interval.high - interval.low < 0.05  # paired: photographs differ by far more
    assert len(seeds) == 2


def test_one_seed_that_disagrees_is_enough():
    found = cells((-0.1, -0.1, 0.0))
    found["milo", 1]["milo"] = found["milo", 1]["milo"] + 0.12
    assert latent_ablation.against(found, "milo", "milo", "mse")[0].high < 0
    assert latent_ablation.verdict(found, "milo") == "no difference"


def test_too_few_photographs_decide_nothing():
    assert latent_ablation.verdict(cells((-0.1, -0.1, 0.0), FEWEST - 1), "milo") == "no difference"


def test_every_arm_is_a_loss_and_no_two_are_the_same():
    read = [load_config(latent_restore.Config, latent_ablation.BASE, words.split())
            for words in latent_ablation.ARMS.values()]  # fmt: skip
    assert list(latent_ablation.ARMS)[0] == latent_ablation.REFERENCE
    assert len({config.loss.label for config in read}) == len(read)
    for config in read:
        loss = build_loss(LossSettings(**{**vars(config.loss), "weights": "mini"}), 10, latents=True)
        assert isinstance(loss, LatentMILOLoss) == (config.loss.kind == "milo")


def test_the_experiment_runs_goes_on_and_measures_the_input_once(tmp_path, capsys):
    pytest.importorskip("stlpips_pytorch")
    words = ["--output", str(tmp_path / "runs"), "--tasks", "denoise", "--seeds", "3", "--set", *TINY,
             f"data.cache={tmp_path / 'latents'}"]  # fmt: skip
    assert latent_ablation.main([*words, "--arms", "mse"]) == 0
    before = (tmp_path / "runs" / "denoise" / "mse-3" / "run.json").stat().st_mtime_ns
    assert latent_ablation.main([*words, "--arms", "mse", "l1-milo"]) == 0
    assert (tmp_path / "runs" / "denoise" / "mse-3" / "run.json").stat().st_mtime_ns == before
    printed = capsys.readouterr().out
    assert "LatentMILO in training: mini (" in printed
    assert "| mse | 3 |" in printed
    assert "l1-milo: no difference" in printed
    assert latent_ablation.main([*words, "network.width=4", "--arms", "mse"]) == 2
    assert "mse-3: was trained with other settings" in capsys.readouterr().err
    record = tmp_path / "runs" / "denoise" / "milo-3" / "run.json"
    record.parent.mkdir()
    record.write_text(json.dumps({"loss_weights": "others"}))
    with pytest.raises(ConfigError, match="holds runs with mini .* and others"):
        latent_ablation.trained_with(tmp_path / "runs" / "denoise")
    assert latent_ablation.main(["--output", str(tmp_path / "none"), "--table"]) == 2
    assert "no finished arm" in capsys.readouterr().err
