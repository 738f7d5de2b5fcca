"""The tiny latent world: a VAE and a UNet of Stable Diffusion's classes and conventions, small enough to ship.

It exists so that everything about latent diffusion can be run, tested and taught on any machine; its pictures are no
statement about quality. ``recipes/train_tiny_world.py`` trains it, `tiny_world` finds what is shipped.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from milo_restore.errors import DataError, WeightsError
from milo_restore.files.hashes import sha256_of
from milo_restore.models.tiny_vae_start import start_as_pyramid

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

SHIPPED = Path(__file__).resolve().parent.parent / "weights" / "tiny_world"
SUMS = "SHA256SUMS"  # of every file but itself and the card, as sha256sum writes it
PROMPTS = ("", "low quality, blurry, low-resolution, noisy, unsharp, weird textures")
TOKENS, PROMPT_WIDTH = 4, 32
CLEANER_OPTIONS: dict[str, Any] = {
    "num_in_ch": 3, "num_out_ch": 3, "num_feat": 24, "num_conv": 8, "upscale": 1, "act_type": "prelu",
}  # fmt: skip


def tiny_world() -> Path:
    """The folder of the shipped world, in diffusers' layout, after a look at every file's sha256.

    Raises:
        WeightsError: naming the file that is missing or damaged.
    """
    _verify(SHIPPED)
    return SHIPPED


@functools.lru_cache(maxsize=4)
def _verify(folder: Path) -> None:
    mend = "Install milo-restore again"
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise WeightsError("the tiny world is not here", where=folder / SUMS, mend=mend) from error
    for line in lines:
        digest, name = line.split(maxsplit=1)
        try:
            found = sha256_of(folder / name)
        except DataError as error:
            raise WeightsError(error.what, where=folder / name, mend=mend) from error
        if found != digest:
            raise WeightsError(f"is damaged: its sha256 is not that of {SUMS}", where=folder / name, mend=mend)


def tiny_vae(scaling_factor: float = 1.0) -> AutoencoderKL:
    """An untrained ``AutoencoderKL`` as Stable Diffusion's, but narrow: an eighth of the size, four channels.

    Args:
        scaling_factor: what its latents are multiplied with for a standard deviation of one.
    """
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        sample_size=128,
        scaling_factor=scaling_factor,
        mid_block_add_attention=False,
    )
    start_as_pyramid(vae)
    return vae


def tiny_unet() -> UNet2DConditionModel:
    """An untrained ``UNet2DConditionModel`` as Stable Diffusion 2.1's, but narrow and with three levels."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        cross_attention_dim=PROMPT_WIDTH,
        attention_head_dim=(2, 4, 6),
        norm_num_groups=8,
        use_linear_projection=True,
    )


def tiny_scheduler() -> DDPMScheduler:
    """Stable Diffusion 2.1-base's noise: 1000 steps, scaled linear, the network predicts the noise."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="epsilon",
        timestep_spacing="linspace",
    )


def tiny_cleaner() -> nn.Module:
    """An untrained cleaner: Real-ESRGAN's compact network at scale 1, which adds what it predicts to its input."""
    from basicsr.archs.srvgg_arch import SRVGGNetCompact

    return SRVGGNetCompact(**CLEANER_OPTIONS)


def tiny_prompts() -> dict[str, Tensor]:
    """Embeddings (tokens, width) of `PROMPTS`, by their number: there is no text encoder, they are fixed and random."""
    generator = torch.Generator().manual_seed(0)
    return {str(number): torch.randn(TOKENS, PROMPT_WIDTH, generator=generator) for number in range(len(PROMPTS))}


def write_sums(folder: Path) -> None:
    """Write ``SHA256SUMS`` of a world's files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md" and path.name != SUMS)
    lines = [f"{sha256_of(path)}  {path.relative_to(folder).as_posix()}" for path in files]
    (folder / SUMS).write_text("\n".join(lines) + "\n", encoding="utf-8")
