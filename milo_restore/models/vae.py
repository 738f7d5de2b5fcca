"""Autoencoders of latent diffusion, as a LatentMILO is trained with them: images to scaled latents and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from milo_restore.errors import WeightsError
from milo_restore.files import weights_path
from milo_restore.files.hashes import sha256_of
from milo_restore.files.hub import parse_repository, repository_folder

CLASSES = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderKLFlux2", "AutoencoderKLQwenImage", "AutoencoderKLWan")
"""diffusers' classes that `load_vae` takes; the last two are of videos, and take an image as one frame."""
FRAMED = CLASSES[3:]
_WEIGHTS = ("diffusion_pytorch_model*.safetensors", "diffusion_pytorch_model*.safetensors.index.json",
            "diffusion_pytorch_model.bin")  # fmt: skip


@dataclass(frozen=True)
class LatentCodec:
    """A frozen autoencoder with the scaling and shift of its latents.

    Attributes:
        vae: diffusers' network.
        scaling: the latents' factor, one number or one per channel.
        shift: what is subtracted before; the same.
        sha256: of its configuration and weights, joined by spaces.
        name: what it was loaded by.
    """

    vae: Any
    scaling: tuple[float, ...]
    shift: tuple[float, ...]
    sha256: str
    name: str

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return int(self.vae.config.get("latent_channels") or self.vae.config.z_dim)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W), RGB in [0, 1], to (z - shift) * scaling, (N, C, h, w), float32.

        z is the mode of the latent distribution, or the one latent that the autoencoder gives.
        """
        framed = type(self.vae).__name__ in FRAMED
        images = images.to(self.vae.device, self.vae.dtype) * 2 - 1
        said = self.vae.encode(images[:, :, None] if framed else images)
        latents = said.latent_dist.mode() if hasattr(said, "latent_dist") else said.latents
        scaling, shift = self._numbers(latents)
        return (((latents[:, :, 0] if framed else latents).float() - shift) * scaling).float()

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse: (N, C, h, w) to images (N, 3, H, W), float32, near [0, 1] and not clipped.

        The gradient flows to the latents.
        """
        framed = type(self.vae).__name__ in FRAMED
        scaling, shift = self._numbers(latents)
        latents = (latents.float() / scaling + shift).to(self.vae.device, self.vae.dtype)
        images = self.vae.decode(latents[:, :, None] if framed else latents).sample
        return ((images[:, :, 0] if framed else images) / 2 + 0.5).float()

    def _numbers(self, like: Tensor) -> list[Tensor]:
        return [torch.tensor(each, device=like.device).view(1, -1, 1, 1) for each in (self.scaling, self.shift)]


def load_vae(name: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> LatentCodec:
    """An autoencoder by name.

    Args:
        name: ``taef2``; a folder of one of `CLASSES` in diffusers' format, or of a whole pipeline with a ``vae`` in it;
            or OWNER/NAME or OWNER/NAME@REVISION of either on the Hugging Face hub.
        device: where it computes.
        dtype: what it computes in.

    Raises:
        WeightsError: it cannot be had, or holds no such autoencoder.
    """
    if str(name) == "taef2":
        from milo_restore.models.taef2 import load_taef2

        hashes = " ".join(sha256_of(weights_path(f"taef2-{half}")) for half in ("encoder", "decoder"))
        vae: Any = load_taef2(device=device, dtype=dtype)
        return LatentCodec(_laid_out(vae), (1.0,), (0.0,), hashes, "taef2")
    folder = _folder(name)
    vae = _read(folder, dtype).to(device).eval().requires_grad_(False)
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".bin"))
    scaling, shift = _scale(vae.config)
    return LatentCodec(_laid_out(vae), scaling, shift, " ".join(sha256_of(path) for path in files), str(name))


def _laid_out(vae: Any) -> Any:
    """Its convolutions in channels-last layout, a quarter faster on CPUs; those of videos as they are."""
    return vae if type(vae).__name__ in FRAMED else vae.to(memory_format=torch.channels_last)


def _folder(name: str | Path) -> Path:
    """The folder with the autoencoder's own config.json."""
    if (repository := parse_repository(name)) is not None:
        places = ("", "vae/")
        patterns = {"allow_patterns": [f"{place}{file}" for place in places for file in ("config.json", *_WEIGHTS)]}
        folder = repository_folder(*repository, patterns=patterns, lacking=_lacking)
    else:
        folder = Path(name).expanduser()
    return folder / "vae" if (folder / "vae" / "config.json").is_file() else folder


def _lacking(folder: Path) -> list[str]:
    homes = [home for home in (folder / "vae", folder) if (home / "config.json").is_file()]
    if not homes:
        return ["config.json"]
    return [] if any(home.glob(pattern) for home in homes for pattern in _WEIGHTS) else ["weights"]


def _read(folder: Path, dtype: torch.dtype) -> Any:
    import diffusers

    mend = "Name the folder of an autoencoder in diffusers' format, such as stabilityai/sd-vae-ft-mse after download"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config.get("_class_name", "AutoencoderKL")
        if kind not in CLASSES:
            what = f"holds a {kind}, which is none of {', '.join(CLASSES)}"
            raise WeightsError(what, where=folder, mend=mend)
        return getattr(diffusers, kind).from_pretrained(folder, local_files_only=True, torch_dtype=dtype)
    except (OSError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise WeightsError(f"holds no readable VAE ({reason})", where=folder, mend=mend) from error


def _scale(config: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scaling and shift of the latents that are trained in, as diffusers' pipelines apply them."""
    # FLUX.2 has no factor: its pipeline folds 2x2 cells into channels and normalises those, after what is meant here.
    stated, shift = config.get("scaling_factor"), config.get("shift_factor")
    scaling = 1.0 if stated is None else float(stated)
    means: Sequence[float] | None = config.get("latents_mean")
    if means and config.get("latents_std"):
        return tuple(scaling / float(each) for each in config["latents_std"]), tuple(map(float, means))
    return (scaling,), (float(shift or 0.0),)
