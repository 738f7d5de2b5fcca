"""The two small networks inside MILO: one predicts the visibility mask, one maps a masked error to a quality.

Shapes and activations are those of the published checkpoints (upstream ``MILO_runner.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

N_SCALES = 4
"""Number of pyramid levels, the paper's L. The mask is a sum of one sigmoid per level, so it lies in (0, N_SCALES)."""


STRIP_PIXELS = 2**17
"""Pixels that the mask network takes at once where no gradient is wanted: 48 MiB of activations."""
LEAST_ROWS = 64
"""Rows of a strip, at least, for each strip computes `HALO` more to either side."""
HALO = 5
"""Rows to either side that the network's output depends on: one per convolution."""


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
        """Dtype that the wide convolutions compute in."""
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

    Where nothing asks for a gradient the images are taken in strips and channels-last, which is faster and needs no
    memory to speak of. Scores are the same to 1e-6; a pixel of the mask may differ by 1e-4 where the network is steep,
    as it does from exact arithmetic either way.

    Args:
        network: the shared mask network.
        image: distorted images, (N, C, H, W), float32.
        reference: references of the same shape.

    Returns:
        The mask, (N, 1, H, W), float32, in (0, 4).
    """
    constant = not traced() and not (torch.is_grad_enabled() and _wants_gradient(network, image, reference))
    one_level = _in_strips if constant else _whole
    levels = list(zip(pyramid(image), pyramid(reference)))
    mask: Tensor | None = None
    for image, reference in reversed(levels):
        above = torch.zeros_like(image[:, :1]) if mask is None else double(mask, image)
        mask = one_level(network, image, reference, above)
    assert mask is not None  # noqa: S101  (N_SCALES > 0)
    return mask


def pyramid(image: Tensor) -> list[Tensor]:
    """`N_SCALES` levels, fine to coarse: the image itself, then each the means of the last one's 2x2 blocks."""
    levels = [image]
    for _ in range(N_SCALES - 1):
        levels.append(F.avg_pool2d(levels[-1], 2))
    return levels


def traced() -> bool:
    """True while a compiler or an exporter traces: it sees shapes, but no values, and one path for all sizes."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def double(mask: Tensor, level: Tensor) -> Tensor:
    """Twice the size, bilinear; where halving had dropped an odd row or column, the last one is repeated."""
    height, width = level.shape[2:]
    rows, columns = (2 * side for side in mask.shape[2:])
    doubled = F.interpolate(mask, size=(rows, columns), mode="bilinear", align_corners=True)
    if _exporting():  # whether a side is odd is not known then
        places = [torch.arange(side, device=mask.device) for side in (height, width)]
        doubled = doubled[:, :, places[0].clamp(max=rows - 1)][..., places[1].clamp(max=columns - 1)]
    elif height != rows or width != columns:
        doubled = F.pad(doubled, (0, width - columns, 0, height - rows), mode="replicate")
    return doubled


_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # torch >= 2.7


def _wants_gradient(network: MaskNetwork, image: Tensor, reference: Tensor) -> bool:
    return image.requires_grad or reference.requires_grad or any(p.requires_grad for p in network.parameters())


def _whole(network: MaskNetwork, image: Tensor, reference: Tensor, above: Tensor) -> Tensor:
    """One level at once, ready for gradients."""
    # Channels-last convolves faster on CPUs, but it sums in another order than upstream's default layout: where a ReLU
    # has zero input but for rounding, that flips entries of the gradient. So float32 keeps upstream's order.
    layout = torch.contiguous_format if network.dtype == torch.float32 else torch.channels_last
    stacked = torch.cat([image, reference, above], 1)
    return network(stacked if traced() else stacked.contiguous(memory_format=layout)) + above


def _in_strips(network: MaskNetwork, image: Tensor, reference: Tensor, above: Tensor) -> Tensor:
    """One level in pieces of about `STRIP_PIXELS`: some images of a batch, or some rows of a large one."""
    height, width = image.shape[2:]
    some = max(1, STRIP_PIXELS // (height * width))
    strips = math.ceil(height / max(LEAST_ROWS, STRIP_PIXELS // width))
    rows = math.ceil(height / strips) if some == 1 else height
    mask = torch.empty_like(above)
    for first in range(0, len(image), some):
        images = slice(first, first + some)
        for top in range(0, height, rows):
            start, bottom = max(0, top - HALO), top + rows
            seen = (images, slice(None), slice(start, bottom + HALO))
            stacked = torch.cat([image[seen], reference[seen], above[seen]], 1)
            visibility = network(stacked.contiguous(memory_format=torch.channels_last))
            kept = (images, slice(None), slice(top, bottom))
            mask[kept] = visibility[:, :, top - start : bottom - start] + above[kept]
    return mask
