"""Halving images and doubling masks, between the levels of MILO's pyramid, as upstream's program does."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

N_SCALES = 4
"""Number of pyramid levels, the paper's L. The mask is a sum of one sigmoid per level, so it lies in (0, N_SCALES)."""


def pyramid(image: Tensor) -> list[Tensor]:
    """`N_SCALES` levels, fine to coarse: the image itself, then each the means of the last one's 2x2 blocks."""
    levels = [image]
    for _ in range(N_SCALES - 1):
        levels.append(F.avg_pool2d(levels[-1], 2))
    return levels


def double(mask: Tensor, level: Tensor) -> Tensor:
    """Twice the size, bilinear; where halving had dropped an odd row or column, the last one is repeated."""
    height, width = level.shape[2:]
    rows, columns = (2 * side for side in mask.shape[2:])
    doubled = F.interpolate(mask, size=(rows, columns), mode="bilinear", align_corners=True)
    if _exporting():  # whether a side is odd is not known then
        places = [torch.arange(side, device=mask.device) for side in (height, width)]
        doubled = doubled[:, :, places[0].clamp(max=rows - 1)][..., places[1].clamp(max=columns - 1)]
    elif height != rows or width != columns:
        doubled = F.pad(doubled, (0, width - columns, 0, height - rows), mode="replicate")
    return doubled


_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch >= 2.7
