"""Sample pictures of a training: what the restorers make of a few test images, and MILO's mask of the last one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from milo_restore.data import to_tensor
from milo_restore.data.restoration_pairs import RestorationPair, Restore
from milo_restore.measure.restorer import given, restored
from milo_restore.show.grid import comparison_grid, heat_map

MASK_SHARE = 0.995
"""The colours of the masks end where this share of all their values lies below: they are small, and a few stand out."""

Mask = Callable[[Tensor, Tensor], Tensor]
"""Output and target, (1, 3, H, W) in [0, 1], to a mask, (1, 1, h, w); of a latent mask each cell becomes a square."""


def sample_picture(
    methods: Mapping[str, Restore],
    pairs: Sequence[RestorationPair],
    mask: Mask | None = None,
    mask_title: str = "MILO mask",
    mask_top: float | None = None,
    input_title: str = "input",
) -> NDArray[np.uint8]:
    """A picture to look at: input | each method | target | mask, one row per image. No process waits for another.

    Args:
        methods: by the titles of their columns; the mask is of the last one.
        pairs: the images.
        mask: see `Mask`; without it there is no last column.
        mask_title: of the last column, behind which the range of its colours is written.
        mask_top: where its colours end, from 0 (black) to this and above (pale yellow); by default `MASK_SHARE`'s.
        input_title: of the first column.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        NumericsError: an output is not finite; the image is named.
        DataError: an output has another size; the image is named.
    """
    everything: dict[str, Restore] = {input_title: given, **methods}
    columns: dict[str, list[NDArray[np.uint8]]] = {title: [] for title in (*everything, "target")}
    masks: list[Tensor] = []
    for number, pair in enumerate(pairs):
        images = [restored(restore, pair, number) for restore in everything.values()]
        for column, image in zip(columns.values(), (*images, pair.target)):
            column.append(image)
        if mask is not None:
            with torch.no_grad():
                values = mask(to_tensor(images[-1])[None], to_tensor(pair.target)[None]).float().cpu()
            masks.append(nn.functional.interpolate(values, size=pair.target.shape[:2], mode="nearest")[0, 0])
    if mask is not None:
        top = mask_top or _top(masks)
        columns[f"{mask_title} (0 to {top:.2g})"] = [heat_map(values, top) for values in masks]
    return comparison_grid(columns)


def _top(masks: Sequence[Tensor]) -> float:
    # numpy's quantile, for torch's has a limit on the number of values
    return float(np.quantile(torch.cat([mask.flatten() for mask in masks]).numpy(), MASK_SHARE)) or 1.0
