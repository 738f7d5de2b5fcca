"""Training MILO itself: the module that is trained, and the random weights that training starts from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from milo_restore.metric import MaskedMetric
from milo_restore.teach.distillation import Hints, follow


class Taught(NamedTuple):
    """Targets that a teacher of masks gives for a batch.

    Attributes:
        mos: (N,), its mean opinion scores.
        error: (N,), its raw errors.
        divergence: scalar, of the student's visibilities from the teacher's.
        hint: scalar, how far the student's hidden features are from telling the teacher's; 0 without hints.
    """

    mos: Tensor
    error: Tensor
    divergence: Tensor
    hint: Tensor


class Predictions(NamedTuple):
    """Outputs of a metric in training for a batch.

    Attributes:
        mos: (N,), predicted mean opinion scores.
        error: (N,), raw errors.
        mask: (N, 1, H, W), in (0, 4); each level stands below the teacher's coarser mask, where there is a teacher.
        taught: what the teacher says; None without one.
    """

    mos: Tensor
    error: Tensor
    mask: Tensor
    taught: Taught | None = None


class MOSTraining(nn.Module):
    """A metric in training. One forward call gives all that a loss needs, as DistributedDataParallel wants it.

    Args:
        metric: a MILO or LatentMILO built directly, so that its weights are trainable; they are initialised here.
        teacher: a frozen metric of the same kind whose mask network to follow, or None.
        hints: let hidden layers tell the teacher's, too; see `Hints`.
    """

    def __init__(self, metric: MaskedMetric, teacher: MaskedMetric | None = None, *, hints: bool = False) -> None:
        super().__init__()
        self.metric, self.teacher = metric, teacher
        self.hints = Hints(metric.mask_network) if hints else None
        initialise(metric)

    def forward(self, image: Tensor, reference: Tensor) -> Predictions:
        """Predictions for images (N, C, H, W) against references of the same shape."""
        difference = (image - reference).abs()
        if self.teacher is None:
            mask = self.metric.predict_mask(image, reference)
            error = (mask * difference).mean((1, 2, 3))
            return Predictions(self.metric.mos_of(error), error, mask)
        found = follow(self.metric.mask_network, self.teacher.mask_network, image, reference, self.hints)
        error, teacher_error = ((mask * difference).mean((1, 2, 3)) for mask in (found.mask, found.teacher_mask))
        mos = self.metric.mos_of(error.detach())  # the teacher's masks teach the mask, its opinions the scaler
        with torch.autocast(image.device.type, enabled=False):  # a teacher's opinions are exact, as its masks are
            opinions = self.teacher.mos_of(teacher_error)
        return Predictions(mos, error, found.mask, Taught(opinions, teacher_error, found.divergence, found.hint))


@torch.no_grad()
def initialise(metric: MaskedMetric) -> None:
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
