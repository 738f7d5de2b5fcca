"""DiffBIR's restoration as a diffusers pipeline: cleaner, VAE, sampling under control, decoding, colour correction.

Source: Lin et al.: "DiffBIR: Toward Blind Image Restoration with Generative Diffusion Prior", ECCV 2024.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_loading_utils import ALL_IMPORTABLE_CLASSES, LOADABLE_CLASSES
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from milo_restore.errors import ConfigError, NumericsError
from milo_restore.models.diffbir import condition as stage
from milo_restore.models.diffbir import sampling
from milo_restore.models.diffbir.colour import transfer_colour
from milo_restore.models.diffbir.condition import Padding
from milo_restore.models.diffbir.images import Images, OutputType, check_output_type, converted, resized, to_batch
from milo_restore.models.diffbir.prompts import (
    NEGATIVE_PROMPT,
    PROMPTS_FILE,
    EncodedPrompts,
    Prompts,
    StoredPrompts,
    load_prompts,
)
from milo_restore.models.diffbir.sampling import Guided, Start

__all__ = ["DiffBIROutput", "DiffBIRPipeline"]

# diffusers loads a pipeline's parts from the libraries in this table only, by their names there.
LOADABLE_CLASSES["milo_restore"] = {"IRControlNet": ["save_pretrained", "from_pretrained"]}
ALL_IMPORTABLE_CLASSES.update(LOADABLE_CLASSES["milo_restore"])


@dataclass
class DiffBIROutput(BaseOutput):
    """Output of the pipeline.

    Attributes:
        images: the restored images: (N, 3, H, W) in [0, 1] for ``pt``, (N, H, W, 3) for ``np``, a list for ``pil``.
        cleaned: what the cleaner made of the input, in the same form.
    """

    images: Any
    cleaned: Any


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
        prompt: str | Sequence[str] = "",
        negative_prompt: str | Sequence[str] = NEGATIVE_PROMPT,
        steps: int = 50,
        guidance_scale: float = 4.0,
        rescale_guidance: bool = False,
        control_scale: float | Sequence[float] = 1.0,
        noise_augmentation: int = 0,
        start: Start = "noise",
        seed: int | Sequence[int] = 231,
        latents: Tensor | None = None,
        upscale: float | None = None,
        minimum_side: int = 0,
        padding: Padding = "mirror",
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
            prompt: of all images, or one for each; DiffBIR v2's is empty.
            negative_prompt: what guidance leads away from; the same.
            steps: of the sampler.
            guidance_scale: negative + scale * (positive - negative), of the predictions under the two prompts. 1: the
                prompt's alone, at half the cost.
            rescale_guidance: let it grow from 1 to 1 + ``guidance_scale`` over the steps.
            control_scale: strength of the control, one number or one for each of its residuals.
            noise_augmentation: noise the condition as at this timestep; more leaves more to the diffusion model.
                DiffBIR v2.1 was trained with 0 to 199, others without.
            start: ``noise``, or ``condition``: the cleaned image's latent, noised to the first timestep.
            seed: of the noise, one for all images or one for each. Every image has a generator of its own, on the CPU:
                its result does not depend, but for rounding, on the batch that it is part of, nor on the device.
            latents: the first noise, (N, 4, h, w) of standard deviation one, in place of the seed's.
            upscale: size of the result by that of the input; None: the cleaner's scale. A cleaner of scale 1 sees the
                enlarged image; the output of one that enlarges by itself is resized (bicubic).
            minimum_side: images whose shorter side is less, in pixels, are denoised enlarged to it, and brought back
                to their size afterwards; see `milo_restore.models.diffbir.condition.clean`. Stable Diffusion 2.1-base
                knows images of 512.
            padding: how sides become multiples of what the UNet needs: ``mirror``, or ``zeros`` as in DiffBIR.
            tile: side, in pixels, of the tiles in which cleaner, VAE and denoiser see larger images; None: no tiles.
                A GPU then holds no more of an image than a tile, the images and latents themselves, and the VAE's
                attention. DiffBIR's is 512. The VAE's tiles change nothing; what a tile of the others cannot see, it
                does not know: large tiles come closest to none.
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
        stage.check_tiles(self.multiple, **dict(zip(("cleaner", "VAE", "denoiser"), sides)))
        device = self._execution_device
        batch = to_batch(images).to(device)
        generators = sampling.generators_of(seed, len(batch))
        texts = (prompt,) if guidance_scale == 1 else (negative_prompt, prompt)
        contexts = tuple(self._contexts(text, len(batch), device) for text in texts)
        sampling.set_timesteps(self.scheduler, steps, start, device)
        size = stage.result_size(self.cleaner, batch, upscale)
        large = self.clean(batch, upscale, sides[0], minimum_side)
        condition = self.encode(large, sides[1], padding)
        latent = sampling.first_latent(self.scheduler, start, condition, generators, latents)
        condition = sampling.noised(self.scheduler, condition, noise_augmentation, generators)
        cells = sides[2] and sides[2] // self.cell
        guided = Guided(
            self.unet, self.controlnet, condition, contexts, guidance_scale, rescale_guidance, control_scale, cells,
            self.multiple // self.cell,
        )  # fmt: skip
        latent = sampling.run(self.scheduler, latent, guided, generators, self.progress_bar)
        return self._finished(latent, large, size, sides[1], output_type)

    def _finished(
        self, latent: Tensor, large: Tensor, size: tuple[int, int], tile: int | None, output_type: OutputType
    ) -> DiffBIROutput:
        """The last stage: decoding, the cleaned images' colours, the result's size."""
        decoded = self.decode(latent, tile)[..., : large.shape[-2], : large.shape[-1]]
        if not torch.isfinite(decoded).all():
            mend = (
                "Take float32 or bfloat16 if this is float16; else what was trained has diverged, or is not this UNet's"
            )
            raise NumericsError("the restored image holds NaN or infinite values", mend=mend)
        restored = resized(transfer_colour(decoded, large).clamp(0, 1), *size)
        cleaned = resized(large.clamp(0, 1), *size)
        self.maybe_free_model_hooks()
        return DiffBIROutput(converted(restored, output_type), converted(cleaned, output_type))

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

    def _contexts(self, texts: str | Sequence[str], count: int, device: torch.device) -> Tensor:
        """Embeddings of the prompts of all images, (N, L, D)."""
        several = [texts] * count if isinstance(texts, str) else list(texts)
        if len(several) != count:
            raise ConfigError(f"{len(several)} for {count} images", where="prompt", mend="One, or one for each image")
        return torch.cat([self.embed(text).to(device) for text in several])

    def clean(
        self, images: Tensor, upscale: float | None = None, tile: int | None = None, minimum_side: int = 0
    ) -> Tensor:
        """The cleaner's output for images (N, 3, H, W): (N, 3, H', W') float32, of the size that is denoised.

        See the call, and `milo_restore.models.diffbir.condition.clean`.
        """
        return stage.clean(self.cleaner, images, upscale=upscale, minimum_side=minimum_side, tile=tile)

    def encode(self, images: Tensor, tile: int | None = None, padding: Padding = "mirror") -> Tensor:
        """The condition: the mode of the VAE's distribution, times the scaling factor.

        Args:
            images: (N, 3, H, W) in [0, 1]; continued to the right and below, up to multiples that the UNet needs.
            tile: side of tiles, in pixels.
            padding: how they are continued.

        Returns:
            (N, 4, h, w) float32.

        Raises:
            DataError: the VAE makes latents of another shape than the UNet reads.
        """
        images = stage.padded(images, self.multiple, padding)
        latent = stage.encode(self.vae, images, tile)
        shape = (len(images), self.unet.config.in_channels, *(side // self.cell for side in images.shape[-2:]))
        sampling.check_shape(latent, shape, "the VAE's latent")
        return latent

    def decode(self, latent: Tensor, tile: int | None = None) -> Tensor:
        """A latent (N, 4, h, w), times the scaling factor, to images (N, 3, 8 h, 8 w) float32, not clamped."""
        return stage.decode(self.vae, latent, tile and tile // self.cell)
