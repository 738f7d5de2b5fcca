"""Memory that training takes from step to step, beside activations: weights, gradients, the optimiser's, averages."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

_KEPT = {"adamw": 2.0, "adamw8bit": 0.5, "soap": 2.0}
"""float32 values that an optimiser keeps of each gradient's; of soap's matrices nothing is counted."""


def parameter_count(module: nn.Module) -> int:
    """Number of a module's parameters."""
    return sum(value.numel() for value in module.parameters())


def weight_bytes(modules: Iterable[nn.Module], *, trained: bool = False, each: int | None = None) -> int:
    """Bytes of the parameters of modules.

    Args:
        modules: the modules.
        trained: those that are trained, in place of those that are not.
        each: bytes of a number; None: as it is.
    """
    values = (value for module in modules for value in module.parameters() if value.requires_grad == trained)
    return sum(value.numel() * (value.element_size() if each is None else each) for value in values)


def optimizer_bytes(trained: nn.Module, optimizer: str, *, averaged: bool) -> dict[str, int]:
    """Bytes that training a module in float32 takes beside activations, by what they are for.

    Args:
        trained: the module.
        optimizer: ``adamw``: two averages of each gradient in float32; ``adamw8bit``: in a byte each; ``soap``: these
            of adamw, and matrices that are not counted.
        averaged: averaged weights are kept.
    """
    whole = weight_bytes([trained], trained=True, each=4)
    found = {"weights": whole, "gradients": whole, optimizer: int(_KEPT[optimizer] * whole)}
    return {**found, **({"averaged weights": whole} if averaged else {})}
