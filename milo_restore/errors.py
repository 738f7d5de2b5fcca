"""The errors a user can meet. Each says what is wrong, where, and how to mend it, in one line.

The command line prints such an error without a traceback and ends with exit code 2.
"""

from __future__ import annotations

import difflib
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path


class MiloRestoreError(Exception):
    """Base of all errors that a user can mend.

    Args:
        what: what is wrong, in one clause.
        where: the file, key or argument concerned.
        mend: what to do about it.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str | Path | None = None, mend: str | None = None) -> None:
        self.what, self.where, self.mend = what, where, mend
        head = f"{where}: {what}" if where is not None else what
        super().__init__(printable(f"{head}. {mend}" if mend else head))


class ConfigError(MiloRestoreError):
    """A configuration file, an override or an argument is wrong."""


class DataError(MiloRestoreError):
    """An image, a folder or a data set is missing or unusable."""


class WeightsError(MiloRestoreError):
    """A weight file or a checkpoint is missing, damaged or of another architecture."""


class NumericsError(MiloRestoreError):
    """A computation left the finite numbers."""


class MissingPackage(MiloRestoreError, ModuleNotFoundError):
    """A package is not installed that the core does not bring. Being an `ImportError` too, it is what imports raise."""


_UNSHOWN = {"Cc", "Cs", "Zl", "Zp"}  # Unicode's control codes, halves of surrogate pairs, and line ends


def printable(text: str) -> str:
    """Text with all that is no character escaped: control codes of terminals, line ends, bytes that are not UTF-8."""
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in _UNSHOWN else c for c in text)


def did_you_mean(name: object, known: Iterable[object]) -> str | None:
    """Hint for an unknown name: the nearest known one in letters of any case; of a comma list the names; else None."""
    spelt = {text.lower(): text for text in map(str, known)}
    several = [part for part in str(name).lower().replace(",", " ").split() if part]
    if len(several) > 1 and all(part in spelt for part in several):
        return f"These are {len(several)} names: give {' '.join(spelt[part] for part in several)}"
    close = difflib.get_close_matches(str(name).lower(), spelt, n=1, cutoff=0.55)
    return f"Did you mean {spelt[close[0]]!r}?" if close else None


def listed(items: Sequence[object], most: int = 8, between: str = ", ") -> str:
    """The first few of many, and how many more."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return between.join(map(str, items[:most])) + more


def warn_renamed(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warn of a former name that still works.

    Args:
        old: the name that was used.
        new: today's.
        stacklevel: as in `warnings.warn`; 3 is the caller of the function or property that has the former name.
    """
    warnings.warn(f"{old} is now {new}; the former name will go", FutureWarning, stacklevel=stacklevel)


def run_program(name: str, act: Callable[[], int | None]) -> int:
    """Run a program; an error that its user can mend becomes one line on stderr.

    Returns:
        What ``act`` returns (0 for None), the error's exit code, or 130 after Ctrl-C.
    """
    try:
        return act() or 0
    except MiloRestoreError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
