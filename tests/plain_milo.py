"""MILO written down plainly, the slow way: the yardstick for `milo_restore.metric` in tests and in the benchmark.

As upstream's program behaves (facts/iqa.md, section 1): every weight is trainable, tensors keep the default memory
format, the mask network runs on a concatenation of distorted image, reference and coarser mask, coarse to fine.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainMILO(nn.Module):
    """The metric as one would first write it. Argument order: distorted image, then reference."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        widths = [2 * channels + 1, 32, 64, 32, 16, 1]
        layers: list[nn.Module] = []
        for inputs, outputs in zip(widths[:-1], widths[1:]):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1], nn.Sigmoid())
        self.scaler = nn.Sequential(
            nn.Conv2d(1, 32, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 32, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 1, 1),
            nn.Sigmoid(),
        )  # fmt: skip

    def load_upstream(self, state: dict[str, Tensor]) -> PlainMILO:
        self.load_state_dict(
            {
                key.replace("mask_finder_1.netBasic", "net").replace("scaler_network.model", "scaler"): value
                for key, value in state.items()
            }
        )
        return self

    def mask(self, dist: Tensor, ref: Tensor) -> Tensor:
        pyramid = [(dist, ref)]
        for _ in range(3):
            dist, ref = F.avg_pool2d(dist, 2), F.avg_pool2d(ref, 2)
            pyramid.append((dist, ref))
        mask = None
        for dist, ref in reversed(pyramid):
            if mask is None:
                above = torch.zeros_like(dist[:, :1])
            else:
                above = F.interpolate(mask, scale_factor=2, mode="bilinear", align_corners=True)
                missing = (dist.shape[2] - above.shape[2], dist.shape[3] - above.shape[3])
                above = F.pad(above, (0, missing[1], 0, missing[0]), mode="replicate")
            mask = self.net(torch.cat([dist, ref, above], 1)) + above
        return mask

    def forward(self, dist: Tensor, ref: Tensor) -> Tensor:
        return (self.mask(dist, ref) * (ref - dist).abs()).mean()

    def map(self, dist: Tensor, ref: Tensor) -> Tensor:
        error = (self.mask(dist, ref) * (ref - dist).abs()).mean(1, keepdim=True)
        return self.scaler(error) - self.scaler(torch.zeros_like(error))
