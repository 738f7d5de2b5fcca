"""The DiffBIR configurations: the tiny ones, the paper's, what a dry run says of them, and the images they name."""

from __future__ import annotations

import json
import shutil

import micro_world
import pytest
import torch
from micro_world import CONFIGS, diffbir, run

from milo_restore.config import load_config
from milo_restore.data.degraded_sets import DegradedData, training_pairs
from milo_restore.errors import ConfigError, DataError
from milo_restore.models.diffbir import IRControlNet
from milo_restore.models.diffbir.components import load_components
from milo_restore.train.command import run_recipe

TASKS = ("denoise", "sr", "face")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return micro_world.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def settings(world):
    return micro_world.micro_settings(world)


@pytest.mark.parametrize("task", TASKS)
def test_the_tiny_configurations_pass_a_dry_run(task, capsys, tmp_path):
    arguments = ["--dry-run", "--output", str(tmp_path / "run")]
    assert run_recipe(diffbir.main, diffbir.Config, CONFIGS / f"diffbir_{task}_tiny.yaml", "", arguments) == 0
    assert not (tmp_path / "run").exists()
    printed = capsys.readouterr().out
    assert "MISSING" not in printed
    assert "control: unet" in printed
    (cosines,) = [line for line in printed.splitlines() if line.startswith("gradient cosine with MSE: ")]
    for part in ("(t = 50)", "(250)", "(500)", "(750)", "(900)", "where the curriculum ends", "where it starts"):
        assert part in cosines


@pytest.mark.parametrize("task", TASKS)
def test_the_paper_configurations_name_all_that_is_missing(task, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(tmp_path))
    assert run_recipe(diffbir.main, diffbir.Config, CONFIGS / f"diffbir_{task}_paper.yaml", "", ["--dry-run"]) == 2
    output = capsys.readouterr()
    missing = [line.split(":")[0] for line in output.out.splitlines() if ": MISSING: " in line]
    assert {"base ./weights/diffbir-v2", "control base", "data.train", "data.test"} <= set(missing)
    assert any(name.startswith("cleaner ") for name in missing)
    assert "gradient cosine with MSE" in missing
    assert "licences: Stable Diffusion 2.1-base: CreativeML Open RAIL++-M" in output.out
    assert "checks failed" in output.err


@pytest.mark.parametrize("task", TASKS)
def test_the_paper_configurations_pass_where_all_is_there(task, world, capsys, tmp_path, monkeypatch):
    """The documented folders, with the micro world's networks, Stable Diffusion's scaling factor, and no cleaner."""
    base = tmp_path / "weights" / "diffbir-v2"
    shutil.copytree(world, base)
    config = json.loads((base / "vae" / "config.json").read_text())
    (base / "vae" / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.18215}))
    for name in ("photographs", "DIV2K_valid_HR", "FFHQ512", "CelebA-Test"):
        shutil.copytree(world / "images", tmp_path / "datasets" / name)
    unet = load_components(str(base), device="cpu", dtype=torch.float32).unet
    IRControlNet.from_unet(unet).save_pretrained(base / "controlnet")
    monkeypatch.chdir(tmp_path)
    changes = ["cleaner=none", f"loss.weights={world / 'latent_milo.safetensors'}", "metrics=[milo:mini]"]
    changes += ["training.stages.0.patch=128"]  # of the world's images
    changes += ["data.test=[held-out-photographs]"] if task == "denoise" else []
    arguments = ["--dry-run", "--set", *changes]
    assert run_recipe(diffbir.main, diffbir.Config, CONFIGS / f"diffbir_{task}_paper.yaml", "", arguments) == 0
    assert "MISSING" not in capsys.readouterr().out


def test_a_dry_run_asks_for_licences(settings, tmp_path, capsys):
    assert run(tmp_path, {**settings, "licences": []}, "--dry-run") == 2
    assert "licences: MISSING: licences: no licence is noted" in capsys.readouterr().out


def test_only_the_chosen_degradation_may_be_set():
    overrides = ["data.degradation=noise", "data.face.jpeg=[40, 50]"]
    with pytest.raises(ConfigError, match="face is set, but the degradation is noise"):
        load_config(diffbir.Config, None, overrides)


def test_images_on_disk_give_the_samples_of_images_in_memory(world):
    options = {"train": (str(world / "images"),), "degradation": "noise"}
    lazy = training_pairs(DegradedData(**options, in_memory=False), 4)
    eager = training_pairs(DegradedData(**options), 4)
    assert len(lazy) == len(eager) == 2
    for key in ((1, 0, 0, 64), (1, 1, 1, 128), (3, 0, 5, 100)):
        assert torch.equal(lazy[key]["input"], eager[key]["input"])
    with pytest.raises(DataError, match="does not fit"):
        lazy[(1, 0, 0, 137)]
