"""MILO's mask without gradients, tile by tile: memory grows with the tile, and the mask is that of the whole image.

A tile of a level sees `HALO` pixels more on every side, the receptive field of the network. The images of a level are
made from the same pixels of the whole ones, whatever their tile, and the mask from the coarser level is read at the
places that doubling it as a whole would read. Only masks are kept whole, of the coarser levels: a third of a number per
pixel of the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """The tiles of the finest level, once the coarser ones are done.

    Args:
        network: the visibility of a level from image, reference and the coarser mask, see `MaskNetwork`.
        image: distorted images, (N, C, H, W), float32, or uint8 that stand for 0 to 1.
        reference: references, the same.
    """
    pair = (_kept(image), _kept(reference))
    above = None
    for level in reversed(range(1, N_SCALES)):
        sides = (side >> level for side in image.shape[2:])  # an odd row or column is dropped at each halving
        mask = torch.empty(len(image), 1, *sides, device=image.device)
        for tile in _tiles_of(network, pair, level, above):
            mask[tile.place] = tile.mask
        above = mask
    yield from _tiles_of(network, pair, 0, above)


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


def _tiles_of(
    network: Callable[[Tensor], Tensor], pair: tuple[list[Tensor], list[Tensor]], level: int, above: Tensor | None
) -> Iterator[Tile]:
    whole = pair[0][0]
    height, width = sides = tuple(side >> level for side in whole.shape[2:])
    for images, rows, columns in _places(len(whole), height, width):
        seen = (_widened(rows, height), _widened(columns, width))
        image, reference = (_pooled(kept, level, images, *seen) for kept in pair)
        if above is None:
            coarse = torch.zeros_like(image[:, :1])
        elif image.shape[2:] == sides:
            coarse = double(above[images], image)
        else:
            coarse = _doubled(above[images], *seen)
        stacked = torch.cat([image, reference, coarse], 1)
        with torch.autocast(whole.device.type, enabled=False):  # a training loop may run under it
            visibility = network(stacked.contiguous(memory_format=torch.channels_last))
        inner = (slice(None), slice(None), *(
            slice(part.start - wide.start, part.stop - wide.start) for part, wide in zip((rows, columns), seen)
        ))  # fmt: skip
        place = (images, slice(None), rows, columns)
        yield Tile(place, image[inner], reference[inner], visibility[inner] + coarse[inner])


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
    rows, columns = (slice(p.start << level - finest, p.stop << level - finest) for p in (rows, columns))
    pixels = _floating(kept[finest][images, :, rows, columns])
    for _ in range(level - finest):
        pixels = F.avg_pool2d(pixels, 2)
    return pixels


def _doubled(mask: Tensor, rows: slice, columns: slice) -> Tensor:
    """Rows and columns of a mask of twice the size: what `double` has there, to one unit in the last place."""
    for axis, part in ((2, rows), (3, columns)):
        side = mask.shape[axis]
        scale = torch.tensor(side - 1, dtype=torch.float32) / (2 * side - 1)  # float32, as `F.interpolate` has it
        places = torch.arange(part.start, part.stop).clamp_(max=2 * side - 1) * scale
        cells = places.long().clamp_(max=side - 2)  # each place lies between one and the next
        share = (places - cells).to(mask.device)
        first = int(cells[0])
        mask = mask.narrow(axis, first, int(cells[-1]) + 2 - first)
        cells = (cells - first).to(mask.device)
        near, far = mask.index_select(axis, cells), mask.index_select(axis, cells + 1)
        mask = torch.lerp(near, far, share if axis == 3 else share[:, None])
    return mask
