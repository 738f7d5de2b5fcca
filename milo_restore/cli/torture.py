"""``milo-restore doctor --torture RECIPE``: what kills and full disks do to a training, tried on one's own machine.

The recipe runs once to its end, and every rename, deletion, new folder and sync of a file is counted. Then it is killed
before and after each of these, and once for each size of its files the disk takes no more; each time it goes on with
``--resume latest`` and must leave the same files, bit for bit. This is on the CPU, where a run is exact. Every run is a
fork of one process that has imported the recipe, so that none waits for imports.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import json
import os
import resource
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from milo_restore.errors import ConfigError

_OPERATIONS = ("rename", "replace", "unlink", "remove", "rmdir", "mkdir", "fsync", "ftruncate")
_TRIES = 3  # runs after a fault until the recipe has come to its end
_APART = ("logs", "env.json", "eval", ".lock")  # times, and what is measured after training from what is compared here


@dataclass
class Count:
    """Outcome of the torture.

    Attributes:
        kills: how often the recipe was killed.
        full: how often the disk was full.
        faults: what went wrong, each in one line.
    """

    kills: int = 0
    full: int = 0
    faults: list[str] = field(default_factory=list)


def torture(recipe: Path, arguments: Sequence[str], points: int | None) -> int:
    """Run it, and print the count.

    Args:
        recipe: a script that takes ``--output`` and ``--resume``, as this project's recipes do.
        arguments: its other ones; a run of a few seconds is long enough.
        points: of the kills, and of the full disks, at most so many, evenly spread; None: all.

    Returns:
        0 where every run ended as the one that nobody disturbed, else 1.

    Raises:
        ConfigError: there is no such recipe, it does not run, or two undisturbed runs differ.
    """
    if not recipe.is_file():
        raise ConfigError("no such recipe", where=recipe, mend="Name a Python file, such as recipes/train_milo.py")
    _load(recipe)
    with tempfile.TemporaryDirectory(prefix="milo-restore-torture-") as name:
        folder = Path(name)
        start = functools.partial(_start, recipe, arguments, folder / "log.txt")
        whole, again, counted = folder / "whole", folder / "run", folder / "counted"
        began = time.perf_counter()
        for output, count in ((whole, counted), (again, None)):
            if (code := start(output, count=count)) != 0:
                last = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
                raise ConfigError(f"ends with {code} ({' '.join(last)})", where=recipe, mend="Make it run by itself")
            if count is not None:
                _import(counted.with_suffix(".modules").read_text(encoding="utf-8").split("\n"))
        seconds = (time.perf_counter() - began) / 2
        if differing := differences(whole, again):
            what = f"two runs that nobody disturbed differ ({differing[0]})"
            raise ConfigError(what, where=recipe, mend="Only an exact recipe can be held against itself")
        places, sizes = int(counted.read_text(encoding="utf-8")), _sizes(whole)
        print(f"{recipe.name}: {seconds:.1f} s, {places // 2} operations on files of {len(sizes)} sizes", flush=True)
        found = Count()
        for place in _spread(range(1, places + 1), points):
            found.kills += _try(found, f"killed at {place} of {places}", start, whole, again, kill=place)
        for size in _spread(sizes, points):
            found.full += _try(found, f"files of at most {size - 1} bytes", start, whole, again, limit=size - 1)
    print(
        f"{found.kills} kills before and after operations on files, {found.full} full disks, each gone on from with "
        f"--resume latest: {found.kills + found.full - len(found.faults)} ended as the run that nobody disturbed, bit "
        f"for bit; {len(found.faults)} did not"
    )
    return 1 if found.faults else 0


def _try(found: Count, what: str, start: Callable[..., int], whole: Path, output: Path, **fault: int) -> bool:
    """One fault, and the runs after it. Returns whether the fault took place."""
    shutil.rmtree(output, ignore_errors=True)
    code = start(output, **fault)
    if code == 0 and "kill" in fault:
        return False  # the last places of a run may come in another order
    wrong = "a traceback in place of one line" if code == 1 else None
    tries = 0
    while code != 0 and tries < _TRIES:
        tries += 1
        code = start(output, resume=True)
    if code != 0:
        wrong = f"--resume latest ends with {code}"
    elif wrong is None and (differing := differences(whole, output)):
        wrong = f"another result ({differing[0]})"
    if wrong is not None:
        found.faults.append(f"{what}: {wrong}")
        print(found.faults[-1], flush=True)
    return True


def differences(one: Path, other: Path) -> list[str]:
    """Files of two run folders that differ, or are in one of them only; more checkpoints are no difference."""

    def names(folder: Path) -> set[str]:
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        return {name for name in files if name.split("/")[0] not in _APART}

    first, second = names(one), names(other)
    more = {name for name in second - first if not name.startswith("checkpoint-")}
    wrong = [f"{name} is in one only" for name in sorted((first - second) | more)]
    return wrong + [name for name in sorted(first & second) if _content(one / name) != _content(other / name)]


def _content(path: Path) -> Any:
    """Content that must be the same: speeds and dates apart, and a .pt by its tensors."""
    if path.name == "metrics.jsonl":
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [{key: value for key, value in line.items() if key != "steps_per_second"} for line in lines]
    if path.name == "manifest.json":
        return None  # of what is compared itself
    if path.name == "metadata.json":  # the commit is asked of git, which may take too long
        return {key: value for key, value in json.loads(path.read_bytes()).items() if key != "git"}
    if path.suffix == ".pt":
        import torch

        return _plain(torch.load(path, map_location="cpu", weights_only=True))
    return path.read_bytes()


def _plain(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return value.dtype, value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _load(recipe: Path) -> None:
    """Import what the recipe imports, in this process, which computes nothing."""
    sys.path.insert(0, str(recipe.resolve().parent))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["OMP_NUM_THREADS"] = "1"  # threads of a parent are not there in its forks
    runpy.run_path(str(recipe), run_name="imported")
    import torch

    torch.set_num_threads(1)


def _import(names: Sequence[str]) -> None:
    """Import what the first run needed beside that, when it needed it: the others then have it."""
    for name in names:
        if name not in sys.modules and name != "__main__":
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(name)


def _start(
    recipe: Path,
    arguments: Sequence[str],
    log: Path,
    output: Path,
    *,
    resume: bool = False,
    count: Path | None = None,
    kill: int | None = None,
    limit: int | None = None,
) -> int:
    """Run the recipe in a fork; its exit code, or minus the signal that ended it."""
    reading, writing = os.pipe()  # a terminal has no limit: what it prints is no file of the run
    child = os.fork()
    if child:
        os.close(writing)
        with open(reading, "rb") as said:
            log.write_bytes(said.read())
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        os.setsid()
        os.close(reading)
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        sys.argv = [str(recipe), *arguments, "--output", str(output), *(["--resume", "latest"] if resume else [])]
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        with _watched(output, kill) as places:
            try:
                runpy.run_path(str(recipe), run_name="__main__")
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        if count is not None:
            count.write_text(str(next(places) - 1), encoding="utf-8")
            count.with_suffix(".modules").write_text("\n".join(sys.modules), encoding="utf-8")
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code)


@contextlib.contextmanager
def _watched(output: Path, kill: int | None) -> Iterator[Iterator[int]]:
    """Count two places for each operation that changes a file of the run, and kill this process at one of them."""
    places, top = itertools.count(1), str(output.absolute())

    def place() -> None:
        if next(places) == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(real: Callable[..., Any]) -> Callable[..., Any]:
        def act(subject: Any, *others: Any, **options: Any) -> Any:
            ours = isinstance(subject, int) or str(os.path.abspath(os.fspath(subject))).startswith(top)
            if not ours and "dir_fd" not in options:
                return real(subject, *others, **options)
            place()
            result = real(subject, *others, **options)
            place()
            return result

        return act

    before = {name: getattr(os, name) for name in _OPERATIONS}
    for name, real in before.items():
        setattr(os, name, around(real))
    try:
        yield places
    finally:
        for name, real in before.items():
            setattr(os, name, real)


def _sizes(folder: Path) -> list[int]:
    """The sizes of a run's files, largest first; each stands for a disk that is full there."""
    return sorted({path.stat().st_size for path in folder.rglob("*") if path.is_file()} - {0}, reverse=True)


def _spread(places: Sequence[int], points: int | None) -> list[int]:
    if points is None or points >= len(places):
        return list(places)
    return [places[number * len(places) // points] for number in range(points)]
