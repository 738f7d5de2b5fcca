"""Names that belong together: those of restored images, references and inputs, as programs and data sets write them.

Within a folder a name may carry an ending that all its files have: ``0801_lq.png`` beside ``0801.png``, Real-ESRGAN's
``0801_out.png``, SwinIR's ``0801x4_SwinIR.png``, ``img_001_SRF_4_LR.png`` beside ``img_001_SRF_4_HR.png``. An ending
counts only where all files of a folder have it, and only where every file then has exactly one counterpart; anything
else is refused, with the files named.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from milo_restore.errors import DataError, listed

_KNOWN_ENDING = re.compile(
    r"(?:[_-](?:lq|hq|gt|hr|lr|sr|lr[2348]|lrbi|lrbd|lrdn|bicubic|srf[_-][2348]|ref|reference|in|input|out|output|restored"
    r"|noisy|clean|denoised|pred|degraded|distorted|swinir|x1)|[_-]?x[2348](?:[md]|w[1-4]?)?)$",
    re.IGNORECASE,
)
_DEEPEST = 3  # known endings one before the other, as in img_001_SRF_4_x4_SR


def counterparts(
    pred: Path, preds: Mapping[str, Path], folder: Path, others: Mapping[str, Path], *, only_present: bool = False
) -> dict[str, Path]:
    """Each restored image's counterpart in another folder.

    Args:
        pred: the restored images' folder, for errors.
        preds: its files, by name without suffix.
        folder: the other folder.
        others: its files, likewise.
        only_present: files of ``folder`` without a restored image are left out; every restored image needs its own.

    Returns:
        Name of the restored image, as in ``preds``, to the file of ``others``.

    Raises:
        DataError: a file has no counterpart; such files are named.
    """
    for mine, theirs in _readings(list(preds), list(others)):
        known = {_without(name, theirs): name for name in others}
        wanted = {_without(name, mine): name for name in preds}
        complete = wanted.keys() <= known.keys() if only_present else wanted.keys() == known.keys()
        if complete and len(known) == len(others) and len(wanted) == len(preds):
            return {wanted[name]: others[known[name]] for name in wanted}
    raise _unpaired(pred, preds, folder, others)


def _readings(mine: Sequence[str], theirs: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs of endings of the two folders, those that leave most of the names first."""
    ours, their = ({False: _endings(names), True: _free(names)} for names in (mine, theirs))
    # Two single files with free endings would be a pair whatever they show: left_1 and left_2.
    found = {(one, two) for first in (False, True) for second in (False, True) if not (first and second)
             for one in ours[first] for two in their[second]}  # fmt: skip
    yield from sorted(found, key=lambda pair: (len(pair[0]) + len(pair[1]), pair))


def _endings(names: Sequence[str]) -> set[str]:
    """Endings that all names of a folder may have beside their own: nothing, what they share, and known marks."""
    found = {""}
    if len(names) > 1:
        shared = os.path.commonprefix([name[::-1] for name in names])[::-1]
        found |= _separated(shared)
    for _ in range(_DEEPEST):
        for ending in list(found):
            marks = {match.group().lower() if (match := _KNOWN_ENDING.search(_without(name, ending))) else ""
                     for name in names}  # fmt: skip
            if len(marks) == 1:
                found.add(marks.pop() + ending)
    return _leaving(names, found)


def _free(names: Sequence[str]) -> set[str]:
    """Endings that a folder's only file may have: nothing says that they are one."""
    return _leaving(names, _separated(names[0])) if len(names) == 1 else set()


def _separated(text: str) -> set[str]:
    return {text[place:] for place, letter in enumerate(text) if letter in "_-" and "/" not in text[place:]}


def _leaving(names: Sequence[str], endings: set[str]) -> set[str]:
    """Those without which something of every file's name is left."""
    return {ending for ending in endings if all(len(name.rpartition("/")[2]) > len(ending) for name in names)}


def _without(name: str, ending: str) -> str:
    return name[: len(name) - len(ending)]


def _unpaired(pred: Path, preds: Mapping[str, Path], folder: Path, others: Mapping[str, Path]) -> DataError:
    """The complaint about files without counterpart, in the reading of the names that leaves the fewest."""
    best: tuple[list[Path], list[Path]] | None = None
    for mine, theirs in _readings(list(preds), list(others)):
        here = {_without(name, mine): path for name, path in preds.items()}
        there = {_without(name, theirs): path for name, path in others.items()}
        lonely = ([here[name] for name in here.keys() - there.keys()],
                  [there[name] for name in there.keys() - here.keys()])  # fmt: skip
        if best is None or len(lonely[0]) + len(lonely[1]) < len(best[0]) + len(best[1]):
            best = lonely
    assert best is not None  # noqa: S101  (each folder has at least the empty ending)
    parts = [
        f"{other} has no counterpart of {listed(sorted(path.relative_to(place).as_posix() for path in paths))}"
        for paths, place, other in ((best[0], pred, folder), (best[1], folder, pred))
        if paths
    ]
    mend = "Files are paired by name: a.png with a.jpg, a_lq.png with a.png where all files of a folder end in _lq"
    if best[1] and not best[0]:
        mend += f". --only-present leaves out what only {folder} has"
    return DataError("; ".join(parts) or f"names cannot be paired with those of {folder}", where=pred, mend=mend)
