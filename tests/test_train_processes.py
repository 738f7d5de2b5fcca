"""Two real processes (gloo) under accelerate launch give what one gives, and agree on every error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from milo_restore.errors import ConfigError
from milo_restore.train import TrainSettings, checkpoint, fit

TESTS = Path(__file__).parent
ACCELERATE = TESTS.parent / "recipes" / "accelerate"


def launch(folder: Path, processes: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    command = [sys.executable]
    if processes > 1:
        # Through torchrun's launcher: accelerate launch --cpu starts several processes only by way of MPI.
        command += ["-m", "accelerate.commands.launch", "--config_file", str(ACCELERATE / "one_machine.yaml")]
        command += ["--num_processes", str(processes), "--main_process_port", "0", "--rdzv_backend", "c10d"]
        environment["CUDA_VISIBLE_DEVICES"] = ""
    else:
        environment["ACCELERATE_USE_CPU"] = "true"
    command += [str(TESTS / "train_worker.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of the runs on one and on two processes, and what each process of the latter reported."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    launch(one, 1)
    launch(two, 2)
    return one, two, [json.loads((two / f"found{rank}.json").read_text()) for rank in (0, 1)]


def losses(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def difference(one: Path, other: Path) -> float:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    return max((value - second[key]).abs().max().item() for key, value in first.items())


@pytest.mark.parametrize("name", ["run1", "run2"])
def test_two_processes_equal_one(runs, name):
    one, two, found = runs
    assert json.loads((two / name / "env.json").read_text())["processes"] == 2
    assert len(losses(two / name)) == 12
    assert losses(two / name) == pytest.approx(losses(one / name), abs=1e-5)
    assert losses(two / name) == pytest.approx(losses(one / "run1"), abs=1e-5)
    for file in ("final/model.safetensors", "checkpoint-000012/model.safetensors", "checkpoint-000012/ema.safetensors"):
        assert difference(one / name / file, two / name / file) < 1e-5
    assert found[0][name] == found[1][name]
    assert found[0][name]["finished"]


def test_resume_on_two_processes_is_bitwise(runs):
    _, two, _ = runs
    assert losses(two / "resumed") == losses(two / "run1")
    assert difference(two / "resumed/final/model.safetensors", two / "run1/final/model.safetensors") == 0


def test_a_bad_sample_of_one_process_stops_both(runs):
    one, two, found = runs
    for report in found:
        assert report["bad"]["error"] == "NumericsError"
        assert "image-13" in report["bad"]["text"]
    for folder in (one, two):
        lines = [json.loads(line) for line in (folder / "bad/metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "skipped" in line] == [2, 3, 4]
    named = next(line["samples"] for line in lines if "skipped" in line)
    assert named == ["image-5", "image-7"]  # only the second process's micro-batch
    checkpoint.verify(two / "bad/checkpoint-000004")


def test_a_signal_to_one_process_stops_both(runs):
    _, two, found = runs
    assert found[0]["signal"]["stopped"]
    assert found[1]["signal"]["stopped"]
    assert found[0]["signal"]["step"] == found[1]["signal"]["step"] == 4
    assert found[0]["signal"]["signal"] == found[1]["signal"]["signal"] == signal.SIGTERM
    checkpoint.verify(two / "signal/checkpoint-000004")


def test_errors_of_the_main_process_are_everybodys(runs):
    _, two, found = runs
    for report in found:
        assert report["used"]["error"] == "ConfigError"
        assert "already holds a training run" in report["used"]["text"]
        assert report["full"]["error"] == "DataError"
        assert "No space left on device" in report["full"]["text"]
    assert not list((two / "full").glob("checkpoint-*"))
    assert not list((two / "full").glob(".tmp-*"))


def test_nothing_of_the_process_group_outlives_it(runs):
    """A thread of gloo that outlived it could abort the process at its very end, after everything was written."""
    for report in runs[2]:
        assert report["threads of gloo"] == []


def test_this_torch_has_gloo():
    assert torch.distributed.is_gloo_available()


@pytest.mark.parametrize(("name", "processes"), [("one_machine", 8), ("several_machines", 16)])
def test_accelerate_reads_the_shipped_configurations(name, processes):
    config = load_config_from_file(str(ACCELERATE / f"{name}.yaml"))
    assert (str(config.distributed_type), config.num_processes) == ("DistributedType.MULTI_GPU", processes)


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_sharded_launches_are_refused(name, monkeypatch, tmp_path):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ConfigError, match=f"accelerate launch: {name} is not supported: training is data-parallel"):
        fit(torch.nn.Linear(1, 1), None, None, TrainSettings(trackers=()), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_slurm_script_starts_what_it_says(tmp_path):
    """On a machine that plays the cluster: one process's environment, and that a stopped run is queued again."""
    for tool, does in {
        "srun": 'SLURM_PROCID=9 SLURM_LOCALID=1 "$@"', "python": 'echo "$@ $RANK $LOCAL_RANK"; exit 143',
        "scontrol": 'if [ "$1" = show ]; then echo host1; else echo "$@ $WORLD_SIZE $MASTER_ADDR"; fi',
    }.items():  # fmt: skip
        (tmp_path / tool).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / tool).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_NTASKS": "16",
                   "SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_NODELIST": "host[1-2]", "SLURM_JOB_ID": "7"}  # fmt: skip
    words = ["bash", str(ACCELERATE / "slurm.sh"), "recipe.py", "--set", "a=b c"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 143, done.stderr
    assert done.stdout == "recipe.py --set a=b c --resume latest 9 1\nrequeue 7 16 host1\n"
