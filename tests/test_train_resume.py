"""Resume is bitwise, splitting does not matter, and a run folder is never silently overwritten."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from train_tiny import Patches, Tiny, l1, settings

from milo_restore.errors import ConfigError, WeightsError
from milo_restore.train import fit

STEPS = 12


def losses(output):
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def weights(output):
    """Training weights, averaged weights and optimiser moments of the last checkpoint, and the final weights."""
    last = output / f"checkpoint-{STEPS:06d}"
    found = {f"final.{k}": v for k, v in load_file(output / "final/model.safetensors").items()}
    for name in ("model", "ema"):
        found.update({f"{name}.{k}": v for k, v in load_file(last / f"{name}.safetensors").items()})
    saved = torch.load(last / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    found.update({f"adamw.{i}.{k}": v for i, entry in saved.items() for k, v in entry.items()})
    return found


def assert_same(one, other):
    assert losses(one) == losses(other)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert len(first) == 3 * 4 + 4 * 3
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs, by accumulation."""
    torch.set_num_threads(1)
    outputs = {}
    for accumulation in (1, 4):
        outputs[accumulation] = tmp_path_factory.mktemp(f"whole{accumulation}")
        run = settings(accumulation=accumulation)
        result = fit(Tiny(), l1, Patches(), run, outputs[accumulation])
        assert result.finished
        assert result.step == STEPS
    return outputs


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cut", [1, 3, 6, 7, 11])
def test_resume_is_bitwise(whole, tmp_path, cut, workers, accumulation):
    run = settings(workers=workers, accumulation=accumulation)
    first = fit(Tiny(), l1, Patches(), run, tmp_path, until=cut)
    assert (first.step, first.finished, first.final) == (cut, False, None)
    torch.randn(cut)  # the global random state is of no account
    second = fit(Tiny(seed=9), l1, Patches(), run, tmp_path, resume="latest")
    assert second.finished
    assert_same(whole[accumulation], tmp_path)


def test_dropout_takes_part(whole, tmp_path):
    """The bitwise comparison would be worth less without randomness inside the step."""
    fit(Tiny(dropout=0.0), l1, Patches(), settings(), tmp_path)
    assert losses(whole[1])[0] != losses(tmp_path)[0]


@pytest.mark.parametrize("accumulation", [2, 3, 4])
def test_accumulation_does_not_matter(tmp_path, accumulation):
    """Batches of 4 and 5, so that micro-batches are uneven. Without dropout, whose masks follow the split."""
    for name, count in (("one", 1), ("many", accumulation)):
        run = settings(accumulation=count, learning_rate=1e-3)
        fit(Tiny(dropout=0.0), l1, Patches(), run, tmp_path / name)
    for (_, one), (_, many) in zip(losses(tmp_path / "one"), losses(tmp_path / "many")):
        assert many == pytest.approx(one, abs=1e-6)
    one, many = (load_file(tmp_path / name / "checkpoint-000012/model.safetensors") for name in ("one", "many"))
    for key, value in one.items():
        assert (value - many[key]).abs().max() < 1e-6


def test_gradient_is_the_mean_over_the_batch(tmp_path):
    """One plain SGD-like check by hand: the reported norm is that of the whole batch's mean loss."""
    run = settings(stages=settings().stages[1:], accumulation=3)
    fit(Tiny(dropout=0.0), l1, Patches(), run, tmp_path, until=1)
    model = Tiny(dropout=0.0)
    samples = [Patches()[(1, i, i, 16)] for i in range(5)]
    batch = {key: torch.stack([s[key] for s in samples]) for key in ("input", "target")}
    l1(model, batch, 1).backward()
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    logged = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert logged["gradient_norm"] == pytest.approx(norm, rel=1e-5)


def test_only_the_model_is_trained(tmp_path):
    """A loss with parameters of its own, as MILO has, stays as it is and out of the optimiser."""
    loss = nn.Conv2d(3, 3, 1)
    before = [p.clone() for p in loss.parameters()]

    def step(model, batch, number):
        return loss(model(batch["input"]) - batch["target"]).abs().mean()

    model = Tiny()
    model.net[0].bias.requires_grad_(False)
    frozen = model.net[0].bias.clone()
    fit(model, step, Patches(), settings(), tmp_path, until=2)
    assert all(torch.equal(a, b) for a, b in zip(before, loss.parameters()))
    assert torch.equal(frozen, model.net[0].bias)
    saved = torch.load(tmp_path / "checkpoint-000002/optimizer.pt", weights_only=True)["optimizer"]
    assert len(saved["param_groups"][0]["params"]) == 3


def test_metrics_hold_each_step_once(tmp_path):
    """Lines after the checkpoint, and one torn by a kill, go when the run is resumed."""
    fit(Tiny(), l1, Patches(), settings(), tmp_path, until=4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
    fit(Tiny(), l1, Patches(), settings(), tmp_path, resume="latest")
    assert [step for step, _ in losses(tmp_path)] == list(range(1, 13))


def test_records(tmp_path):
    seen = []

    def evaluate(model):
        seen.append((model.training, torch.is_grad_enabled(), next(model.parameters()).clone()))
        return {"psnr": 30.0}

    def step(model, batch, number):
        assert model.training
        return l1(model, batch, number), {"zero": torch.zeros(()), "size": torch.tensor(float(len(batch["position"])))}

    picture = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)
    model = Tiny()
    result = fit(
        model, step, Patches(), settings(evaluate_every=5, sample_every=6, trackers=("tensorboard",)), tmp_path,
        evaluate=evaluate, sample=lambda m: picture, curriculum=lambda s: s / STEPS,
        record={"config": "loss: l1\n", "weights": "mini abc", "fixed": {"loss": "l1"}},
    )  # fmt: skip
    assert result.evaluation == {"psnr": 30.0}
    assert [(training, grad) for training, grad, _ in seen] == [(False, False)] * 3  # steps 5, 10 and the last
    final = load_file(result.final / "model.safetensors")
    assert torch.equal(seen[-1][2], final["net.0.weight"])
    assert torch.equal(model.net[0].weight, final["net.0.weight"])
    trained = load_file(tmp_path / "checkpoint-000012/model.safetensors")
    assert not torch.equal(trained["net.0.weight"], final["net.0.weight"])
    assert torch.equal(load_file(tmp_path / "checkpoint-000012/ema.safetensors")["net.0.weight"], seen[-1][2])
    for number in (6, 12):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"samples/{number:06d}.png")), picture)
    assert (tmp_path / "config.yaml").read_text() == "loss: l1\n"
    environment = json.loads((tmp_path / "env.json").read_text())
    assert (environment["seed"], environment["processes"], environment["weights"]) == (1, 1, "mini abc")
    assert environment["versions"]["torch"] == torch.__version__
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "evaluation" in line] == [5, 10, 12]
    third = next(line for line in lines if line["step"] == 3)
    assert (third["curriculum"], third["zero"], third["size"]) == (3 / STEPS, 0.0, 4.0)
    assert list((tmp_path / "logs/milo-restore").glob("events.out.tfevents.*"))


def test_evaluation_that_raises_leaves_the_training_weights(tmp_path):
    model, kept = Tiny(), {}

    def step(model, batch, number):
        if number == 3:
            kept.update({name: value.detach().clone() for name, value in model.named_parameters()})
            raise_after.append(number)
        return l1(model, batch, number)

    raise_after: list[int] = []

    def evaluate(model):
        if raise_after:
            raise RuntimeError("no picture")
        return {"psnr": 1.0}

    with pytest.raises(RuntimeError, match="no picture"):
        fit(model, step, Patches(), settings(evaluate_every=3, learning_rate=0.0), tmp_path, evaluate=evaluate)
    for name, value in model.named_parameters():
        assert torch.equal(value, kept[name])  # with a learning rate of 0 step 3 moved nothing
    assert model.training
    assert "forward" not in model.__dict__


def test_evaluating_does_not_change_the_run(whole, tmp_path):
    def evaluate(model):
        return {"noise": torch.randn(3).sum()}

    fit(Tiny(), l1, Patches(), settings(evaluate_every=2, workers=2), tmp_path, evaluate=evaluate)
    assert_same(whole[1], tmp_path)


def test_a_used_folder_is_not_overwritten(whole, tmp_path):
    shutil.copytree(whole[1], tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="already holds a training run.*--resume latest or name another --output"):
        fit(Tiny(), l1, Patches(), settings(), tmp_path / "run")
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_latest_without_a_checkpoint_starts_fresh_and_says_so(tmp_path, capsys):
    result = fit(Tiny(), l1, Patches(), settings(), tmp_path, resume="latest", until=1)
    assert result.step == 1
    assert "no checkpoint in" in capsys.readouterr().err


def test_resuming_a_finished_run_changes_nothing(whole, tmp_path):
    shutil.copytree(whole[1], tmp_path / "run")
    result = fit(Tiny(seed=4), l1, Patches(), settings(), tmp_path / "run", resume="latest")
    assert (result.finished, result.step, result.loss) == (True, STEPS, None)
    assert_same(whole[1], tmp_path / "run")


def test_resume_from_a_path(whole, tmp_path):
    fit(Tiny(), l1, Patches(), settings(checkpoint_every=2, keep_checkpoints=None), tmp_path, until=7)
    names = [path.name for path in sorted(tmp_path.glob("checkpoint-*"))]
    assert names == [f"checkpoint-{step:06d}" for step in (2, 4, 6, 7)]
    other = tmp_path / "other"
    fit(Tiny(), l1, Patches(), settings(), other, resume=tmp_path / "checkpoint-000006")
    assert torch.equal(weights(other)["final.net.0.weight"], weights(whole[1])["final.net.0.weight"])
    fit(Tiny(), l1, Patches(), settings(), tmp_path, resume=tmp_path / "checkpoint-000004")
    assert_same(whole[1], tmp_path)
    with pytest.raises(WeightsError, match="no such checkpoint folder"):
        fit(Tiny(), l1, Patches(), settings(), tmp_path, resume=tmp_path / "checkpoint-000005")


def test_old_checkpoints_are_pruned(tmp_path):
    fit(Tiny(), l1, Patches(), settings(checkpoint_every=2, keep_checkpoints=2), tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*-0*")) == ["checkpoint-000010", "checkpoint-000012"]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"seed": 2}, "seed"),
        ({"learning_rate": 2e-2}, "learning_rate"),
        ({"stages": settings().stages[:1]}, "stages"),
        ({"ema_decay": None}, "ema_decay"),
        ({"mixed_precision": "bf16"}, "mixed_precision"),
    ],
)
def test_settings_that_would_break_exactness_are_refused(tmp_path, changes, key):
    fit(Tiny(), l1, Patches(), settings(), tmp_path, until=2)
    with pytest.raises(ConfigError, match=f"{key} is now .*Restore the setting"):
        fit(Tiny(), l1, Patches(), settings(**changes), tmp_path, resume="latest")


def test_another_model_or_recipe_is_refused(tmp_path):
    fit(Tiny(), l1, Patches(), settings(), tmp_path, until=2, record={"fixed": {"loss": "mae"}})
    wide = Tiny()
    wide.net = nn.Sequential(nn.Conv2d(3, 7, 3, padding=1), nn.Conv2d(7, 3, 3, padding=1))
    with pytest.raises(ConfigError, match="model is now '388 parameters"):
        fit(wide, l1, Patches(), settings(), tmp_path, resume="latest", record={"fixed": {"loss": "mae"}})
    with pytest.raises(ConfigError, match="loss is now 'milo'; the checkpoint was trained with 'mae'"):
        fit(Tiny(), l1, Patches(), settings(), tmp_path, resume="latest", record={"fixed": {"loss": "milo"}})


def test_mixed_precision_leaves_the_loss_in_float32(tmp_path):
    kinds = set()

    def step(model, batch, number):
        output = model(batch["input"])
        kinds.add((output.dtype, torch.is_autocast_enabled("cpu")))
        return (output - batch["target"]).abs().mean()

    model = Tiny()
    forward = model.forward
    run = settings(mixed_precision="bf16")
    fit(model, step, Patches(), run, tmp_path, until=3)
    assert kinds == {(torch.float32, False)}
    assert model.forward == forward  # accelerate's autocast is gone
    with pytest.raises(ConfigError, match="mixed_precision"):
        fit(Tiny(), l1, Patches(), settings(mixed_precision="fp16"), tmp_path / "half")


def test_unknown_tracker(tmp_path):
    with pytest.raises(ConfigError, match="'tensorbord' is not one of"):
        fit(Tiny(), l1, Patches(), settings(trackers=("tensorbord",)), tmp_path)
    with pytest.raises(ConfigError, match="'swanlab' is not installed"):
        fit(Tiny(), l1, Patches(), settings(trackers=("swanlab",)), tmp_path)
