"""DiffBIR's second stage on diffusers: `IRControlNet`, the noise schedules, the sampling pipeline, the conversion.

The names are imported on first use: diffusers takes seconds to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from milo_restore.extras import require

if TYPE_CHECKING:
    from milo_restore.models.diffbir.control import IRControlNet, predict
    from milo_restore.models.diffbir.convert import convert_diffbir
    from milo_restore.models.diffbir.pipeline import DiffBIRPipeline
    from milo_restore.models.diffbir.schedules import VERSIONS, Version, noise_scheduler, sampling_scheduler

_HOMES = {
    "IRControlNet": "control",
    "predict": "control",
    "VERSIONS": "schedules",
    "Version": "schedules",
    "noise_scheduler": "schedules",
    "sampling_scheduler": "schedules",
    "convert_diffbir": "convert",
    "DiffBIRPipeline": "pipeline",
}

__all__ = [
    "VERSIONS",
    "DiffBIRPipeline",
    "IRControlNet",
    "Version",
    "convert_diffbir",
    "noise_scheduler",
    "predict",
    "sampling_scheduler",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


require("diffusers", __name__)
