"""A trained denoiser on one image: whole, in eval mode, without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from numpy.typing import NDArray
from torch import Tensor, nn

from milo_restore.data import to_uint8


def denoise(model: nn.Module, noisy: Tensor, *, device: torch.device | str | None = None) -> NDArray[np.uint8]:
    """Restore one image: float (3, H, W) in, clamped and rounded (H, W, 3) uint8 out.

    Raises:
        NumericsError: the output holds NaN or infinite values.
    """
    with _evaluating(model) as bare:
        if device is None:
            device = next((parameter.device for parameter in bare.parameters()), torch.device("cpu"))
        return to_uint8(bare(noisy[None].to(device))[0])


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The bare model in eval mode without gradients; a DDP wrapper would make the processes wait for each other."""
    bare: nn.Module = extract_model_from_parallel(model)
    modes = [(module, module.training) for module in bare.modules()]
    bare.eval()
    try:
        with torch.no_grad():
            yield bare
    finally:
        for module, training in modes:
            module.training = training
