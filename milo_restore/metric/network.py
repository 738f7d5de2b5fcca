"""The two small networks inside MILO: one predicts the visibility mask, one maps a masked error to a quality.

Shapes and activations are those of the published checkpoints (upstream ``MILO_runner.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from milo_restore.metric.pyramid import double, pyramid
from milo_restore.metric.tiles import mask_tiles


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

    Where nothing asks for a gradient the images are taken in tiles and channels-last, which is faster and needs no
    memory to speak of. Scores are the same to 1e-6; a pixel of the mask may differ by 1e-4 where the network is steep,
    as it does from exact arithmetic either way.

    Args:
        network: the shared mask network.
        image: distorted images, (N, C, H, W), float32.
        reference: references of the same shape.

    Returns:
        The mask, (N, 1, H, W), float32, in (0, 4).
    """
    mask: Tensor | None = None
    if not wants_gradient(network, image, reference):
        mask = torch.empty_like(image[:, :1], memory_format=torch.contiguous_format)
        for tile in mask_tiles(network, image, reference):
            mask[tile.place] = tile.mask
        return mask
    levels = list(zip(pyramid(image), pyramid(reference)))
    for image, reference in reversed(levels):
        above = torch.zeros_like(image[:, :1]) if mask is None else double(mask, image)
        mask = _whole(network, image, reference, above)
    assert mask is not None  # noqa: S101  (N_SCALES > 0)
    return mask


def traced() -> bool:
    """True while a compiler or an exporter traces: it sees shapes, but no values, and one path for all sizes."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def wants_gradient(network: nn.Module, image: Tensor, reference: Tensor) -> bool:
    """Whether something may ask for a gradient, or a compiler traces, which sees no values; else there are tiles."""
    if traced():
        return True
    return torch.is_grad_enabled() and any(x.requires_grad for x in (image, reference, *network.parameters()))


def _whole(network: MaskNetwork, image: Tensor, reference: Tensor, above: Tensor) -> Tensor:
    """One level at once, ready for gradients."""
    # Channels-last convolves faster on CPUs, but it sums in another order than upstream's default layout: where a ReLU
    # has zero input but for rounding, that flips entries of the gradient. So float32 keeps upstream's order.
    layout = torch.contiguous_format if network.dtype == torch.float32 else torch.channels_last
    stacked = torch.cat([image, reference, above], 1)
    return network(stacked if traced() else stacked.contiguous(memory_format=layout)) + above
