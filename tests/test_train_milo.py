"""Training MILO: the recipe on images and on latents, repeated, resumed and distilled; the best weights; the drops."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from test_recipes import load_recipe
from test_vae import BUILDS
from train_tiny import Patches, Tiny, l1, settings

from milo_restore import MILO, LatentMILO
from milo_restore.config import load_config
from milo_restore.data import held_out_photographs, list_images, read_image, to_tensor, write_png
from milo_restore.data.kadid import distort
from milo_restore.errors import ConfigError, WeightsError
from milo_restore.metric import LatentSpace
from milo_restore.models.vae import load_vae
from milo_restore.opinions.datasets import OpinionPair
from milo_restore.teach import agreement as agreement_room
from milo_restore.teach.agreement import agreement, as_they_are, held_out_pairs, mask_agreement
from milo_restore.teach.distillation import Hints, follow, mask_divergence
from milo_restore.teach.pairs import DistortedPairs, centre_square
from milo_restore.teach.student import MOSTraining, initialise
from milo_restore.train import Stage, TrainSettings, fit, learning_rate
from milo_restore.train.checkpoint import clean, verify

CONFIGS = REPOSITORY / "recipes" / "configs"
SMALL = [
    "data.square=64", "data.distortions=[1, 10, 11, 24]", "data.validation_pairs=24", "data.validation_side=48",
    "training.stages=[{steps: 8, patch: 24, batch: 4}]", "training.constant_steps=4", "training.evaluate_every=4",
    "training.checkpoint_every=4", "training.log_every=1", "training.trackers=[]",
]  # fmt: skip


@pytest.fixture(scope="module")
def recipe():
    torch.set_num_threads(1)
    return load_recipe("train_milo")


def run(recipe, output, *changes, resume=False, config="milo_tiny"):
    words = ["--output", str(output), *(["--resume", "latest"] if resume else []), "--set", *SMALL, *changes]
    return recipe.run_recipe(recipe.main, recipe.Config, CONFIGS / f"{config}.yaml", "", words)


def losses(output):
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["mos"]) for line in lines if "loss" in line]


def assert_same(one, other):
    assert losses(one) == losses(other)
    for name in ("final/model", "best/model", "milo_final", "milo_best"):
        first, second = (load_file(folder / f"{name}.safetensors") for folder in (one, other))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name


def test_two_runs_with_one_seed_and_a_resumed_one_are_the_same(recipe, tmp_path, capsys):
    assert run(recipe, tmp_path / "a") == 0
    printed = capsys.readouterr().out
    assert "60 pairs of 3 references; pseudo-MOS: mean of mini (sha256" in printed
    assert "24 held-out pairs, against the teacher:" in printed
    assert run(recipe, tmp_path / "b") == 0
    assert_same(tmp_path / "a", tmp_path / "b")
    for folder in tmp_path.glob("b/*0008"):
        (folder / "state.json").unlink()  # a damaged checkpoint is passed over
    for name in ("final", "best"):
        for file in (tmp_path / "b" / name).iterdir():
            file.unlink()
        (tmp_path / "b" / name).rmdir()
    assert run(recipe, tmp_path / "b", resume=True) == 0
    numbers = [json.loads((tmp_path / name / "run.json").read_text())["agreement"] for name in "ab"]
    assert numbers[0]["final"] == numbers[1]["final"]
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    first, second = (load_file(tmp_path / name / "final" / "model.safetensors") for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert run(recipe, tmp_path / "c", "training.seed=2") == 0
    assert losses(tmp_path / "a") != losses(tmp_path / "c")


def test_a_run_does_not_go_on_with_another_generator(recipe, tmp_path, capsys):
    assert run(recipe, tmp_path / "run", "data.generator=clipped") == 0
    states = [json.loads(path.read_text()) for path in (tmp_path / "run").glob("*/state.json")]
    assert states
    # Checkpoints of before there was a choice do not name it, which is compared as null.
    assert all(state["fingerprint"]["generator"] is None for state in states)
    assert run(recipe, tmp_path / "run", resume=True) == 2
    assert "generator is now 'published'; the checkpoint was trained with None" in capsys.readouterr().err
    assert run(recipe, tmp_path / "run", "data.generator=clipped", resume=True) == 0
    assert run(recipe, tmp_path / "other", "data.generator=faithful") == 2
    assert "'faithful' is not one of 'published', 'clipped'" in capsys.readouterr().err


def test_the_weights_are_a_metric(recipe, tmp_path):
    assert run(recipe, tmp_path / "run", "score_weight=0", "mask_weight=0") == 0
    milo = MILO.from_pretrained(tmp_path / "run" / "milo_best.safetensors")
    reference = torch.rand(1, 3, 32, 32)
    assert milo(reference, reference=reference).item() == 0
    assert 0 < milo.mos(reference + 0.1, reference=reference).item() < 5
    teacher = json.loads((tmp_path / "run" / "teacher.json").read_text())
    assert teacher["members"]["mini"]["map"]["kind"] == "own-scaler"


def test_two_hundred_steps_raise_the_agreement(recipe, tmp_path):
    """From untrained weights, whose order of errors is that of a blurred MAE, by at least 0.05 SRCC."""
    changes = [
        "training.stages=[{steps: 200, patch: 32, batch: 8}]", "training.constant_steps=100",
        "data.distortions=[1, 4, 8, 10, 11, 16, 21, 24]", "data.validation_pairs=100",
        "training.evaluate_every=200", "training.checkpoint_every=200",
    ]  # fmt: skip
    assert run(recipe, tmp_path / "run", *changes) == 0
    numbers = json.loads((tmp_path / "run" / "run.json").read_text())["agreement"]
    assert numbers["final"]["srcc"] > numbers["before"]["srcc"] + 0.05
    assert numbers["final"]["srcc"] > 0.85


def test_latents_train_too(recipe, tmp_path):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        latent_channels=4, block_out_channels=(8, 8), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, scaling_factor=0.18215,
    )  # fmt: skip
    vae.save_pretrained(tmp_path / "vae")
    changes = [
        "domain=latent", "mask_weight=0", "score_weight=0", f"data.vae={tmp_path / 'vae'}",
        f"data.cache={tmp_path / 'cache'}", "data.validation_side=64",
        "training.stages=[{steps: 8, patch: 64, batch: 4}]",
    ]  # fmt: skip
    assert run(recipe, tmp_path / "a", *changes) == 0
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 3
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert run(recipe, tmp_path / "b", *changes) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert_same(tmp_path / "a", tmp_path / "b")
    assert isinstance(LatentMILO.from_pretrained(tmp_path / "a" / "milo_final.safetensors"), LatentMILO)
    masks = "training.stages=[{steps: 60, patch: 64, batch: 4}]", "training.evaluate_every=60", "mask_weight=1"
    assert run(recipe, tmp_path / "c", *changes, *masks) == 0
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 6  # with the images' masks
    numbers = json.loads((tmp_path / "c" / "run.json").read_text())["agreement"]
    assert numbers["final"]["gradient_cosine"] > numbers["before"]["gradient_cosine"]
    recorded = LatentMILO.from_pretrained(tmp_path / "c" / "milo_final.safetensors").weights.agreement
    assert recorded.gradient_cosine == pytest.approx(numbers["final"]["gradient_cosine"], abs=1e-4)


SPACES = {"sdxl": ("sd", "SDXL, 4"), "sd3": ("flux", "Stable Diffusion 3, 16"), "flux1": ("flux", "FLUX.1, 16"),
          "qwen_wan": ("qwen", "Qwen-Image and Wan 2.1, 16")}  # fmt: skip


@pytest.mark.parametrize("name", SPACES)
def test_the_configuration_of_every_latent_space_is_sound(recipe, name, tmp_path, capsys):
    kind, said = SPACES[name]
    BUILDS[kind]().save_pretrained(tmp_path / "vae")
    words = ["--output", str(tmp_path / "run"), "--dry-run", "--set", "teacher=mini", f"data.vae={tmp_path / 'vae'}",
             "data.train=photographs", "data.references=null", "data.validation=held-out-photographs"]  # fmt: skip
    config = CONFIGS / f"milo_latent_{name}.yaml"
    assert "Not run by this project" in config.read_text()
    assert recipe.run_recipe(recipe.main, recipe.Config, config, "", words) == 0
    assert f"latents: {said} channels" in capsys.readouterr().out


def test_latents_of_sixteen_channels_train_and_name_their_space(recipe, tmp_path):
    BUILDS["flux"]().save_pretrained(tmp_path / "vae")
    changes = [
        "domain=latent", "mask_weight=0.5", "score_weight=0", "error_weight=1", f"data.vae={tmp_path / 'vae'}",
        f"data.cache={tmp_path / 'cache'}", "data.latents=FLUX.1", "data.views=2", "data.validation_side=64",
        "training.stages=[{steps: 8, patch: 64, batch: 4}]",
    ]  # fmt: skip
    assert run(recipe, tmp_path / "run", *changes) == 0
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 6  # two squares of each photograph
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"mask", "error", "mos"} <= lines[0].keys()
    milo = LatentMILO(tmp_path / "run" / "milo_final.safetensors")
    codec = load_vae(tmp_path / "vae")
    assert milo.space == LatentSpace(16, (0.3611,), (0.1159,), codec.sha256, "FLUX.1")
    start = f"start={tmp_path / 'run' / 'milo_final.safetensors'}"
    assert run(recipe, tmp_path / "again", *changes, start) == 0
    assert run(recipe, tmp_path / "wrong", *changes, "start=mini") == 2


def test_two_processes_train_what_one_trains(recipe, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
              "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port",
              "0"]  # fmt: skip
    words = [str(REPOSITORY / "recipes" / "train_milo.py"), "--output", str(tmp_path / "two"), "--set", *SMALL]
    subprocess.run([*launch, *words], env=environment, cwd=tmp_path, check=True)
    assert run(recipe, tmp_path / "one") == 0
    assert json.loads((tmp_path / "two" / "env.json").read_text())["processes"] == 2
    one, two = (load_file(tmp_path / name / "milo_final.safetensors") for name in ("one", "two"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], atol=2e-5, rtol=1e-3)


def test_training_goes_on_from_weights(recipe, tmp_path):
    still = ["training.learning_rate=0", "training.final_learning_rate=0", "training.weight_decay=0"]
    assert run(recipe, tmp_path / "a", "start=mini", *still) == 0
    numbers = json.loads((tmp_path / "a" / "run.json").read_text())["agreement"]
    for when in ("before", "final"):
        assert numbers[when]["srcc"] == pytest.approx(1, abs=1e-3)  # rounding may exchange equal scores
    mini = load_file(MILO.from_pretrained("mini").weights.path)
    final = load_file(tmp_path / "a" / "milo_final.safetensors")
    assert all(torch.equal(final[key], mini[key]) for key in mini)


def test_people_teach_where_kadid_is_present(recipe, tmp_path, monkeypatch, capsys):
    """The maps are fitted on KADID's opinions once, and the best weights are those that follow them best."""
    mini, pairs = MILO.from_pretrained("mini"), []
    for name, photograph in held_out_photographs():
        square = centre_square(photograph, 64)
        write_png(tmp_path / name.replace("jpg", "png"), square)
        for number in (1, 10, 11, 24):
            for level in range(1, 6):
                image = distort(square, number, level)
                path = tmp_path / f"{name[:4]}-{number}-{level}.png"
                write_png(path, image)
                mos = mini.mos(to_tensor(image)[None], reference=to_tensor(square)[None]).item()
                reference = tmp_path / name.replace("jpg", "png")
                pairs.append(OpinionPair(reference, path, 1 + 0.9 * mos, str(number), True))
    for module in (recipe, agreement_room):
        monkeypatch.setattr(module, "opinion_pairs", lambda *arguments: pairs)
    changes = ["maps=kadid", "data.kadid=kadid10k", "data.validation_pairs=30", "mask_weight=0", "score_weight=0"]
    assert run(recipe, tmp_path / "run", *changes) == 0
    maps = json.loads((tmp_path / "run" / "maps.json").read_text())["members"]["mini"]["map"]
    assert (maps["kind"], maps["split"], maps["pairs"]) == ("logistic", "kadid-train", 40)
    printed = capsys.readouterr().out
    assert "30 pairs of kadid-train, against people:" in printed
    assert "logistic on kadid10k kadid-train" in printed
    assert run(recipe, tmp_path / "other", "maps=kadid") == 2
    assert "maps: kadid needs data.kadid" in capsys.readouterr().err


def test_a_reference_of_kadid_is_read_once(tmp_path, monkeypatch):
    read, names = agreement_room.read_image, []
    pairs = [OpinionPair(tmp_path / "r.png", tmp_path / f"{i}.png", float(i), "1", True) for i in range(4)]
    for path in {path for pair in pairs for path in (pair.reference, pair.distorted)}:
        write_png(path, np.full((32, 32, 3), len(path.name), np.uint8))
    monkeypatch.setattr(agreement_room, "opinion_pairs", lambda *arguments: pairs)
    monkeypatch.setattr(agreement_room, "read_image", lambda path: names.append(path.name) or read(path))
    held_out = agreement_room.held_out_kadid(tmp_path, None, 1, agreement_room.as_they_are, torch.device("cpu"))
    assert sorted(names) == ["0.png", "1.png", "2.png", "3.png", "r.png"]
    assert sorted(held_out.opinions) == [0, 1, 2, 3]


def test_what_the_recipe_refuses(recipe, tmp_path, capsys):
    def refused(*changes):
        assert run(recipe, tmp_path / "run", *changes) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert not (tmp_path / "run").exists()
        return error

    assert "needs data.vae" in refused("domain=latent", "mask_weight=0", "score_weight=0")
    assert "need teacher: official or mini" in refused("teacher=[mini, e-mae]")
    latent = ("domain=latent", "data.vae=vae", "data.cache=cache")
    assert "of latents, mask_ and error_weight" in refused(*latent, "score_weight=0.1")
    assert "'minni' is no member" in refused("teacher=minni", "mask_weight=0", "score_weight=0")
    assert "no such folder" in refused(f"data.train={tmp_path / 'nowhere'}")
    assert "decay_every and constant_steps" in refused("training.decay_every=10")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("milo_*.yaml")), ids=lambda p: p.stem)
def test_every_configuration_is_valid(recipe, path):
    config = load_config(recipe.Config, path)
    assert config.data.generator == ("clipped" if path.stem in ("milo_latent_tiny", "milo_mini") else "published")
    if path.stem.split("_")[-1] not in ("10k", "50k", "star"):  # not the paper's
        return
    assert config.training.weight_decay == 1e-6
    assert config.training.betas == (0.9, 0.999)
    assert [(stage.patch, stage.batch) for stage in config.training.stages] == [(256, 16)]
    assert config.data.square == 256
    assert (config.mask_weight, config.score_weight, config.teacher) == (0, 0, "ensemble")
    assert config.domain == path.stem.split("_")[1]
    assert (
        str(config.data.references)
        == {"10k": "10k", "50k": "50k", "100k": "100k*", "1m": "1M*"}[path.stem.split("_")[2]]
    )


def strangers() -> tuple[MILO, MILO, torch.Tensor, torch.Tensor]:
    """A teacher, an untrained student, an image and its reference."""
    torch.manual_seed(3)
    teacher, student = MILO("mini"), MILO.untrained()
    initialise(student)
    reference = torch.rand(2, 3, 33, 40)
    return teacher, student, (reference + 0.1 * torch.randn_like(reference)).clamp(0, 1), reference


def test_masks_diverge_by_angle_and_by_scale():
    mask = torch.rand(2, 1, 8, 8) * 2
    assert mask_divergence(mask, mask).abs() < 1e-6
    assert mask_divergence(mask, mask / 2) > 0.01  # the same direction
    other = torch.rand(2, 1, 8, 8, requires_grad=True)
    mask_divergence(other, torch.zeros_like(mask)).backward()  # nothing visible: no angle
    assert other.grad.isfinite().all()


def test_a_twin_has_no_divergence_and_a_stranger_has():
    teacher, student, image, reference = strangers()
    apart = follow(student.mask_network, teacher.mask_network, image, reference)
    torch.testing.assert_close(apart.teacher_mask, teacher.mask(image, reference), atol=1e-4, rtol=0)
    assert apart.divergence > 0.01
    assert apart.hint == 0
    student.load_state_dict(load_file(teacher.weights.path))
    same = follow(student.mask_network, teacher.mask_network, image, reference)
    assert abs(same.divergence.item()) < 1e-6
    torch.testing.assert_close(same.mask, same.teacher_mask)


def test_hints_reach_hidden_layers_and_stay_out_of_the_weights():
    teacher, student, image, reference = strangers()
    hints = Hints(student.mask_network)
    follow(student.mask_network, teacher.mask_network, image, reference, hints).hint.backward()
    layers = [layer for layer in student.mask_network if hasattr(layer, "weight")]
    assert all(layer.weight.grad.abs().sum() > 0 for layer in layers[:-1])
    assert layers[-1].weight.grad is None  # the mask itself has the divergence
    # A twin's features tell the teacher's by the identity, and then nothing is left to learn.
    student.load_state_dict(load_file(teacher.weights.path))
    with torch.no_grad():
        for layer in hints.maps:
            torch.nn.init.dirac_(layer.weight)
            layer.bias.zero_()
    assert follow(student.mask_network, teacher.mask_network, image, reference, hints).hint < 1e-8


def test_a_teacher_is_no_part_of_what_trains():
    teacher, student, image, reference = strangers()
    model = MOSTraining(student, teacher, hints=True)
    said = model(image, reference)
    torch.testing.assert_close(said.taught.error, teacher(image, reference), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(said.taught.mos, teacher.mos(image, reference), atol=1e-4, rtol=0)
    said.taught.divergence.backward()
    assert not list(teacher.parameters())
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"metric", "hints"}


def test_an_untrained_metric_calls_larger_errors_worse():
    torch.manual_seed(0)
    metric = MILO.untrained()
    initialise(metric)
    reference = torch.rand(1, 3, 32, 32)
    noise = torch.randn_like(reference)
    mos = [metric.mos((reference + size * noise), reference=reference).item() for size in (0, 0.01, 0.05, 0.2)]
    assert mos == sorted(mos, reverse=True)
    assert mos[0] == pytest.approx(5 * (1 - 0.1192), abs=1e-3)
    assert mos[-1] < 3


def test_drops_are_torchs():
    run = TrainSettings(stages=(Stage(50, 8, 1),), learning_rate=0.3, decay_every=7, decay_factor=0.9)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    reference = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(range(7, 50, 7)), gamma=0.9)
    for step in range(1, 51):
        assert learning_rate(step, run) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        reference.step()


def scripted(values):
    """An evaluation that gives these numbers, one after the other."""
    rest = iter(values)
    return lambda model: {"score": next(rest), "other": 0.0}


def test_the_best_weights_are_kept(tmp_path):
    run = settings(evaluate_every=3, keep_best="score", checkpoint_every=3, keep_checkpoints=None, ema_decay=None)
    result = fit(Tiny(), l1, Patches(), run, tmp_path / "a", evaluate=scripted([0.2, 0.7, float("nan"), 0.7]))
    assert result.best == tmp_path / "a" / "best"
    verify(result.best)
    assert json.loads((result.best / "evaluation.json").read_text())["step"] == 6
    best, then = (load_file(tmp_path / "a" / n / "model.safetensors") for n in ("best", "checkpoint-000006"))
    assert all(torch.equal(best[key], then[key]) for key in then)
    assert not torch.equal(best["net.0.weight"], load_file(result.final / "model.safetensors")["net.0.weight"])

    fit(Tiny(), l1, Patches(), run, tmp_path / "b", evaluate=scripted([0.2, 0.7]), until=6)
    resumed = fit(Tiny(), l1, Patches(), run, tmp_path / "b", evaluate=scripted([0.1, 0.6]), resume="latest")
    kept = load_file(resumed.best / "model.safetensors")
    assert all(torch.equal(kept[key], best[key]) for key in best)


def test_a_kill_while_the_best_are_replaced_leaves_the_older(tmp_path, monkeypatch):
    run = settings(evaluate_every=3, keep_best="score", checkpoint_every=3)
    fit(Tiny(), l1, Patches(), run, tmp_path, evaluate=scripted([0.2, 0.7]), until=6)
    older, rename = load_file(tmp_path / "best" / "model.safetensors"), os.rename

    def killed(source, target):
        if Path(target).name == "best":
            raise KeyboardInterrupt  # between the two renames
        rename(source, target)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(Tiny(), l1, Patches(), run, tmp_path, evaluate=scripted([0.8]), resume="latest")
    assert not (tmp_path / "best").exists()
    monkeypatch.undo()
    clean(tmp_path)
    verify(tmp_path / "best")
    kept = load_file(tmp_path / "best" / "model.safetensors")
    assert all(torch.equal(kept[key], older[key]) for key in older)
    assert not list(tmp_path.glob(".tmp-*"))


def test_the_best_weights_are_those_that_were_measured(tmp_path):
    seen = []

    def evaluate(model):
        seen.append({key: value.clone() for key, value in model.state_dict().items()})
        return {"score": float(len(seen) == 2)}

    run = settings(evaluate_every=3, keep_best="score", ema_decay=0.9)
    result = fit(Tiny(), l1, Patches(), run, tmp_path / "a", evaluate=evaluate)
    best = load_file(result.best / "model.safetensors")
    assert all(torch.equal(best[key], seen[1][key]) for key in best)


def test_a_missing_number_and_a_damaged_best_are_refused(tmp_path):
    run = settings(evaluate_every=3, keep_best="srcc", checkpoint_every=3)
    with pytest.raises(ConfigError, match=r"keep_best: the evaluation gives score, other, and no 'srcc'"):
        fit(Tiny(), l1, Patches(), run, tmp_path / "a", evaluate=scripted([0.2]))
    run = settings(evaluate_every=3, keep_best="score", checkpoint_every=3)
    fit(Tiny(), l1, Patches(), run, tmp_path / "b", evaluate=scripted([0.2, 0.3]), until=6)
    save_file({"x": torch.zeros(2)}, tmp_path / "b" / "best" / "model.safetensors")
    with pytest.raises(WeightsError, match=r"best/model.safetensors: .*Delete .*best"):
        fit(Tiny(), l1, Patches(), run, tmp_path / "b", evaluate=scripted([0.2]), resume="latest")
    with pytest.raises(ValueError, match="keep_best: score needs evaluate_every"):
        settings(keep_best="score")
    assert np.isfinite(list(load_file(tmp_path / "b/checkpoint-000006/model.safetensors").values())[0]).all()


@pytest.mark.golden
def test_the_shipped_weights_agree_with_the_published_ones(shared):
    """On validation photographs under all distortions; and the ten TID2013 images come in the right order."""
    official, mini = MILO.from_pretrained("official"), MILO.from_pretrained("mini")
    assert Path(mini.weights.path).stat().st_size < 250_000
    assert mini.weights.sha256 in (Path(mini.weights.path).parent / "README.md").read_text(encoding="utf-8")
    pairs = DistortedPairs(list_images(shared / "data/bsds500/val"), seed=2, generator="clipped")
    cpu = torch.device("cpu")
    held_out = held_out_pairs(
        pairs, 250, 96, lambda i, r: official.mos(i, reference=r), as_they_are, cpu, official.mask
    )
    numbers = agreement(mini, held_out, cpu)
    assert numbers["srcc"] >= 0.98
    assert numbers["plcc"] >= 0.97
    masks = mask_agreement(mini, held_out, cpu)
    assert masks["mask_correlation"] >= 0.45
    assert masks["gradient_cosine"] >= 0.6
    recorded = mini.weights.agreement
    assert recorded.mask_correlation == pytest.approx(masks["mask_correlation"], abs=0.01)
    assert recorded.gradient_cosine == pytest.approx(masks["gradient_cosine"], abs=0.01)
    root = shared / "data/iqa/tid2013_subset"
    rows = [line.split("\t") for line in (root / "pairs.tsv").read_text().splitlines()[1:]]
    errors = []
    for reference, distorted, *_ in rows:
        names = ("distorted_images", distorted), ("reference_images", reference)
        image, clean = (to_tensor(read_image(root.joinpath(*name)))[None] for name in names)
        errors.append(mini(image, reference=clean).item())
    assert spearmanr(errors, [float(row[2]) for row in rows]).statistic < -0.6
