"""Restormer's network, data set and model, which PyPI's BasicSR lacks, put where BasicSR looks for them."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["Deferred", "register"]

_SUFFIX = "basicsr"
_HOMES = {
    "Restormer": ("ARCH_REGISTRY", "milo_restore.models"),
    "Dataset_GaussianDenoising": ("DATASET_REGISTRY", "milo_restore.basicsr.denoising_data"),
    "ImageCleanModel": ("MODEL_REGISTRY", "milo_restore.basicsr.image_clean_model"),
}


class Deferred:
    """A class that is imported when it is first made; a registry's entry until then.

    Args:
        name: the class's.
        home: its module.
    """

    def __init__(self, name: str, home: str) -> None:
        self.__name__, self.home = name, home

    def load(self) -> Any:
        """The class itself."""
        return getattr(importlib.import_module(self.home), self.__name__)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Make one; arguments and errors are the class's."""
        return self.load()(*arguments, **options)


def register(registries: Any = None) -> None:
    """Let configurations name ``Restormer``, ``ImageCleanModel`` and ``Dataset_GaussianDenoising``. Harmless to repeat.

    They are registered under BasicSR's fallback names (``Restormer_basicsr``, …), which its registries take where
    nothing goes by the plain name. So a program that registers a class of its own under one of these names still can,
    before or after, and gets its own: under the plain name its registration would end in an AssertionError. Nothing
    that they need is imported before a configuration names one of them.

    Args:
        registries: the module ``basicsr.utils.registry``; by default the one that can be imported.
    """
    if registries is None:
        registries = importlib.import_module("basicsr.utils.registry")
    for name, (kind, home) in _HOMES.items():
        registry = getattr(registries, kind)
        if f"{name}_{_SUFFIX}" not in registry:
            registry.register(Deferred(name, home), suffix=_SUFFIX)
