"""The DiffBIR recipes in a micro world of random networks, and what a run may and may not change."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import micro_world
import pytest
import torch
from conftest import REPOSITORY, assert_near
from micro_world import CONFIGS, RECIPES, diffbir, run, write
from PIL import Image
from safetensors.torch import load_file

from milo_restore.cli import main
from milo_restore.config import load_config
from milo_restore.errors import ConfigError
from milo_restore.files.hashes import module_sha256
from milo_restore.models.diffbir import DiffBIRPipeline, IRControlNet
from milo_restore.models.diffbir.frozen import Draws, Frozen
from milo_restore.models.diffbir.prompts import NEGATIVE_PROMPT
from milo_restore.train.command import run_recipe

import diffbir_config  # isort: skip  # found through micro_world's path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return micro_world.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def settings(world):
    return micro_world.micro_settings(world)


def weights(folder):
    return load_file(folder / "run" / "controlnet" / "diffusion_pytorch_model.safetensors")


def difference(one, other):
    assert one.keys() == other.keys()
    return max((value - other[key]).abs().max().item() for key, value in one.items())


def losses(folder):
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """One run to its end: its folder, the frozen networks it used, and their hashes from before training."""
    folder, seen = tmp_path_factory.mktemp("whole"), []
    load = diffbir.load_frozen

    def remember(*arguments, **options):
        frozen = load(*arguments, **options)
        parts = {"vae": frozen.vae, "unet": frozen.unet, "cleaner": frozen.cleaner}
        seen.append((frozen, {name: module_sha256(part) for name, part in parts.items()}))
        return frozen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffbir, "load_frozen", remember)
        assert run(folder, settings) == 0
    return folder, *seen[0]


def test_a_run_leaves_everything_it_promises(whole):
    folder = whole[0] / "run"
    numbers = json.loads((folder / "run.json").read_text())
    assert numbers["steps"] == 6
    assert numbers["loss"] == "milo-linear"
    assert numbers["held_out"]["before"]["mse"] != numbers["held_out"]["after"]["mse"]
    (place,) = (folder / "eval").iterdir()
    assert {path.name for path in place.iterdir()} == {"input", "cleaner", "start", "restored", "autoencoder", "ref"}
    found = {path.parent.name: json.loads(path.read_text())["means"] for path in place.glob("*/results.json")}
    assert found["start"]["psnr"] != found["restored"]["psnr"]  # the zero convolutions have moved
    assert found["autoencoder"]["psnr"] not in (found["start"]["psnr"], found["restored"]["psnr"])
    assert found["input"]["psnr"] == pytest.approx(20.3, abs=0.5)  # sigma 25, clipped
    assert all(means["milo:mini"] > 0 for means in found.values())
    assert main(["report", str(folder), "--out", str(folder / "r.html")]) == 0
    page = (folder / "r.html").read_text()
    assert "control before training" in page
    assert "control after training, milo-linear" in page
    with Image.open(folder / "samples" / "final.png") as picture:
        assert picture.width >= 5 * 160
    assert len(losses(whole[0])) == 6
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = [line["cosine_mse"] for line in lines if "loss" in line]
    assert len(found) == 6  # log_every is 1
    assert all(0.99 < value <= 1 for value in found)  # random weights have a flat mask


def test_the_logged_cosine_is_that_of_the_losses_gradients(settings, tmp_path):
    for name, loss in (("mse", {"kind": "mse"}), ("milo", settings["loss"])):
        (tmp_path / name).mkdir()
        training = {**settings["training"], "log_every": 4}
        assert run(tmp_path / name, {**settings, "loss": loss, "training": training}) == 0
        lines = [json.loads(line) for line in (tmp_path / name / "run" / "metrics.jsonl").read_text().splitlines()]
        found = {line["step"]: line["cosine_mse"] for line in lines if "loss" in line}
        assert list(found) == [4, 6]
        assert all(value == pytest.approx(1, abs=1e-5) for value in found.values()) == (name == "mse")


def test_mse_beside_it_starts_from_the_same_and_shares_the_table(settings, whole, tmp_path, capsys):
    assert run(tmp_path, {**settings, "beside": "mse"}) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if "control after training" in line]
    assert [row.split("training, ")[1].split()[0] for row in rows] == [
        "mse",
        "mse",
        "milo-linear",
    ]  # its own table first
    assert "control before training" in printed
    assert "autoencoder's limit" in printed
    mse, milo = ((tmp_path / run / "eval").glob("*/start/results.json") for run in ("run/mse", "run"))
    mse, milo = (json.loads(path.read_text())["means"] for path in (*mse, *milo))
    assert mse == milo
    assert difference(weights(tmp_path), weights(whole[0])) == 0  # what it is without the other
    shutil.rmtree(tmp_path / "run" / "final")
    (tmp_path / "run" / "mse" / "final" / "model.safetensors").unlink()  # a finished one is not run again
    assert run(tmp_path, {**settings, "beside": "mse"}, "--resume", "latest") == 0


def test_the_condition_reaches_the_mask(settings, tmp_path):
    loss = {**settings["loss"], "curriculum": "constant", "mask_pair": "condition"}
    assert run(tmp_path, {**settings, "loss": loss, "condition_noise": 200}) == 0
    numbers = json.loads((tmp_path / "run" / "run.json").read_text())
    assert numbers["loss"] == "milo-condition"
    assert numbers["held_out"]["after"]["loss"] > 0


def test_what_is_frozen_stays_and_only_the_control_moves(whole):
    folder, frozen, before = whole
    for name, digest in before.items():
        part = getattr(frozen, name)
        assert module_sha256(part) == digest, name
        assert not any(parameter.requires_grad or parameter.grad is not None for parameter in part.parameters())
    fresh = IRControlNet.from_unet(frozen.unet).state_dict()
    moved = {key for key, value in weights(folder).items() if not torch.equal(value, fresh[key])}
    assert moved == set(fresh)  # weight decay reaches what has no gradient yet


def test_before_its_first_step_the_control_changes_nothing(whole):
    frozen = whole[1]
    control = frozen.start_control("unet")
    zero = [module for name, module in control.named_children() if name.startswith("controlnet_")]
    assert len(zero) == 3
    assert all(not parameter.any() for part in zero for parameter in part.parameters())
    z, times = torch.randn(2, 4, 16, 16), torch.tensor([3, 999])
    steered = diffbir.predict(frozen.unet, control, z, times, frozen.context, torch.randn_like(z))
    assert_near(steered, frozen.unet(z, times, frozen.context.expand(2, -1, -1)).sample)


def test_a_run_goes_on_with_the_same_data_and_networks_only(whole, settings, tmp_path, capsys):
    shutil.copytree(whole[0] / "run", tmp_path / "run")
    for changes in ({"data": {**settings["data"], "noise": {"sigma": [25, 25]}}}, {"condition_noise": 200}):
        assert run(tmp_path, {**settings, **changes}, "--resume", "latest") == 2
        assert "the checkpoint was trained with" in capsys.readouterr().err


def test_a_resumed_run_is_the_same_bit_for_bit(whole, settings, tmp_path):
    shutil.copytree(whole[0] / "run", tmp_path / "run")
    for name in ("final", "controlnet", "checkpoint-000006"):
        shutil.rmtree(tmp_path / "run" / name)
    assert run(tmp_path, settings, "--resume", "latest") == 0
    assert difference(weights(tmp_path), weights(whole[0])) == 0
    assert losses(tmp_path) == losses(whole[0])


@pytest.mark.slow
def test_two_processes_give_what_one_gives(whole, settings, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", "0", "--rdzv_backend", "c10d", str(RECIPES / "diffbir_denoise.py")]
    command += ["--config", str(write(tmp_path, settings)), "--output", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((tmp_path / "run" / "env.json").read_text())["processes"] == 2
    assert losses(tmp_path) == pytest.approx(losses(whole[0]), abs=1e-5)
    assert difference(weights(tmp_path), weights(whole[0])) < 1e-5


def test_accumulation_and_gradient_checkpointing_change_nothing(whole, settings, tmp_path):
    changed = {**settings, "gradient_checkpointing": True, "training": {**settings["training"], "accumulation": 2}}
    assert run(tmp_path, changed) == 0
    assert losses(tmp_path) == pytest.approx(losses(whole[0]), abs=1e-5)
    assert difference(weights(tmp_path), weights(whole[0])) < 1e-5


def test_bfloat16_trains_and_samples(whole, settings, tmp_path):
    changed = {**settings, "training": {**settings["training"], "mixed_precision": "bf16"}}
    assert run(tmp_path, changed) == 0
    assert losses(tmp_path) == pytest.approx(losses(whole[0]), rel=0.02)
    assert all(value.dtype == torch.float32 for value in weights(tmp_path).values())


def test_a_cached_run_encodes_once(settings, tmp_path, monkeypatch):
    asked = []
    encode = Frozen.encode
    counting = lambda *arguments: asked.append(len(arguments[1])) or encode(*arguments)  # noqa: E731
    monkeypatch.setattr(Frozen, "encode", counting)
    cached = {**settings, "cache": {"folder": str(tmp_path / "latents"), "samples": 5}}
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        assert run(tmp_path / name, cached) == 0
    assert asked == [5, 4, 1, 4, 1]  # the pool, and in each run the five pieces of the one held-out image
    assert difference(weights(tmp_path / "first"), weights(tmp_path / "second")) == 0


def test_a_prompt_is_trained_and_sampled_with(settings, tmp_path, monkeypatch):
    """After the start the text encoder is gone, and sampling with another text than the run's would fail."""
    asked = []
    call = DiffBIRPipeline.__call__
    record = lambda *arguments, **options: asked.append(options["prompt"]) or call(*arguments, **options)  # noqa: E731
    monkeypatch.setattr(DiffBIRPipeline, "__call__", record)
    prompted = {**settings, "prompt": NEGATIVE_PROMPT, "cache": {"folder": str(tmp_path / "latents"), "samples": 5}}
    assert run(tmp_path, prompted) == 0
    assert set(asked) == {NEGATIVE_PROMPT}


def test_draws_belong_to_their_samples():
    like = torch.empty(4, 4, 16, 16)
    together = Draws.of(1, 5, [8, 9, 10, 11], like)
    apart = [Draws.of(1, 5, [position], like[:1]) for position in (8, 9, 10, 11)]
    for whole, parts in zip(together, zip(*apart)):
        assert torch.equal(whole, torch.cat(parts))
    other = Draws.of(1, 6, [8, 9, 10, 11], like)
    assert not torch.equal(together.noise, other.noise)
    many = Draws.of(1, 1, range(2000), torch.empty(1, 4, 2, 2))
    assert abs(many.noise.mean()) < 0.02
    assert abs(many.noise.std() - 1) < 0.02
    assert abs((many.noise * many.posterior).mean()) < 0.02
    assert (many.time * 1000).long().min() == 0
    assert (many.time * 1000).long().max() == 999
    assert abs(many.time.mean() - 0.5) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mse", "milo"])
def test_three_hundred_steps_lower_the_held_out_loss(kind, tmp_path):
    """From the copied encoder, in the shipped tiny world; MILO's loss here is the one where its curriculum ends."""
    overrides = ["control=unet", f"loss.kind={kind}", "training.stages=[{steps: 300, patch: 128, batch: 2}]",
                 "training.constant_steps=150", "training.learning_rate=1e-3",
                 "training.evaluate_every=null", "training.sample_every=null",
                 "training.trackers=[]", f"cache.folder={tmp_path / 'latents'}", "cache.samples=24",
                 "data.test_side=128", "data.test_sigmas=[25]", "data.quick_images=2", "sampling.steps=2"]  # fmt: skip
    overrides += [] if kind == "milo" else ["loss.curriculum=constant"]
    arguments = ["--set", *overrides, "--output", str(tmp_path / "run")]
    assert run_recipe(diffbir.main, diffbir.Config, CONFIGS / "diffbir_denoise_tiny.yaml", "", arguments) == 0
    held_out = json.loads((tmp_path / "run" / "run.json").read_text())["held_out"]
    assert held_out["after"]["mse"] < 0.75 * held_out["before"]["mse"]
    assert held_out["after"]["loss"] < 0.75 * held_out["before"]["loss"]


@pytest.mark.parametrize(("weights", "scale", "right"), [("official", 0.5, "mini"), ("mini", 0.18215, "official")])
def test_latent_milo_must_know_the_latents(weights, scale, right, settings, tmp_path):
    loss = load_config(diffbir.Config, write(tmp_path, settings), [f"loss.weights={weights}"]).loss
    with pytest.raises(ConfigError, match=f"{weights} weights know .*Set loss.weights to {right}"):
        loss.check_latents_of(scale, "a base")
    loss.check_latents_of(0.18215 if weights == "official" else 0.5, "a base")


def test_the_memory_plan_is_one_option(settings, tmp_path):
    config = load_config(diffbir.Config, write(tmp_path, settings), ["training.stages.0.batch=256"])
    assert diffbir_config.planned(config, tmp_path, 1) is config
    plan = diffbir_config.planned(replace(config, memory="24gb"), tmp_path, 2)
    assert plan.training.mixed_precision == "bf16"
    assert plan.training.optimizer == "adamw8bit"
    assert plan.training.accumulation * 2 * diffbir_config.MICRO_BATCH == 256
    assert plan.gradient_checkpointing
    assert plan.cache.folder == str(tmp_path / "latents")


def test_eight_bits_need_a_gpu(settings, tmp_path, capsys):
    changed = {**settings, "training": {**settings["training"], "optimizer": "adamw8bit"}}
    assert run(tmp_path, changed) == 2
    assert "adamw8bit needs a GPU with CUDA" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"control": "nowhere"}, "nowhere: no such folder"),
        ({"control": "base"}, "holds no controlnet"),
        ({"prompt": "a cat"}, "a cat"),
        ({"base": "no/such-base"}, "no/such-base"),
    ],
)
def test_what_is_missing_is_one_clear_line(changes, said, settings, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(tmp_path, {**settings, **changes}) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()[-1]) < 600
