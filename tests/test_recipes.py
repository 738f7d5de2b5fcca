"""The recipes, run as a user runs them, and every shipped configuration."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from PIL import Image
from safetensors.torch import load_file

from milo_restore import Restormer
from milo_restore.cli import main
from milo_restore.config import load_config
from milo_restore.errors import ConfigError
from milo_restore.paper import load_table

RECIPES = REPOSITORY / "recipes"
sys.path.append(str(RECIPES))  # recipes import what they share by name
TINY = [
    "--set", "training.stages=[{steps: 4, patch: 32, batch: 4}, {steps: 2, patch: 48, batch: 2}]",
    "training.constant_steps=2", "training.evaluate_every=6", "training.sample_every=3", "training.checkpoint_every=2",
    "training.log_every=1", "network.dim=8", "network.heads=[1, 2, 2, 4]", "loss.weights=mini",
    "metrics=[psnr, milo:mini]",
]  # fmt: skip


def load_recipe(name):
    """A recipe as a module."""
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and multiprocessing look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def denoise():
    return load_recipe("restormer_denoise")


def run(denoise, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["restormer_denoise.py", *arguments])
    default = RECIPES / "configs" / "restormer_tiny.yaml"
    return denoise.run_recipe(denoise.main, denoise.Config, default, "recipe", [str(a) for a in arguments])


def test_tiny_run_leaves_everything_it_promises(denoise, monkeypatch, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(denoise, monkeypatch, "--output", folder, *TINY) == 0
    output = capsys.readouterr().out
    assert "held-out-photographs" in output
    numbers = json.loads((folder / "run.json").read_text())
    assert numbers["steps"] == 6
    assert numbers["loss"] == "milo-cosine"
    place = folder / "eval" / "held-out-photographs-sigma-25"
    results = {name: json.loads((place / name / "results.json").read_text()) for name in ("input", "restored")}
    assert {image["name"] for image in results["restored"]["images"]} == {"chelsea.png", "rocket.png"}
    assert results["input"]["means"]["psnr"] == pytest.approx(20.4, abs=0.3)
    assert "mini (milo_mini.safetensors" in results["restored"]["metrics"]["milo:mini"]["weights"]
    assert f"{results['restored']['means']['psnr']:.2f}" in output
    assert main(["report", str(folder), "--out", str(tmp_path / "r.html")]) == 0
    assert "milo-cosine" in (tmp_path / "r.html").read_text()
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [s["step"] for s in steps if "loss" in s] == [1, 2, 3, 4, 5, 6]
    first = next(s for s in steps if "loss" in s)
    position = (1 - math.cos(math.pi / 6)) / 2
    expected = 4 * (1 - position) * first["l1"] + (2 * position - 1) * first["milo"]
    assert first["loss"] == pytest.approx(expected, rel=1e-4)
    (evaluated,) = (s["evaluation"] for s in steps if "evaluation" in s)
    assert evaluated["input_psnr"] == pytest.approx(20.4, abs=0.3)
    assert "psnr" in evaluated
    with Image.open(folder / "samples" / "000006.png") as picture:
        assert min(picture.size) > 400
    model = Restormer.from_checkpoint(folder / "final" / "model.safetensors")
    assert model.config["dim"] == 8
    assert load_config(denoise.Config, folder / "config.yaml").training.stages[1].patch == 48
    assert (folder / "checkpoint-000006" / "manifest.json").is_file()


def test_a_second_run_does_not_overwrite_the_first(denoise, monkeypatch, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(denoise, monkeypatch, "--output", folder, *TINY) == 0
    before = (folder / "final" / "model.safetensors").read_bytes()
    assert run(denoise, monkeypatch, "--output", folder, *TINY) == 2
    assert "--resume latest" in capsys.readouterr().err
    assert (folder / "final" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "loss.kidn=mae"], ["loss.kidn", "'kind'"]),
        (["--set", "loss.weights=nowhere.pth"], ["nowhere.pth"]),
        (["--set", "data.train=[BSD4000]"], ["BSD4000"]),
        (
            ["--set", "training.stages=[{steps: 1, patch: 2000, batch: 1}]"],
            ["a patch of 2000 pixels does not fit into 512x512"],
        ),
        (["--set", "training.learning_rate=fast"], ["training.learning_rate", "fast"]),
        (["--set", "loss.kind=mae", "loss.curriculum=linear"], ["curriculum"]),
        (["--set", "network.heads=[3, 2, 4, 8]"], ["heads"]),
        (["--config", "none.yaml"], ["none.yaml"]),
        (["--resume", "nowhere/checkpoint-000001"], ["nowhere"]),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(denoise, monkeypatch, tmp_path, capsys, arguments, words):
    assert run(denoise, monkeypatch, "--output", tmp_path / "run", *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in error for word in words), error
    assert not list(tmp_path.glob("run/final*"))


def test_an_unreadable_training_image_is_named(denoise, monkeypatch, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(images / "good.png")
    (images / "broken.png").write_bytes((images / "good.png").read_bytes()[:60])
    run_folder = tmp_path / "run"
    assert run(denoise, monkeypatch, "--output", run_folder, *TINY, f"data.train=[{images}]") == 0
    assert "broken.png (cannot be read as an image" in capsys.readouterr().err
    assert "broken.png" in (run_folder / "quarantine.jsonl").read_text()


@pytest.mark.slow
def test_every_loss_of_the_paper_trains(denoise, monkeypatch, tmp_path):
    finals = {}
    for kind, curriculum in (("mae", "constant"), ("milo", "constant"), ("milo", "linear"), ("milo", "cosine")):
        folder = tmp_path / f"{kind}-{curriculum}"
        settings = [f"loss.kind={kind}", f"loss.curriculum={curriculum}", "data.quick_images=1"]
        assert run(denoise, monkeypatch, "--output", folder, *TINY, *settings) == 0
        finals[folder.name] = load_file(folder / "final" / "model.safetensors")["output.weight"]
    values = list(finals.values())
    assert all(torch.isfinite(v).all() for v in values)
    assert all(not torch.equal(a, b) for i, a in enumerate(values) for b in values[:i])


@pytest.mark.slow
def test_sigterm_saves_and_resume_ends_where_an_uninterrupted_run_does(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    longer = ["--set", "training.stages=[{steps: 40, patch: 32, batch: 2}]", "training.evaluate_every=null",
              "training.sample_every=null", "training.checkpoint_every=1000", "network.dim=8",
              "network.heads=[1, 2, 2, 4]", "loss.curriculum=linear", "loss.weights=mini",
              "metrics=[milo:mini]"]  # fmt: skip
    command = [sys.executable, str(RECIPES / "restormer_denoise.py"), "--output"]
    stopped = subprocess.Popen([*command, str(tmp_path / "a"), *longer], env=environment, cwd=tmp_path)
    journal = tmp_path / "a" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.is_file() and journal.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(timeout=120) == 128 + signal.SIGTERM
    assert not (tmp_path / "a" / "final").exists()
    for folder in ("a", "b"):
        subprocess.run(
            [*command, str(tmp_path / folder), *longer, "--resume", "latest"], env=environment, cwd=tmp_path, check=True
        )
    weights = [load_file(tmp_path / folder / "final" / "model.safetensors") for folder in ("a", "b")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    recipe = [str(RECIPES / "restormer_denoise.py"), *TINY, "training.evaluate_every=null", "--output"]
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    two = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend",
           "no", "--main_process_port", "0"]  # fmt: skip
    subprocess.run([sys.executable, *recipe, str(tmp_path / "1")], env=environment, cwd=tmp_path, check=True)
    subprocess.run([*launch, *two, *recipe, str(tmp_path / "2")], env=environment, cwd=tmp_path, check=True)
    one, both = (load_file(tmp_path / n / "final" / "model.safetensors") for n in "12")
    for key in one:
        torch.testing.assert_close(both[key], one[key], atol=2e-5, rtol=1e-3)
    files = [next((tmp_path / n).glob("eval/*/restored/results.json")) for n in "12"]
    scores = [json.loads(file.read_text())["means"]["psnr"] for file in files]
    assert scores[0] == pytest.approx(scores[1], abs=0.02)
    assert json.loads((tmp_path / "2" / "env.json").read_text())["processes"] == 2


@pytest.mark.parametrize("path", sorted((RECIPES / "configs").glob("restormer_*.yaml")), ids=lambda p: p.stem)
def test_every_configuration_is_valid(denoise, path):
    config = load_config(denoise.Config, path)
    assert config.training.steps >= 400
    if "sigma" in path.stem:
        sigma = float(path.stem.rpartition("sigma")[2])
        assert (config.data.sigma, config.data.test_sigmas) == (sigma, (sigma,))
        assert config.training.steps == 300_000
        assert max(stage.patch for stage in config.training.stages) <= 320
        with torch.device("meta"):
            assert denoise.parameter_count(denoise.build_network(config.network)[0]) == 26_111_668


@pytest.mark.parametrize("path", sorted((RECIPES / "configs").glob("restormer_*.yaml")), ids=lambda p: p.stem)
def test_no_configuration_trains_through_the_mask_or_without_curriculum(denoise, path):
    config = load_config(denoise.Config, path)
    assert config.loss.label == "milo-cosine"
    tiny = path.stem == "restormer_tiny"
    assert config.loss.weights == ("auto" if tiny else "official")
    assert config.metrics == ("psnr", "ssim", "milo:auto" if tiny else "milo")
    for row in load_table(1, RECIPES).rows:
        words = row.set.replace("$milo", "official").split()
        label = load_config(denoise.Config, path, words).loss.label
        assert "through" not in label
        assert label.startswith("milo") == (row.note is not None and "constant weight" in row.note)


@pytest.mark.golden
def test_the_tiny_configuration_takes_the_official_weights_where_they_are(
    denoise, monkeypatch, tmp_path, capsys, shared
):
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(shared))
    assert run(denoise, monkeypatch, "--dry-run", "--output", tmp_path / "run") == 0
    assert capsys.readouterr().out.count("official (MILO.pth, sha256 a1d66a7e0ebe, chosen by auto)") == 2


@pytest.mark.golden
def test_paper_configuration_passes_a_dry_run(denoise, monkeypatch, tmp_path, capsys, shared):
    config = RECIPES / "configs" / "restormer_bsd400_sigma25.yaml"
    arguments = ["--config", config, "--dry-run", "--output", tmp_path / "run", "--set", "data.test=[CBSD68, Kodak24]"]
    assert run(denoise, monkeypatch, *arguments) == 0
    assert "official (MILO.pth, sha256 a1d66a7e0ebe)" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_runs_are_compared_in_a_picture(denoise, monkeypatch, tmp_path, capsys):
    options = ["loss.curriculum=constant", "data.test_side=null"]
    for kind in ("mae", "milo"):
        assert run(denoise, monkeypatch, "--output", tmp_path / kind, *TINY, f"loss.kind={kind}", *options) == 0
    compare = load_recipe("compare_picture")

    def draw(*arguments):
        words = [tmp_path / "mae", f"other={tmp_path / 'milo'}", "--out", tmp_path / "picture.png", *arguments]
        monkeypatch.setattr(sys, "argv", ["compare_picture.py", *map(str, words)])
        return compare.main()

    assert draw("--image", "chelsea") == 0
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size[0] == 3 * 2 * 160 + 2 * 4  # MAE, MILO and the target, twice as large, gaps of 4 pixels
    assert draw("--image", "chelsea", "--input") == 0
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size[0] == 4 * 2 * 160 + 3 * 4
    capsys.readouterr()
    assert draw("--image", "cat") == 2
    assert "has no image 'cat'. It has chelsea, rocket" in capsys.readouterr().err
    assert draw("--image", "chelsea", "--crop", "0", "4000") == 2
    assert "the inset does not lie in the crop" in capsys.readouterr().err


@pytest.mark.parametrize("metrics", ["[psnr, mae]", "[psnr, milo:mini]"])
def test_any_metric_is_a_curve_and_chooses_the_best(denoise, monkeypatch, tmp_path, metrics):
    name = metrics.strip("[]").split(", ")[1]
    options = [f"metrics={metrics}", "training.evaluate_every=2", f"training.keep_best={name}"]
    assert run(denoise, monkeypatch, "--output", tmp_path, *TINY, *options) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    curve = {line["step"]: line["evaluation"][name] for line in lines if "evaluation" in line}
    kept = json.loads((tmp_path / "best" / "evaluation.json").read_text())
    assert kept["evaluation"][name] == min(curve.values())  # lower is better
    assert curve[kept["step"]] == min(curve.values())
    assert len(set(curve.values())) == 3


def test_a_curve_that_is_none_is_refused_before_the_start(denoise, monkeypatch, tmp_path, capsys):
    assert run(denoise, monkeypatch, "--output", tmp_path / "a", *TINY, "training.keep_best=ssmi") == 2
    assert "keep_best: no evaluation gives 'ssmi'. Known: psnr, milo:mini" in capsys.readouterr().err
    assert run(denoise, monkeypatch, "--output", tmp_path / "b", *TINY, "metrics=[psnr, mio]") == 2
    assert "Did you mean 'milo'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_basicsr_builds_the_loss_from_a_yaml_entry():
    """The README's ten lines for a BasicSR training."""
    from basicsr.losses import build_loss
    from basicsr.utils.registry import LOSS_REGISTRY

    from milo_restore import MILOLoss

    if "MILOLoss" not in LOSS_REGISTRY:
        LOSS_REGISTRY.register(MILOLoss)
    loss = build_loss({"type": "MILOLoss", "weights": "mini", "loss_weight": 0.5, "reduction": "mean"})
    output, gt = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(loss(output, gt), 0.5 * MILOLoss("mini")(output, gt))


def test_unknown_configuration_keys_are_refused(denoise, tmp_path):
    (tmp_path / "x.yaml").write_text("training: {stages: [{steps: 1, patch: 8, bath: 1}]}")
    with pytest.raises(ConfigError, match=r"stages\.0\.bath.*'batch'"):
        load_config(denoise.Config, tmp_path / "x.yaml")


def test_a_run_starts_from_trained_weights(denoise, monkeypatch, tmp_path, capsys):
    """From a run's, whose numbers stay at a learning rate of 0; from shipped ones once the network is theirs."""
    assert run(denoise, monkeypatch, "--output", tmp_path / "first", *TINY) == 0
    still = ["training.stages=[{steps: 1, patch: 32, batch: 2}]", "training.constant_steps=null",
             "training.learning_rate=0", "training.final_learning_rate=0", "training.weight_decay=0"]  # fmt: skip
    start = f"network.pretrained={tmp_path / 'first'}"
    assert run(denoise, monkeypatch, "--output", tmp_path / "second", *TINY, *still, start) == 0
    first, second = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert "weights: start from" in capsys.readouterr().err
    assert run(denoise, monkeypatch, "--output", tmp_path / "third", *TINY, "network.pretrained=lite") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    needed = error.partition("Add --set ")[2].split()
    assert "network.num_blocks=[1,1,1,2]" in needed
    words = ["--output", tmp_path / "third", "--dry-run", *TINY, "network.pretrained=lite", *needed]
    assert run(denoise, monkeypatch, *words) == 0
    assert "restormer_lite_milo.safetensors (sha256 " in capsys.readouterr().out
