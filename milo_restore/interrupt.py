"""Ctrl-C is one line, not a traceback, in a program that imports this before all that takes seconds to import."""

from __future__ import annotations

import sys
from types import TracebackType


def _say(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, at)


sys.excepthook = _say
