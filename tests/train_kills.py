"""Run by test_train_faults: kills training runs at random moments and resumes them. Prints what happened as JSON.

The parent imports everything once and never computes; each run is a fork of it, and so costs a fraction of a second.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import diffusers.training_utils  # noqa: F401  (with the next, what a run imports when it needs it: here once)
import torch
import torch._dynamo
from safetensors.torch import load_file
from train_tiny import Patches, Tiny, l1, settings

from milo_restore.train import Stage, fit


def start(output: Path, workers: int = 0, pause: float = 0.0) -> int:
    """Fork a run that goes on from the newest intact checkpoint; its exit code is 0, or 128 + signal."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        with (output.parent / "log.txt").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        run = settings(stages=(Stage(30, 8, 4),), checkpoint_every=1, workers=workers)

        def step(model, batch, number):
            time.sleep(pause)
            return l1(model, batch, number)

        result = fit(Tiny(), step, Patches(), run, output, resume="latest")
        code = 128 + (result.signal or 0) if result.stopped else 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def equal(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / "final" / "model.safetensors") for folder in (one, other))
    logs = []
    for folder in (one, other):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        logs.append([(line["step"], line["loss"]) for line in lines])
    return logs[0] == logs[1] and len(logs[0]) == 30 and all(torch.equal(v, second[k]) for k, v in first.items())


def main(folder: Path, kills: int) -> None:
    torch.set_num_threads(1)
    random.seed(5)
    whole, output = folder / "whole", folder / "killed"
    began = time.perf_counter()
    assert finish(start(whole)) == 0
    duration = time.perf_counter() - began
    report = {"kills": 0, "while_saving": 0, "runs": 0, "equal": 0, "failures": 0}
    while report["kills"] < kills or output.exists():
        child = start(output)
        if report["kills"] < kills:
            time.sleep(random.uniform(0.0, 0.6 * duration))
            os.kill(child, signal.SIGKILL)
        code = finish(child)
        if code == -signal.SIGKILL:
            report["kills"] += 1
            report["while_saving"] += any(output.glob(".tmp-checkpoint-*"))
        elif code == 0:
            report["runs"] += 1
            report["equal"] += equal(whole, output)
            shutil.rmtree(output)
        else:
            report["failures"] += 1
            break
    # Ctrl-C reaches the whole process group, data workers included.
    stopped = folder / "stopped"
    child = start(stopped, workers=2, pause=0.05)
    while not list(stopped.glob("checkpoint-*")):
        time.sleep(0.02)
    os.killpg(child, signal.SIGINT)
    report["interrupted"] = finish(child)
    report["interrupted_at"] = max(int(path.name[-6:]) for path in stopped.glob("checkpoint-*"))
    report["continued"] = finish(start(stopped))
    report["continued_equal"] = equal(whole, stopped)
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
