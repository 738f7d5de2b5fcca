"""Noisy and clean training patches, cropped from images that stay decoded in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from milo_restore.data.crops import Crops, cut
from milo_restore.data.keys import SampleKey, keyed_rng
from milo_restore.data.noise import draw_noise, noise_range
from milo_restore.data.sources import Source
from milo_restore.files.quarantine import Quarantine

MIXUP_BETA = 1.2  # both parameters of the Beta distribution in Restormer's published denoising configurations


class NoisyPatches(Crops):
    """Patches for training a denoiser: crop, flip and rotate, then add Gaussian noise, which is not clipped.

    A sample is a pure function of ``seed`` and its `SampleKey`: the data set keeps no state, so that the order of
    access, the number of workers and the number of processes do not matter. Each epoch visits every image once, in an
    order keyed by (seed, epoch), where the epoch is ``position // len(images)``. Crop, orientation, noise level and
    noise are keyed by (seed, step, index).

    Args:
        images: names and (H, W, 3) uint8 arrays, as `load_images` and `training_photographs` give them.
        sigma: noise level in 8-bit units (25), or the ends of a uniform range ((0, 50), blind denoising).
        seed: the run's seed.
        augment: flip and rotate by quarter turns, all eight orientations equally often.
        mixup: mix patches as Restormer's published denoising configurations do: on half of the steps, input and target
            become ``a * own + (1 - a) * partner`` with one ``a`` per step from Beta(1.2, 1.2). The partner is a
            further noisy patch keyed by (seed, step, index) too, where Restormer takes another one of the same batch:
            so the result does not depend on how a batch is split.
        quarantine: what cannot be trained on goes there, and another image stands in; None: it is an error.

    Raises:
        ConfigError: an impossible noise level or seed.
        DataError: no images, or an array of another shape or type, by name.
    """

    def __init__(
        self,
        images: Sequence[tuple[str, NDArray[np.uint8]]] | Source,
        *,
        sigma: float | Sequence[float],
        seed: int = 0,
        augment: bool = True,
        mixup: bool = False,
        quarantine: Quarantine | None = None,
    ) -> None:
        super().__init__(images, seed, quarantine)
        self.sigma = noise_range(sigma)
        self.augment, self.mixup = augment, mixup

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """One sample.

        Args:
            key: (step, index, position, patch), a `SampleKey` or a plain tuple.

        Returns:
            ``input`` (3, p, p) float32, noisy, unclipped; ``target`` (3, p, p) float32 in [0, 1]; ``sigma``, the noise
            level of ``input`` in 8-bit units, a float32 scalar; ``name`` of the image.

        Raises:
            DataError: the patch does not fit into the smallest image, which is named. Nothing is padded.
        """
        step, index, position, patch = key
        item = self.image_at(position, patch)
        noisy, clean, level = self._draw("", item.image, step, index, patch)
        share = self._own_share(step)
        if share < 1:
            other = int(keyed_rng(self.seed, "partner", step, index).integers(len(self)))
            _, partner = self._picker.pick(other, patch, "partner replacement", step, index)
            other_noisy, other_clean, other_level = self._draw("partner ", partner.image, step, index, patch)
            noisy = share * noisy + (1 - share) * other_noisy
            clean = share * clean + (1 - share) * other_clean
            level = math.hypot(float(share) * level, float(1 - share) * other_level)  # independent: variances add
        return {
            "input": torch.from_numpy(noisy),
            "target": torch.from_numpy(clean),
            "sigma": torch.tensor(level, dtype=torch.float32),
            "name": item.name,
        }

    def _own_share(self, step: int) -> np.float32:
        """Share of a mixed patch that is its own at this step; 1 where nothing is mixed."""
        if not self.mixup:
            return np.float32(1)
        rng = keyed_rng(self.seed, "mixup", step)
        return np.float32(rng.beta(MIXUP_BETA, MIXUP_BETA)) if rng.random() < 0.5 else np.float32(1)

    def _draw(
        self, stream: str, image: NDArray[np.uint8], step: int, index: int, patch: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
        rng = keyed_rng(self.seed, stream + "crop", step, index)
        crop = cut(image, patch, rng)
        if self.augment:
            crop = orient(crop, int(rng.integers(8)))
        clean = np.empty((3, patch, patch), np.float32)
        np.divide(crop.transpose(2, 0, 1), np.float32(255), out=clean, dtype=np.float32)
        noise, level = draw_noise(keyed_rng(self.seed, stream + "noise", step, index), clean.shape, self.sigma)
        noise += clean
        return noise, clean, level


def orient(image: NDArray[Any], number: int) -> NDArray[Any]:
    """One of the eight orientations of an (H, W, C) array, as a view: quarter turns, from 4 on mirrored first."""
    turned = image[:, ::-1] if number >= 4 else image
    return np.rot90(turned, number % 4)
