"""Large images in bounded memory: networks see overlapping tiles, and Gaussian weights blend what they make of them.

A tile on its own is not what the network would see in the whole image: group normalisation takes its mean and variance
from all of it. For the VAE, whose latents and colours depend on them, these statistics are gathered over all tiles
first, and every tile is normalised with the same ones. The denoiser's tiles keep their own, as in DiffBIR: there the
shared ones were no closer to the whole image, at twice the cost.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from milo_restore.errors import ConfigError

__all__ = ["SharedNorms", "Tile", "in_tiles", "tile_grid"]

SPREAD = 0.1
"""Standard deviation of the Gaussian weights, in sides of a tile; DiffBIR's."""


@dataclass(frozen=True)
class Tile:
    """A part of an image.

    Attributes:
        rows: where it lies.
        columns: where it lies.
        core_rows: the part of ``rows`` that is its own: the cores of all tiles make up the image, without overlap.
        core_columns: the same of ``columns``.
    """

    rows: slice
    columns: slice
    core_rows: slice
    core_columns: slice

    def of(self, values: Tensor) -> Tensor:
        """The tile of (N, C, H, W)."""
        return values[..., self.rows, self.columns]

    def core_of(self, features: Tensor) -> Tensor:
        """The core of a tile's features: (N, C, h, w) of whatever resolution, or (N, C, h * w) from attention."""
        if features.ndim == 3:
            aspect = (self.rows.stop - self.rows.start) / (self.columns.stop - self.columns.start)
            features = features.unflatten(-1, (round(math.sqrt(features.shape[-1] * aspect)), -1))
        height, width = features.shape[-2:]
        rows, columns = _within(self.core_rows, self.rows, height), _within(self.core_columns, self.columns, width)
        return features[..., rows, columns]


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
    rows, columns = (_spans(length, tile, unit) for length in (height, width))
    return [Tile(row[0], column[0], row[1], column[1]) for row, column in itertools.product(rows, columns)]


def _spans(length: int, tile: int, unit: int) -> list[tuple[slice, slice]]:
    """Tiles along one axis, and their cores: these meet in the middle of the overlap."""
    if length <= tile:
        return [(slice(0, length), slice(0, length))]
    last = -(-(length - tile) // unit) * unit
    starts = [*range(0, last, tile // 2 // unit * unit), last]
    meet = [(before + tile + after) // 2 // unit * unit for before, after in itertools.pairwise(starts)]
    cores = itertools.pairwise([0, *meet, length])
    return [(slice(start, min(start + tile, length)), slice(*core)) for start, core in zip(starts, cores)]


def _within(core: slice, tile: slice, size: int) -> slice:
    factor = size / (tile.stop - tile.start)
    return slice(round((core.start - tile.start) * factor), round((core.stop - tile.start) * factor))


def in_tiles(
    apply: Callable[..., Tensor],
    *inputs: Tensor,
    tile: int | None,
    unit: int = 1,
    scale: float = 1.0,
    norms: SharedNorms | None = None,
    rounds: int = 0,
) -> Tensor:
    """A network's output for a whole image, from its outputs for tiles.

    Args:
        apply: the network: tiles of ``inputs`` to (N, C, scale * h, scale * w).
        *inputs: (N, C, H, W) each, of one height and width.
        tile: side of the tiles of the inputs; None, or no smaller than the inputs: ``apply`` sees them whole.
        unit: see `tile_grid`.
        scale: size of the output by that of the input.
        norms: statistics that all tiles share; None: every tile has its own.
        rounds: how often all tiles go through the network to gather these, before the output is made.

    Returns:
        (N, C, scale * H, scale * W) float32.
    """
    height, width = inputs[0].shape[-2:]
    if tile is None or max(height, width) <= tile:
        return apply(*inputs).float()
    grid = tile_grid(height, width, tile, unit)
    if norms is None:
        return _blended(apply, inputs, grid, scale, None)
    with norms:
        for _ in range(rounds):
            for part in grid:
                norms.tile = part
                apply(*map(part.of, inputs))
            norms.next_round()
        return _blended(apply, inputs, grid, scale, norms)


def _blended(
    apply: Callable[..., Tensor], inputs: tuple[Tensor, ...], grid: list[Tile], scale: float, norms: SharedNorms | None
) -> Tensor:
    height, width = (round(side * scale) for side in inputs[0].shape[-2:])
    total = weight = torch.empty(0)
    for tile in grid:
        if norms is not None:
            norms.tile = tile
        result = apply(*map(tile.of, inputs)).float()
        if not total.numel():
            total = result.new_zeros(*result.shape[:-2], height, width)
            weight = result.new_zeros(height, width)
        rows, columns = (slice(round(s.start * scale), round(s.stop * scale)) for s in (tile.rows, tile.columns))
        bells = [_bell(side, result.device) for side in result.shape[-2:]]
        total[..., rows, columns] += result * bells[0][:, None] * bells[1]
        weight[rows, columns] += bells[0][:, None] * bells[1]
    return total.div_(weight)


def _bell(size: int, device: torch.device) -> Tensor:
    places = (torch.arange(size, device=device, dtype=torch.float32) - (size - 1) / 2) / size
    return torch.exp(-places.square() / (2 * SPREAD**2))


class SharedNorms:
    """One mean and variance for each group normalisation of some networks, over all tiles of an image.

    Used as a context. In it, every normalisation gathers its statistics over the cores of the tiles that pass, and
    normalises with those of the round before, in the first round with the tile's own. Each round makes at least one
    more normalisation exact, counted from the networks' inputs, and brings the later ones close.

    Args:
        *networks: whose ``nn.GroupNorm`` take part.
    """

    def __init__(self, *networks: nn.Module) -> None:
        self.tile = Tile(*[slice(0, 1)] * 4)  # the tile that passes; until one is named, all there is
        self._norms = [part for network in networks for part in network.modules() if isinstance(part, nn.GroupNorm)]
        self._known: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._sums: dict[nn.Module, list[Tensor]] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> SharedNorms:
        self._hooks = [norm.register_forward_hook(self._hook) for norm in self._norms]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def next_round(self) -> None:
        """Normalise from here on with what was gathered since the last call."""
        for norm, (count, total, squares) in self._sums.items():
            mean = total / count
            self._known[norm] = (mean, (squares / count - mean.square()).clamp_min(0))
        self._sums = {}

    def _hook(self, norm: Any, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        features = arguments[0]
        self._gather(norm, features)
        if norm not in self._known:
            return None
        mean, variance = (
            value.repeat_interleave(norm.num_channels // norm.num_groups, 1) for value in self._known[norm]
        )
        factor = torch.rsqrt(variance + norm.eps)
        if norm.affine:
            factor = factor * norm.weight
        offset = -mean * factor + (norm.bias if norm.affine else 0)
        shape = (*factor.shape, *(1,) * (features.ndim - 2))
        normalised = torch.addcmul(offset.float().view(shape), features.float(), factor.float().view(shape))
        return normalised.to(output.dtype)

    def _gather(self, norm: Any, features: Tensor) -> None:
        core = self.tile.core_of(features).flatten(2).unflatten(1, (norm.num_groups, -1)).flatten(2).float()
        # In float64: the sums run over all tiles, and mean and mean square may nearly cancel.
        variance, mean = (value.double() for value in torch.var_mean(core, dim=2, correction=0))
        count = torch.full_like(mean, core.shape[2])
        parts = [count, mean * count, (variance + mean.square()) * count]
        if norm in self._sums:
            parts = [before + now for before, now in zip(self._sums[norm], parts)]
        self._sums[norm] = parts
