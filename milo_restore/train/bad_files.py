"""The loop's part in quarantine: what the processes find is put on record, told, written down, and limited."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from milo_restore.files.quarantine import QUARANTINE, as_lines, named
from milo_restore.processes import gather, on_main
from milo_restore.train.checkpoint import replace_file, writing
from milo_restore.train.feed import MicroBatch
from milo_restore.train.log import Journal
from milo_restore.train.schedule import drawn
from milo_restore.train.settings import TrainSettings
from milo_restore.train.state import TrainingState


def start(state: TrainingState, journal: Journal, output: Path) -> None:
    """Put on record what reading the images has found before the first step, and write the list."""
    quarantine, path = state.quarantine, output / QUARANTINE
    quarantine.record([found for part in gather(quarantine.drain()) for found in part], state.step)
    faults = quarantine.faults()
    if faults:
        journal.say(f"cannot be trained on and passed over: {named(faults)}; see {path}")
        on_main(lambda: replace_file(path, as_lines(faults)))
    else:
        on_main(lambda: path.unlink(missing_ok=True))  # of a run that was killed before its first checkpoint


def record(state: TrainingState, journal: Journal, output: Path, batches: Sequence[MicroBatch]) -> None:
    """Put on record what making the samples of the present step has found. Call it on every process."""
    mine = [found for batch in batches for found in batch.found]
    new = state.quarantine.record([found for part in gather(mine) for found in part], state.step)
    if not new:
        return
    journal.say(f"step {state.step}: another image stands in for what cannot be trained on: {named(new)}")
    path = output / QUARANTINE

    def append() -> None:
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(as_lines(new))

    on_main(append)


def check(state: TrainingState, settings: TrainSettings, output: Path) -> None:
    """Stop a run of which too much cannot be trained on; equal on all processes.

    Raises:
        DataError: naming some of the files.
    """
    limit, where = settings.max_bad_files, output / QUARANTINE
    state.quarantine.check(limit, state.step, drawn(state.step, settings), where)
