"""The account of what was replaced in a program, by which door, and how often it was called."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LEDGER", "Entry", "Ledger"]


@dataclass
class Entry:
    """One thing that was replaced.

    Attributes:
        door: which door it was, such as ``BasicSR``.
        what: a line: what it was, and what it is now.
        calls: how often the program has called it.
        measures: it was called, and never with anything that is trained.
    """

    door: str
    what: str
    calls: int = 0
    measures: bool = False

    def count(self, module: nn.Module) -> None:
        """Count the calls of a module from now on; it computes what it did."""

        def called(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            given = (*arguments, *named.values())
            trained = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in given)
            self.measures = (self.measures or not self.calls) and not trained
            self.calls += 1

        module.register_forward_pre_hook(called, with_kwargs=True)

    def line(self) -> str:
        """Account for the terminal."""
        line = f"{self.door}: {self.what}; called {self.calls} times"
        return f"{line}, never with a gradient: the program only measures with it" if self.measures else line


@dataclass
class Ledger:
    """Record of what the doors of one process have done.

    Attributes:
        entries: what was replaced.
        seen: what the doors met on the way, such as modules that they know; says why nothing was replaced.
    """

    entries: list[Entry] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)

    def add(self, door: str, what: str) -> Entry:
        """Note that something was replaced; the same line twice is one entry."""
        for entry in self.entries:
            if (entry.door, entry.what) == (door, what):
                return entry
        entry = Entry(door, what)
        self.entries.append(entry)
        return entry

    def note(self, line: str) -> None:
        """Note what a door met, once."""
        if line not in self.seen:
            self.seen.append(line)

    @property
    def works(self) -> bool:
        """Whether something was replaced, and called."""
        return any(entry.calls for entry in self.entries)

    def lines(self) -> list[str]:
        """For the terminal, at the end."""
        lines = [entry.line() for entry in self.entries]
        if not self.works:
            lines.append(self.reason())
        return lines

    def reason(self) -> str:
        """Why the doors did not work."""
        if self.entries:
            return "what was replaced was never called: the program ended, or failed, before it computed a loss"
        met = "; ".join(self.seen) or "the program imported none of the libraries that the doors know"
        return f"nothing was replaced: {met}"


LEDGER = Ledger()
"""The process's own."""
