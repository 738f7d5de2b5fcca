"""The screen of a program that imports this before all that takes seconds to import.

Ctrl-C is one line, not a traceback. And bitsandbytes, which diffusers and transformers import whether it is used or
not, asks nobody to install ``kernels``: on CPUs with AVX-512 BF16 it warns so when it is imported, for the sake of
4-bit layers, of which no program here has any.
"""

from __future__ import annotations

import logging
import sys
from types import TracebackType


def _say(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, at)


sys.excepthook = _say
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
