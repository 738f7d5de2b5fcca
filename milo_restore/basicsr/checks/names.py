"""Names that a configuration gives, against those that BasicSR knows."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection
from typing import Any

from milo_restore.basicsr.restormer import Deferred
from milo_restore.errors import ConfigError

__all__ = ["refuse_unknown", "refuse_unknown_arguments", "registered"]


def registered(registry: Any, name: str) -> Any:
    """Entry of a BasicSR registry under a name; its own ``get`` prints where it has to add its suffix."""
    entries = dict(iter(registry))
    item = entries[name if name in entries else f"{name}_basicsr"]
    return item.load() if isinstance(item, Deferred) else item


def refuse_unknown(name: Any, names: Collection[str], where: str, *, importable: bool = False) -> None:
    """Refuse a name that is not among those known, with the nearest spelling.

    Args:
        name: what the configuration says.
        names: those known.
        where: the key, for the error.
        importable: a module of the user's own may bring such a name. Then only a slip of the pen is taken for one:
            'HATModel' is no misspelt 'SRModel'.

    Raises:
        ConfigError: it is none of them.
    """
    if name in names:
        return
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.8 if importable else 0.5)
    mend = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(names))}"
    if importable and not close:
        mend = "If it is a class of your own, name the module that registers it: --import hat.archs hat.data hat.models"
    raise ConfigError(f"BasicSR knows no {name!r}", where=where, mend=mend)


def refuse_unknown_arguments(
    item: Callable[..., Any], section: dict[str, Any], where: str, supplied: Collection[str] = ()
) -> None:
    """Refuse keys that a class or function does not take, and the lack of those that it needs.

    Args:
        item: what BasicSR will call with the section's keys but ``type``.
        section: of the configuration.
        where: the section's name, for the error.
        supplied: the arguments that BasicSR adds.

    Raises:
        ConfigError: a key too many or too few.
    """
    known = inspect.signature(item).parameters
    named = [
        name
        for name, parameter in known.items()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    allowed = [name for name in named if name not in supplied]
    for key in section:
        if key != "type" and key not in allowed and not free:
            close = difflib.get_close_matches(str(key), allowed, n=1, cutoff=0.5)
            mend = f"Did you mean {close[0]!r}?" if close else f"It takes: {', '.join(allowed)}"
            raise ConfigError(f"{item.__name__} takes no key {key!r}", where=where, mend=mend)
    for name in allowed:
        if known[name].default is inspect.Parameter.empty and name not in section:
            raise ConfigError(f"{item.__name__} needs the key {name!r}", where=where)
