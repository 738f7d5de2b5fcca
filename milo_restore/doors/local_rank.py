"""``--local-rank``, which ``torch.distributed.launch`` gives to every program since PyTorch 2.0.

Programs from before know ``--local_rank``, some know neither. The number is in the environment too.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["accept_local_rank"]

_SPELLINGS = ("--local-rank", "--local_rank")


def accept_local_rank() -> None:
    """Let every `argparse.ArgumentParser` of this process take either spelling. Harmless to repeat.

    A parser that knows one of the two gets that one; one that knows neither is not shown it.
    """
    original = argparse.ArgumentParser.parse_known_args
    if getattr(original, "accepts_local_rank", False):
        return

    @functools.wraps(original)
    def parse_known_args(
        self: argparse.ArgumentParser, args: Sequence[str] | None = None, namespace: Any = None
    ) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        return original(self, _spelled(given, self._option_string_actions), namespace)

    parse_known_args.accepts_local_rank = True  # type: ignore[attr-defined]
    argparse.ArgumentParser.parse_known_args = parse_known_args  # type: ignore[method-assign, assignment]


def _spelled(arguments: list[str], known: Any) -> list[str]:
    """The arguments in the spelling that a parser knows."""
    wanted = next((name for name in _SPELLINGS if name in known), None)
    result, rest = [], iter(arguments)
    for argument in rest:
        name, separator, value = argument.partition("=")
        if name not in _SPELLINGS:
            result.append(argument)
        elif wanted is not None:
            result.append(f"{wanted}{separator}{value}")
        elif not separator:
            next(rest, None)  # its value
    return result
