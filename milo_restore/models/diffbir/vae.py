"""Stable Diffusion's VAE as an encoder: images in [0, 1] to scaled latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from milo_restore.errors import WeightsError
from milo_restore.files.hashes import sha256_of


def load_encoder(
    folder: str | Path, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Callable[[Tensor], Tensor], str]:
    """An encoder from a diffusers folder, and what names it.

    Args:
        folder: of an ``AutoencoderKL`` (``config.json`` and its weights), or of a whole pipeline with a ``vae`` in it.
            Nothing is downloaded.
        device: where it computes.
        dtype: what it computes in.

    Returns:
        A function from images (N, 3, H, W), RGB in [0, 1], to the mode of the latent distribution times the VAE's
        scaling factor, (N, 4, H / 8, W / 8), float32; and the sha256 of configuration and weights.

    Raises:
        WeightsError: the folder holds no such VAE, or one with another number of latent channels than four.
    """
    from diffusers import AutoencoderKL

    folder = Path(folder)
    folder = folder / "vae" if (folder / "vae" / "config.json").is_file() else folder
    mend = "Name the folder of an AutoencoderKL in diffusers' format, such as stabilityai/sd-vae-ft-mse after download"
    try:
        vae = AutoencoderKL.from_pretrained(folder, local_files_only=True, torch_dtype=dtype)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise WeightsError(f"holds no readable VAE ({reason})", where=folder, mend=mend) from error
    if vae.config.latent_channels != 4:
        raise WeightsError(f"has {vae.config.latent_channels} latent channels, not 4", where=folder, mend=mend)
    vae = vae.to(device).eval().requires_grad_(False)
    factor = float(vae.config.scaling_factor)

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        return (vae.encode(images.to(device, dtype) * 2 - 1).latent_dist.mode() * factor).float()

    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".bin"))
    return encode, " ".join(sha256_of(path) for path in files)
