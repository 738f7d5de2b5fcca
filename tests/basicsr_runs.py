"""What runs of BasicSR leave behind, and how two processes are started."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import dataclass

import torch
from basicsr.utils import logger as basicsr_logger
from conftest import REPOSITORY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@dataclass
class Run:
    """What a run of the launcher left behind.

    Attributes:
        code: its exit code.
        scalars: tensorboard's: name, iteration, value.
        positions: of the curricula, in the order in which losses asked.
    """

    code: int
    scalars: dict[str, dict[int, float]]
    positions: list[float]

    def losses(self) -> dict[str, dict[int, float]]:
        return {name: curve for name, curve in self.scalars.items() if name.startswith("losses/")}

    def metrics(self) -> dict[str, list[float]]:
        return {name: list(curve.values()) for name, curve in self.scalars.items() if name.startswith("metrics/")}


def scalars_of(paths):
    """What tensorboard's files hold: name, iteration, value."""
    scalars: dict[str, dict[int, float]] = {}
    for path in paths:
        events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        for name in events.Tags()["scalars"]:
            scalars.setdefault(name, {}).update({event.step: event.value for event in events.Scalars(name)})
    return scalars


def forget_logger():
    """BasicSR's logger writes into its first run's file for ever."""
    basicsr_logger.initialized_logger.clear()
    logger = logging.getLogger("basicsr")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


def networks(folder, options, iteration):
    """Parameters of the networks saved at an iteration, by network and parameter."""
    found = {}
    for path in (folder / "experiments" / options["name"] / "models").glob(f"*_{iteration}.pth"):
        for kind, state in torch.load(path, weights_only=True).items():
            found.update({f"{path.stem}.{kind}.{name}": value for name, value in state.items()})
    return found


def launch_two(folder, *arguments):
    """``torchrun --nproc_per_node 2 -m milo_restore.basicsr`` with the arguments, in the folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "milo_restore.basicsr", *map(str, arguments)]
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd=folder)
        try:
            code = process.wait(240)
        finally:
            process.terminate()  # torchrun then ends its processes, which have sessions of their own
            process.wait(60)
    assert code == 0, (folder / "output.txt").read_text()[-4000:]
