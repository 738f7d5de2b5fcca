"""The condition of the diffusion model, and the way back: the cleaned image, its latent, a latent's image.

Each for a whole image or in tiles.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from milo_restore.errors import ConfigError
from milo_restore.models.diffbir.images import resized, working_size
from milo_restore.models.diffbir.tiling import in_tiles
from milo_restore.models.diffbir.vae_tiles import decode_in_tiles, encode_in_tiles

__all__ = ["Padding", "check_tiles", "clean", "decode", "encode", "padded", "result_size"]

Padding = Literal["mirror", "zeros"]


def result_size(cleaner: Any, images: Tensor, upscale: float | None) -> tuple[int, int]:
    """Height and width of the result for images (N, 3, H, W): times ``upscale``, or times the cleaner's scale."""
    factor = int(getattr(cleaner, "scale", 1)) if upscale is None else upscale
    return round(images.shape[-2] * factor), round(images.shape[-1] * factor)


def clean(
    cleaner: Any, images: Tensor, *, upscale: float | None = None, minimum_side: int = 0, tile: int | None = None
) -> Tensor:
    """A cleaner's output, of the size at which the diffusion model works.

    Args:
        cleaner: see `DiffBIRPipeline`; None changes nothing.
        images: (N, 3, H, W).
        upscale: see `result_size`. A cleaner of scale 1 sees images of the result's size.
        minimum_side: pixels that the shorter side has at least. One with the attribute ``enlarge_first`` sees images
            that are enlarged to it; the output of others is brought straight to the working size.
        tile: side of tiles, in pixels.

    Returns:
        (N, 3, H', W') float32.

    Source: DiffBIR's program; it enlarges before SwinIR, and after BSRNet and SCUNet.
    """
    scale, unit = (int(getattr(cleaner, name, 1)) for name in ("scale", "multiple"))
    size = result_size(cleaner, images, upscale)
    working = working_size(*size, minimum_side)
    if cleaner is None or scale == 1:
        images = resized(images, *size)
    if cleaner is None:
        return resized(images, *working)
    if scale == 1 and getattr(cleaner, "enlarge_first", False):
        images = resized(images, *working)
    place = next((value.device for value in cleaner.parameters()), images.device)
    tile = tile and max(tile // unit, 2) * unit
    cleaned = in_tiles(cleaner, images.to(place), tile=tile, unit=unit, scale=scale)
    return resized(cleaned.to(images), *working)


def encode(vae: Any, images: Tensor, tile: int | None = None) -> Tensor:
    """The mode of the VAE's distribution, times the scaling factor: (N, 4, h, w) float32.

    Args:
        vae: an ``AutoencoderKL``.
        images: (N, 3, H, W) in [0, 1], of sides that it can halve as often as it does.
        tile: side of tiles, in pixels; see `milo_restore.models.diffbir.vae_tiles`.
    """
    images = images.to(vae.dtype) * 2 - 1
    if tile is None or max(images.shape[-2:]) <= tile:
        mode: Tensor = vae.encode(images).latent_dist.mode()
    else:
        mode = encode_in_tiles(vae, images, tile).chunk(2, 1)[0]
    return mode.float() * vae.config.scaling_factor


def decode(vae: Any, latent: Tensor, tile: int | None = None) -> Tensor:
    """The image of a latent (N, 4, h, w) times the scaling factor: (N, 3, H, W) float32, not clamped.

    Args:
        vae: an ``AutoencoderKL``.
        latent: the latent.
        tile: side of tiles, in cells of the latent.
    """
    latent = (latent / vae.config.scaling_factor).to(vae.dtype)
    if tile is None or max(latent.shape[-2:]) <= tile:
        image: Tensor = vae.decode(latent).sample
    else:
        image = decode_in_tiles(vae, latent, tile)
    return image.float() / 2 + 0.5


def padded(images: Tensor, multiple: int, padding: Padding = "mirror") -> Tensor:
    """Images (N, 3, H, W) in [0, 1], continued to the right and below to multiples.

    Args:
        images: the images.
        multiple: of what.
        padding: ``mirror``, where there is not enough to mirror the border goes on; or ``zeros``, black, as in
            DiffBIR's program.

    Raises:
        ConfigError: no such padding.
    """
    if padding not in get_args(Padding):
        raise ConfigError(f"is {padding!r}", where="padding", mend="Take mirror or zeros")
    below, right = (-side % multiple for side in images.shape[-2:])
    if padding == "zeros":
        return F.pad(images, (0, right, 0, below))
    images = F.pad(images, (0, right, 0, 0), mode="reflect" if right < images.shape[-1] else "replicate")
    return F.pad(images, (0, 0, 0, below), mode="reflect" if below < images.shape[-2] else "replicate")


def check_tiles(multiple: int, **tiles: int | None) -> None:
    """Refuse tiles that networks cannot work in, before any work.

    Raises:
        ConfigError: naming the one of ``tiles`` that is no multiple, or too small.
    """
    for name, side in tiles.items():
        if side is not None and (side < 2 * multiple or side % multiple):
            mend = f"Take a multiple of {multiple}, at least {2 * multiple}"
            raise ConfigError(f"tiles of {side} pixels", where=f"tile of the {name}", mend=mend)
