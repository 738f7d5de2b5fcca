"""MILO: errors weighted, pixel by pixel, by how visible they are (Cogalan et al., ACM TOG 44(6), 2025).

A small network looks at the distorted image and the reference at four scales and predicts a visibility mask; the
score is the mean of mask times absolute difference. The same in an autoencoder's latent space is `LatentMILO`.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from milo_restore.metric.checks import as_rgb, check_image_values, check_pair, image_channels
from milo_restore.metric.masked import MaskedMetric, itself
from milo_restore.metric.tiles import tile_means


class MILO(MaskedMetric):
    """MILO on RGB images in [0, 1]; grey (N, 1, H, W) is repeated to three channels.

    Arguments as in `MaskedMetric`.

    Example:
        >>> import torch
        >>> from milo_restore import MILO
        >>> milo = MILO("mini")
        >>> reference = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
        >>> noisy = (reference + 0.1 * torch.randn(1, 3, 64, 64)).clamp(0, 1)
        >>> milo(reference, reference).item()
        0.0
        >>> bool(milo(noisy, reference) > 0), bool(milo.mos(noisy, reference) < milo.mos(reference, reference))
        (True, True)
        >>> milo.mask(noisy, reference).shape
        torch.Size([1, 1, 64, 64])
    """

    channels: int = 3
    _asset = "milo"
    _shipped: ClassVar[dict[str, str]] = {"mini": "milo_mini.safetensors"}

    @torch.no_grad()
    def raw_error_8bit(self, image: Tensor, reference: Tensor) -> Tensor:
        """The raw errors of 8-bit images: what calling the metric with ``image / 255`` gives, within 1e-6.

        Neither the images nor the mask are ever whole in floating point: beside them it takes a tile, however large
        they are.

        Args:
            image: distorted images, (N, 3, H, W) or grey (N, 1, H, W), uint8.
            reference: what they should be, the same.

        Returns:
            (N,), float32; no gradient.

        Raises:
            DataError: another type, rank, size, device or number of channels.
        """
        check_pair(image, reference, self.channels_of(image), eight_bit=True)
        return tile_means(self._tiles(image, reference), math.prod(image.shape[2:]), [itself])[0]

    def _seen(self, image: Tensor) -> Tensor:
        return as_rgb(image)

    def channels_of(self, image: Tensor) -> int:
        """Number of channels that an image should have: 1 for a grey one, else 3."""
        return image_channels(image)

    def _refuse_values(self, image: Tensor, reference: Tensor) -> None:
        check_image_values(image, reference)
