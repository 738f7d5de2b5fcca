"""One identity, healthy checkpoints, one writer: what a run of weeks needs beside an exact resume."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_recipes import TINY, load_recipe
from test_recipes import run as run_recipe_of
from train_tiny import Patches, Tiny, l1, settings

from milo_restore.config import dump_config
from milo_restore.errors import ConfigError, NumericsError
from milo_restore.files import lock as lock_room
from milo_restore.files.lock import FolderLock
from milo_restore.train import Stage, TrainSettings, checkpoint, fit, guard
from milo_restore.train.command import run_recipe


@dataclass(frozen=True)
class Data:
    sigma: float = 25.0
    root: str | None = None


@dataclass(frozen=True)
class Config:
    data: Data = field(default_factory=Data)
    loss_weight: float = 1.0
    training: TrainSettings = field(default_factory=settings)


def train(output, config=None, images="abc", **options):
    """A recipe in little: its configuration, the hash of its images, and where these lie."""
    config = config or Config()
    record = {"config": dump_config(config), "fixed": {"images": images}, "free": ["data.root"]}
    return fit(Tiny(), l1, Patches(), config.training, output, record=record, **options)


# --- one identity (D1)


def test_whatever_differs_on_resume_is_refused_by_key(tmp_path):
    train(tmp_path, until=2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = Config(Data(sigma=50.0), loss_weight=10.0)
    with pytest.raises(ConfigError) as caught:
        train(tmp_path, other, images="def", resume="latest")
    for words in (
        "data.sigma is now 50.0; the checkpoint was trained with 25.0", "loss_weight is now 10.0",
        "images is now 'def'; the checkpoint was trained with 'abc'", "--change data.sigma loss_weight images",
    ):  # fmt: skip
        assert words in str(caught.value)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert train(tmp_path, Config(Data(root="/elsewhere")), resume="latest", until=3).step == 3  # the same images


def test_a_change_is_on_record(tmp_path, capsys):
    train(tmp_path, until=2)
    slower = Config(Data(sigma=50.0), training=settings(learning_rate=1e-3, weight_decay=0.5))
    changes = ("data.sigma", "training.learning_rate", "weight_decay")
    with pytest.raises(ConfigError, match="weight_decay is now 0.5; the checkpoint was trained with 0.0001"):
        train(tmp_path, slower, resume="latest", changes=changes[:2])
    result = train(tmp_path, slower, resume="latest", changes=changes, until=5)
    expected = {"data.sigma": [25.0, 50.0], "learning_rate": [1e-2, 1e-3], "weight_decay": [1e-4, 0.5]}
    assert "from step 3 on: data.sigma 50.0 in place of 25.0, learning_rate 0.001 in place of 0.01" in result.changes[0]
    assert "changed from step 3 on" in capsys.readouterr().err
    # The same again, as a scheduler starts it, is no second change; without the option it is refused.
    result = train(tmp_path, slower, resume="latest", changes=changes)
    assert result.finished
    with pytest.raises(ConfigError, match="learning_rate is now 0.01; the checkpoint was trained with 0.001"):
        train(tmp_path, resume="latest")
    for name in ("checkpoint-000012/state.json", "env.json", "final/metadata.json"):
        assert json.loads((tmp_path / name).read_text())["changes"] == [{"after": 2, "changed": expected}], name
    saved = torch.load(tmp_path / "checkpoint-000012/optimizer.pt", weights_only=True)["optimizer"]["param_groups"]
    assert saved[0]["weight_decay"] == 0.5  # and not what the first checkpoint had


def test_a_run_may_be_made_longer(tmp_path):
    train(tmp_path)
    longer = Config(training=settings(stages=(Stage(6, 12, 4), Stage(8, 16, 5))))
    with pytest.raises(ConfigError, match="stages is now"):
        train(tmp_path, longer, resume="latest")
    assert train(tmp_path, longer, resume="latest", changes=("training.stages.1.steps",)).step == 14
    with pytest.raises(ConfigError, match="the run ends at step 12, the checkpoint is of step 14"):
        train(tmp_path, resume="latest", changes=("training.stages",))


def test_a_recipe_does_not_mix_two_experiments(tmp_path, capsys, monkeypatch):
    """From the command line: refused, then changed on record, which the report shows."""
    recipe = load_recipe("restormer_denoise")
    short = [*TINY, "training.stages=[{steps: 2, patch: 32, batch: 2}]", "data.test_side=48", "training.trackers=[]"]
    arguments = ["--output", tmp_path / "run", *short]
    assert run_recipe_of(recipe, monkeypatch, *arguments) == 0
    capsys.readouterr()
    assert run_recipe_of(recipe, monkeypatch, *arguments, "--change", "data.sigma=50") == 2
    assert "--change: changes a run that is gone on with. Add --resume latest" in capsys.readouterr().err
    for wrong in ("data.sigma=50", "data.mixup=true", "loss.loss_weight=10", "data.quick_images=1"):
        assert run_recipe_of(recipe, monkeypatch, *arguments, wrong, "--resume", "latest") == 2
        assert f"{wrong.partition('=')[0]} is now " in capsys.readouterr().err
    change = ["--resume", "latest", "--change", "data.sigma=[10, 50]", "training.stages.0.steps=3"]
    assert run_recipe_of(recipe, monkeypatch, *arguments, *change) == 0
    provenance = json.loads(next((tmp_path / "run/eval").rglob("restored/provenance.json")).read_text())
    assert "changed on its way: from step 3 on: data.sigma [10.0, 50.0] in place of 25.0" in provenance["notice"]


# --- healthy checkpoints (D2)


@pytest.fixture
def diverging(monkeypatch):
    """A rate of 1e30 at step 5 and no other: the weights of step 5 are lost, in finite numbers."""
    real = guard.learning_rate
    monkeypatch.setattr(guard, "learning_rate", lambda step, chosen: 1e30 if step == 5 else real(step, chosen))


@pytest.mark.parametrize("every", [1, 2, 4])
def test_a_diverged_run_leaves_its_good_checkpoint_and_says_how_to_go_on(diverging, tmp_path, monkeypatch, every):
    run = settings(checkpoint_every=every, keep_checkpoints=1, clip_norm=None, ema_decay=None)
    with pytest.raises(NumericsError, match="weights have diverged.*learning_rate=0.001") as caught:
        fit(Tiny(), l1, Patches(), run, tmp_path)
    assert "go on from checkpoint-000004" in str(caught.value)
    assert checkpoint.checkpoints(tmp_path)[-1].name == "checkpoint-000004"
    assert (tmp_path / "diverged-000005").exists() == (every == 1)
    with pytest.raises(NumericsError, match="go on from checkpoint-000004"):  # unchanged, it does the same again
        fit(Tiny(), l1, Patches(), run, tmp_path, resume="latest")
    monkeypatch.undo()
    slower = settings(checkpoint_every=every, clip_norm=None, ema_decay=None, learning_rate=1e-3)
    result = fit(Tiny(), l1, Patches(), slower, tmp_path, resume="latest", changes=["training.learning_rate"])
    assert result.finished
    assert 0 < result.loss < 1


def test_a_stop_among_bad_steps_does_not_hide_the_good_checkpoint(diverging, tmp_path):
    run = settings(checkpoint_every=2, keep_checkpoints=1, clip_norm=None, ema_decay=None)
    fit(Tiny(), l1, Patches(), run, tmp_path, until=7)  # as a scheduler stops it: two bad steps in a row
    assert [path.name[-1] for path in checkpoint.checkpoints(tmp_path)] == ["2", "4", "7"]
    with pytest.raises(NumericsError, match="step 8: .*go on from checkpoint-000004"):
        fit(Tiny(), l1, Patches(), run, tmp_path, resume="latest")
    assert [path.name[-1] for path in checkpoint.checkpoints(tmp_path)] == ["2", "4"]


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "learning_rate", lambda step, chosen: float("inf") if step == 12 else 1e-3)
    with pytest.raises(NumericsError, match="weights are not finite.*go on from checkpoint-000010"):
        fit(Tiny(), l1, Patches(), settings(checkpoint_every=10), tmp_path)
    assert not (tmp_path / "final").exists()


def test_the_error_has_the_command_that_goes_on(diverging, tmp_path, capsys, monkeypatch):
    """What is printed is run as it stands, and reaches the end."""

    def main(config, run):
        train(run.output, config, resume=run.resume, changes=run.changes)
        return 0

    (tmp_path / "run.yaml").write_text(dump_config(Config(training=settings(clip_norm=None, checkpoint_every=2))))
    words = ["--config", f"{tmp_path / 'run.yaml'}", "--output", f"{tmp_path / 'my run'}", "--resume=latest"]
    monkeypatch.setattr(sys, "argv", ["recipe.py", *words])
    assert run_recipe(main, Config, tmp_path / "run.yaml", "recipe") == 2
    said = capsys.readouterr().err
    assert "step 8: " in said
    command = shlex.split(said.strip().splitlines()[-1].partition("Lower the learning rate, and ")[2].split(": ", 1)[1])
    assert command[:2] == ["python", "recipe.py"]
    assert command.count("latest") == 1
    monkeypatch.undo()
    assert run_recipe(main, Config, tmp_path / "run.yaml", "recipe", command[2:]) == 0
    assert json.loads((tmp_path / "my run/final/metadata.json").read_text())["changes"][0]["after"] == 4


# --- one writer (D3, D11)


def start_in(folder):
    """A run in another process that waits in its second step until FOLDER/go is there."""
    code = f"""
import time, pathlib
from train_tiny import *
from milo_restore.train import fit
def step(model, batch, number):
    while number == 2 and not pathlib.Path({str(folder.parent / "go")!r}).exists():
        time.sleep(0.02)
    return l1(model, batch, number)
fit(Tiny(), step, Patches(), settings(), {str(folder)!r})
"""
    tests = os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(tests), tests])}
    child = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE)
    while not (folder / "metrics.jsonl").exists():
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.05)
    return child


def test_a_second_run_in_one_folder_is_refused_by_host_and_process(tmp_path):
    output = tmp_path / "run"
    child = start_in(output)
    for resume in (None, "latest"):
        with pytest.raises(ConfigError, match=f"in use by process {child.pid} on {socket.gethostname()} since 20"):
            fit(Tiny(), l1, Patches(), settings(), output, resume=resume)
    (tmp_path / "go").touch()
    assert child.wait(60) == 0
    lines = [json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, 13))
    assert not (output / ".lock").exists()


def test_the_lock_of_a_killed_run_is_open(tmp_path, capsys):
    output = tmp_path / "run"
    child = start_in(output)
    child.kill()
    child.wait()
    assert (output / ".lock").exists()
    fit(Tiny(), l1, Patches(), settings(), output, resume="latest", until=2)
    assert f"was locked by process {child.pid} on {socket.gethostname()}, which is gone" in capsys.readouterr().err


@pytest.mark.parametrize("alive", [True, False])
def test_a_writer_on_another_host_whose_locks_do_not_reach_here(tmp_path, monkeypatch, alive):
    """As on a file system that is mounted with local locks: only its touches tell."""
    monkeypatch.setattr(lock_room, "BEAT", 0.1)
    path, done = tmp_path / ".lock", threading.Event()
    path.write_text(json.dumps({"host": "node7", "process": 12, "since": "yesterday"}))

    def touch():
        while not done.wait(0.05):
            os.utime(path)

    writer = threading.Thread(target=touch)
    lock = FolderLock(tmp_path)
    try:
        if alive:
            writer.start()
            with pytest.raises(ConfigError, match="in use by process 12 on node7 since yesterday"):
                lock.acquire()
        else:
            assert "process 12 on node7, which is gone" in lock.acquire()[0]
            assert json.loads(path.read_text())["host"] == socket.gethostname()
    finally:
        done.set()
        lock.release()


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock_room.fcntl, "lockf", none)
    with pytest.raises(Exception, match="this file system has no locks .*Name an --output on another file system"):
        fit(Tiny(), l1, Patches(), settings(), tmp_path)


def test_the_users_files_stay(tmp_path):
    important = tmp_path / ".tmp-important"
    important.mkdir()
    (important / "thesis.tex").write_text("x")
    (tmp_path / "notes.txt").write_text("x")
    fit(Tiny(), l1, Patches(), settings(), tmp_path, until=1)
    assert (important / "thesis.tex").exists()
    for name in ("config.yaml", "metrics.jsonl", "run.json"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("mine")
        for resume in (None, "latest"):
            with pytest.raises(ConfigError, match=f"holds {name}, which no training run of this program has begun"):
                fit(Tiny(), l1, Patches(), settings(), folder, resume=resume)
        assert (folder / name).read_text() == "mine"


# --- records (D7, D10, D12, and the last step of D14)


def scalars(output, tag):
    events = EventAccumulator(str(output / "logs/milo-restore"), purge_orphaned_data=True).Reload()
    return [event.step for event in events.Scalars(tag)]


def test_each_step_is_in_tensorboard_once_after_a_kill_before_the_first_checkpoint(tmp_path):
    def killed(model, batch, number):
        if number == 5:
            raise KeyboardInterrupt  # nothing is saved
        return l1(model, batch, number)

    run = settings(trackers=("tensorboard",))
    with pytest.raises(KeyboardInterrupt):
        fit(Tiny(), killed, Patches(), run, tmp_path)
    time.sleep(1.1)  # event files are named by the second
    fit(Tiny(), l1, Patches(), run, tmp_path, resume="latest")
    assert scalars(tmp_path, "loss") == list(range(1, 13))


def test_a_tracker_that_fails_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    from accelerate.tracking import TensorBoardTracker

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorBoardTracker, "log", full)
    assert fit(Tiny(), l1, Patches(), settings(trackers=("tensorboard",)), tmp_path).finished
    said = capsys.readouterr().err
    assert said.count("tensorboard failed ([Errno 28] No space left on device): the run goes on without") == 1


def test_orphans_in_folders_below_are_cleaned(tmp_path):
    fit(Tiny(), l1, Patches(), settings(), tmp_path, until=2)
    for name in ("samples/.tmp-000002-4711-140203.png", "eval/x/ref/.tmp-a-4711-140203.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    fit(Tiny(), l1, Patches(), settings(), tmp_path, resume="latest", until=3)
    assert not list(tmp_path.rglob(".tmp-*"))


def test_the_last_checkpoint_is_there_before_the_last_evaluation(tmp_path):
    """A scheduler that sends SIGTERM there, and SIGKILL soon after, costs nothing; what was left out is made good."""
    run = settings(evaluate_every=12)

    def killed(model):
        assert (tmp_path / "checkpoint-000012").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(Tiny(), l1, Patches(), run, tmp_path, evaluate=killed)
    result = fit(Tiny(), l1, Patches(), run, tmp_path, resume="latest", evaluate=lambda m: {"psnr": 3.0})
    assert result.finished
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "evaluation" in line] == [12]
    assert load_file(tmp_path / "final/model.safetensors")


def test_a_signal_in_the_last_evaluation_is_answered(tmp_path):
    import signal

    def interrupted(model):
        signal.raise_signal(signal.SIGINT)
        return {"psnr": 1.0}

    result = fit(Tiny(), l1, Patches(), settings(evaluate_every=12), tmp_path, evaluate=interrupted)
    assert (result.finished, result.stopped, result.exit_code) == (True, True, 130)
