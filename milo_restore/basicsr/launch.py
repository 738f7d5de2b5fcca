"""BasicSR's training program, started so that it finds MILO, leaves its results here, and needs no GPU.

What is worked around is in basicsr 1.4.2's ``train.py``, ``utils/dist_util.py`` and
``models/{base,video_base,video_recurrent,realesrnet,realesrgan}_model.py``; forks lack some of these.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed.nn  # before there is a group: see milo_restore.processes.leave
import yaml
from basicsr import train
from basicsr.models import base_model
from basicsr.utils import dist_util
from torch.nn.parallel import DistributedDataParallel

from milo_restore.basicsr.checks import check_images, check_options
from milo_restore.basicsr.options import forced, read_options, swap_loss
from milo_restore.compat import forks_on_path
from milo_restore.errors import ConfigError, WeightsError
from milo_restore.processes import leave

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
        mend = f"to train with it: milo-restore run --loss milo-cosine -- {fork / 'train.py'} -opt FILE.yml"
        _say(f"note: {fork} is of Restormer's kind, and not the basicsr that trains here; {mend}")
    _import(arguments.modules)
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
        for note in check_options(effective, arguments.opt, _processes(launcher)):
            _say(f"note: {note}")
        if not arguments.no_image_check and _rank() == 0:
            check_images(effective)
        stack.enter_context(patch.object(sys, "argv", _command_line(arguments, path, launcher)))
        stack.enter_context(_spawned_workers_find_us())
        if not torch.cuda.is_available():
            stack.enter_context(_without_gpu())
        train.train_pipeline(os.getcwd())
        leave()
    return 0


def _import(modules: list[str]) -> None:
    """Import what registers a user's own classes, from the current directory too, as ``python -m`` would.

    Raises:
        ConfigError: a module cannot be imported.
    """
    if modules and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            mend = "Run it where its folder lies, or put that on PYTHONPATH"
            raise ConfigError(f"cannot be imported ({error})", where=f"--import {module}", mend=mend) from error


def _launcher(arguments: argparse.Namespace) -> str:
    """Under torchrun and accelerate launch BasicSR must be told that it is not alone; else N runs would collide.

    Raises:
        ConfigError: accelerate was asked for several processes, and told none of them its rank.
    """
    if arguments.launcher is not None:
        return str(arguments.launcher)
    if "RANK" in os.environ:
        return "pytorch" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "none"
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ:
        what = "on the CPU it starts one process however many are asked for, or leaves their ranks to MPI"
        mend = "Use torchrun --nproc_per_node N -m milo_restore.basicsr, or add --launcher none to train in one process"
        raise ConfigError(what, where="accelerate launch", mend=mend)
    return "none"


def _processes(launcher: str) -> int:
    """Number of processes that train together."""
    counted = {"pytorch": "WORLD_SIZE", "slurm": "SLURM_NTASKS"}.get(launcher)
    return int(os.environ.get(counted, "1")) if counted is not None else 1


def _rank() -> int:
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def _say(line: str) -> None:
    if _rank() == 0:
        print(f"milo-restore basicsr: {line}", flush=True)


def _command_line(arguments: argparse.Namespace, path: Path, launcher: str) -> list[str]:
    """The arguments that BasicSR's own parser gets to see."""
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
    """Distributed BasicSR spawns its data workers, which must import this project before BasicSR's data set.

    A spawned process imports the main module anew, but not that of ``python -m``, which torchrun uses: this one stands
    in for it.
    """
    main = sys.modules["__main__"]
    with patch.object(main, "__spec__", importlib.util.find_spec(__name__)):
        yield


@contextmanager
def _without_gpu() -> Iterator[None]:
    """Where BasicSR asks for a GPU although it needs none.

    Resuming, starting a process group, wrapping a network, validating on video, Real-ESRGAN's own JPEGs and masks.
    """
    with ExitStack() as stack:
        for place, name, stand_in in (
            (train, "load_resume_state", _load_resume_state),
            (dist_util, "_init_dist_pytorch", _start_gloo),
            (base_model, "DistributedDataParallel", _OnCPU),
            (torch.cuda, "current_device", lambda: 0),  # an argument of the call above, which ignores it
            (torch.nn.Module, "cuda", lambda self, *_, **__: self),
            (torch.Tensor, "cuda", lambda self, *_, **__: self),
        ):
            if hasattr(place, name):
                stack.enter_context(patch.object(place, name, stand_in))
        for module in ("realesrnet_model", "realesrgan_model"):  # their JPEGs come out with other strides on a CPU
            place = sys.modules.get(f"basicsr.models.{module}")
            if place is not None and hasattr(place, "filter2D"):
                stack.enter_context(patch.object(place, "filter2D", _on_contiguous(place.filter2D)))
        for name in ("video_base_model.VideoBaseModel", "video_recurrent_model.VideoRecurrentModel"):
            module, kind = name.split(".")
            model = getattr(sys.modules.get(f"basicsr.models.{module}"), kind, None)  # BasicSR has imported what it has
            if model is not None:
                stack.enter_context(patch.object(model, "dist_validation", _on_cpu(model.dist_validation)))
        yield


def _on_contiguous(blur: Callable[..., Any]) -> Callable[..., Any]:
    return lambda image, kernel: blur(image.contiguous(), kernel)


def _start_gloo(backend: str, **options: Any) -> None:
    torch.distributed.init_process_group(backend="gloo", **options)


class _OnCPU(DistributedDataParallel):
    """BasicSR asks for the isinstance of what it wraps with, so this must be a class."""

    def __init__(self, network: torch.nn.Module, device_ids: list[int], **options: Any) -> None:
        super().__init__(network, **options)


def _on_cpu(validate: Callable[..., None]) -> Callable[..., None]:
    """A video model's validation that finds what BasicSR makes on a GPU, and there by the way copies.

    The metrics' tensors, (frames, metrics) per folder, which BasicSR makes unless there are some; and clips of its
    own for the model, as BasicSR squeezes the data set's in place before the model sees them.
    """

    @functools.wraps(validate)
    def dist_validation(self: Any, dataloader: Any, *arguments: Any) -> None:
        metrics = self.opt["val"].get("metrics")
        if metrics is not None and not hasattr(self, "metric_results"):
            frames = Counter(dataloader.dataset.data_info["folder"])
            self.metric_results = {folder: torch.zeros(count, len(metrics)) for folder, count in frames.items()}
        feed_data = self.feed_data

        def feed_copies(data: dict[str, Any]) -> None:
            feed_data({key: value.clone() if torch.is_tensor(value) else value for key, value in data.items()})

        with patch.object(self, "feed_data", feed_copies):
            validate(self, dataloader, *arguments)

    return dist_validation


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
