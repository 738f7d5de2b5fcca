"""Stable Diffusion's VAE in tiles, exact: the whole network goes layer by layer, and each layer tile by tile.

Between layers the features of the whole image wait in the computer's memory. So a convolution
finds its neighbours' pixels at the border of a tile, every group normalisation the statistics of all tiles, gathered
while they are written, and the attention in the middle, at an eighth of the size, all cells. One pass gives what the
VAE gives for the whole image, to rounding. On the GPU there is never more than a tile, but for that attention; in the
computer's memory two or three layers' features of the image.

DiffBIR's program synchronises the normalisations alike, in tiles that overlap and whose attention ends at their border.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from milo_restore.errors import ConfigError

__all__ = ["decode_in_tiles", "encode_in_tiles"]

Apply = Callable[[Tensor], Tensor]
_KNOWN = {"UNetMidBlock2D", "DownEncoderBlock2D", "UpDecoderBlock2D", "ResnetBlock2D", "Downsample2D", "Upsample2D"}
_DOWNSAMPLING_HALO = 2  # of its input; even, so that a tile's pixels are paired as in the whole image


class _Features(NamedTuple):
    """A layer's output."""

    values: Tensor  # (N, C, H, W), in the computer's memory
    means: Tensor  # of each channel, (N, C) float64, on the VAE's device
    squares: Tensor  # mean squares, the same


@torch.no_grad()
def encode_in_tiles(vae: Any, images: Tensor, tile: int) -> Tensor:
    """Parameters of the distribution of ``vae.encode(images)``, (N, 2 * channels, h, w) float32.

    Args:
        vae: an ``AutoencoderKL``.
        images: (N, 3, H, W) in [-1, 1]; H and W multiples of a latent's cell.
        tile: side of the tiles in pixels, a multiple of a latent's cell.

    Raises:
        ConfigError: the VAE has layers that are not known here.
    """
    encoder = vae.encoder
    layers, first = _begin(vae, images, tile // _cell(vae), _cell(vae))
    features = layers.apply(encoder.conv_in, first, halo=1)
    for block in encoder.down_blocks:
        features = layers.blocks(block, features)
        for part in block.downsamplers or ():
            features = layers.apply(part, features, halo=_DOWNSAMPLING_HALO, scale=0.5)
    features = layers.middle(encoder.mid_block, features)
    return layers.end(encoder, features, vae.quant_conv)


@torch.no_grad()
def decode_in_tiles(vae: Any, latents: Tensor, tile: int) -> Tensor:
    """``vae.decode(latents)``, (N, 3, H, W) float32.

    Args:
        vae: an ``AutoencoderKL``.
        latents: (N, channels, h, w), not scaled.
        tile: side of the tiles in cells of the latent.

    Raises:
        ConfigError: the VAE has layers that are not known here.
    """
    decoder, before = vae.decoder, nn.Identity() if vae.post_quant_conv is None else vae.post_quant_conv
    layers, first = _begin(vae, latents, tile, 1)
    features = layers.apply(lambda part: decoder.conv_in(before(part)), first, halo=1)
    features = layers.middle(decoder.mid_block, features)
    for block in decoder.up_blocks:
        features = layers.blocks(block, features)
        for part in block.upsamplers or ():
            features = layers.apply(part, features, halo=1, scale=2)
    return layers.end(decoder, features, None)


def _cell(vae: Any) -> int:
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def _begin(vae: Any, values: Tensor, tile: int, cell: int) -> tuple[_Layers, _Features]:
    """The layers' grid for an image, and the image as their first input."""
    if hasattr(vae, "_hf_hook"):  # accelerate's, which brings an offloaded network to the GPU
        vae._hf_hook.pre_forward(vae)
    blocks = [*vae.encoder.down_blocks, vae.encoder.mid_block, *vae.decoder.up_blocks, vae.decoder.mid_block]
    names = ("resnets", "downsamplers", "upsamplers")
    parts = [part for block in blocks for name in names for part in getattr(block, name, None) or ()]
    unknown = {type(part).__name__ for part in (*blocks, *parts)} - _KNOWN
    unknown |= {type(part.conv_norm_out).__name__ for part in (vae.encoder, vae.decoder)} - {"GroupNorm"}
    if unknown:
        what = f"has layers that cannot be computed in tiles: {', '.join(sorted(unknown))}"
        raise ConfigError(what, where="vae", mend="Restore without tiles")
    weight = next(vae.parameters())
    side = values.shape[-2] // cell, values.shape[-1] // cell
    nothing = torch.empty(0)
    return _Layers(*side, tile, weight.device, weight.dtype), _Features(values.to("cpu"), nothing, nothing)


class _Span(NamedTuple):
    """A tile along one axis of a layer."""

    near: slice  # of the input: the tile and its halo
    inner: slice  # of what the layer makes of that: the tile
    outer: slice  # of the layer's output: the same

    @classmethod
    def of(cls, start: int, stop: int, length: int, halo: int, scale: float) -> _Span:
        near = slice(max(start - halo, 0), min(stop + halo, length))
        inner, outer = (slice(round((start - by) * scale), round((stop - by) * scale)) for by in (near.start, 0))
        return cls(near, inner, outer)


class _Layers:
    """Layers of one image, each computed in the same tiles.

    Args:
        height: of the image, in cells of the latent.
        width: of the image, in cells of the latent.
        tile: side of the tiles, in cells of the latent.
        device: where the network is.
        dtype: its precision.
    """

    def __init__(self, height: int, width: int, tile: int, device: torch.device, dtype: torch.dtype) -> None:
        self.height, self.device, self.dtype = height, device, dtype
        rows, columns = (itertools.pairwise([*range(0, side, tile), side]) for side in (height, width))
        self.grid = list(itertools.product(rows, columns))

    def apply(
        self,
        layer: Apply,
        source: _Features,
        *,
        halo: int = 0,
        scale: float = 1.0,
        old: Tensor | None = None,
        add: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> _Features:
        """A layer's output.

        Args:
            layer: (N, C, h, w) to (N, C', scale * h, scale * w).
            source: its input.
            halo: pixels around a tile that the layer looks at.
            scale: size of its output by that of its input.
            old: (N, C'', H, W), of the output's size. It is overwritten where it has the output's channels.
            add: what becomes of a tile's output and of the same tile of ``old``.
        """
        height, width = source.values.shape[-2:]
        unit = height // self.height  # pixels along a side of a cell, here
        target, sums = torch.empty(0) if old is None else old, _Sums()
        for row, column in self.grid:
            rows = _Span.of(row[0] * unit, row[1] * unit, height, halo, scale)
            columns = _Span.of(column[0] * unit, column[1] * unit, width, halo, scale)
            part = source.values[..., rows.near, columns.near].to(self.device, self.dtype)
            made = layer(part)[..., rows.inner, columns.inner]
            if old is not None and add is not None:
                made = add(made, old[..., rows.outer, columns.outer].to(self.device))
            if target.ndim != made.ndim or target.shape[1] != made.shape[1]:
                target = torch.empty(*made.shape[:2], round(height * scale), round(width * scale), dtype=self.dtype)
            target[..., rows.outer, columns.outer] = made.to("cpu")
            sums.take(made)
        return _Features(target, *sums.moments())

    def blocks(self, block: Any, features: _Features) -> _Features:
        """All residual blocks of a level."""
        for resnet in block.resnets:
            features = self.resnet(resnet, features)
        return features

    def resnet(self, block: Any, features: _Features) -> _Features:
        """One residual block, without a time embedding, as the VAE's are."""

        def add(made: Tensor, old: Tensor) -> Tensor:
            total: Tensor = (old if block.conv_shortcut is None else block.conv_shortcut(old)) + made
            return total / block.output_scale_factor

        act = block.nonlinearity
        first, second = _normalised(block.norm1, features), block.norm2
        inner = self.apply(lambda part: block.conv1(act(first(part))), features, halo=1)
        middle = _normalised(second, inner)
        return self.apply(lambda part: block.conv2(act(middle(part))), inner, halo=1, old=features.values, add=add)

    def middle(self, block: Any, features: _Features) -> _Features:
        """The blocks at the latent's size, with the attention, which sees all cells at once."""
        features = self.resnet(block.resnets[0], features)
        for attention, resnet in zip(block.attentions, block.resnets[1:]):
            if attention is not None:
                whole = attention(features.values.to(self.device))
                features = self.apply(lambda part: part, _Features(whole.to("cpu"), *features[1:]))
            features = self.resnet(resnet, features)
        return features

    def end(self, network: Any, features: _Features, after: nn.Module | None) -> Tensor:
        """The last layers of an encoder or a decoder, and what follows it."""
        norm, last = _normalised(network.conv_norm_out, features), nn.Identity() if after is None else after

        def layer(part: Tensor) -> Tensor:
            made: Tensor = last(network.conv_out(network.conv_act(norm(part))))
            return made

        return self.apply(layer, features, halo=1).values.to(self.device).float()


class _Sums:
    """Means and variances of channels, over tiles."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def take(self, made: Tensor) -> None:
        """Count a tile (N, C, h, w) in."""
        # In float64: the sums run over all tiles, and mean and mean square may nearly cancel.
        variance, mean = (value.double() for value in torch.var_mean(made.float(), dim=(2, 3), correction=0))
        count = made.shape[2] * made.shape[3]
        self.count += count
        self.total = self.total + mean * count
        self.squares = self.squares + (variance + mean.square()) * count

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and mean square of each channel, (N, C) float64."""
        return torch.as_tensor(self.total) / self.count, torch.as_tensor(self.squares) / self.count


def _normalised(norm: Any, features: _Features) -> Apply:
    """A group normalisation of tiles, with the statistics of the whole image."""
    mean, square = (value.unflatten(1, (norm.num_groups, -1)).mean(2) for value in features[1:])
    factor = torch.rsqrt((square - mean.square()).clamp_min(0) + norm.eps)
    factor, shift = (value.repeat_interleave(norm.num_channels // norm.num_groups, 1) for value in (factor, mean))
    if norm.affine:
        factor = factor * norm.weight
    offset = -shift * factor + (norm.bias if norm.affine else 0)
    factor, offset = (value[..., None, None].float() for value in (factor, offset))
    return lambda part: torch.addcmul(offset, part.float(), factor).to(part.dtype)
