"""Test images: degraded, with what they should be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from milo_restore.data.noise import evaluation_input


@dataclass(frozen=True)
class RestorationPair:
    """A held-out image. Make such pairs with a degradation, or read them from two folders.

    Attributes:
        name: of the image.
        degraded: (3, H, W) float32, of the target's size; noise may leave [0, 1].
        target: (H, W, 3) uint8 RGB.
    """

    name: str
    degraded: Tensor
    target: NDArray[np.uint8]


Restore = Callable[[RestorationPair, int], NDArray[np.uint8]]
"""``restore(pair, number)``: the restored image, (H, W, 3) uint8, of the target's size.

The number is the image's place in its set: the key of what a sampler draws."""


def noisy_pairs(images: Iterable[tuple[str, NDArray[np.uint8]]], sigma: float) -> list[RestorationPair]:
    """Images with the fixed noise of `milo_restore.data.evaluation_noise`, neither clipped nor quantised.

    Args:
        images: names and clean (H, W, 3) uint8 RGB arrays.
        sigma: noise level in 8-bit units, such as 25.

    Raises:
        DataError: an array of another kind.
    """
    return [RestorationPair(name, evaluation_input(image, sigma), image) for name, image in images]
