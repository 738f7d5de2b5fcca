"""BasicSR's training program, started so that it finds MILO, leaves its results here, and needs no GPU.

What is worked around is in ``train.py``, ``utils/dist_util.py`` and ``models/base_model.py`` of basicsr 1.4.2.
"""

from __future__ import annotations

import milo_restore.compat  # noqa: F401  # isort: skip  (before basicsr, which it makes importable)

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from basicsr import train
from basicsr.models import base_model
from basicsr.utils import dist_util
from torch.nn.parallel import DistributedDataParallel

from milo_restore.basicsr.checks import check_images, check_options
from milo_restore.basicsr.options import forced, read_options, swap_loss
from milo_restore.compat import forks_on_path
from milo_restore.errors import ConfigError, WeightsError

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Check the configuration, swap the loss where asked to, and train. Results go to the current directory.

    Args:
        arguments: parsed by `milo_restore.basicsr.options.add_options`.

    Returns:
        0.

    Raises:
        ConfigError: the configuration is wrong; nothing was written.
        DataError: the images are missing or damaged; nothing was written.
    """
    options = read_options(arguments.opt)
    launcher = _launcher(arguments)
    for fork in forks_on_path():
        _say(f"note: {fork} is Restormer's fork of basicsr; this is PyPI's, whatever PYTHONPATH says")
    with ExitStack() as stack:
        path = arguments.opt
        if arguments.loss is not None:
            _say(swap_loss(options, arguments.loss, arguments.weights, path))
            path = stack.enter_context(_swapped(options, path, arguments.loss))
        elif arguments.weights is not None:
            raise ConfigError(
                "means nothing without --loss", where="--weights", mend="Add --loss milo, or edit the file"
            )
        effective = forced(options, arguments.force_yml)
        processes = 1 if launcher == "none" else int(os.environ.get("WORLD_SIZE", "1"))
        for note in check_options(effective, arguments.opt, processes):
            _say(f"note: {note}")
        if not arguments.no_image_check and _rank() == 0:
            check_images(effective)
        stack.enter_context(patch.object(sys, "argv", _command_line(arguments, path, launcher)))
        stack.enter_context(_spawned_workers_find_us())
        if not torch.cuda.is_available():
            stack.enter_context(_without_gpu())
        train.train_pipeline(os.getcwd())
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


def _launcher(arguments: argparse.Namespace) -> str:
    """Under torchrun and accelerate launch BasicSR must be told that it is not alone; else N runs would collide."""
    if arguments.launcher is not None:
        return str(arguments.launcher)
    return "pytorch" if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ else "none"


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _say(line: str) -> None:
    if _rank() == 0:
        print(f"milo-restore basicsr: {line}", flush=True)


def _command_line(arguments: argparse.Namespace, path: Path, launcher: str) -> list[str]:
    """What BasicSR's own parser gets to see."""
    line = ["milo_restore.basicsr", "-opt", str(path), "--launcher", launcher]
    line += ["--local_rank", str(arguments.local_rank)]
    line += ["--auto_resume"] * arguments.auto_resume + ["--debug"] * arguments.debug
    return line + (["--force_yml", *arguments.force_yml] if arguments.force_yml else [])


@contextmanager
def _swapped(options: dict[str, Any], original: Path, loss: str) -> Iterator[Path]:
    """The changed configuration in a file of the same name, which BasicSR reads and copies into the experiment."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / original.name
        text = yaml.safe_dump(options, sort_keys=False, width=120)
        path.write_text(f"# {original.resolve()} with --loss {loss}\n{text}", encoding="utf-8")
        yield path


@contextmanager
def _spawned_workers_find_us() -> Iterator[None]:
    """Distributed BasicSR spawns its data workers, which import the main module anew: let that be this room's.

    The console script imports no basicsr, and without `milo_restore.compat` none can be imported. A ``__main__`` as
    ``python -m`` runs it multiprocessing does not import at all.
    """
    main = sys.modules["__main__"]
    with patch.object(main, "__spec__", importlib.util.find_spec(__name__)):
        yield


@contextmanager
def _without_gpu() -> Iterator[None]:
    """Where BasicSR asks for a GPU although it needs none: resuming, starting a process group, wrapping a network."""
    with (
        patch.object(train, "load_resume_state", _load_resume_state),
        patch.object(dist_util, "_init_dist_pytorch", _start_gloo),
        patch.object(base_model, "DistributedDataParallel", _OnCPU),
        patch.object(torch.cuda, "current_device", lambda: 0),  # an argument of the call above, which ignores it
    ):
        yield


def _start_gloo(backend: str, **options: Any) -> None:
    torch.distributed.init_process_group(backend="gloo", **options)


class _OnCPU(DistributedDataParallel):
    """BasicSR asks for the isinstance of what it wraps with, so this must be a class."""

    def __init__(self, network: torch.nn.Module, device_ids: list[int], **options: Any) -> None:
        super().__init__(network, **options)


def _load_resume_state(options: dict[str, Any]) -> dict[str, Any] | None:
    """BasicSR's function of this name, for the CPU."""
    path = options["path"].get("resume_state")
    if options["auto_resume"]:  # whatever the file names
        states = Path("experiments", options["name"], "training_states").glob("*.state")
        path = max(map(str, states), key=lambda state: float(Path(state).stem), default=None)
        options["path"]["resume_state"] = path
    if path is None:
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes of torch.load
        mend = "Delete it to go on from the one before, with --auto_resume"
        raise WeightsError("is no readable training state", where=path, mend=mend) from error
    train.check_resume(options, state["iter"])
    return state
