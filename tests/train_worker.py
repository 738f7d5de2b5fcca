"""Run by test_train_processes, on one process or under accelerate launch on two: short runs, their outcome as JSON."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from train_tiny import Patches, Tiny, l1, settings

from milo_restore.errors import MiloRestoreError
from milo_restore.processes import leave
from milo_restore.train import fit
from milo_restore.train import state as state_room


def outcome(work) -> dict:
    """What a call of fit came to, on this process."""
    try:
        result = work()
    except MiloRestoreError as error:
        return {"error": type(error).__name__, "text": str(error)}
    kept = ("step", "stopped", "finished", "signal", "loss")
    return {name: getattr(result, name) for name in kept}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank, processes, found = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")), {}
    PartialState()  # as a recipe may, to find its device: on a CPU this alone sees one process
    plain = {"learning_rate": 1e-3}

    # Batches of 4 and of 5 samples: with two processes and two micro-batches nothing divides evenly.
    def split(accumulation):
        run = settings(accumulation=accumulation, **plain)
        return fit(Tiny(dropout=0.0), l1, Patches(), run, folder / f"run{accumulation}")

    found["run1"] = outcome(lambda: split(1))
    found["run2"] = outcome(lambda: split(2))

    def resumed():
        run, output = settings(**plain), folder / "resumed"
        fit(Tiny(dropout=0.0), l1, Patches(), run, output, until=7)
        return fit(Tiny(seed=3, dropout=0.0), l1, Patches(), run, output, resume="latest")

    found["resumed"] = outcome(resumed)

    data = Patches(dict.fromkeys((5, 9, 13), float("nan")))  # odd indices: with two processes, all on the second
    found["bad"] = outcome(lambda: fit(Tiny(), l1, data, settings(), folder / "bad"))

    def signalled(model, batch, number):
        if number == 4 and rank == processes - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return l1(model, batch, number)

    found["signal"] = outcome(lambda: fit(Tiny(), signalled, Patches(), settings(), folder / "signal"))
    found["used"] = outcome(lambda: fit(Tiny(), l1, Patches(), settings(), folder / "signal"))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    state_room.save_model, kept = full, state_room.save_model  # only the main process writes
    found["full"] = outcome(lambda: fit(Tiny(), l1, Patches(), settings(), folder / "full", until=2))
    state_room.save_model = kept
    leave()
    names = [task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").glob("*")]
    found["threads of gloo"] = [name for name in names if "gloo" in name]
    (folder / f"found{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
