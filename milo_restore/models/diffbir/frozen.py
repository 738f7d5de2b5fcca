"""DiffBIR's second stage in training: the frozen networks, what a step draws, and where training starts."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from milo_restore.data.degrade import RealESRGANSettings
from milo_restore.data.degrade.batch import degrade_batch
from milo_restore.data.keys import keyed_rng
from milo_restore.data.latent_cache import cached_embeddings
from milo_restore.errors import ConfigError, WeightsError
from milo_restore.files.hashes import module_sha256
from milo_restore.models.diffbir.cleaner import load_cleaner
from milo_restore.models.diffbir.components import load_components, load_control
from milo_restore.models.diffbir.control import IRControlNet
from milo_restore.models.diffbir.pipeline import DiffBIRPipeline
from milo_restore.models.diffbir.prompts import EncodedPrompts, Prompts, StoredPrompts
from milo_restore.models.diffbir.schedules import Version, noise_scheduler


class Draws(NamedTuple):
    """The random numbers of a step. Each sample has its own generator: however a batch is split, it is the same."""

    posterior: Tensor  # (N, 4, h, w): the VAE's sample
    noise: Tensor  # (N, 4, h, w): the diffusion's
    augmentation: Tensor  # (N, 4, h, w): the condition's, where it gets some
    time: Tensor  # (N,), uniform in [0, 1)
    level: Tensor  # (N,), uniform in [0, 1): of the condition's noise

    @classmethod
    def of(cls, seed: int, step: int, positions: Sequence[int], like: Tensor) -> Draws:
        """Keyed by (seed, step, position in the run); shaped as ``like``, and on its device."""
        rngs = [keyed_rng(seed, "diffusion", step, position) for position in positions]
        normal = np.stack([rng.standard_normal((3, *like.shape[1:]), dtype=np.float32) for rng in rngs])
        uniform = np.stack([rng.random(2, dtype=np.float32) for rng in rngs])
        first, second = (torch.from_numpy(values).to(like.device) for values in (normal, uniform))
        return cls(*first.unbind(1), *second.unbind(1))


@dataclass(frozen=True)
class Frozen:
    """The networks that are not trained, on their device."""

    vae: Any
    unet: Any
    cleaner: nn.Module
    prompts: Prompts
    context: Tensor  # embedding of the training's prompt, (1, L, D)
    controlnet: IRControlNet | None  # the base's own
    name: str  # of the base
    speaker: Prompts | None = None  # embeds the training images' captions, where they are shown

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

    def latents_of(self, batch: Mapping[str, Any], degradation: RealESRGANSettings, seed: int) -> Mapping[str, Any]:
        """A training batch's latents, named as by `encode`: from the cache, or encoded.

        Args:
            batch: latents; or ``input`` and ``target``; or ``target`` and ``key``, clean patches to be degraded here.
            degradation: of clean patches.
            seed: the run's seed.
        """
        if "condition" in batch:
            return batch
        if "key" in batch:
            return self.encode(*degrade_batch(batch["target"], batch["key"], degradation, seed))
        return self.encode(batch["input"], batch["target"])

    def contexts(self, batch: Mapping[str, Any]) -> Tensor:
        """Embeddings of what a batch is shown: of its captions, (N, L, D), or of the training's prompt, (1, L, D)."""
        if self.speaker is None or "text" not in batch:
            return self.context
        return self.speaker.embed_batch(batch["text"]).to(self.context)

    def encode_in_parts(self, degraded: Tensor, target: Tensor, size: int = 4) -> dict[str, Tensor]:
        """`encode`, so many images at a time, wherever they are."""
        pairs = zip(*(images.to(self.vae.device).split(size) for images in (degraded, target)))
        parts = [self.encode(*pair) for pair in pairs]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    @property
    def scale(self) -> float:
        """The VAE's scaling factor."""
        return float(self.vae.config.scaling_factor)

    def latents(self, images: Tensor) -> Any:
        """The VAE's distribution of latents, not scaled yet, of images (N, 3, H, W) in [0, 1]."""
        return self.vae.encode(images.to(self.vae.device) * 2 - 1).latent_dist

    @torch.no_grad()
    def mask(self, metric: Any, image: Tensor, target: Tensor) -> Tensor:
        """LatentMILO's mask of an image, (N, 1, H / 8, W / 8) in (0, 1): it rises where the image is wrong.

        Args:
            metric: a `LatentMILO` for this VAE's latents.
            image: (N, 3, H, W) in [0, 1].
            target: the same.
        """
        latents = [self.latents(images).mode() * self.scale for images in (image, target)]
        mask: Tensor = metric.predict_mask(*latents) / metric.n_scales
        return mask

    def sha256(self) -> dict[str, str]:
        """Hashes of what the latents depend on."""
        return {"vae": module_sha256(self.vae), "cleaner": module_sha256(self.cleaner)}

    def start_control(self, start: str, *, gradient_checkpointing: bool = False) -> IRControlNet:
        """A control that training can start from, in float32, each time a new one.

        Args:
            start: ``unet``, DiffBIR's own (copied encoder, zero convolutions); ``base``, the base's; or a folder.
            gradient_checkpointing: of its blocks.

        Raises:
            WeightsError: there is none.
        """
        if start == "base" and self.controlnet is None:
            mend = "Convert one into it (milo-restore convert diffbir), or set control: unet"
            raise WeightsError("holds no controlnet", where=self.name, mend=mend)
        if start == "unet":
            control = IRControlNet.from_unet(self.unet)
        else:
            control = copy.deepcopy(self.controlnet) if start == "base" else load_control(start)
        if gradient_checkpointing:
            control.enable_gradient_checkpointing()
        return control.float().requires_grad_(True)

    def pipeline(self, control: nn.Module, version: Version) -> DiffBIRPipeline:
        """These networks with a control, which must be on their device."""
        pipeline = DiffBIRPipeline(
            vae=self.vae, unet=self.unet, cleaner=self.cleaner, prompts=self.prompts, controlnet=control,
            scheduler=noise_scheduler(version),
        )  # fmt: skip
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def load_frozen(
    base: str,
    cleaner: str,
    texts: Sequence[str],
    *,
    device: torch.device | str = "cpu",
    unet_dtype: torch.dtype = torch.float32,
    gradient_checkpointing: bool = False,
    embeddings: str | None = None,
    captions: bool = False,
) -> Frozen:
    """VAE and cleaner in float32, as DiffBIR has them, and the UNet. The text encoder speaks once, and is dropped.

    Args:
        base: see `milo_restore.models.diffbir.components.find_base`.
        cleaner: see `milo_restore.models.diffbir.cleaner.load_cleaner`; one that keeps sizes.
        texts: the prompts, the training's first.
        device: where the networks go.
        unet_dtype: the UNet's precision.
        gradient_checkpointing: of the UNet, which the gradient passes through on its way to the control.
        embeddings: a cache's folder, for the text encoder's answers.
        captions: keep the text encoder, for the training images' captions.

    Raises:
        ConfigError: the cleaner changes sizes.
        WeightsError: something is missing or does not fit.
    """
    parts = load_components(base, device=device)
    first = load_cleaner(cleaner).to(device)
    if first.scale != 1:
        mend = "Train behind a cleaner that keeps sizes; milo-restore restore takes this one for images of your own"
        raise ConfigError(f"enlarges {first.scale} times", where=f"cleaner {cleaner}", mend=mend)
    nn.Module.to(parts.unet, unet_dtype)  # diffusers' own method warns of an empty list of exceptions
    if gradient_checkpointing:
        parts.unet.enable_gradient_checkpointing()
    spoken = _embeddings(texts, parts.prompts, embeddings)
    prompts = StoredPrompts({text: spoken[text][0].cpu() for text in texts})
    context, speaker = spoken[texts[0]].to(device), parts.prompts if captions else None
    return Frozen(parts.vae, parts.unet, first, prompts, context, parts.controlnet, base, speaker)


def _embeddings(texts: Sequence[str], prompts: Prompts, cache: str | None) -> dict[str, Tensor]:
    """The text encoder's embeddings, (1, L, D) each; from the cache, where there is one."""
    if cache is None or not isinstance(prompts, EncodedPrompts):
        return {text: prompts.embed(text) for text in texts}
    return cached_embeddings(texts, prompts.embed, cache, module_sha256(prompts.encoder))
