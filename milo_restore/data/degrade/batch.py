"""Real-ESRGAN's degradation on tensors, for the accelerator.

Every sample is worked on by itself. After its first resize no two samples have the same size, so there is nothing to
put together; and a convolution over a whole batch may take another algorithm than one over half of it, so that a sample
would depend on its neighbours. One 21x21 filter over 512x512x3 keeps a GPU busy without company.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from milo_restore.data.degrade.kernels import Kernel
from milo_restore.data.degrade.realesrgan import (
    PassDraw,
    RealESRGANDraw,
    RealESRGANSettings,
    draw_realesrgan,
    sizes,
)
from milo_restore.data.keys import keyed_rng
from milo_restore.errors import DataError

STREAM = "degrade"  # of the keyed generators; as in `milo_restore.data.degraded_patches`: the draws are the same
BEST_QUALITY = 99.0  # of DiffJPEG
LEAST_SIDE = 26  # sharpening mirrors 25 pixels beyond the edge


@torch.no_grad()
def degrade_batch(
    batch: Tensor, keys: Sequence[Sequence[int]] | Tensor, settings: RealESRGANSettings, seed: int
) -> tuple[Tensor, Tensor]:
    """Degrade a batch of clean images as Real-ESRGAN does.

    A sample is a function of its image, ``seed`` and its key: how samples are put into batches or spread over
    processes does not matter. Its parameters are those that `DegradedPairs` draws for the same key on the CPU; the
    noise, the JPEG and the ``area`` resize are others: torch's generators, basicsr's ``DiffJPEG`` and torch's pooling
    in place of NumPy's, libjpeg and OpenCV's. On the CPU the result is the same bits each time; two kinds of GPUs may
    draw other noise.

    Args:
        batch: (N, 3, H, W) RGB in [0, 1], on any device.
        keys: (step, index) of each sample, such as the ``key`` of `DegradedPairs`; a whole `SampleKey` will do.
        settings: of the degradation.
        seed: the run's seed.

    Returns:
        The degraded images, enlarged back to the same size, and the targets, sharpened if the settings say so; both
        (N, 3, H, W) float32 in [0, 1] on the device of ``batch``. Neither has a gradient.

    Raises:
        DataError: another shape, sides below 26 pixels, or another number of keys than of images.
    """
    if batch.ndim != 4 or batch.shape[1] != 3 or min(batch.shape[2:]) < LEAST_SIDE:
        raise DataError(f"expected (N, 3, H, W) with sides from {LEAST_SIDE} pixels on, got {tuple(batch.shape)}")
    if len(keys) != len(batch):
        raise DataError(f"{len(batch)} images, but {len(keys)} keys")
    with torch.autocast(batch.device.type, enabled=False), _exact():
        pairs = [
            _degrade(image[None].float(), keyed_rng(seed, STREAM, int(key[0]), int(key[1])), settings)
            for image, key in zip(batch, keys)
        ]
    return torch.cat([degraded for degraded, _ in pairs]), torch.cat([target for _, target in pairs])


def _degrade(image: Tensor, rng: np.random.Generator, settings: RealESRGANSettings) -> tuple[Tensor, Tensor]:
    drawn = draw_realesrgan(settings, rng)
    generator = torch.Generator(image.device).manual_seed(int(rng.integers(2**63)))
    height, width = image.shape[2:]
    middle, low, small = sizes(height, width, settings.scale, drawn)
    target = _sharpener(image.device)(image) if settings.sharpen else image
    out = _jpeg(_blur_resize_noise(target, drawn.first, middle, generator), drawn.first.quality)
    out = _blur_resize_noise(out, drawn.second, low, generator)
    if drawn.jpeg_last:
        out = _jpeg(_resize_sinc(out, drawn, small), drawn.second.quality)
    else:
        out = _resize_sinc(_jpeg(out, drawn.second.quality), drawn, small)
    out = out.clamp(0, 1).mul(255).round().div(255)
    return F.interpolate(out, size=(height, width), mode="bicubic").clamp(0, 1), target


def _blur_resize_noise(image: Tensor, drawn: PassDraw, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    out = F.interpolate(image if drawn.kernel is None else _blur(image, drawn.kernel), size=size, mode=drawn.mode)
    noise = _gaussian_noise if drawn.noise == "gaussian" else _poisson_noise
    return (out + noise(out, drawn.level, drawn.grey, generator)).clamp(0, 1)


def _resize_sinc(image: Tensor, drawn: RealESRGANDraw, size: tuple[int, int]) -> Tensor:
    out = F.interpolate(image, size=size, mode=drawn.final_mode)
    return out if drawn.final is None else _blur(out, drawn.final)


def _blur(image: Tensor, kernel: Kernel) -> Tensor:
    """Like basicsr's ``filter2D``, which cannot mirror more than the image has: small ones shrink to a few pixels."""
    weights = torch.from_numpy(kernel.array()).to(image.device)
    border = kernel.size // 2
    rows, columns = (
        torch.from_numpy(np.pad(np.arange(side), border, mode="reflect")).to(image.device) for side in image.shape[2:]
    )
    padded = image[:, :, rows][:, :, :, columns]
    return F.conv2d(padded.transpose(0, 1), weights[None, None]).transpose(0, 1)


def _gaussian_noise(image: Tensor, sigma: float, grey: bool, generator: torch.Generator) -> Tensor:
    shape = (1, 1 if grey else 3, *image.shape[2:])
    return torch.randn(shape, generator=generator, device=image.device) * (sigma / 255)


def _poisson_noise(image: Tensor, scale: float, grey: bool, generator: torch.Generator) -> Tensor:
    """See `milo_restore.data.degrade.arrays.poisson_noise`."""
    if grey:
        image = (image * image.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    levels = image.clamp(0, 1).mul(255).round()
    used = torch.zeros(256, device=image.device).index_fill_(0, levels.long().flatten(), 1).sum()
    photons = 2 ** (2 ** torch.arange(8, device=image.device) < used).sum()  # no wait for the device, no rounding
    expected = levels / 255
    return (torch.poisson(expected * photons, generator=generator) / photons - expected) * scale


def _jpeg(image: Tensor, quality: float) -> Tensor:
    """DiffJPEG, with edges continued: its own black padding to a multiple of 16 pixels rings into the image.

    Its tables are not kept from falling to zero, as libjpeg's are: at quality 100 it would divide by them.
    """
    height, width = image.shape[2:]
    padded = F.pad(image.clamp(0, 1), (0, -width % 16, 0, -height % 16), mode="replicate")
    return _jpeg_module(image.device)(padded, quality=min(quality, BEST_QUALITY))[:, :, :height, :width]


@functools.cache
def _jpeg_module(device: torch.device) -> nn.Module:
    from basicsr.utils.diffjpeg import DiffJPEG

    # All DiffJPEGs share the parameters of their tables, and moving one would move all: hence the copy.
    return copy.deepcopy(DiffJPEG(differentiable=False)).to(device).requires_grad_(False)


@functools.cache
def _sharpener(device: torch.device) -> nn.Module:
    from basicsr.utils.img_process_util import USMSharp

    return USMSharp().to(device)


def _exact() -> AbstractContextManager[None]:
    """Convolutions of cuDNN in full float32, by an algorithm that is always the same."""
    return torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False)
