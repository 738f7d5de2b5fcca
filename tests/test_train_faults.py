"""Damage, full disks, non-finite numbers, signals and kills: nothing is lost and everything is named."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from train_tiny import Patches, Tiny, l1, settings

from milo_restore.errors import DataError, MiloRestoreError, NumericsError, WeightsError
from milo_restore.train import checkpoint, fit
from milo_restore.train import loop as loop_room
from milo_restore.train import state as state_room

TESTS = Path(__file__).parent
NAN, INFINITE = float("nan"), float("inf")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run paused at step 4 with checkpoints 3 and 4."""
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("run")
    fit(Tiny(), l1, Patches(), settings(checkpoint_every=1), output, until=4)
    assert [path.name for path in checkpoint.checkpoints(output)] == ["checkpoint-000003", "checkpoint-000004"]
    return output


def mutate(path: Path, random: random.Random) -> str:
    """Flip one bit, cut the file short, or empty it."""
    content = bytearray(path.read_bytes())
    kind = random.choice(["flip", "flip", "flip", "cut", "grow"])
    if kind == "flip":
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    elif kind == "cut":
        del content[random.randrange(len(content)) :]
    else:
        content.append(random.randrange(256))
    path.write_bytes(content)
    return kind


def test_every_mutation_of_every_file_is_refused_by_name(run):
    folder = run / "checkpoint-000004"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["ema.safetensors", "manifest.json", "model.safetensors", "optimizer.pt", "state.json"]
    checkpoint.verify(folder)
    chance = random.Random(3)
    for name in names:
        path = folder / name
        intact = path.read_bytes()
        for _ in range(60):
            mutate(path, chance)
            with pytest.raises(WeightsError) as caught:
                checkpoint.verify(folder)
            assert caught.value.where == path
            path.write_bytes(intact)
        path.unlink()
        with pytest.raises(WeightsError) as caught:
            checkpoint.verify(folder)
        assert caught.value.where == path
        path.write_bytes(intact)
    (folder / "extra.pt").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"extra.pt: does not belong"):
        checkpoint.verify(folder)
    (folder / "extra.pt").unlink()
    checkpoint.verify(folder)


@pytest.mark.parametrize(
    "name", ["ema.safetensors", "manifest.json", "model.safetensors", "optimizer.pt", "state.json"]
)
def test_the_previous_intact_checkpoint_is_used(run, tmp_path, capsys, name):
    output = tmp_path / "run"
    shutil.copytree(run, output)
    mutate(output / "checkpoint-000004" / name, random.Random(name))
    with pytest.raises(WeightsError, match=name):  # asked for by name, it is an error
        fit(Tiny(), l1, Patches(), settings(), output, resume=output / "checkpoint-000004")
    result = fit(Tiny(), l1, Patches(), settings(), output, resume="latest", until=5)
    said = capsys.readouterr().err
    assert "refused checkpoint checkpoint-000004" in said
    assert name in said
    assert "resuming from" in said
    assert "checkpoint-000003" in said
    assert result.step == 5
    fit(Tiny(), l1, Patches(), settings(), run.parent / f"w-{name}", until=5)
    one, other = (load_file(o / "checkpoint-000005/model.safetensors") for o in (output, run.parent / f"w-{name}"))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_a_damaged_newer_checkpoint_never_displaces_an_intact_one(run, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(run, output)
    shutil.copytree(output / "checkpoint-000004", output / "checkpoint-000009")
    (output / "checkpoint-000009/state.json").write_text("{}")
    fit(Tiny(), l1, Patches(), settings(keep_checkpoints=1), output, resume="latest", until=5)
    assert [path.name[-1] for path in checkpoint.checkpoints(output)] == ["4", "5", "9"]  # after step 4 one was finite
    checkpoint.verify(output / "checkpoint-000005")


def test_no_intact_checkpoint_is_an_error_and_not_a_fresh_start(run, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(run, output)
    for path in output.glob("checkpoint-*"):
        (path / "optimizer.pt").write_bytes(b"")
    with pytest.raises(WeightsError, match="no intact checkpoint is left"):
        fit(Tiny(), l1, Patches(), settings(), output, resume="latest")


def test_nothing_is_unpickled_before_it_is_verified(run, tmp_path, monkeypatch):
    output = tmp_path / "run"
    shutil.copytree(run, output)
    (output / "checkpoint-000004/optimizer.pt").write_bytes(b"not what the manifest says")
    loads = []
    real = torch.load
    monkeypatch.setattr(torch, "load", lambda path, **options: loads.append((path, options)) or real(path, **options))
    fit(Tiny(), l1, Patches(), settings(), output, resume="latest", until=4)
    assert [path.parent.name for path, _ in loads] == ["checkpoint-000003"]
    assert all(options["weights_only"] is True for _, options in loads)


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_as_torch_says_it(*_, **__):
    raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 704 vs 598")


@pytest.mark.parametrize(
    ("place", "name", "failure"),
    [
        (state_room, "save_model", full),
        (state_room, "save_file", full),
        (torch, "save", full_as_torch_says_it),
        (os, "fsync", full),
        (json, "dumps", full),
        (os, "rename", full),
    ],
)
def test_full_disk(run, tmp_path, monkeypatch, place, name, failure):
    output = tmp_path / "run"
    shutil.copytree(run, output)

    def step(model, batch, number):
        if number == 5:
            monkeypatch.setattr(place, name, failure)
        return l1(model, batch, number)

    with pytest.raises(MiloRestoreError, match="cannot be written .*Free space in .*--resume latest") as caught:
        fit(Tiny(), step, Patches(), settings(), output, resume="latest", until=5)
    monkeypatch.undo()
    assert str(output) in str(caught.value)
    assert caught.value.exit_code == 2
    assert [path.name for path in checkpoint.checkpoints(output)] == ["checkpoint-000003", "checkpoint-000004"]
    for path in checkpoint.checkpoints(output):
        checkpoint.verify(path)
    assert not list(output.glob(".tmp-*"))
    assert fit(Tiny(), l1, Patches(), settings(), output, resume="latest", until=5).step == 5


@pytest.mark.parametrize("library", ["torch", "safetensors"])
def test_a_write_that_really_fails(tmp_path, library):
    """With a limit on file sizes in place of a full disk: the libraries' own words become one clear line."""
    tensors = {"a": torch.zeros(100_000)}

    def write(folder: Path) -> None:
        if library == "torch":
            torch.save(tensors, folder / "a.pt")
        else:
            state_room.save_file(tensors, str(folder / "a.safetensors"))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(MiloRestoreError, match="cannot be written") as caught:
            checkpoint.publish(tmp_path / "checkpoint-000001", write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_replacing_a_folder_fails_without_loss(tmp_path, monkeypatch):
    target, calls = tmp_path / "final", []
    checkpoint.publish(target, lambda folder: (folder / "a").write_text("old") and None)
    real = os.rename

    def second_fails(*paths):
        calls.append(paths)
        if len(calls) == 2:
            full()
        real(*paths)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(MiloRestoreError):
        checkpoint.publish(target, lambda folder: (folder / "a").write_text("new") and None)
    assert (target / "a").read_text() == "old"
    checkpoint.verify(target)


def test_what_a_kill_left_behind_is_cleaned(run, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(run, output)
    (output / ".tmp-checkpoint-000005-1").mkdir()
    (output / ".tmp-checkpoint-000005-1/model.safetensors").write_bytes(b"half")
    (output / ".tmp-env.json-1").write_text("{")
    fit(Tiny(), l1, Patches(), settings(), output, resume="latest", until=5)
    assert not list(output.glob(".tmp-*"))


def zero_times_infinity(number):
    """A step whose loss is finite but whose gradient is not, at step ``number`` and after."""

    def step(model, batch, at):
        loss = l1(model, batch, at)
        return loss + (model(batch["input"]) * 0).abs().sum().sqrt() if at >= number else loss

    return step


def files(folder: Path) -> dict[str, torch.Tensor]:
    found = dict(load_file(folder / "model.safetensors"))
    found.update({f"ema.{key}": value for key, value in load_file(folder / "ema.safetensors").items()})
    saved = torch.load(folder / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    found.update({f"{i}.{key}": value for i, entry in saved.items() for key, value in entry.items()})
    return found


class Normed(Tiny):
    """With running statistics, which a bad batch must not reach either."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x):
        return super().forward(self.norm(x))


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", ["loss-nan", "loss-infinite", "gradient"])
def test_three_bad_steps_in_a_row(tmp_path, capsys, kind, accumulation):
    value = NAN if kind == "loss-nan" else INFINITE
    data = Patches({} if kind == "gradient" else {13: value, 17: value, 22: value})  # steps 4, 5 and 6
    step = zero_times_infinity(4) if kind == "gradient" else l1
    model, run = Normed(), settings(checkpoint_every=3, keep_checkpoints=1, accumulation=accumulation)
    with pytest.raises(NumericsError, match="not finite in 3 steps in a row") as caught:
        fit(model, step, data, run, tmp_path)
    named = [f"image-{n}" for n in (range(20, 24) if kind == "gradient" else (22,))]
    assert str(caught.value.where).startswith("step 6")
    assert all(name in str(caught.value.where) for name in named)
    if accumulation == 2 and kind != "gradient":  # only the micro-batch that holds it: indices 0 and 2
        assert str(caught.value.where) == "step 6, samples image-20, image-22"
    good, after = files(tmp_path / "checkpoint-000003"), files(tmp_path / "checkpoint-000006")
    assert good.keys() == after.keys()
    for key, tensor in good.items():
        assert torch.equal(tensor, after[key]), key
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    skipped = [line for line in lines if "skipped" in line]
    assert [line["step"] for line in skipped] == [4, 5, 6]
    assert {line["skipped"] for line in skipped} == {kind.split("-")[0]}
    assert "step 4 skipped" in capsys.readouterr().err
    # Whoever resumes goes on after the bad steps.
    assert fit(Normed(), l1, Patches(), run, tmp_path, resume="latest", until=7).step == 7


def test_bad_steps_apart_do_not_stop_the_run(tmp_path):
    data = Patches(dict.fromkeys((5, 9, 20, 25), NAN))  # steps 2, 3, 6 and 7; the rest is good
    result = fit(Tiny(), l1, data, settings(), tmp_path)
    assert result.finished
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 4, 5, 8, 9, 10, 11, 12]


def test_the_count_of_bad_steps_survives_a_resume(tmp_path):
    data = Patches(dict.fromkeys((5, 9, 13), NAN))  # steps 2, 3 and 4
    fit(Tiny(), l1, data, settings(), tmp_path, until=3)
    with pytest.raises(NumericsError, match="step 4, samples image-1"):
        fit(Tiny(), l1, data, settings(), tmp_path, resume="latest")


def test_loss_scale_of_fp16(tmp_path, monkeypatch):
    """Accelerate allows fp16 on GPUs only; torch's scaler itself works here, so it is put in by hand."""
    real = loop_room.start_accelerator

    def with_scaler(*arguments):
        accelerator = real(*arguments)
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1000)
        accelerator.state._mixed_precision = "fp16"
        scales.append(accelerator.scaler)
        return accelerator

    scales: list[torch.amp.GradScaler] = []
    monkeypatch.setattr(loop_room, "start_accelerator", with_scaler)
    model = Tiny()
    model.to = lambda *a, **k: model  # type: ignore[method-assign]
    result = fit(Tiny(), l1, Patches({5: NAN}), settings(), tmp_path / "loss")
    assert result.finished
    assert scales[-1].get_scale() == 2.0**7  # halved once, at the skipped step
    # A gradient that is never finite: the scale falls to 1 first, and only then do three bad steps end the run.
    with pytest.raises(NumericsError, match="the gradient was not finite") as caught:
        fit(Tiny(), zero_times_infinity(1), Patches(), settings(), tmp_path / "gradient")
    assert str(caught.value.where).startswith("step 11,")
    fit(Tiny(), l1, Patches({5: NAN}), settings(), tmp_path / "resumed", until=5)
    fit(Tiny(), l1, Patches({5: NAN}), settings(), tmp_path / "resumed", resume="latest")
    assert scales[-1].get_scale() == 2.0**7
    one, other = (files(tmp_path / name / "checkpoint-000012") for name in ("loss", "resumed"))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_the_data_arrive_unchanged(tmp_path, workers):
    class Broken(Patches):
        def __getitem__(self, key):
            if key[2] == 9:
                raise DataError("cannot be decoded", where="photo.png", mend="Replace it")
            return super().__getitem__(key)

    with pytest.raises(DataError) as caught:
        fit(Tiny(), l1, Broken(), settings(workers=workers), tmp_path)
    assert str(caught.value) == "photo.png: cannot be decoded. Replace it"
    assert caught.value.where == "photo.png"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(tmp_path, number):
    before = signal.getsignal(number)

    def step(model, batch, at):
        if at == 5:
            os.kill(os.getpid(), number)
        return l1(model, batch, at)

    result = fit(Tiny(), step, Patches(), settings(workers=2), tmp_path)
    assert (result.step, result.stopped, result.finished, result.signal) == (5, True, False, number)
    assert result.exit_code == 128 + number
    assert signal.getsignal(number) == before
    checkpoint.verify(tmp_path / "checkpoint-000005")
    assert fit(Tiny(), l1, Patches(), settings(), tmp_path, resume="latest").finished
    fit(Tiny(), l1, Patches(), settings(), tmp_path / "whole")
    one, other = (files(o / "checkpoint-000012") for o in (tmp_path, tmp_path / "whole"))
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_a_second_signal_acts_at_once(tmp_path):
    def step(model, batch, at):
        if at == 3:
            signal.raise_signal(signal.SIGINT)  # os.kill may reach another thread, and two at once then count as one
            signal.raise_signal(signal.SIGINT)
        return l1(model, batch, at)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell script
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(Tiny(), step, Patches(), settings(checkpoint_every=2), tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["checkpoint-000002"]
    checkpoint.verify(tmp_path / "checkpoint-000002")


@pytest.mark.slow
def test_twenty_kills(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    command = [sys.executable, str(TESTS / "train_kills.py"), str(tmp_path), "20"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    log = (tmp_path / "log.txt").read_text() if (tmp_path / "log.txt").exists() else ""
    assert done.returncode == 0, done.stderr + log[-3000:]
    report = json.loads(done.stdout)
    assert report["failures"] == 0, log[-3000:]
    assert report["kills"] == 20
    assert report["while_saving"] >= 1
    assert report["runs"] == report["equal"] >= 1
    assert report["interrupted"] == 128 + signal.SIGINT
    assert 1 <= report["interrupted_at"] < 30
    assert (report["continued"], report["continued_equal"]) == (0, True)
