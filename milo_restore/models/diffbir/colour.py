"""Colour correction: a restored image takes its low frequencies, and so its colours, from the cleaned one.

Latent diffusion drifts in colour and brightness; a cleaner does not. Source: DiffBIR, whose "wavelet" correction is
always on, and decomposes both images with an undecimated wavelet of five levels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from milo_restore.errors import DataError

__all__ = ["LEVELS", "low_frequencies", "transfer_colour"]

LEVELS = 5
"""DiffBIR's."""


def low_frequencies(images: Tensor, levels: int = LEVELS) -> Tensor:
    """Residual of an undecimated wavelet ("a trous") after ``levels`` levels; beyond the border its pixels go on.

    Each level blurs by (1, 2, 1) / 4 along both axes, with taps twice as far apart as on the level before: after five,
    waves with periods up to some 32 pixels are gone.

    Args:
        images: (N, C, H, W).
        levels: how many.

    Returns:
        The same shape, float32.
    """
    low = images.float()
    channels = low.shape[1]
    kernel = torch.tensor([0.25, 0.5, 0.25], device=low.device).view(1, 1, 1, 3).repeat(channels, 1, 1, 1)
    for level in range(levels):
        reach = 2**level
        for padding, weight in (((reach, reach, 0, 0), kernel), ((0, 0, reach, reach), kernel.transpose(2, 3))):
            low = F.conv2d(F.pad(low, padding, mode="replicate"), weight, dilation=reach, groups=channels)
    return low


def transfer_colour(images: Tensor, colours: Tensor, levels: int = LEVELS) -> Tensor:
    """The details of ``images`` on the low frequencies of ``colours``.

    Args:
        images: (N, 3, H, W).
        colours: the same shape.
        levels: of the wavelet.

    Returns:
        (N, 3, H, W) float32, not clamped.

    Raises:
        DataError: the shapes differ.
    """
    if images.shape != colours.shape:
        raise DataError(f"colours of {tuple(colours.shape)} for images of {tuple(images.shape)}")
    # Blurring is linear: one blur of the difference does for both.
    return images.float() + low_frequencies(colours.float() - images.float(), levels)
