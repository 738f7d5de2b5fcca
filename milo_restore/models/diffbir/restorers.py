"""DiffBIR's parts as restorers of test images: the sampled output, the cleaner alone, the autoencoder's limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from milo_restore.data import to_tensor, to_uint8
from milo_restore.data.restoration_pairs import RestorationPair, Restore
from milo_restore.models.diffbir.condition import result_size
from milo_restore.models.diffbir.images import resized
from milo_restore.models.diffbir.one_step import OneStep, OneStepPipeline
from milo_restore.models.diffbir.schedules import Version

if TYPE_CHECKING:
    from milo_restore.models.diffbir.frozen import Frozen


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of the samples and the final evaluation."""

    steps: int = 50  # of sampling; DiffBIR v2's
    guidance_scale: float = 4.0  # classifier-free guidance against the negative prompt; 1: none
    start: Literal["noise", "condition"] = "noise"  # condition: from the cleaned image's latent, noised to the end
    minimum_side: int = 0  # smaller images are denoised enlarged to it, in pixels; Stable Diffusion knows 512
    seed: int = 231  # of the noise that sampling starts from; an image's number is added


def pipeline_restorer(pipeline: Any, *, seed: int | None = 0, **options: Any) -> Restore:
    """A `DiffBIRPipeline` as a restorer of test images.

    Args:
        pipeline: on its device.
        seed: of the sampling; an image's number is added to it. None: the pipeline draws nothing.
        options: of the pipeline's call: ``steps``, ``guidance_scale``, ``start``, ...
    """

    def restore(pair: RestorationPair, number: int) -> NDArray[np.uint8]:
        image, drawn = pair.degraded[None].clamp(0, 1), {} if seed is None else {"seed": seed + number}
        return to_uint8(pipeline(image, output_type="pt", **drawn, **options).images[0])

    return restore


def cleaner_restorer(pipeline: Any, minimum_side: int = 0) -> Restore:
    """The pipeline's cleaner alone; ``minimum_side`` as in the pipeline's call."""

    @torch.no_grad()
    def restore(pair: RestorationPair, number: int) -> NDArray[np.uint8]:
        image = pair.degraded[None].clamp(0, 1).to(pipeline.device)
        cleaned = pipeline.clean(image, minimum_side=minimum_side)
        return to_uint8(resized(cleaned, *result_size(pipeline.cleaner, image, None))[0])

    return restore


def autoencoder_restorer(pipeline: Any) -> Restore:
    """Each *target* through the autoencoder: nothing that is decoded can be expected above it."""

    @torch.no_grad()
    def restore(pair: RestorationPair, number: int) -> NDArray[np.uint8]:
        target = to_tensor(pair.target)[None].to(pipeline.device)
        height, width = target.shape[-2:]
        return to_uint8(pipeline.decode(pipeline.encode(target))[0, :, :height, :width])

    return restore


def stage_restorers(
    frozen: Frozen,
    version: Version,
    sampling: Sampling,
    control: nn.Module,
    start: nn.Module | None = None,
    *,
    prompt: str = "",
) -> dict[str, Restore]:
    """The stages of blind restoration, and what bounds them, as restorers of test images.

    Args:
        frozen: VAE, UNet, cleaner and prompts.
        version: DiffBIR's.
        sampling: how.
        control: the trained one, on their device.
        start: the one that training began with.
        prompt: of all images.

    Returns:
        ``cleaner``, ``start`` where there is one, ``restored`` and ``autoencoder``.
    """
    pipeline = frozen.pipeline(control, version)
    how = {**vars(sampling), "prompt": prompt}
    before = {} if start is None else {"start": pipeline_restorer(frozen.pipeline(start, version), **how)}
    return {
        "cleaner": cleaner_restorer(pipeline, sampling.minimum_side),
        **before,
        "restored": pipeline_restorer(pipeline, **how),
        "autoencoder": autoencoder_restorer(pipeline),
    }


def one_step_restorers(frozen: Frozen, model: OneStep, prompt: str, minimum_side: int = 0) -> dict[str, Restore]:
    """The stages of restoration in one step, as `stage_restorers`.

    Args:
        frozen: VAE, cleaner, prompts, and the UNet that has the LoRA.
        model: the LoRA, on their device.
        prompt: of all images.
        minimum_side: of the pipeline's call.

    Returns:
        ``cleaner``, ``start`` (the UNet without its LoRA), ``restored`` and ``autoencoder``.
    """
    unet = frozen.unet
    pipeline = OneStepPipeline(frozen.vae, unet, None, model.scheduler, cleaner=frozen.cleaner, prompts=frozen.prompts)
    restore = pipeline_restorer(pipeline, seed=None, prompt=prompt, minimum_side=minimum_side)

    def start(pair: RestorationPair, number: int) -> NDArray[np.uint8]:
        unet.disable_adapters()
        try:
            return restore(pair, number)
        finally:
            unet.enable_adapters()

    return {
        "cleaner": cleaner_restorer(pipeline, minimum_side),
        "start": start,
        "restored": restore,
        "autoencoder": autoencoder_restorer(pipeline),
    }
