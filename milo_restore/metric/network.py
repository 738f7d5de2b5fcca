"""The two small networks inside MILO: one predicts the visibility mask, one maps a masked error to a quality.

Shapes and activations are those of the published checkpoints (upstream ``MILO_runner.py`` at a54e50e).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

N_SCALES = 4
"""Number of pyramid levels, the paper's L. The mask is a sum of one sigmoid per level, so it lies in (0, N_SCALES)."""


class MaskNetwork(nn.Sequential):
    """Five 3x3 convolutions, (2C + 1) -> 32 -> 64 -> 32 -> 16 -> 1, shared by all pyramid levels.

    The input's channels are the distorted image, the reference and the mask from the coarser level, in this order.

    Args:
        channels: C, channels of one image: 3 for RGB, 4 for Stable Diffusion's latents.
    """

    def __init__(self, channels: int) -> None:
        widths = [2 * channels + 1, 32, 64, 32, 16, 1]
        layers: list[nn.Module] = []
        for inputs, outputs in zip(widths[:-1], widths[1:]):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True)]
        super().__init__(*layers[:-1], nn.Sigmoid())

    def compute_in(self, dtype: torch.dtype) -> None:
        """Cast the three wide convolutions, 95 % of the work, to ``dtype``; the first and the last stay in float32.

        The first one takes differences of images: in bfloat16 alone, scores of small images move by up to 5 %.
        """
        for layer in self._wide():
            layer.to(dtype)

    @property
    def dtype(self) -> torch.dtype:
        """What the wide convolutions compute in."""
        return self._wide()[0].weight.dtype

    def _wide(self) -> list[nn.Conv2d]:
        return [layer for layer in self if isinstance(layer, nn.Conv2d)][1:-1]

    def forward(self, stacked: Tensor) -> Tensor:
        """The visibility of one level, (N, 1, H, W) in (0, 1), from (N, 2C + 1, H, W), both float32."""
        x = stacked
        for layer in self:
            x = layer(x.to(layer.weight.dtype) if isinstance(layer, nn.Conv2d) else x)
        return x


class ScoreScaler(nn.Sequential):
    """Maps a masked error in [0, 4] to (0, 1), pixel by pixel; 1x1 convolutions 1 -> 32 -> 32 -> 1."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 32, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 32, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 1, 1),
            nn.Sigmoid(),
        )  # fmt: skip


def visibility_mask(network: MaskNetwork, image: Tensor, reference: Tensor) -> Tensor:
    """Run the mask network coarse to fine over `N_SCALES` levels, each half the size of the one above.

    Args:
        network: the shared mask network.
        image: distorted images, (N, C, H, W), float32.
        reference: references of the same shape.

    Returns:
        The mask, (N, 1, H, W), float32, in (0, 4).
    """
    # Channels-last convolves faster on CPUs, but it sums in another order than upstream's default layout: where a ReLU
    # has zero input but for rounding, that flips entries of the gradient. So float32 keeps upstream's order.
    layout = torch.contiguous_format if network.dtype == torch.float32 else torch.channels_last
    levels = [torch.cat([image, reference], 1).to(memory_format=layout)]
    for _ in range(N_SCALES - 1):
        levels.append(F.avg_pool2d(levels[-1], 2))
    mask: Tensor | None = None
    for level in reversed(levels):
        above = level.new_zeros(level.shape[0], 1, *level.shape[2:]) if mask is None else double(mask, level)
        mask = network(torch.cat([level, above], 1).contiguous(memory_format=layout)) + above
    assert mask is not None  # noqa: S101  (N_SCALES > 0)
    return mask


def double(mask: Tensor, level: Tensor) -> Tensor:
    """Twice the size, bilinear; where halving had dropped an odd row or column, the last one is repeated."""
    doubled = F.interpolate(mask, scale_factor=2.0, mode="bilinear", align_corners=True)
    missing_rows, missing_columns = (level.shape[i] - doubled.shape[i] for i in (2, 3))
    if missing_rows or missing_columns:
        doubled = F.pad(doubled, (0, missing_columns, 0, missing_rows), mode="replicate")
    return doubled
