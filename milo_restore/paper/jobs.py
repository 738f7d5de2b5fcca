"""Running the commands of a table: each with its log, in order, with what failed remembered by what needed it."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, TextIO, TypeAlias

from milo_restore.errors import MiloRestoreError

if TYPE_CHECKING:
    from milo_restore.paper import Job

Main: TypeAlias = Callable[[Sequence[str]], int]

LAUNCH = "accelerate launch"
_PATIENCE = 120.0  # seconds that an interrupted training gets to save its state
_TERMINATED = 128 + signal.SIGTERM


class JobFailed(MiloRestoreError):
    """A command did not end well.

    Attributes:
        mendable: it said in one line what a user can mend; else it crashed. Launchers keep no exit codes.
    """

    def __init__(self, what: str, *, where: str | Path, mendable: bool) -> None:
        super().__init__(what, where=where)
        self.mendable = mendable


def run_job(job: Job, logs: Path, launch: str, main: Main) -> float:
    """Run a command; what it prints goes to a log.

    Args:
        job: the command. ``milo-restore`` runs within this process, others as children, which an interrupt lets save.
        logs: folder of the logs.
        launch: what ``accelerate launch`` is replaced by.
        main: of ``milo-restore``: from a command's words to its exit code.

    Returns:
        The seconds it took.

    Raises:
        JobFailed: it did not end well; the last error it printed is told.
    """
    log = logs / ("-".join(job.folder.parts[-3:]).replace("/", "-") + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    with log.open("w", encoding="utf-8") as stream:
        print(f"$ {job.text}", file=stream, flush=True)
        if job.command[0] == "milo-restore":
            code = _here(job.command[1:], main, stream)
        else:
            code = _child(_words(job.command, launch), stream)
    if code:
        said = _last_error(log)
        raise JobFailed(said or f"ended with exit code {code}", where=log, mendable=said is not None)
    return time.perf_counter() - begin


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM as an exception, so that a child is stopped and waited for, too; the exit code is then SIGTERM's."""
    terminated = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal terminated
        terminated = True
        raise KeyboardInterrupt  # commands within this process would make an exit code of SystemExit, and go on

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        if terminated:
            raise SystemExit(_TERMINATED) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _words(command: Sequence[str], launch: str) -> list[str]:
    """The command with this environment's Python, whatever is on the PATH."""
    if command[:2] == ("accelerate", "launch"):
        first, *more = shlex.split(launch)
        start = [sys.executable, "-m", "accelerate.commands.accelerate_cli"] if first == "accelerate" else [first]
        return [*start, *more, *command[2:]]
    return [sys.executable, *command[1:]] if command[0] == "python" else list(command)


def _here(arguments: Sequence[str], main: Main, stream: TextIO) -> int:
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        code = main(list(arguments))
    if code == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    return code


def _child(words: Sequence[str], stream: TextIO) -> int:
    child = subprocess.Popen(words, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        return child.wait()
    except BaseException:  # Ctrl-C or SIGTERM: the whole session of the child gets the chance to save
        _stop(child)
        raise


def _stop(child: subprocess.Popen[bytes]) -> None:
    """One signal to launcher and training alike; a second one would end the training at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            child.poll()
            os.killpg(child.pid, 0)  # the launcher may end before the training
            time.sleep(0.1)
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _last_error(log: Path) -> str | None:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if ": error: " in line]
    return lines[-1].split(": error: ", 1)[1] if lines else None
