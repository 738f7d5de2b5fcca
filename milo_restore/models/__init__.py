"""Restoration networks. `Restormer` is imported on first use: whoever wants DiffBIR needs nothing of it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from milo_restore.models.restormer import Restormer

__all__ = ["Restormer"]


def __getattr__(name: str) -> Any:
    if name != "Restormer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.restormer").Restormer
