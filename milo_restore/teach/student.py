"""Training MILO itself: the module that is trained, and the random weights that training starts from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from milo_restore.metric import MaskedMetric
from milo_restore.metric.network import ScoreScaler
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
    initialise_masks(metric.mask_network, metric.channels, contrast=8, visible=-3.0)
    initialise_scaler(metric.scaler, best=0, worst=0.02)


@torch.no_grad()
def initialise_masks(network: nn.Sequential, channels: int, *, contrast: float, visible: float) -> None:
    """Random weights of a network that predicts visibilities.

    Args:
        network: convolutions, the first of two images (or of their features) beside each other.
        channels: of one image.
        contrast: factor on the first layer.
        visible: the last bias, the logit of a visibility to begin with.
    """
    convolutions = [layer for layer in network if isinstance(layer, nn.Conv2d)]
    for layer in convolutions:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        _set_bias(layer, visible if layer is convolutions[-1] else 0.0)
    first = convolutions[0].weight
    first[:16, channels : 2 * channels] = -first[:16, :channels]
    first[:16, : 2 * channels] *= contrast


@torch.no_grad()
def initialise_scaler(scaler: ScoreScaler, *, best: float, worst: float) -> None:
    """Random weights of a map from raw values to (0, 1) that goes one way, from 0.12 at ``best`` to near 1."""
    scaling = [layer for layer in scaler if isinstance(layer, nn.Conv2d)]
    for layer in scaling:
        layer.weight.abs_()
        _set_bias(layer, -2.0 if layer is scaling[-1] else 0.0)
    scaling[0].weight *= 1 / (worst - best)
    if best:
        _set_bias(scaling[0], -best * scaling[0].weight.flatten())


def _set_bias(layer: nn.Conv2d, value: float | Tensor) -> None:
    assert layer.bias is not None  # noqa: S101  (no network here is without)
    layer.bias.copy_(torch.as_tensor(value))
