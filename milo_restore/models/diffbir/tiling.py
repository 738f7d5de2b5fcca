"""Large images in bounded memory: networks see overlapping tiles, and Gaussian weights blend what they make of them.

A tile on its own is not what the network would see in the whole image: group normalisation takes its mean and variance
from all of it, and attention looks everywhere. The denoiser's tiles keep their own statistics, as in DiffBIR: shared
ones were no closer to the whole image. The VAE has tiles of another kind, `milo_restore.models.diffbir.vae_tiles`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from milo_restore.errors import ConfigError

__all__ = ["Tile", "in_tiles", "tile_grid"]

SPREAD = 0.1
"""Standard deviation of the Gaussian weights, in sides of a tile; DiffBIR's."""


@dataclass(frozen=True)
class Tile:
    """A part of an image.

    Attributes:
        rows: where it lies.
        columns: where it lies.
    """

    rows: slice
    columns: slice

    def of(self, values: Tensor) -> Tensor:
        """The tile of (N, C, H, W)."""
        return values[..., self.rows, self.columns]


def tile_grid(height: int, width: int, tile: int, unit: int = 1) -> list[Tile]:
    """Tiles that cover an image and overlap their neighbours by half at least, row by row.

    Args:
        height: of the image.
        width: of the image.
        tile: side of a tile; smaller where the image is.
        unit: every tile begins at a multiple of it; ``tile`` is such a multiple.

    Raises:
        ConfigError: no such tiles.
    """
    if tile < 2 * unit or tile % unit:
        raise ConfigError(f"tiles of {tile} in units of {unit}", mend=f"Take a multiple of {unit}, at least {2 * unit}")
    return [Tile(*place) for place in itertools.product(*(_spans(length, tile, unit) for length in (height, width)))]


def _spans(length: int, tile: int, unit: int) -> list[slice]:
    """Tiles along one axis."""
    if length <= tile:
        return [slice(0, length)]
    last = -(-(length - tile) // unit) * unit
    return [slice(start, min(start + tile, length)) for start in (*range(0, last, tile // 2 // unit * unit), last)]


def in_tiles(
    apply: Callable[..., Tensor], *inputs: Tensor, tile: int | None, unit: int = 1, scale: float = 1.0
) -> Tensor:
    """A network's output for a whole image, from its outputs for tiles.

    Args:
        apply: the network: tiles of ``inputs`` to (N, C, scale * h, scale * w).
        *inputs: (N, C, H, W) each, of one height and width.
        tile: side of the tiles of the inputs; None, or no smaller than the inputs: ``apply`` sees them whole.
        unit: see `tile_grid`.
        scale: size of the output by that of the input.

    Returns:
        (N, C, scale * H, scale * W) float32.
    """
    height, width = inputs[0].shape[-2:]
    if tile is None or max(height, width) <= tile:
        return apply(*inputs).float()
    whole = [round(side * scale) for side in (height, width)]
    total = weight = torch.empty(0)
    for part in tile_grid(height, width, tile, unit):
        result = apply(*map(part.of, inputs)).float()
        if not total.numel():
            total, weight = result.new_zeros(*result.shape[:-2], *whole), result.new_zeros(*whole)
        rows, columns = (slice(round(s.start * scale), round(s.stop * scale)) for s in (part.rows, part.columns))
        bells = [_bell(side, result.device) for side in result.shape[-2:]]
        total[..., rows, columns] += result * bells[0][:, None] * bells[1]
        weight[rows, columns] += bells[0][:, None] * bells[1]
    return total.div_(weight)


def _bell(size: int, device: torch.device) -> Tensor:
    places = (torch.arange(size, device=device, dtype=torch.float32) - (size - 1) / 2) / size
    return torch.exp(-places.square() / (2 * SPREAD**2))
