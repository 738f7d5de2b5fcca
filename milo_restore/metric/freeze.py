"""Turning a network into a constant: weights that no optimizer, gradient or state dict ever sees."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def freeze_into_buffers(module: M) -> M:
    """Make every parameter and every buffer of ``module`` a non-persistent buffer, in place, and set eval mode.

    ``requires_grad = False`` would leave the weights in ``parameters()``, and so in a careless optimizer's weight
    decay, an EMA and a state dict; buffers still follow ``.to(device)``.
    """
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach(), persistent=False)
        for name, buffer in list(part.named_buffers(recurse=False)):
            part.register_buffer(name, buffer, persistent=False)
    return module.eval()
