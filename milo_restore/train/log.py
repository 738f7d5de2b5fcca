"""The run folder's records: config.yaml, env.json, metrics.jsonl, samples/, the trackers, and one progress bar."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm

import milo_restore
from milo_restore.config import dump_config
from milo_restore.files.write import sync
from milo_restore.train.checkpoint import replace_file, writing
from milo_restore.train.settings import TrainSettings

PROJECT = "milo-restore"
_PACKAGES = ("torchvision", "accelerate", "diffusers", "safetensors", "numpy")


class Journal:
    """Writes a run's records; on processes other than the main one it does nothing.

    Args:
        accelerator: the run's, with its trackers not yet started.
        output: the run folder.
        settings: of the run.
        record: what else to write down; see `fit`.
        start: the step that the run continues from; later lines of an earlier attempt are dropped.
        last: the step that it goes to.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output: Path,
        settings: TrainSettings,
        record: Mapping[str, Any],
        start: int,
        last: int,
    ) -> None:
        self.accelerator, self.output, self.settings = accelerator, output, settings
        self.main = accelerator.is_main_process
        self._metrics = output / "metrics.jsonl"
        if self.main:
            _write_environment(accelerator, output, settings, record, start)  # first: it says whose the folder is
            replace_file(output / "config.yaml", record.get("config") or dump_config(settings))
            _truncate(self._metrics, start)
        # tensorboard would make a second run folder of the settings; config.yaml holds them.
        chosen = dump_config(settings) if set(settings.trackers) - {"tensorboard"} else None
        # Also at the start of a run: one that was killed before its first checkpoint has left points.
        options = {"tensorboard": {"purge_step": start + 1}}
        self._trackers_work = True
        with self._tracking():
            accelerator.init_trackers(PROJECT, {"settings": chosen} if chosen else None, options)
        self.live = self.main and sys.stderr.isatty()
        self.bar = tqdm(total=last, initial=start, unit="step", disable=not self.live, dynamic_ncols=True)
        self._since, self._at = time.perf_counter(), start
        self._began, self._start, self.last = self._since, start, last

    def say(self, line: str) -> None:
        """One line to the terminal, above the bar."""
        if self.main:
            tqdm.write(line, file=sys.stderr)

    def advance(self, loss: float, l1: float | None, rate: float, curriculum: float | None) -> None:
        """One step is done."""
        if self.live:
            residual = {} if l1 is None else {"l1": f"{l1:.4g}"}
            position = {} if curriculum is None else {"curriculum": f"{curriculum:.2f}"}
            self.bar.set_postfix({"loss": f"{loss:.4g}", **residual, "lr": f"{rate:.2e}", **position}, refresh=False)
        self.bar.update()  # draws, so it comes last

    def write(self, step: int, values: Mapping[str, Any], *, track: bool = True) -> None:
        """One line of metrics.jsonl, its numbers to the trackers."""
        if not self.main:
            return
        # Opened for each line: a full disk shows here, and not once more when the file is closed.
        with writing(self._metrics), self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if track:
            with self._tracking():
                self.accelerator.log(_flat(values), step=step)

    def progress(self, step: int, values: dict[str, Any]) -> None:
        """The regular line of a step: to metrics.jsonl and the trackers, and to the terminal where there is no bar."""
        now = time.perf_counter()
        speed = (step - self._at) / max(now - self._since, 1e-9)
        self._since, self._at = now, step
        self.write(step, {**values, "steps_per_second": round(speed, 4)})
        if not self.live:
            numbers = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
            left = (self.last - step) * (now - self._began) / max(step - self._start, 1)
            self.say(f"step {step}/{self.last}  {numbers}  {speed:.3g} it/s  {tqdm.format_interval(left)} left")

    def picture(self, step: int, array: np.ndarray[Any, Any]) -> None:
        """A sample grid, uint8 (H, W, 3) RGB: to samples/000500.png and the trackers that take pictures."""
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise TypeError(f"sample must return a uint8 array (H, W, 3), got {array.dtype} {array.shape}")
        content = io.BytesIO()
        Image.fromarray(array).save(content, "PNG")
        replace_file(self.output / "samples" / f"{step:06d}.png", content.getvalue())
        with self._tracking():
            for tracker in self.accelerator.trackers:
                if tracker.name == "tensorboard":
                    tracker.log_images({"samples": array[None]}, step=step, dataformats="NHWC")
                elif tracker.name == "wandb":
                    tracker.log_images({"samples": [array]}, step=step)

    def shown(self, step: int) -> tuple[bool, bool]:
        """Whether the run folder has the picture, and the evaluation, of a step."""
        lines = _lines(self._metrics, step)
        evaluated = any(line["step"] == step and "evaluation" in line for line in lines)
        return (self.output / "samples" / f"{step:06d}.png").exists(), evaluated

    def sync(self) -> None:
        """Bring metrics.jsonl to the disk, as the checkpoint that follows will be."""
        if self.main:
            with writing(self._metrics):
                sync(self._metrics)

    def close(self) -> None:
        """Close the bar and the trackers; the process group stays, for it is not the journal's."""
        self.bar.close()
        for tracker in self.accelerator.trackers:
            with self._tracking():
                tracker.finish()
        self.accelerator.trackers = []

    @contextlib.contextmanager
    def _tracking(self) -> Iterator[None]:
        """A tracker that fails is told of once and left alone: metrics.jsonl has every number."""
        try:
            yield
        except Exception as error:  # a full disk, no network: each tracker has errors of its own
            if self._trackers_work:
                reason = " ".join(str(error).split())[:160] or type(error).__name__
                self.say(f"warning: {', '.join(self.settings.trackers)} failed ({reason}): the run goes on without")
            self._trackers_work = False
            self.accelerator.trackers = []


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    numbers: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            numbers.update(_flat(value, f"{prefix}{key}/"))
        elif isinstance(value, (int, float)):
            numbers[prefix + key] = float(value)
    return numbers


def _truncate(path: Path, start: int) -> None:
    """Keep the lines up to step ``start``; a killed run's last line may be torn."""
    replace_file(path, "".join(json.dumps(line) + "\n" for line in _lines(path, start)))


def _lines(path: Path, last: int) -> list[dict[str, Any]]:
    """The whole lines up to step ``last``."""
    kept = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
            if line["step"] <= last:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return kept


def environment() -> dict[str, Any]:
    """Versions of what took part, and the commit of the checkout that this package runs from (or None)."""
    versions = {"python": platform.python_version(), "milo-restore": milo_restore.__version__}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "unknown"
    versions["torch"] = torch.__version__  # with the build's tag, such as +cu126
    return {"versions": versions, "git": _commit(), "platform": platform.platform()}


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed: the folder above may be someone else's repository
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _write_environment(
    accelerator: Accelerator, output: Path, settings: TrainSettings, record: Mapping[str, Any], start: int
) -> None:
    path = output / "env.json"
    entry = {
        **environment(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "from_step": start,
        "seed": settings.seed,
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        **{key: value for key, value in record.items() if key != "config"},
    }
    earlier: list[Any] = []
    if start and path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            earlier = [*before.pop("earlier", []), before]
        except (ValueError, AttributeError):
            earlier = []  # a record of the past, not needed to go on
    replace_file(path, json.dumps({**entry, "earlier": earlier}, indent=1, default=str) + "\n")
