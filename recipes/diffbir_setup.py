"""What the DiffBIR recipes set up before they train: frozen networks, the control, the memory plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from milo_restore.data.latent_cache import cached_embeddings
from milo_restore.errors import ConfigError, WeightsError
from milo_restore.files.hashes import module_sha256
from milo_restore.models.diffbir import IRControlNet
from milo_restore.models.diffbir.cleaner import load_cleaner
from milo_restore.models.diffbir.components import load_components, load_control
from milo_restore.models.diffbir.prompts import NEGATIVE_PROMPT, EncodedPrompts, Prompts, StoredPrompts

if TYPE_CHECKING:
    from diffbir import Config

STABLE_DIFFUSION = 0.18215  # scaling factor of Stable Diffusion 1's and 2's VAE
MICRO_BATCH = 8  # 512-pixel samples that go through a 24 GB card at a time


@dataclass(frozen=True)
class Frozen:
    """The networks that are not trained, on their device."""

    vae: Any
    unet: Any
    cleaner: nn.Module
    prompts: Any
    context: Tensor  # embedding of the training's prompt, (1, L, D)
    controlnet: IRControlNet | None  # the base's own

    @torch.no_grad()
    def encode(self, degraded: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, p, p) to latents (N, 4, p / 8, p / 8), times the VAE's scaling factor.

        Returns:
            ``mean`` and ``deviation`` of the target's; and ``condition``, the mode of the cleaned image's.
        """
        clean, condition = self.latents(target), self.latents(self.cleaner(degraded.clamp(0, 1))).mode()
        return {
            "mean": clean.mean * self.scale,
            "deviation": clean.std * self.scale,
            "condition": condition * self.scale,
        }

    @property
    def scale(self) -> float:
        """The VAE's scaling factor."""
        return float(self.vae.config.scaling_factor)

    def latents(self, images: Tensor) -> Any:
        """The VAE's distribution of latents, not scaled yet, of images (N, 3, H, W) in [0, 1]."""
        return self.vae.encode(images.to(self.vae.device) * 2 - 1).latent_dist

    def sha256(self) -> dict[str, str]:
        """Hashes of what the latents depend on."""
        return {"vae": module_sha256(self.vae), "cleaner": module_sha256(self.cleaner)}

    def for_pipeline(self) -> dict[str, Any]:
        """The arguments of `DiffBIRPipeline` that never change."""
        return {"vae": self.vae, "unet": self.unet, "cleaner": self.cleaner, "prompts": self.prompts}


def planned(config: Config, output: Path, processes: int) -> Config:
    """The configuration under its memory plan.

    ``24gb`` is one GPU of that size for Stable Diffusion 2.1 at 512 pixels: bfloat16 for control and frozen UNet,
    gradient checkpointing of both, 8-bit Adam, latents from disk (so that VAE and cleaner work before training only),
    and as many accumulated micro-batches as it takes to let no more than 8 samples through at a time. Accumulation
    does not change the result; the others do, within rounding and the size of the pool.
    """
    if config.memory == "default":
        return config
    largest = max(stage.batch for stage in config.training.stages)
    parts = max(config.training.accumulation, -(-largest // (processes * MICRO_BATCH)))
    training = replace(config.training, mixed_precision="bf16", optimizer="adamw8bit", accumulation=parts)
    cache = replace(config.cache, folder=config.cache.folder or str(output / "latents"))
    return replace(config, training=training, cache=cache, gradient_checkpointing=True)


def load_frozen(config: Config, device: torch.device) -> Frozen:
    """VAE and cleaner in float32, as DiffBIR has them; the UNet in bfloat16 where the training mixes precisions.

    The text encoder says what it has to say, once, and is dropped.

    Raises:
        ConfigError: the loss's LatentMILO is for another VAE's latents; the cleaner changes sizes.
        WeightsError: something is missing or does not fit.
    """
    parts = load_components(config.base, device=device)
    check_metric_fits(config, parts.vae)
    cleaner = load_cleaner(config.cleaner).to(device)
    if cleaner.scale != 1:
        mend = "Train behind a cleaner that keeps sizes; milo-restore restore takes this one for images of your own"
        raise ConfigError(f"enlarges {cleaner.scale} times", where=f"cleaner {config.cleaner}", mend=mend)
    if config.training.mixed_precision == "bf16":
        nn.Module.to(parts.unet, torch.bfloat16)  # diffusers' own method warns of an empty list of exceptions
    if config.gradient_checkpointing:
        parts.unet.enable_gradient_checkpointing()
    texts = [config.prompt] if config.sampling.guidance_scale == 1 else [config.prompt, NEGATIVE_PROMPT]
    spoken = embeddings(texts, parts.prompts, config.cache.folder)
    prompts = StoredPrompts({text: spoken[text][0].cpu() for text in texts})
    return Frozen(parts.vae, parts.unet, cleaner, prompts, spoken[config.prompt].to(device), parts.controlnet)


def embeddings(texts: Sequence[str], prompts: Prompts, cache: str | None) -> dict[str, Tensor]:
    """What the text encoder makes of the texts, (1, L, D) each; from the cache, where there is one."""
    if cache is None or not isinstance(prompts, EncodedPrompts):
        return {text: prompts.embed(text) for text in texts}
    return cached_embeddings(texts, prompts.embed, cache, module_sha256(prompts.encoder))


def start_control(config: Config, frozen: Frozen) -> IRControlNet:
    """The control that training starts from, in float32.

    Raises:
        WeightsError: there is none where the configuration says.
    """
    if config.control == "unet":
        control = IRControlNet.from_unet(frozen.unet)
    elif config.control == "base":
        if frozen.controlnet is None:
            mend = "Convert one into it (milo-restore convert diffbir), or set control: unet"
            raise WeightsError("holds no controlnet", where=config.base, mend=mend)
        control = frozen.controlnet
    else:
        control = load_control(config.control)
    if config.gradient_checkpointing:
        control.enable_gradient_checkpointing()
    return control.float().requires_grad_(True)


def fixed(config: Config, frozen: Frozen) -> dict[str, Any]:
    """What must not change where a run is continued, beside the loss, the data, the VAE and the cleaner."""
    settings = {name: getattr(config, name) for name in ("version", "prompt", "condition_noise")}
    return {**settings, "unet": module_sha256(frozen.unet)}


def check_metric_fits(config: Config, vae: Any) -> None:
    """LatentMILO knows the latents of one VAE: ``official`` Stable Diffusion's, ``mini`` the tiny world's.

    Raises:
        ConfigError: the loss uses the one with the other.
    """
    weights, stable = config.loss.weights, abs(vae.config.scaling_factor - STABLE_DIFFUSION) < 1e-5
    if config.loss.kind != "milo" or weights not in ("official", "mini"):
        return
    if stable == (weights == "mini"):
        theirs, right = ("the tiny world's", "official") if stable else ("Stable Diffusion's", "mini")
        what = f"LatentMILO's {weights} weights know {theirs} latents, not those of {config.base}"
        raise ConfigError(what, where="loss.weights", mend=f"Set loss.weights to {right}, or base to what fits")
