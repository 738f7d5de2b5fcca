"""Dry runs: one look at each thing that a configuration names, and all that is missing at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from milo_restore.errors import ConfigError, MiloRestoreError


def look_at_all(looks: Mapping[str, Callable[[], object]]) -> int:
    """Call each look, print a line for each, what it found or what is missing.

    Args:
        looks: by what they look at, in the order in which they need each other; each says in a few words what it
            found, or raises.

    Returns:
        0, a program's exit code.

    Raises:
        ConfigError: something is wrong.
    """
    wrong = []
    for name, look in looks.items():
        try:
            print(f"{name}: {look()}")
        except MiloRestoreError as error:
            wrong.append(name)
            print(f"{name}: MISSING: {error}")
    if wrong:
        raise ConfigError(f"{len(wrong)} of {len(looks)} checks failed: {', '.join(wrong)}", where="--dry-run")
    return 0
