"""MILO's mask without gradients, tile by tile: memory grows with the tile, and the mask is that of the whole image.

A tile of a level sees `HALO` pixels more on every side, the receptive field of the network. The images of a level are
made from the same pixels of the whole ones, whatever their tile, and the mask from the coarser level is read at the
places that doubling it as a whole would read. Of that coarser mask a tile has its own part made, unless the level fits
into one tile, which is then made once: the edges that neighbours both make cost a few per cent, and no mask is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from ctypes import c_float
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from milo_restore.metric.pyramid import N_SCALES, double

TILE_PIXELS = 2**17
"""Pixels that the mask network takes at once: 48 MiB of activations."""
TILE_WIDTH = 512
"""Columns of a tile, at most: long tiles would compute more of their neighbours'."""
KEPT_PIXELS = 2**20
"""Pixels of a batch whose pyramid is kept, up to here; that of larger ones is made for each tile, from the pixels."""
HALO = 5
"""Pixels to each side that the network's output depends on: one per convolution."""


class Tile(NamedTuple):
    """A part of a level: which images of the batch, rows and columns; their pixels, and the mask there.

    Attributes:
        place: indexes (N, ., H, W) tensors of the level.
        image: (n, C, h, w), float32.
        reference: the same.
        mask: (n, 1, h, w), float32.
    """

    place: tuple[slice, slice, slice, slice]
    image: Tensor
    reference: Tensor
    mask: Tensor

    def error(self) -> Tensor:
        """The masked error, (n, C, h, w)."""
        return self.mask * (self.image - self.reference).abs()


def mask_tiles(network: Callable[[Tensor], Tensor], image: Tensor, reference: Tensor) -> Iterator[Tile]:
    """The tiles of the finest level.

    Args:
        network: the visibility of a level from image, reference and the coarser mask, see `MaskNetwork`.
        image: distorted images, (N, C, H, W), float32, or uint8 that stand for 0 to 1.
        reference: references, the same.
    """
    levels = _Levels(network, (_kept(image), _kept(reference)))
    for place in _places(len(image), *image.shape[2:]):
        yield levels.tile(0, *place)


def tile_means(tiles: Iterable[Tile], pixels: int, values: Sequence[Callable[[Tensor], Tensor]]) -> list[Tensor]:
    """The mean of each function of the masked error: (N,) each.

    Args:
        tiles: from `mask_tiles`.
        pixels: of one image.
        values: from the masked error, (n, C, h, w), to (n, ., h, w).
    """
    sums: dict[int, list[Tensor]] = {}  # the tiles' own, by the first image that they show
    for tile in tiles:
        found = torch.stack([value(tile.error()).mean(1).sum((1, 2)) for value in values])
        sums.setdefault(tile.place[0].start, []).append(found)
    totals = torch.cat([torch.stack(parts).sum(0) for parts in sums.values()], 1)  # added in pairs, not one by one
    return list(totals / pixels)


class _Levels:
    """The pyramid of a batch, and the masks of its coarse levels that fit into one tile.

    Args:
        network: as of `mask_tiles`.
        pair: `_kept` of images and references.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], pair: tuple[list[Tensor], list[Tensor]]) -> None:
        self.network, self.pair = network, pair
        self._whole: dict[tuple[int, int], Tensor] = {}  # by level and first image

    def tile(self, level: int, images: slice, rows: slice, columns: slice) -> Tile:
        """These images, rows and columns of a level, and so those of the coarser levels that they depend on."""
        sides = self._sides(level)
        seen = tuple(_widened(part, side) for part, side in zip((rows, columns), sides))
        image, reference = (_pooled(kept, level, images, *seen) for kept in self.pair)
        if level == N_SCALES - 1:
            coarse = torch.zeros_like(image[:, :1])
        else:
            places = [_places_in(part, side) for part, side in zip(seen, self._sides(level + 1))]
            above = self._mask(level + 1, images, *(place.cells for place in places))
            coarse = double(above, image) if image.shape[2:] == sides else _doubled(above, *places)
        stacked = torch.cat([image, reference, coarse], 1)
        with torch.autocast(image.device.type, enabled=False):  # a training loop may run under it
            visibility = self.network(stacked.contiguous(memory_format=torch.channels_last))
        inner = (slice(None), slice(None), *(
            slice(part.start - wide.start, part.stop - wide.start) for part, wide in zip((rows, columns), seen)
        ))  # fmt: skip
        place = (images, slice(None), rows, columns)
        return Tile(place, image[inner], reference[inner], visibility[inner] + coarse[inner])

    def _mask(self, level: int, images: slice, rows: slice, columns: slice) -> Tensor:
        sides = self._sides(level)
        if math.prod(sides) > TILE_PIXELS:
            return self.tile(level, images, rows, columns).mask
        key = level, images.start
        if key not in self._whole:
            self._whole[key] = self.tile(level, images, *(slice(0, side) for side in sides)).mask
        return self._whole[key][:, :, rows, columns]

    def _sides(self, level: int) -> tuple[int, ...]:
        return tuple(side >> level for side in self.pair[0][0].shape[2:])  # an odd row or column is dropped


def _places(count: int, height: int, width: int) -> Iterator[tuple[slice, slice, slice]]:
    """Images, rows and columns of each tile: some images of a batch, or parts of one, as equal as they can be."""
    some = max(1, TILE_PIXELS // (height * width))
    across = 1 if some > 1 else math.ceil(width / TILE_WIDTH)
    down = 1 if some > 1 else math.ceil(height * math.ceil(width / across) / TILE_PIXELS)
    for first in range(0, count, some):
        for rows in _parts(height, down):
            for columns in _parts(width, across):
                yield slice(first, min(first + some, count)), rows, columns


def _parts(side: int, parts: int) -> Iterator[slice]:
    length = math.ceil(side / parts)
    for start in range(0, side, length):
        yield slice(start, min(start + length, side))


def _widened(part: slice, side: int) -> slice:
    return slice(max(0, part.start - HALO), min(side, part.stop + HALO))


def _kept(image: Tensor) -> list[Tensor]:
    """The pyramid of few pixels; of many the images alone."""
    kept = [image]
    while len(kept) < N_SCALES and len(image) * image.shape[2] * image.shape[3] <= KEPT_PIXELS:
        kept.append(F.avg_pool2d(_floating(kept[-1]), 2))
    return kept


def _floating(pixels: Tensor) -> Tensor:
    return pixels if pixels.is_floating_point() else pixels.float().div_(255)


def _pooled(kept: list[Tensor], level: int, images: slice, rows: slice, columns: slice) -> Tensor:
    """Rows and columns of a level: means of 2x2 blocks of the finer one, as `pyramid` has them."""
    finest = min(level, len(kept) - 1)
    halvings = level - finest
    at_once = max(1, (TILE_PIXELS >> 2 * halvings) // (columns.stop - columns.start))  # rows, for many finer ones
    parts = []
    for top in range(rows.start, rows.stop, at_once):
        some = slice(top, min(top + at_once, rows.stop))
        down, across = (slice(part.start << halvings, part.stop << halvings) for part in (some, columns))
        pixels = _floating(kept[finest][images, :, down, across])
        for _ in range(halvings):
            pixels = F.avg_pool2d(pixels, 2)
        parts.append(pixels)
    return torch.cat(parts, 2) if len(parts) > 1 else parts[0]


class _Places(NamedTuple):
    """Where doubling reads a mask, along one axis.

    Attributes:
        cells: those that it reads.
        near: each place lies between this of them and the next, int64.
        share: of the next one, in [0, 1], float32.
    """

    cells: slice
    near: Tensor
    share: Tensor


def _places_in(part: slice, side: int) -> _Places:
    """The places of rows or columns in a mask of half the size, ``side``, that doubling as a whole would read."""
    scale = torch.tensor(side - 1, dtype=torch.float32) / (2 * side - 1)  # float32, as `F.interpolate` has it
    places = torch.arange(part.start, part.stop).clamp_(max=2 * side - 1) * scale
    near = places.long().clamp_(max=side - 2)
    first, last = (_cell(place, side) for place in (part.start, part.stop - 1))
    return _Places(slice(first, last + 2), near - first, places - near)


def _cell(place: int, side: int) -> int:
    """The entry of ``near`` for one place: the same numbers without a tensor, whose value tracing could not see."""
    scale = c_float((side - 1) / (2 * side - 1)).value
    return min(int(c_float(min(place, 2 * side - 1) * scale).value), side - 2)


def _doubled(mask: Tensor, rows: _Places, columns: _Places) -> Tensor:
    """Rows and columns of a doubled mask, from their cells: what `double` has there, to one unit in the last place."""
    for axis, places in ((2, rows), (3, columns)):
        near, share = places.near.to(mask.device), places.share.to(mask.device)
        first, second = mask.index_select(axis, near), mask.index_select(axis, near + 1)
        mask = torch.lerp(first, second, share if axis == 3 else share[:, None])
    return mask
