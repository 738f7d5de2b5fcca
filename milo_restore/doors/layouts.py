"""The ways in which programs lay latents out, and back: LatentMILO looks at (N, C, h, w)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from milo_restore.errors import ConfigError

__all__ = ["Layout", "layout_of"]

_FLUX2 = 32
"""Channels of FLUX.2's VAE: its programs noise 2x2 cells of these latents as one, 128 channels."""


class Layout(NamedTuple):
    """A program's layout of latents.

    Attributes:
        pictures: from the program's to (M, C, h, w).
        back: from (M, C, h, w) to the program's.
        frames: M over N: how many pictures there are of a sample.
    """

    pictures: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]
    frames: int = 1


def layout_of(latents: Tensor, channels: int, packed: dict[tuple[int, int], tuple[int, int]]) -> Layout:
    """The layout of a program's latents.

    Args:
        latents: (N, C, h, w); frames (N, C, T, h, w), as Qwen's and Wan's; FLUX.2's (N, 4 C, h / 2, w / 2); or FLUX.1's
            tokens (N, h w / 4, 4 C).
        channels: C, of LatentMILO's weights.
        packed: h and w of the latents that diffusers packed, by the shape of a sample's tokens.

    Raises:
        ConfigError: they are of other channels, or tokens of an unknown height and width.
    """
    shape = tuple(latents.shape)
    if latents.ndim == 4 and shape[1] == channels:
        return Layout(_same, _same)
    if latents.ndim == 5 and shape[1] == channels:
        return _frames(shape[0], shape[2])
    if latents.ndim == 4 and channels == _FLUX2 and shape[1] == 4 * channels:
        return Layout(_from_patches, _to_patches)
    if latents.ndim == 3 and shape[2] == 4 * channels:
        size = packed.get((shape[1], shape[2]))
        if size is None:
            what = f"the program's latents are tokens {shape}, which no _pack_latents of diffusers' FLUX pipelines made"
            raise ConfigError(what, where="milo-restore run", mend="Noise before packing, as train_dreambooth_flux.py")
        return _tokens(*size)
    what = f"the program's latents are {shape}, and LatentMILO is for (N, {channels}, h, w) with these weights"
    mend = "Name --weights for their VAE, such as flux2-taef2 for FLUX.2's; recipes/train_milo.py trains some"
    raise ConfigError(what, where="milo-restore run", mend=mend)


def _same(latents: Tensor) -> Tensor:
    return latents


def _frames(samples: int, frames: int) -> Layout:
    def pictures(latents: Tensor) -> Tensor:
        return latents.transpose(1, 2).flatten(0, 1)

    def back(latents: Tensor) -> Tensor:
        return latents.unflatten(0, (samples, frames)).transpose(1, 2)

    return Layout(pictures, back, frames)


def _from_patches(latents: Tensor) -> Tensor:
    n, wide, rows, columns = latents.shape
    cells = latents.reshape(n, wide // 4, 2, 2, rows, columns)
    return cells.permute(0, 1, 4, 2, 5, 3).reshape(n, wide // 4, 2 * rows, 2 * columns)


def _to_patches(latents: Tensor) -> Tensor:
    n, channels, height, width = latents.shape
    cells = latents.reshape(n, channels, height // 2, 2, width // 2, 2)
    return cells.permute(0, 1, 3, 5, 2, 4).reshape(n, 4 * channels, height // 2, width // 2)


def _tokens(height: int, width: int) -> Layout:
    """FLUX.1's: the patches of `_to_patches`, one after the other in rows."""

    def pictures(latents: Tensor) -> Tensor:
        return _from_patches(latents.transpose(1, 2).unflatten(2, (height // 2, width // 2)))

    def back(latents: Tensor) -> Tensor:
        return _to_patches(latents).flatten(2).transpose(1, 2)

    return Layout(pictures, back)
