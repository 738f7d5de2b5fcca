"""MILO written down plainly, the slow way: the yardstick for `milo_restore.metric` in the benchmark and its tests.

As upstream's program behaves: every weight is trainable, tensors keep the default memory format, the mask network runs
on a concatenation of distorted image, reference and coarser mask, coarse to fine.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainMILO(nn.Module):
    """The metric as one would first write it. Argument order: distorted image, then reference; (N, C, H, W) each.

    Args:
        channels: C, of one image: 3 for RGB, 4 for latents.
    """

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        widths = [2 * channels + 1, 32, 64, 32, 16, 1]
        layers: list[nn.Module] = []
        for inputs, outputs in zip(widths[:-1], widths[1:]):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1], nn.Sigmoid())

    def load(self, state: Mapping[str, Tensor], prefix: str) -> PlainMILO:
        """Take the mask network's weights out of a metric's: those whose names begin with ``prefix``."""
        self.net.load_state_dict({key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)})
        return self

    def mask(self, dist: Tensor, ref: Tensor) -> Tensor:
        """The visibility mask, (N, 1, H, W), in (0, 4)."""
        pyramid = [(dist, ref)]
        for _ in range(3):
            dist, ref = F.avg_pool2d(dist, 2), F.avg_pool2d(ref, 2)
            pyramid.append((dist, ref))
        mask: Tensor | None = None
        for dist, ref in reversed(pyramid):
            if mask is None:
                above = torch.zeros_like(dist[:, :1])
            else:
                above = F.interpolate(mask, scale_factor=2, mode="bilinear", align_corners=True)
                missing = (dist.shape[2] - above.shape[2], dist.shape[3] - above.shape[3])
                above = F.pad(above, (0, missing[1], 0, missing[0]), mode="replicate")
            mask = self.net(torch.cat([dist, ref, above], 1)) + above
        assert mask is not None  # noqa: S101  (the pyramid has four levels)
        return mask

    def forward(self, dist: Tensor, ref: Tensor) -> Tensor:
        """The raw error, mean over the batch."""
        return (self.mask(dist, ref) * (ref - dist).abs()).mean()
