"""DiffBIR's restoration as a diffusers pipeline: cleaner, VAE, sampling under control, decoding, colour correction.

Source: Lin et al.: "DiffBIR: Toward Blind Image Restoration with Generative Diffusion Prior", ECCV 2024.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_loading_utils import ALL_IMPORTABLE_CLASSES, LOADABLE_CLASSES
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from milo_restore.errors import ConfigError, DataError, NumericsError
from milo_restore.models.diffbir.colour import transfer_colour
from milo_restore.models.diffbir.control import predict
from milo_restore.models.diffbir.images import (
    Images,
    OutputType,
    check_output_type,
    converted,
    enlarged,
    resized,
    to_batch,
)
from milo_restore.models.diffbir.prompts import (
    NEGATIVE_PROMPT,
    PROMPTS_FILE,
    EncodedPrompts,
    Prompts,
    StoredPrompts,
    load_prompts,
)
from milo_restore.models.diffbir.tiling import SharedNorms, in_tiles

__all__ = ["DiffBIROutput", "DiffBIRPipeline"]

# diffusers loads a pipeline's parts from the libraries in this table only, by their names there.
LOADABLE_CLASSES["milo_restore"] = {"IRControlNet": ["save_pretrained", "from_pretrained"]}
ALL_IMPORTABLE_CLASSES.update(LOADABLE_CLASSES["milo_restore"])

VAE_ROUNDS = 2
"""Rounds that gather the VAE's statistics, where it sees tiles."""


@dataclass
class DiffBIROutput(BaseOutput):
    """Output of the pipeline.

    Attributes:
        images: the restored images: (N, 3, H, W) in [0, 1] for ``pt``, (N, H, W, 3) for ``np``, a list for ``pil``.
        cleaned: what the cleaner made of the input, in the same form.
    """

    images: Any
    cleaned: Any


@dataclass(frozen=True)
class _Sampling:
    """Conditions that stay the same in all steps of the sampler."""

    condition: Tensor  # (N, 4, h, w)
    contexts: Tensor  # (1 or 2, L, D): the negative prompt's where there is guidance, and the prompt's
    guidance: float
    control: float | Sequence[float]
    tile: int | None  # side, in cells of the latent


class DiffBIRPipeline(DiffusionPipeline):
    """Blind restoration: a cleaner takes away the damage, and a controlled diffusion model puts back the detail.

    Args:
        vae: an ``AutoencoderKL``.
        unet: Stable Diffusion's ``UNet2DConditionModel``.
        controlnet: an `IRControlNet`.
        scheduler: any of diffusers'; DiffBIR's own sampler is `noise_scheduler` at 50 steps.
        text_encoder: a ``CLIPTextModel``; it and ``tokenizer`` may be missing where ``prompts`` is given.
        tokenizer: a ``CLIPTokenizer``.
        cleaner: images (N, 3, H, W) in [0, 1] to the same, times its attribute ``scale`` where it has one, such as
            `load_cleaner` returns; None leaves images as they are. It is not saved with the pipeline:
            ``from_pretrained(folder, cleaner=...)``.
        prompts: embeddings of texts; by default the text encoder's. A table of them is saved with the pipeline.

    Example:
        >>> import torch
        >>> from milo_restore import DiffBIRPipeline
        >>> from milo_restore.models.diffbir.components import load_components
        >>> world = load_components("tiny")  # ships with the package, in place of Stable Diffusion
        >>> parts = (world.vae, world.unet, world.controlnet, world.scheduler)
        >>> pipeline = DiffBIRPipeline(*parts, prompts=world.prompts)
        >>> pipeline.set_progress_bar_config(disable=True)
        >>> pipeline(torch.rand(1, 3, 64, 64), steps=2, output_type="pt").images.shape
        torch.Size([1, 3, 64, 64])
    """

    _optional_components = ["text_encoder", "tokenizer"]  # noqa: RUF012  as diffusers has it
    model_cpu_offload_seq = "text_encoder->unet->vae"

    def __init__(
        self,
        vae: Any,
        unet: Any,
        controlnet: Any,
        scheduler: Any,
        text_encoder: Any = None,
        tokenizer: Any = None,
        cleaner: Any = None,
        prompts: Any = None,
    ) -> None:
        super().__init__()
        if isinstance(prompts, EncodedPrompts):
            text_encoder, tokenizer, prompts = prompts.encoder, prompts.tokenizer, None
        self.register_modules(
            vae=vae, unet=unet, controlnet=controlnet, scheduler=scheduler, text_encoder=text_encoder,
            tokenizer=tokenizer,
        )  # fmt: skip
        self.cleaner: Any = cleaner
        self.prompts: Prompts | None = prompts
        self.cell = 2 ** (len(vae.config.block_out_channels) - 1)  # pixels along a side of a latent's cell
        # What sides must be multiples of: 64 pixels for Stable Diffusion.
        self.multiple = self.cell * 2 ** (len(unet.config.block_out_channels) - 1)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **options: Any) -> DiffBIRPipeline:
        """Read a pipeline that `save_pretrained` or ``milo-restore convert diffbir`` wrote.

        Args:
            folder: in diffusers' layout, or a hub id.
            **options: ``DiffusionPipeline.from_pretrained``'s, and ``cleaner`` and ``prompts``.

        Raises:
            WeightsError: the folder's table of prompts cannot be read.
        """
        pipeline: DiffBIRPipeline = super().from_pretrained(folder, **options)
        if pipeline.prompts is None and pipeline.text_encoder is None and (Path(folder) / PROMPTS_FILE).is_file():
            pipeline.prompts = load_prompts(Path(folder))
        return pipeline

    def save_pretrained(self, folder: str | os.PathLike[str], *arguments: Any, **options: Any) -> None:
        """``DiffusionPipeline.save_pretrained``, and the table of prompts where that is what there is."""
        from safetensors.torch import save_file

        super().save_pretrained(folder, *arguments, **options)
        if isinstance(self.prompts, StoredPrompts):
            texts = {str(number): text for number, text in enumerate(self.prompts.embeddings)}
            tensors = {number: self.prompts.embeddings[text].contiguous() for number, text in texts.items()}
            save_file(tensors, Path(folder) / PROMPTS_FILE, texts)

    def to(self, *arguments: Any, **options: Any) -> DiffBIRPipeline:
        """``DiffusionPipeline.to``; the cleaner goes along to the device, and keeps its precision."""
        super().to(*arguments, **options)
        if isinstance(self.cleaner, nn.Module):
            self.cleaner.to(self._execution_device)
        return self

    @torch.no_grad()
    def __call__(
        self,
        images: Images,
        *,
        prompt: str = "",
        negative_prompt: str = NEGATIVE_PROMPT,
        steps: int = 50,
        guidance_scale: float = 4.0,
        control_scale: float | Sequence[float] = 1.0,
        start: Literal["noise", "condition"] = "noise",
        seed: int | Sequence[int] = 231,
        latents: Tensor | None = None,
        upscale: float | None = None,
        minimum_side: int = 0,
        tile: int | None = None,
        cleaner_tile: int | None = None,
        vae_tile: int | None = None,
        denoiser_tile: int | None = None,
        output_type: OutputType = "pil",
    ) -> DiffBIROutput:
        """Restore images of one size.

        Args:
            images: (N, 3, H, W) RGB in [0, 1], which noise may leave; or one or more PIL images, RGB or grey. Sides
                of 8 pixels or more.
            prompt: of all images; DiffBIR v2's is empty.
            negative_prompt: what guidance leads away from.
            steps: of the sampler.
            guidance_scale: negative + scale * (positive - negative), of the predictions under the two prompts. 1: the
                prompt's alone, at half the cost.
            control_scale: strength of the control, one number or one for each of its residuals.
            start: ``noise``, or ``condition``: the cleaned image's latent, noised to the first timestep.
            seed: of the noise, one for all images or one for each. Every image has a generator of its own, on the CPU:
                its result does not depend, but for rounding, on the batch that it is part of, nor on the device.
            latents: the first noise, (N, 4, h, w) of standard deviation one, in place of the seed's.
            upscale: size of the result by that of the input; None: the cleaner's scale. A cleaner of scale 1 sees the
                enlarged image; the output of one that enlarges by itself is resized (bicubic).
            minimum_side: cleaned images whose shorter side is less, in pixels, are denoised enlarged to it, and brought
                back to their size afterwards. Stable Diffusion 2.1-base knows images of 512.
            tile: side, in pixels, of the tiles in which cleaner, VAE and denoiser see larger images; None: no tiles.
                Memory then grows no more with the image than the images and latents themselves. DiffBIR's is 512.
                What a tile cannot see, its UNet does not know: large tiles come closest to none.
            cleaner_tile: another one for the cleaner.
            vae_tile: another one for the VAE.
            denoiser_tile: another one for UNet and control.
            output_type: ``pil``, ``pt`` or ``np``.

        Returns:
            Restored and cleaned images.

        Raises:
            ConfigError: an argument is out of its range, or a prompt cannot be embedded.
            DataError: the images, or a latent, are not of the shape or range that is expected.
            NumericsError: the result is not finite.
        """
        check_output_type(output_type)
        sides = [tile if other is None else other for other in (cleaner_tile, vae_tile, denoiser_tile)]
        self._check_tiles(*sides)
        device = self._execution_device
        batch = to_batch(images).to(device)
        generators = _generators(seed, len(batch))
        texts = (prompt,) if guidance_scale == 1 else (negative_prompt, prompt)
        contexts = torch.cat([self.embed(text).to(device) for text in texts])
        self._set_timesteps(steps, start, device)
        cleaned = self.clean(batch, upscale, sides[0])
        large = enlarged(cleaned, minimum_side)
        condition = self.encode(large, sides[1])
        sampling = _Sampling(condition, contexts, guidance_scale, control_scale, sides[2] and sides[2] // self.cell)
        latent = self._sample(self._first(start, condition, generators, latents), sampling, generators)
        decoded = self.decode(latent, sides[1])[..., : large.shape[-2], : large.shape[-1]]
        if not torch.isfinite(decoded).all():
            mend = "Take float32 or bfloat16 if this is float16; else the control has diverged, or is not this UNet's"
            raise NumericsError("the restored image holds NaN or infinite values", mend=mend)
        restored = resized(transfer_colour(decoded, large).clamp(0, 1), *cleaned.shape[-2:])
        self.maybe_free_model_hooks()
        return DiffBIROutput(converted(restored, output_type), converted(cleaned.clamp(0, 1), output_type))

    def embed(self, text: str) -> Tensor:
        """The embedding of a prompt, (1, L, D).

        Raises:
            ConfigError: there is nothing that embeds it.
        """
        prompts, encoder = self.prompts, self.text_encoder
        if prompts is None and encoder is not None and self.tokenizer is not None:
            prompts = EncodedPrompts(encoder, self.tokenizer, device=encoder.device, dtype=encoder.dtype)
        if prompts is None:
            mend = f"Give text_encoder and tokenizer, or prompts; or put a {PROMPTS_FILE} into the folder"
            raise ConfigError("the pipeline has neither prompts nor a text encoder with its tokenizer", mend=mend)
        return prompts.embed(text)

    def clean(self, images: Tensor, upscale: float | None = None, tile: int | None = None) -> Tensor:
        """The cleaner's output for images (N, 3, H, W): (N, 3, H', W') float32, of the result's size; see the call."""
        scale, unit = (int(getattr(self.cleaner, name, 1)) for name in ("scale", "multiple"))
        height, width = (round(side * (scale if upscale is None else upscale)) for side in images.shape[-2:])
        if self.cleaner is None or scale == 1:
            images = resized(images, height, width)
        if self.cleaner is None:
            return images
        place = next((value.device for value in self.cleaner.parameters()), images.device)
        tile = tile and max(tile // unit, 2) * unit
        cleaned = in_tiles(self.cleaner, images.to(place), tile=tile, unit=unit, scale=scale)
        return resized(cleaned.to(images), height, width)

    def encode(self, images: Tensor, tile: int | None = None) -> Tensor:
        """The condition: the mode of the VAE's distribution, times the scaling factor.

        Args:
            images: (N, 3, H, W) in [0, 1]; mirrored to the right and below, up to multiples that the UNet needs.
            tile: side of tiles, in pixels.

        Returns:
            (N, 4, h, w) float32.

        Raises:
            DataError: the VAE makes latents of another shape than the UNet reads.
        """

        def apply(part: Tensor) -> Tensor:
            mode: Tensor = self.vae.encode(part.to(self.vae.dtype) * 2 - 1).latent_dist.mode()
            return mode

        images = _padded(images, self.multiple)
        norms = SharedNorms(self.vae.encoder)
        options: dict[str, Any] = {"scale": 1 / self.cell, "unit": self.cell, "norms": norms, "rounds": VAE_ROUNDS}
        latent = in_tiles(apply, images, tile=tile, **options) * self.vae.config.scaling_factor
        shape = (len(images), self.unet.config.in_channels, *(side // self.cell for side in images.shape[-2:]))
        _check_shape(latent, shape, "the VAE's latent")
        return latent

    def decode(self, latent: Tensor, tile: int | None = None) -> Tensor:
        """A latent (N, 4, h, w), times the scaling factor, to images (N, 3, 8 h, 8 w) float32, not clamped."""

        def apply(part: Tensor) -> Tensor:
            decoded: Tensor = self.vae.decode(part.to(self.vae.dtype)).sample
            return decoded

        norms = SharedNorms(self.vae.decoder)
        options: dict[str, Any] = {"scale": self.cell, "norms": norms, "rounds": VAE_ROUNDS}
        latent = latent / self.vae.config.scaling_factor
        return in_tiles(apply, latent, tile=tile and tile // self.cell, **options) / 2 + 0.5

    def _check_tiles(self, cleaner: int | None, vae: int | None, denoiser: int | None) -> None:
        for name, side in (("cleaner", cleaner), ("VAE", vae), ("denoiser", denoiser)):
            if side is not None and (side < 2 * self.multiple or side % self.multiple):
                mend = f"Take a multiple of {self.multiple}, at least {2 * self.multiple}"
                raise ConfigError(f"tiles of {side} pixels", where=f"tile of the {name}", mend=mend)

    def _set_timesteps(self, steps: int, start: str, device: torch.device) -> None:
        if start not in ("noise", "condition"):
            raise ConfigError(f"is {start!r}", where="start", mend="Take noise or condition")
        if start == "condition" and self.scheduler.config.get("rescale_betas_zero_snr"):
            what = "with zero terminal SNR nothing is left of the condition at the first timestep"
            raise ConfigError(what, where="start", mend="Take noise")
        if steps < 1:
            raise ConfigError(f"is {steps}", where="steps", mend="Take 1 or more")
        try:
            self.scheduler.set_timesteps(steps, device=device)
        except ValueError as error:
            raise ConfigError(" ".join(str(error).split())[:200], where="steps") from error

    def _first(self, start: str, condition: Tensor, generators: list[torch.Generator], noise: Tensor | None) -> Tensor:
        """The latent that sampling starts from."""
        if noise is None:
            noise = torch.stack([torch.randn(condition.shape[1:], generator=generator) for generator in generators])
        _check_shape(noise, tuple(condition.shape), "the first noise")
        noise = noise.to(condition)
        if start == "noise":
            first: Tensor = noise * self.scheduler.init_noise_sigma
        else:
            first = self.scheduler.add_noise(condition, noise, self.scheduler.timesteps[:1])
        return first

    def _sample(self, latent: Tensor, sampling: _Sampling, generators: list[torch.Generator]) -> Tensor:
        """The sampler's loop, in float32 whatever the networks compute in."""
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        options = {"generator": generators} if takes_generator else {}
        for timestep in self.progress_bar(self.scheduler.timesteps):
            scaled = self.scheduler.scale_model_input(latent, timestep)
            prediction = self._predict(scaled, timestep, sampling)
            latent = self.scheduler.step(prediction, timestep, latent, return_dict=False, **options)[0]
        return latent

    def _predict(self, latent: Tensor, timestep: Tensor, sampling: _Sampling) -> Tensor:
        """The guided prediction, (N, 4, h, w) float32. Both branches see one condition."""
        dtype = next(self.controlnet.parameters()).dtype
        branches = len(sampling.contexts)
        context = sampling.contexts.repeat_interleave(len(latent), 0).to(dtype)

        def apply(latent: Tensor, condition: Tensor) -> Tensor:
            both, conditions = (value.to(dtype).repeat(branches, 1, 1, 1) for value in (latent, condition))
            return predict(self.unet, self.controlnet, both, timestep, context, conditions, sampling.control)

        unit = self.multiple // self.cell
        prediction = in_tiles(apply, latent, sampling.condition, tile=sampling.tile, unit=unit)
        if branches == 1:
            return prediction
        negative, positive = prediction.chunk(2)
        return negative + sampling.guidance * (positive - negative)


def _generators(seed: int | Sequence[int], count: int) -> list[torch.Generator]:
    seeds = [seed] * count if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise ConfigError(f"{len(seeds)} for {count} images", where="seed", mend="Give one, or one for each image")
    return [torch.Generator().manual_seed(number) for number in seeds]


def _padded(images: Tensor, multiple: int) -> Tensor:
    """Mirrored to the right and below; where there is not enough to mirror, the border goes on."""
    below, right = (-side % multiple for side in images.shape[-2:])
    images = F.pad(images, (0, right, 0, 0), mode="reflect" if right < images.shape[-1] else "replicate")
    return F.pad(images, (0, 0, 0, below), mode="reflect" if below < images.shape[-2] else "replicate")


def _check_shape(latent: Tensor, shape: tuple[int, ...], what: str) -> None:
    if tuple(latent.shape) != shape:
        raise DataError(f"{what} is {tuple(latent.shape)}, expected {shape}")
