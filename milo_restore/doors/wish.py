"""The loss that a user wants in the place of a program's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from milo_restore.errors import ConfigError
from milo_restore.loss.curriculum import CurriculumKind

__all__ = ["CURRICULA", "LOSSES", "Wish", "read_options"]

CURRICULA: dict[str, CurriculumKind] = {"milo": "constant", "milo-linear": "linear", "milo-cosine": "cosine"}
"""The names of MILO, and their curricula."""
LOSSES = ("l1", "mse", *CURRICULA)
"""Losses that can replace a program's own."""


@dataclass(frozen=True)
class Wish:
    """The loss that replaces the program's own.

    Attributes:
        loss: one of `LOSSES`; l1 and mse are the program's own where it has them.
        weights: MILO's, ``official``, ``mini`` or a path; None: ``official``.
        options: further arguments of MILO's loss, such as ``normalize``.

    Raises:
        ConfigError: weights or options for a loss that takes none.
    """

    loss: str
    weights: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ConfigError(f"{self.loss!r} is not one of {', '.join(LOSSES)}", where="--loss")
        for name, given in (("--weights", self.weights), ("--option", self.options)):
            if given and not self.is_milo:
                raise ConfigError(f"{self.loss} takes none", where=name, mend="Use it with --loss milo")

    @property
    def is_milo(self) -> bool:
        """Whether it is MILO, with or without a curriculum."""
        return self.loss in CURRICULA

    @property
    def curriculum(self) -> CurriculumKind:
        """MILO's; constant for other losses."""
        return CURRICULA.get(self.loss, "constant")

    def arguments(self) -> dict[str, Any]:
        """The arguments of MILO's loss but for the run's length."""
        return {"weights": self.weights or "official", "curriculum": self.curriculum, **self.options}


def read_options(entries: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` entries as a mapping, the values read as YAML.

    Raises:
        ConfigError: an entry of another form.
    """
    options = {}
    for entry in entries:
        key, separator, value = entry.partition("=")
        if not key or not separator:
            raise ConfigError("is not of the form KEY=VALUE", where=f"--option {entry}")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError("holds no value that YAML reads", where=f"--option {entry}") from error
    return options
