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


def pipeline_restorer(pipeline: Any, *, seed: int = 0, **options: Any) -> Restore:
    """A `DiffBIRPipeline` as a restorer of test images.

    Args:
        pipeline: on its device.
        seed: of the sampling; an image's number is added to it.
        options: of the pipeline's call: ``steps``, ``guidance_scale``, ``start``, ...
    """

    def restore(pair: RestorationPair, number: int) -> NDArray[np.uint8]:
        image = pair.degraded[None].clamp(0, 1)
        return to_uint8(pipeline(image, seed=seed + number, output_type="pt", **options).images[0])

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
    frozen: Frozen, version: Version, sampling: Sampling, control: nn.Module, start: nn.Module | None = None
) -> dict[str, Restore]:
    """The stages of blind restoration, and what bounds them, as restorers of test images.

    Args:
        frozen: VAE, UNet, cleaner and prompts.
        version: DiffBIR's.
        sampling: how.
        control: the trained one, on their device.
        start: the one that training began with.

    Returns:
        ``cleaner``, ``start`` where there is one, ``restored`` and ``autoencoder``.
    """
    pipeline = frozen.pipeline(control, version)
    before = {} if start is None else {"start": pipeline_restorer(frozen.pipeline(start, version), **vars(sampling))}
    return {
        "cleaner": cleaner_restorer(pipeline, sampling.minimum_side),
        **before,
        "restored": pipeline_restorer(pipeline, **vars(sampling)),
        "autoencoder": autoencoder_restorer(pipeline),
    }
