"""What Restormer's denoising configurations need and PyPI's BasicSR lacks, put where BasicSR looks for it."""

from __future__ import annotations

from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, MODEL_REGISTRY

from milo_restore.basicsr.denoising_data import Dataset_GaussianDenoising
from milo_restore.basicsr.image_clean_model import ImageCleanModel
from milo_restore.models import Restormer

__all__ = ["register"]

_SUFFIX = "basicsr"


def register() -> None:
    """Let configurations name ``Restormer``, ``ImageCleanModel`` and ``Dataset_GaussianDenoising``. Harmless to repeat.

    They are registered under BasicSR's fallback names (``Restormer_basicsr``, …), which its registries take where
    nothing goes by the plain name. So a program that registers a class of its own under one of these names still can,
    before or after, and gets its own: under the plain name its registration would end in an AssertionError.
    """
    for registry, item in _entries():
        if f"{item.__name__}_{_SUFFIX}" not in registry:
            registry.register(item, suffix=_SUFFIX)


def _entries() -> list[tuple[Any, type]]:
    return [
        (ARCH_REGISTRY, Restormer),
        (DATASET_REGISTRY, Dataset_GaussianDenoising),
        (MODEL_REGISTRY, ImageCleanModel),
    ]
