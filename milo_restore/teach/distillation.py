"""Teaching one mask network by another: level by level, on logits, visibilities and hidden features."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from milo_restore.metric.network import MaskNetwork
from milo_restore.metric.pyramid import N_SCALES, double, pyramid

LOGIT_RANGE = 20.0
"""Beyond +-20 a sigmoid is 0 or 1 to float32's last bit: no use in asking for more."""

LEAST_ERROR = 2e-4
"""Masked errors far below are equally invisible."""


class Followed(NamedTuple):
    """Result of `follow`.

    Attributes:
        divergence: scalar, of the student's visibilities from the teacher's.
        hint: scalar, of what the student's hidden features tell of the teacher's; 0 without hints.
        mask: (N, 1, H, W), the student's visibilities summed over levels, each below the teacher's coarser mask.
        teacher_mask: (N, 1, H, W), the teacher's.
    """

    divergence: Tensor
    hint: Tensor
    mask: Tensor
    teacher_mask: Tensor


class Hints(nn.Module):
    """Linear maps from the student's hidden features to the teacher's, learned beside it and thrown away afterwards.

    A mask says little: it is near zero on most pixels. What the teacher computes on its way says much more (FitNets,
    Romero et al., ICLR 2015, arXiv 1412.6550). A map of its own per layer leaves the student its own features.

    Args:
        network: the student's.
    """

    def __init__(self, network: MaskNetwork) -> None:
        super().__init__()
        widths = [layer.out_channels for layer in network if isinstance(layer, nn.Conv2d)][:-1]
        self.maps = nn.ModuleList(nn.Conv2d(width, width, 1) for width in widths)

    def forward(self, hidden: list[Tensor], teachers: list[Tensor]) -> Tensor:
        """Smooth L1 between mapped and the teacher's features, (N, C, H, W) per layer; a scalar, the sum over layers.

        The teacher's are divided by their root mean square, channel by channel.
        """
        total = hidden[0].new_zeros((), dtype=torch.float32)
        for to_teacher, features, wanted in zip(self.maps, hidden, teachers):
            scale = wanted.square().mean((0, 2, 3)).sqrt()
            scale = torch.maximum(scale, 1e-2 * scale.amax() + 1e-12)  # a silent channel stays silent
            weight, bias = to_teacher.parameters()
            mapped = F.conv2d(features.float(), weight / scale[:, None, None, None], bias / scale)
            total = total + F.smooth_l1_loss(mapped, wanted / scale[:, None, None])
        return total


def follow(
    student: MaskNetwork, teacher: MaskNetwork, image: Tensor, reference: Tensor, hints: Hints | None = None
) -> Followed:
    """Compare two mask networks on every level of a batch.

    Each level sees the *teacher's* mask of the coarser one, so that all levels are learned at once. With logits s and
    z of student and teacher, w = sigmoid(z) and the coarser mask m, a level's divergence is 0.05 smooth-L1(s, z) +
    0.2 KL(w, sigmoid(s)) + angle(sigmoid(s), w) + angle(m + sigmoid(s), m + w): the first still moves where both are
    saturated, the second keeps the scale. An angle is 1 - cosine, image by image, which is what a loss makes of a mask:
    the direction of its gradient. A mean over pixels would hear little of the many images whose masks are faint.

    Under autocast only the student's wide convolutions compute in bfloat16: what tells faint differences stays exact.

    Args:
        student: its parameters get gradients.
        teacher: frozen.
        image: (N, C, H, W), distorted.
        reference: same shape.
        hints: compare hidden features, too.
    """
    levels = pyramid(torch.cat([image, reference], 1).float())
    above = levels[-1].new_zeros(len(image), 1, *levels[-1].shape[2:])
    divergence, hint = image.new_zeros(()), image.new_zeros(())
    mask = above
    for level in reversed(levels):
        if above.shape[2:] != level.shape[2:]:
            above = double(above, level)
        stacked = torch.cat([level, above], 1).contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            features, wanted = _features(teacher, stacked)
        hidden, logits = _features(student, stacked)
        with torch.autocast(image.device.type, enabled=False):
            visibility, w = logits.sigmoid(), wanted.sigmoid()
            mask, teacher_mask = above + visibility, above + w
            angles = _angle(visibility, w) + _angle(mask, teacher_mask)
            divergence = divergence + (_logit_divergence(logits, wanted, w) + angles) / N_SCALES
            hint = hint if hints is None else hint + hints(hidden, features) / N_SCALES
        above = teacher_mask
    return Followed(divergence, hint, mask, above)


def _features(network: MaskNetwork, stacked: Tensor) -> tuple[list[Tensor], Tensor]:
    """The features after every ReLU, and the logits; the last is what the sigmoid gets, float32."""
    kind = stacked.device.type
    autocast = torch.is_autocast_enabled(kind)
    layers = [layer for layer in network if isinstance(layer, nn.Conv2d)]
    hidden: list[Tensor] = []
    x = stacked
    for number, layer in enumerate(layers):
        wide = 0 < number < len(layers) - 1
        with torch.autocast(kind, enabled=autocast and wide):
            x = layer(x if wide else x.float())
        if number < len(layers) - 1:
            x = x.relu()
            hidden.append(x)
    return hidden, x


def _logit_divergence(logits: Tensor, wanted: Tensor, w: Tensor) -> Tensor:
    near, there = (value.clamp(-LOGIT_RANGE, LOGIT_RANGE) for value in (logits, wanted))
    kl = F.binary_cross_entropy_with_logits(logits, w) - F.binary_cross_entropy(w, w)
    return 0.05 * F.smooth_l1_loss(near, there) + 0.2 * kl


def mask_divergence(mask: Tensor, wanted: Tensor) -> Tensor:
    """angle(m, w) + 0.2 KL(w / 4, m / 4) of whole masks m and w in (0, 4), (N, 1, H, W); a scalar.

    For students that see other levels than their teacher does, as latents' do. The terms are those of `follow`.
    """
    own, share = ((value / N_SCALES).clamp(1e-6, 1 - 1e-6) for value in (mask, wanted))
    return _angle(mask, wanted) + 0.2 * (F.binary_cross_entropy(own, share) - F.binary_cross_entropy(share, share))


def error_divergence(error: Tensor, wanted: Tensor) -> Tensor:
    """angle(e, t) + smooth-L1(log e - log t - c) + |log mean e - log mean t - d| / 2 of masked errors; a scalar.

    Where a teacher of images sees visible errors, by how much those of each cell are visible, and which image has more
    of them. Constants c and d, means over the batch, leave the scale open: a unit of latents is none of images.

    Args:
        error: (N, 1, H, W), of the student.
        wanted: the same of the teacher.
    """
    cells = (error + LEAST_ERROR).log() - (wanted + LEAST_ERROR).log()
    images = (error.mean((1, 2, 3)) + LEAST_ERROR).log() - (wanted.mean((1, 2, 3)) + LEAST_ERROR).log()
    cells, images = (each - each.mean().detach() for each in (cells, images))
    whole = _angle(error, wanted) + 0.5 * images.abs().mean()
    return whole + F.smooth_l1_loss(cells, torch.zeros_like(cells))


def _angle(first: Tensor, second: Tensor) -> Tensor:
    """1 - the cosine of two masks, averaged over the batch."""
    return 1 - F.cosine_similarity(first.flatten(1), second.flatten(1), 1, eps=1e-12).mean()
