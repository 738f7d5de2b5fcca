"""Files that cannot be trained on: each is found once, named in a list in the run folder, and passed over.

A data set reads its files through `Quarantine.holds` and `Quarantine.add`, whichever process or worker it is in; the
training loop (`milo_restore.train.fit`) gathers what they find, writes the list, keeps it in every checkpoint and stops
at the limit. What a run trains on is no matter of who finds a file first: a sample's replacement is keyed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from milo_restore.errors import DataError, listed, printable

QUARANTINE = "quarantine.jsonl"
"""The list in a run folder and in its checkpoints: a line of JSON for each file, with path, reason and step."""
SURE = 400
"""Files from which on a share of bad ones says something: with 5 % of them bad, more than 10 % of 400 are one case in
70,000."""
TRIES = 64
"""Bad files in a row for one sample at which something else is wrong, such as a disk that is gone."""


class Fault(NamedTuple):
    """A file that cannot be trained on.

    Attributes:
        path: where it is; a sample in a shard is ``SHARD::NAME``.
        reason: what is wrong with it.
        step: the step whose samples needed it first; 0: before the training.
    """

    path: str
    reason: str
    step: int


class Quarantine:
    """The files that a run passes over.

    Args:
        known: faults of before, which are not looked at again.

    Attributes:
        files: how many there are, good and bad; data sets set it.
        looked_at: how many of them were looked at before the first step.
    """

    def __init__(self, known: Iterable[Fault] = ()) -> None:
        self.files = 0
        self.looked_at = 0
        self._faults = {fault.path: fault for fault in known}
        self._found: dict[str, str] = {}  # by this process, and not on record yet
        self._passed: set[str] = set()  # all that this process has found

    @classmethod
    def of_run(cls, output: Path, resume: str | Path | None) -> Quarantine:
        """The list that a run goes on with, before its images are read; a fresh run's is empty.

        Args:
            output: the run folder.
            resume: as of `milo_restore.train.fit`.
        """
        places = [] if resume is None else [Path(resume), output]
        return cls([fault for place in places for fault in read_faults(place / QUARANTINE)])

    def holds(self, path: str) -> bool:
        """Whether a file is passed over."""
        return path in self._faults or path in self._passed

    def add(self, path: str, fault: DataError | str) -> None:
        """Put a file on the list; the loop hears of it with the samples that are being made."""
        if not self.holds(path):
            self._passed.add(path)
            self._found[path] = printable(fault if isinstance(fault, str) else fault.what)

    def tell(self, found: Mapping[str, str]) -> None:
        """Let the loop hear of what was found elsewhere, such as when a cache was made: paths and reasons."""
        self._passed.update(found)
        self._found.update((path, reason) for path, reason in found.items() if path not in self._faults)

    def drain(self) -> list[tuple[str, str]]:
        """Paths and reasons found by this process since the last call."""
        found, self._found = list(self._found.items()), {}
        return found

    def record(self, found: Iterable[tuple[str, str]], step: int) -> list[Fault]:
        """Put on record what all processes have found; returns what is new, by path."""
        new = [Fault(path, reason, step) for path, reason in sorted(dict(sorted(found)).items())]
        new = [fault for fault in new if fault.path not in self._faults]
        self._faults.update((fault.path, fault) for fault in new)
        return new

    def take_over(self, faults: Iterable[Fault]) -> None:
        """Faults of a checkpoint, which are on record already."""
        self._faults.update((fault.path, fault) for fault in faults)

    def faults(self, step: int | None = None) -> list[Fault]:
        """Those on record up to a step, in the order of steps and paths; None: all."""
        kept = (fault for fault in self._faults.values() if step is None or fault.step <= step)
        return sorted(kept, key=lambda fault: (fault.step, fault.path))

    def check(self, limit: float, step: int, drawn: int, where: Path) -> None:
        """Stop a run of which too much cannot be trained on.

        Args:
            limit: share of the files looked at that may be bad: 0 is none, and any more lets at least one file pass.
            step: the last step done.
            drawn: samples drawn so far; in its first epoch a run looks at a new file for each.
            where: the list, for the error.

        Raises:
            DataError: naming some of the files.
        """
        bad = self.faults(step)
        looked_at = max(self.looked_at, drawn, SURE)
        looked_at = min(self.files, looked_at) if self.files else looked_at
        allowed = max(int(limit * looked_at), 1) if limit else 0
        if len(bad) <= allowed:
            return
        of = f" of {self.files:,}" if self.files else ""
        what = f"{len(bad):,}{of} files cannot be trained on, {allowed:,} may be so by now: {named(bad)}"
        mend = f"Mend or remove them, or allow more with training.max_bad_files (now {limit:g}) and --resume latest"
        raise DataError(what, where=where, mend=mend)


def named(faults: Sequence[Fault], most: int = 3) -> str:
    """The first few in words."""
    return listed([f"{fault.path} ({fault.reason})" for fault in faults], most)


def as_lines(faults: Iterable[Fault]) -> str:
    """The text of a list."""
    return "".join(json.dumps(fault._asdict(), ensure_ascii=False) + "\n" for fault in faults)


def read_faults(path: Path) -> list[Fault]:
    """The faults of a list; none where there is none. A killed run's last line may be torn, and is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(Fault(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found
