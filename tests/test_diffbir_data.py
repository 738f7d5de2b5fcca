"""The DiffBIR recipe on data as people have it: tables with captions and broken files, pairs, cached captions."""

from __future__ import annotations

import json
import shutil

import micro_world
import pytest
import torch
from micro_world import PATCH, diffbir, run
from PIL import Image
from safetensors.torch import load_file

from milo_restore.config import load_config
from milo_restore.files.quarantine import QUARANTINE, read_faults
from milo_restore.models.diffbir.frozen import load_frozen
from milo_restore.train.command import run_recipe

import diffbir_config  # isort: skip  # found through micro_world's path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return micro_world.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def settings(world, tmp_path):
    """A table of eight pictures with captions, of which one is no picture and one too small."""
    rows = []
    for number in range(8):
        with Image.open(world / "images" / f"{number % 2}.png") as image:
            (image.rotate(number) if number != 5 else image.resize((80, 100))).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "text": "", "long": f"a picture {number}"})
    (tmp_path / "3.png").write_bytes(b"no picture")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = micro_world.micro_settings(world)
    settings["data"] |= {"train": [str(tmp_path / "rows.jsonl")], "columns": {"long_text": "long"}}
    settings["training"] |= {"max_bad_files": 0.5, "ema_decay": None}
    return settings


def weights(folder):
    return load_file(folder / "run" / "controlnet" / "diffusion_pytorch_model.safetensors")


def named(folder):
    return sorted(fault.path[-5:] for fault in read_faults(folder / "run" / QUARANTINE))


def test_a_table_with_broken_files_trains_and_resumes(settings, tmp_path):
    assert run(tmp_path, settings) == 0
    assert named(tmp_path) == ["3.png", "5.png"]
    whole, output = weights(tmp_path), tmp_path / "run"
    for name in ("final", "controlnet", "checkpoint-000006"):
        shutil.rmtree(output / name)
    (tmp_path / "3.png").unlink()  # as the advice on a broken file goes
    assert run(tmp_path, settings, "--resume", "latest") == 0
    assert all(torch.equal(value, weights(tmp_path)[key]) for key, value in whole.items())


def test_a_dry_run_decodes_all_and_names_each(settings, tmp_path, capsys):
    assert run(tmp_path, settings, "--dry-run", "--decode") == 2
    printed = capsys.readouterr().out
    assert "3.png: cannot be read as an image" in printed
    assert f"5.png: a patch of {PATCH} pixels does not fit into 80x100" in printed
    assert "2 of 8 images cannot be trained on" in printed
    assert run(tmp_path, settings, "--decode") == 2
    assert "Add --dry-run" in capsys.readouterr().err


def test_captions_and_what_cannot_be_encoded_go_through_the_cache(settings, tmp_path):
    data = {**settings["data"], "captions": {"source": "columns"}, "columns": {"text": "text"}}
    cached = {**settings, "data": data, "cache": {"folder": str(tmp_path / "latents"), "samples": 8}}
    assert run(tmp_path, cached) == 0
    assert named(tmp_path) == ["3.png", "5.png"]
    assert len(list((tmp_path / "latents").rglob("00000.safetensors"))) == 1


def test_captions_reach_the_context(world):
    frozen = load_frozen("tiny", "none", [""], captions=True)
    batch = {"text": ["", "a boat", ""]}
    found = frozen.contexts(batch)
    assert found.shape[0] == 3
    assert torch.equal(found[:1], frozen.context)
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    assert torch.equal(load_frozen("tiny", "none", [""]).contexts(batch), frozen.context)


def test_pairs_train_without_a_degradation(settings, world, tmp_path):
    data = {"train": [str(world / "images")], "degraded": [str(world / "images")], "degradation": "paired",
            "test": [str(world / "images")], "test_degraded": [str(world / "images")], "quick_images": 1}  # fmt: skip
    assert run(tmp_path, {**settings, "data": data}) == 0
    assert not (tmp_path / "run" / QUARANTINE).exists()
    (place,) = (tmp_path / "run" / "eval").iterdir()
    found = json.loads((place / "input" / "results.json").read_text())["means"]
    assert found["milo:mini"] == 0  # each is its own counterpart


def test_v21_has_its_authors_conditions():
    config = load_config(diffbir_config.Config, micro_world.CONFIGS / "diffbir_sr_v2.1_paper.yaml")
    assert (config.version, config.condition_noise) == ("v2.1", 200)
    assert config.data.captions.empty == config.data.captions.long == 0.2
    assert config.data.flip is False


@pytest.mark.parametrize("task", ["denoise", "sr", "face"])
def test_the_v21_configurations_pass_where_all_is_there(task, world, tmp_path, monkeypatch, capsys):
    """The documented table of captions, with the tiny world as base, its cleaner none, and its own weights."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    places = [tmp_path / "datasets" / name for name in ("images", "DIV2K_valid_HR", "CelebA-Test")]
    for place in places:
        shutil.copytree(world / "images", place)
    rows = {"image_path": ["images/0.png", "images/1.png"], "llava_short": ["a", "b"], "llava_long": ["aa", "bb"]}
    for name in ("unsplash", "ffhq"):
        parquet.write_table(pyarrow.table(rows), tmp_path / "datasets" / f"{name}.parquet")
    monkeypatch.chdir(tmp_path)
    changes = ["base=tiny", "control=unet", "cleaner=none", "loss.weights=mini", "metrics=[milo:mini]"]
    changes += ["training.stages.0.patch=128", *(["data.test=[held-out-photographs]"] if task == "denoise" else [])]
    config = str(micro_world.CONFIGS / f"diffbir_{task}_v2.1_paper.yaml")
    arguments = ["--config", config, "--dry-run", "--decode", "--set", *changes]
    assert run_recipe(diffbir.main, diffbir.Config, micro_world.CONFIGS / "diffbir_sr_tiny.yaml", "", arguments) == 0
    printed = capsys.readouterr().out
    assert "MISSING" not in printed
    assert "data.train decoded: all 2 images can be decoded" in printed
