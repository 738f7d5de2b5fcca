"""Pairs of a denoiser's inputs and outputs for training MILO: noise, blurred noise, and their denoised images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from milo_restore.data.images import to_tensor
from milo_restore.data.keys import SampleKey, keyed_rng
from milo_restore.errors import ConfigError
from milo_restore.teach.pairs import DistortedPairs

SIGMAS = (1.0, 50.0)
"""Standard deviations of the noise, in 8-bit units, drawn evenly on a logarithmic scale."""


class WithDenoisingErrors(Dataset[dict[str, Any]]):
    """A share of the samples shows white noise and what is left of it, the others are those of ``pairs``.

    MILO is used on the outputs of restoration networks, which KADID's distortions do not show. Of the noisy samples
    half are noise alone, a quarter is blurred by a Gaussian of 0.4 to 1.5 pixels, and a quarter is denoised by total
    variation, too little or too much, and mixed with its input, as a half-trained network would. Nothing is rounded or
    clipped, for a network's output is not. A sample is a pure function of the seed and its key.

    Args:
        pairs: where references, crops and the other samples are from.
        share: of noisy samples, in [0, 1].

    Raises:
        ConfigError: another share.
    """

    def __init__(self, pairs: DistortedPairs, share: float) -> None:
        if not 0 <= share <= 1:
            raise ConfigError(f"a share lies between 0 and 1, got {share}", where="data.noise")
        self.pairs, self.share = pairs, share
        self.quarantine = pairs.quarantine

    def __len__(self) -> int:
        """Number of pairs, that of ``pairs``."""
        return len(self.pairs)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """One sample: ``image`` and ``reference``, (3, p, p) float32, and ``name``; errors as in `DistortedPairs`."""
        step, index, position, _ = key
        rng = keyed_rng(self.pairs.seed, "denoising errors", step, index)
        if rng.random() >= self.share:
            return self.pairs[key]
        reference = self.pairs.reference_crop(key)
        image, what = denoising_error(reference, rng)
        name = self.pairs.reference_name(self.pairs.sound_at(position).reference)
        channels_first = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return {"image": channels_first, "reference": to_tensor(reference), "name": f"{name} {what}"}


def denoising_error(reference: NDArray[np.uint8], rng: np.random.Generator) -> tuple[NDArray[np.float32], str]:
    """A crop with noise, or with what is left of it, (H, W, 3) float32 in [0, 1] and a little beyond; and what it is.

    Args:
        reference: (H, W, 3).
        rng: what is drawn is drawn from here.
    """
    from scipy.ndimage import gaussian_filter
    from skimage.restoration import denoise_tv_chambolle

    low, high = (math.log(sigma) for sigma in SIGMAS)
    sigma = math.exp(rng.uniform(low, high))
    clean = reference.astype(np.float32) / 255
    noisy = clean + rng.standard_normal(clean.shape, np.float32) * np.float32(sigma / 255)
    kind = int(rng.integers(4))
    if kind < 2:
        return noisy, f"noise {sigma:.1f}"
    if kind == 2:
        width = rng.uniform(0.4, 1.5)
        return gaussian_filter(noisy, (width, width, 0)), f"noise {sigma:.1f}, blurred"
    strength = sigma / 255 * math.exp(rng.uniform(math.log(0.5), math.log(4)))
    smooth = denoise_tv_chambolle(noisy, weight=strength, channel_axis=-1, max_num_iter=50)
    kept = np.float32(rng.uniform(0, 0.5))
    return (kept * noisy + (1 - kept) * smooth).astype(np.float32), f"noise {sigma:.1f}, denoised"
