"""One step: the LoRA and what belongs to it, its pass, the recipe in a micro world, and ``restore --one-step``."""

from __future__ import annotations

import json
import shutil

import micro_world
import numpy as np
import pytest
import torch
from micro_world import CONFIGS
from PIL import Image
from safetensors.torch import load_file, save_file

from milo_restore.cli import main
from milo_restore.config import load_config
from milo_restore.data import read_image
from milo_restore.errors import ConfigError, WeightsError
from milo_restore.files.hashes import module_sha256
from milo_restore.files.write import publish
from milo_restore.loss.parametrization import clean_latent
from milo_restore.models.diffbir import noise_scheduler
from milo_restore.models.diffbir.components import load_components
from milo_restore.models.diffbir.one_step import LoRA, OneStep, load_one_step, unet_sha256
from milo_restore.train.command import run_recipe

import diffbir_one_step  # isort: skip  # found through micro_world's path
import diffbir_one_step_ablation  # isort: skip
import latent_ablation  # isort: skip

ATTENTION = LoRA(2, ("to_q", "to_out.0"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return micro_world.make_world(tmp_path_factory.mktemp("world"))


def settings(world, **changes):
    given = micro_world.micro_settings(world)
    for name in ("control", "sampling"):
        del given[name]
    given["loss"] = {"kind": "milo", "weights": str(world / "latent_milo.safetensors"), "loss_weight": 200}
    return {**given, "lora": {"rank": 2}, **changes}


def run(folder, settings, *arguments):
    path = micro_world.write(folder, settings)
    return run_recipe(
        diffbir_one_step.main, diffbir_one_step.Config, path, "", ["--output", str(folder / "run"), *arguments]
    )


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder, settings(world)) == 0
    return folder / "run"


def parts(world):
    return load_components(world)


def inputs():
    generator = torch.Generator().manual_seed(4)
    return torch.randn(2, 4, 16, 24, generator=generator), torch.randn(1, 4, 32, generator=generator)


@pytest.mark.parametrize(("version", "timestep"), [("v2", 200), ("v2", 999), ("v2.1", 200), ("v2.1", 999)])
def test_the_pass_is_the_schedulers_formula(world, version, timestep):
    unet, (condition, context) = parts(world).unet, inputs()
    with torch.no_grad():
        prediction = unet(condition, timestep, encoder_hidden_states=context.expand(2, -1, -1)).sample
        found = OneStep(unet, version, timestep, ATTENTION)(condition, context)  # untrained it changes nothing
    expected = clean_latent(noise_scheduler(version), prediction, condition, torch.tensor([timestep] * 2))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_only_the_lora_is_trained_and_saved(world):
    unet, (condition, context) = parts(world).unet, inputs()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    model = OneStep(unet, "v2", 200, ATTENTION)
    assert all("lora_" in name and name.startswith("unet.") for name in model.state_dict())
    assert sum(value.numel() for value in model.parameters()) < 0.1 * sum(value.numel() for value in before.values())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    first = model(condition, context)
    first.square().mean().backward()
    optimizer.step()
    assert not torch.equal(model(condition, context), first)
    now = {name.replace(".base_layer", ""): value for name, value in unet.state_dict().items() if "lora" not in name}
    assert now.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in now.items())


def test_bfloat16_trains_a_lora_in_float32(world):
    unet, (condition, context) = parts(world).unet, inputs()
    digest = unet_sha256(unet)
    torch.nn.Module.to(unet, torch.bfloat16)
    assert unet_sha256(unet) == digest
    model = OneStep(unet, "v2", 200, ATTENTION)
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert model(condition, context).dtype == torch.float32


def test_what_cannot_be_made_is_refused(world):
    with pytest.raises(ConfigError, match=r"lora.targets: .*no_such_layer"):
        OneStep(parts(world).unet, "v2", 200, LoRA(2, ("no_such_layer",)))
    with pytest.raises(ConfigError, match=r"timestep: is 1000. Take 0 to 999"):
        OneStep(parts(world).unet, "v2", 1000, ATTENTION)


def test_a_run_leaves_what_other_recipes_leave(whole, world, capsys):
    about = json.loads((whole / "run.json").read_text())
    assert (about["steps"], about["loss"]) == (6, "milo")
    (place,) = (whole / "eval").iterdir()
    assert {path.name for path in place.iterdir()} == {"input", "cleaner", "start", "restored", "autoencoder", "ref"}
    found = {path.parent.name: json.loads(path.read_text())["means"] for path in place.glob("*/results.json")}
    assert found["start"]["psnr"] != found["restored"]["psnr"]
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["cosine_mse"] < 0.999 for line in lines if "loss" in line)
    assert any("psnr" in line.get("evaluation", {}) for line in lines)
    assert main(["report", str(whole), "--out", str(whole / "r.html")]) == 0
    assert "one step before training" in (whole / "r.html").read_text()


def test_its_file_is_one_that_diffusers_loads(whole, world):
    from diffusers import StableDiffusionPipeline

    components, (condition, context) = parts(world), inputs()
    model, _ = load_one_step(whole / "final", parts(world).unet)
    pipe = StableDiffusionPipeline(components.vae, None, None, components.unet, components.scheduler, None, None,
                                   requires_safety_checker=False)  # fmt: skip
    pipe.load_lora_weights(whole / "final", weight_name="model.safetensors")
    with torch.no_grad():
        prediction = pipe.unet(condition, 200, encoder_hidden_states=context.expand(2, -1, -1)).sample
    expected = clean_latent(noise_scheduler("v2"), prediction, condition, torch.tensor([200, 200]))
    torch.testing.assert_close(model(condition, context), expected, rtol=1e-5, atol=1e-5)


def test_it_resumes_exactly_and_refuses_another_timestep(whole, world, tmp_path, monkeypatch, capsys):
    real = diffbir_one_step.fit
    with monkeypatch.context() as patched:
        patched.setattr(diffbir_one_step, "fit", lambda *given, **named: real(*given, **named, until=3))
        patched.setattr(diffbir_one_step, "evaluate_restorers", lambda *given, **named: {})
        assert run(tmp_path, settings(world)) == 0
    assert run(tmp_path, settings(world, timestep=300), "--resume", "latest") == 2
    assert "timestep is now 300" in capsys.readouterr().err
    assert run(tmp_path, settings(world), "--resume", "latest") == 0
    one, other = (load_file(folder / "final" / "model.safetensors") for folder in (whole, tmp_path / "run"))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("loss", [{"kind": "mse"}, {"kind": "mae"}])
def test_the_plain_losses_train_too(world, tmp_path, loss):
    training = {**settings(world)["training"], "stages": [{"steps": 1, "patch": 128, "batch": 1}]}
    assert run(tmp_path, settings(world, loss=loss, training=training)) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["loss_weights"] is None


def test_a_dry_run_looks_at_everything(world, tmp_path, capsys):
    assert run(tmp_path, settings(world), "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "lora of rank 2: " in printed
    assert "gradient cosine with MSE: 0." in printed
    assert not (tmp_path / "run").exists()
    assert run(tmp_path, settings(world, base=str(tmp_path / "none")), "--dry-run") == 2
    assert "gradient cosine with MSE: MISSING" in capsys.readouterr().out


def test_every_arm_of_the_experiment_can_be_read():
    of = diffbir_one_step_ablation.EXPERIMENT
    for words in latent_ablation.ARMS.values():
        config = load_config(of.config, of.base, [of.tasks["denoise"][1], *of.fixed, *words.split()])
        assert (config.training.steps, config.data.test_images) == (200, 24)


def test_weights_for_other_latents_are_refused(tmp_path, capsys, world):
    loss = {"kind": "milo", "weights": "mini"}
    assert run(tmp_path, settings(world, loss=loss)) == 2  # the micro world's scaling factor is another one
    assert "scaling factor" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    rng = np.random.default_rng(2)
    for name in ("a.png", "sub/b.png"):
        Image.fromarray(rng.integers(0, 255, (24, 40, 3), dtype=np.uint8)).save(folder / name)
    return folder


def restore(images, out, world, final, *arguments):
    words = ["restore", "--task", "denoise", "--input", images, "--output", out, "--model", world, "--one-step", final]
    return main([str(word) for word in (*words, "--device", "cpu", *arguments)])


def test_restore_takes_the_runs_final_folder(images, tmp_path, whole, world, capsys):
    out = tmp_path / "out"
    assert restore(images, out, world, whole / "final", "--batch-size", 2, "--upscale", 2) == 0
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png")) == ["a.png", "sub/b.png"]
    assert read_image(out / "a.png").shape == (48, 80, 3)
    record = json.loads((out / "restore.json").read_text())
    assert record["cleaner"] == "none"  # that of the training
    assert record["one_step"].startswith(f"{whole / 'final'} (sha256 ")
    assert "steps" not in record
    again = tmp_path / "again"
    assert restore(images, again, world, whole / "final", "--upscale", 2) == 0
    for name in ("a.png", "sub/b.png"):
        assert np.abs(read_image(out / name).astype(int) - read_image(again / name)).max() <= 1


def test_tiles_and_half_precision_restore_too(images, tmp_path, whole, world):
    out = tmp_path / "out"
    assert restore(images, out, world, whole / "final", "--upscale", 4, "--tile", 128, "--dtype", "bfloat16") == 0
    assert read_image(out / "a.png").shape == (96, 160, 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "4", "--guidance", "2"], "--steps, --guidance: nothing is sampled"),
        (["--control", "x"], "--control: nothing is sampled"),
        (["--version", "v2.1"], "--version: is v2.1"),
    ],
)
def test_arguments_of_sampling_are_refused(images, tmp_path, whole, world, capsys, words, said):
    assert restore(images, tmp_path / "out", world, whole / "final", *words) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_base_that_does_not_belong_is_refused(images, tmp_path, whole, capsys):
    assert restore(images, tmp_path / "out", "tiny", whole / "final") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "was trained on another UNet" in error
    assert "Name the base that it was trained on" in error
    assert not (tmp_path / "out").exists()


def test_damaged_and_foreign_folders_are_refused(tmp_path, whole, world):
    unet = parts(world).unet
    before = module_sha256(unet)
    with pytest.raises(WeightsError, match="no such folder"):
        load_one_step(tmp_path / "none", unet)
    torn = tmp_path / "torn"
    shutil.copytree(whole / "final", torn)
    with (torn / "model.safetensors").open("ab") as file:
        file.write(b"0")
    with pytest.raises(WeightsError, match="model.safetensors"):
        load_one_step(torn, unet)
    publish(tmp_path / "other", lambda folder: (folder / "metadata.json").write_text('{"fixed": {}}'))
    with pytest.raises(WeightsError, match="holds no LoRA for one step"):
        load_one_step(tmp_path / "other", unet)
    assert module_sha256(unet) == before

    def less(folder):
        shutil.copy(whole / "final" / "metadata.json", folder)
        state = load_file(whole / "final" / "model.safetensors")
        state.pop(sorted(state)[0])
        save_file({**state, "unet.more": torch.zeros(1)}, folder / "model.safetensors")

    publish(tmp_path / "less", less)
    with pytest.raises(WeightsError, match=r"1 missing: unet\..*; 1 unexpected: unet.more"):
        load_one_step(tmp_path / "less", unet)


def test_the_tiny_and_the_paper_configuration_can_be_read(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(tmp_path))
    monkeypatch.setenv("MILO_RESTORE_CACHE", str(tmp_path))
    recipe, schema = diffbir_one_step.main, diffbir_one_step.Config
    assert (
        run_recipe(recipe, schema, CONFIGS / "diffbir_one_step_tiny.yaml", "", ["--dry-run", "--set", "loss.kind=mse"])
        == 0
    )
    assert "lora of rank 16: 662,080 parameters" in capsys.readouterr().out
    assert run_recipe(recipe, schema, CONFIGS / "diffbir_one_step_paper.yaml", "", ["--dry-run"]) == 2
    assert "base diffbir-v2: MISSING" in capsys.readouterr().out
