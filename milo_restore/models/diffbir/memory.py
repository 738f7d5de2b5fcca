"""Whether an image fits into memory as a whole."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["free_bytes", "needed_bytes"]

_RESERVE = 1.25  # for the cleaner's and the UNet's features, and what lies around between layers
_CPU_RESERVE = 2.5  # convolutions copy their inputs there: the tiny VAE took 2.4 times the sum, at 1536 pixels


def needed_bytes(vae: Any, height: int, width: int, batch: int = 1) -> int:
    """What decoding images as a whole takes at its peak, roughly.

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
