"""The condition: where small images are enlarged, and what stays of a perfect cleaner's output."""

from __future__ import annotations

import pytest
import torch
from conftest import assert_near
from skimage.data import astronaut
from torch import nn
from torch.nn.functional import interpolate

from milo_restore.data import to_tensor
from milo_restore.models.diffbir import DiffBIRPipeline, noise_scheduler
from milo_restore.models.diffbir.components import load_components

TRUTH = to_tensor(astronaut())[None]  # 512 pixels
SMALL = interpolate(TRUTH, (128, 128), mode="bicubic", antialias=True).clamp(0, 1)


class Truth(nn.Module):
    """A perfect cleaner: the truth at the size of what it sees, times its scale."""

    def __init__(self, scale, enlarge_first=False):
        super().__init__()
        self.scale, self.enlarge_first = scale, enlarge_first

    def forward(self, images):
        self.seen = tuple(images.shape[-2:])
        size = [side * self.scale for side in self.seen]
        return TRUTH if size == [512, 512] else interpolate(TRUTH, size, mode="bicubic", antialias=True)


@pytest.fixture(scope="module")
def pipeline():
    world = load_components("tiny")
    return DiffBIRPipeline(world.vae, world.unet, world.controlnet, noise_scheduler("v2"), prompts=world.prompts)


@pytest.mark.parametrize("upscale", [1, 2, 3])
@pytest.mark.parametrize("kind", ["bsrnet", "swinir"])
def test_a_perfect_cleaner_gives_the_exact_condition(pipeline, upscale, kind):
    """Finding D4: 25.4, 30.2 and 34.5 dB, where DiffBIR's own program has the truth."""
    cleaner = pipeline.cleaner = Truth(4) if kind == "bsrnet" else Truth(1, enlarge_first=True)
    seen = []
    hook = pipeline.controlnet.register_forward_pre_hook(
        lambda module, arguments, options: seen.append(options["controlnet_cond"]), with_kwargs=True
    )
    out = pipeline(SMALL, upscale=upscale, minimum_side=512, steps=1, guidance_scale=1, output_type="pt")
    hook.remove()
    assert cleaner.seen == ((128, 128) if kind == "bsrnet" else (512, 512))
    assert_near(seen[0], pipeline.encode(TRUTH))
    assert torch.equal(pipeline.clean(SMALL, upscale, minimum_side=512), TRUTH)
    assert out.images.shape == out.cleaned.shape == (1, 3, 128 * upscale, 128 * upscale)


def test_other_cleaners_see_the_images_own_size(pipeline):
    """SCUNet cleans noise as it is; DiffBIR enlarges what comes out."""
    pipeline.cleaner = Truth(1)
    cleaned = pipeline.clean(SMALL, minimum_side=512)
    assert pipeline.cleaner.seen == (128, 128)
    assert cleaned.shape == (1, 3, 512, 512)


def test_the_working_size_is_rounded_as_in_diffbirs_program(pipeline):
    pipeline.cleaner = None
    assert pipeline.clean(torch.rand(1, 3, 321, 481), minimum_side=512).shape == (1, 3, 512, 767)  # 767.2
    assert pipeline.clean(torch.rand(1, 3, 482, 321), minimum_side=512).shape == (1, 3, 768, 512)  # 768.8
    assert pipeline.clean(torch.rand(1, 3, 600, 520), minimum_side=512).shape == (1, 3, 600, 520)
