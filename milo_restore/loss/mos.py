"""Training MILO itself: the module that is trained, and the divergence that distils one mask network into another."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from milo_restore.metric import N_SCALES, MaskedError
from milo_restore.metric.network import double


class Predictions(NamedTuple):
    """What a metric in training says of a batch.

    Attributes:
        mos: (N,), predicted mean opinion scores.
        error: (N,), raw errors.
        divergence: scalar, of the visibilities from the teacher's; None without a teacher, as is what follows.
        teacher_error: (N,), raw errors by the teacher.
    """

    mos: Tensor
    error: Tensor
    divergence: Tensor | None = None
    teacher_error: Tensor | None = None


class MOSTraining(nn.Module):
    """A metric in training. One forward call gives all that a loss needs, as DistributedDataParallel wants it.

    Args:
        metric: a MILO or LatentMILO built directly, so that its weights are trainable; they are initialised here.
        teacher: a frozen metric of the same kind whose mask network to follow, or None.
    """

    def __init__(self, metric: MaskedError, teacher: MaskedError | None = None) -> None:
        super().__init__()
        self.metric, self.teacher = metric, teacher
        initialise(metric)

    def forward(self, image: Tensor, reference: Tensor) -> Predictions:
        """Predictions for images (N, C, H, W) against references of the same shape."""
        difference = (image - reference).abs()
        error = (self.metric.predict_mask(image, reference) * difference).mean((1, 2, 3))
        mos = self.metric.mos_of(error)
        if self.teacher is None:
            return Predictions(mos, error)
        divergence, mask = visibility_divergence(self.metric, self.teacher, image, reference)
        return Predictions(mos, error, divergence, (mask * difference).mean((1, 2, 3)))


@torch.no_grad()
def initialise(metric: MaskedError) -> None:
    """Random weights that training starts from; with torch's defaults the mask stays at 1/2 and S flat for very long.

    He's initialisation, for torch's own shrinks a signal threefold per layer, and errors are small already. Half of
    the first filters start on the difference of the two images, eight times as strong. Visibilities start near 0.05,
    for most errors are hardly visible, and the scaler as a rising function from S(0) = 0.12, as the published one has
    it, steep because such errors crowd below 0.05.
    """
    convolutions = [layer for layer in metric.mask_network if isinstance(layer, nn.Conv2d)]
    for layer in convolutions:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    first, channels = convolutions[0].weight, metric.channels
    first[:16, channels : 2 * channels] = -first[:16, :channels]
    first[:16, : 2 * channels] *= 8
    scaling = [layer for layer in metric.scaler if isinstance(layer, nn.Conv2d)]
    for layer in scaling:
        layer.weight.abs_()
    biases = {**dict.fromkeys((*convolutions, *scaling), 0.0), convolutions[-1]: -3.0, scaling[-1]: -2.0}
    for layer, bias in biases.items():
        if layer.bias is not None:
            nn.init.constant_(layer.bias, bias)
    scaling[0].weight *= 50


def visibility_divergence(
    student: MaskedError, teacher: MaskedError, image: Tensor, reference: Tensor
) -> tuple[Tensor, Tensor]:
    """Kullback-Leibler divergence of the student's sigmoids from the teacher's: a scalar, the mean over levels.

    The second result is the teacher's mask, (N, 1, H, W).

    Each level sees the teacher's mask of the coarser one, so that all levels are learned at once. On the scale of
    entropies, for most visibilities are near zero and a difference of saturated sigmoids would hardly move the student.
    """
    levels = [torch.cat([image, reference], 1)]
    for _ in range(N_SCALES - 1):
        levels.append(F.avg_pool2d(levels[-1], 2))
    above = levels[-1].new_zeros(len(image), 1, *levels[-1].shape[2:])
    logits = nn.Sequential(*list(student.mask_network)[:-1])
    total = image.new_zeros(())
    for level in reversed(levels):
        if above.shape[2:] != level.shape[2:]:
            above = double(above, level)
        stacked = torch.cat([level, above], 1)
        with torch.no_grad():
            wanted = teacher.mask_network(stacked)
            entropy = F.binary_cross_entropy(wanted, wanted)
        total = total + F.binary_cross_entropy_with_logits(logits(stacked), wanted) - entropy
        above = wanted + above
    return total / N_SCALES, above
