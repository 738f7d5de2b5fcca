"""Whether an image fits into memory as a whole, and what a training step keeps there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

__all__ = ["free_bytes", "needed_bytes", "saved_bytes"]

_RESERVE = 1.25  # for the cleaner's and the UNet's features, and what lies around between layers
_CPU_RESERVE = 2.5  # convolutions copy their inputs there: the tiny VAE took 2.4 times the sum, at 1536 pixels


def needed_bytes(vae: Any, height: int, width: int, batch: int = 1) -> int:
    """Peak memory of decoding images as a whole, roughly.

    The last level, at full size, is the largest: its first block holds its input, that normalised and after its
    activation, each as wide as the level before, and its own output.

    Args:
        vae: an ``AutoencoderKL``.
        height: of the images, in pixels, as they are denoised.
        width: the same.
        batch: how many at a time.
    """
    last, before = vae.config.block_out_channels[0], vae.config.block_out_channels[1]
    reserve = _CPU_RESERVE if vae.device.type == "cpu" else _RESERVE
    return int(reserve * batch * height * width * (3 * before + last) * vae.dtype.itemsize)


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free where networks compute; None where that cannot be asked."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type != "cpu":
        return None
    import psutil  # accelerate, without which nothing of this runs, needs it, too

    return int(psutil.virtual_memory().available)


def saved_bytes(run: Callable[[], Tensor], networks: Iterable[nn.Module]) -> tuple[int, int]:
    """Bytes that a forward pass keeps for the backward pass, beside parameters and buffers; it is run.

    Args:
        run: the pass, with the gradient on.
        networks: whose parameters and buffers are not counted.

    Returns:
        Those that are kept from one end to the other; and the most that a checkpointed block (diffusers'
        ``enable_gradient_checkpointing``) makes anew on the way back. The peak is about their sum.
    """
    own = {_place(value) for network in networks for value in (*network.parameters(), *network.buffers())}
    kept: dict[int, int] = {}
    largest = 0

    def note(into: dict[int, int], value: Tensor) -> Tensor:
        if _place(value) not in own:
            into[_place(value)] = value.untyped_storage().nbytes()
        return value

    def block(function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        nonlocal largest
        anew: dict[int, int] = {}
        for value in inputs:
            if isinstance(value, Tensor):
                note(kept, value)
        with torch.autograd.graph.saved_tensors_hooks(lambda value: note(anew, value), lambda value: value):
            result = function(*inputs)
        largest = max(largest, sum(anew.values()))
        return result

    hooks = torch.autograd.graph.saved_tensors_hooks(lambda value: note(kept, value), lambda value: value)
    # As long as the result lives, nothing of its graph is freed, and no place in memory is counted twice.
    with torch.enable_grad(), hooks, patch("torch.utils.checkpoint.checkpoint", block):
        result = run()
    del result
    return sum(kept.values()), largest


def _place(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()
