"""Where a run begins: its folder, which is its own and locked, and the checkpoint that it goes on from."""

from __future__ import annotations

import json
from pathlib import Path

from milo_restore.errors import ConfigError, WeightsError
from milo_restore.files.lock import FolderLock
from milo_restore.files.quarantine import QUARANTINE
from milo_restore.train import checkpoint

ENVIRONMENT = "env.json"
"""The record that tells a run's folder from others: the first file that a run writes."""
_WRITTEN = ("config.yaml", "metrics.jsonl", "run.json", QUARANTINE, "samples", "logs", "eval")


def open_folder(output: Path, resume: str | Path | None, lock: FolderLock) -> tuple[Path | None, list[str]]:
    """Lock the run folder and decide where to start from.

    Args:
        output: the run folder; it is made.
        resume: see `milo_restore.train.fit`.
        lock: of the folder.

    Returns:
        A verified checkpoint or None, and what to tell the user about it.

    Raises:
        ConfigError: another process writes there, it holds a run already, or files that are no run's.
        WeightsError: a damaged checkpoint named by path, or none intact.
        DataError: it takes no files.
    """
    with checkpoint.writing(output):
        output.mkdir(parents=True, exist_ok=True)
    notes = lock.acquire()
    with checkpoint.writing(output):
        checkpoint.clean(output)
    return start_of(output, resume, notes)


def start_of(output: Path, resume: str | Path | None, notes: list[str]) -> tuple[Path | None, list[str]]:
    """Decide where a run starts; changes nothing.

    Args:
        output: the run folder, which need not exist.
        resume: see `milo_restore.train.fit`.
        notes: to which what there is to tell is added.

    Returns:
        A verified checkpoint or None, and the notes.

    Raises:
        ConfigError: the folder holds a run already, or files that are no run's.
        WeightsError: a damaged checkpoint named by path, or none intact.
    """
    if resume == "latest":
        source = checkpoint.newest_intact(output, notes.append)
        if source is not None:
            return source, [*notes, f"resuming from {source}"]
        notes.append(f"no checkpoint in {output}: starting fresh")
    elif resume is not None:
        source = Path(resume)
        if not source.is_dir():
            raise WeightsError("there is no such checkpoint folder", where=source, mend="--resume latest finds one")
        checkpoint.verify(source)
        if source.resolve().parent == output.resolve() or not checkpoint.checkpoints(output):
            return source, [*notes, f"resuming from {source}"]
    # Killed before its first checkpoint, a run starts again and finds its own best weights there.
    if checkpoint.checkpoints(output) or (output / "final").exists() or (resume is None and (output / "best").exists()):
        raise ConfigError(
            "already holds a training run",
            where=output,
            mend="Continue it with --resume latest or name another --output",
        )
    _refuse_foreign(output)
    return None, notes


def _refuse_foreign(output: Path) -> None:
    """A fresh run writes over what has its names; only what a run began there may be written over."""
    there = [name for name in _WRITTEN if (output / name).exists()]
    if there and not _is_a_run(output):
        what = f"holds {', '.join(there)}, which no training run of this program has begun there"
        raise ConfigError(what, where=output, mend="Name another --output")


def _is_a_run(output: Path) -> bool:
    try:
        return "milo-restore" in json.loads((output / ENVIRONMENT).read_text(encoding="utf-8"))["versions"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
