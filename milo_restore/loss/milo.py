"""MILO as a training loss, in RGB and in latent space, with the paper's curriculum."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from milo_restore.errors import ConfigError
from milo_restore.loss.agreement import warn_below_goal
from milo_restore.loss.baselines import Reduction, RestorationLoss
from milo_restore.loss.curriculum import Curriculum, CurriculumKind
from milo_restore.metric import MILO, LatentMILO, MaskedMetric, WeightsInfo
from milo_restore.metric.checks import check_pair, fold_video
from milo_restore.metric.network import traced

M = TypeVar("M", bound=MaskedMetric)


class _MaskedLoss(RestorationLoss, Generic[M]):
    """Base of `MILOLoss` and `LatentMILOLoss`: everything but the metric and its documentation.

    Raises:
        ConfigError: an anchor that is negative or no number.
    """

    _kind: type[M]

    def __init__(
        self,
        weights: str | Path = "official",
        *,
        curriculum: CurriculumKind = "constant",
        total_steps: int | None = None,
        start_step: int = 0,
        mask_gradient: bool = False,
        normalize: bool = False,
        anchor: float = 0.0,
        compute_dtype: torch.dtype = torch.float32,
        loss_weight: float = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(loss_weight, reduction)
        if not 0 <= anchor < math.inf:
            raise ConfigError(f"must be a number from 0, got {anchor}", where="anchor")
        self.metric = self._kind.from_pretrained(weights, compute_dtype=compute_dtype)
        self.curriculum = Curriculum(curriculum, total_steps, start_step)
        self.mask_gradient, self.normalize, self.anchor = mask_gradient, normalize, float(anchor)
        warn_below_goal(self.metric.weights)

    @property
    def weights(self) -> WeightsInfo | None:
        """Which weights the loss uses; recipes write it into their run folder."""
        return self.metric.weights

    def terms(
        self, prediction: Tensor, target: Tensor, weight: Tensor | None = None, *, step: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `RestorationLoss.terms`; ``milo`` is the raw error, whatever the curriculum's position.

        The input is checked, but not inside of ``torch.compile`` and ``torch.export``. The prediction may leave
        [0, 1]; NaN in gives NaN out, for the training loop to catch. (N, T, C, H, W) counts as N T images.

        Raises:
            DataError: shapes, sizes or the target's values are wrong.
            ConfigError: a curriculum is on and ``step`` is missing, or ``step`` is no whole number.
        """
        shape = prediction.shape
        prediction, target, _ = fold_video(prediction, target)
        if not traced():
            check_pair(prediction, target, self.metric.channels_of(prediction))
            self.metric.check_values(target, target)
        n_scales = self.metric.n_scales
        m = self.mask(prediction, target)
        w = self.curriculum.blend(m, step)
        w = w / w.mean((1, 2, 3), keepdim=True).clamp_min(1e-8) if self.normalize else n_scales * w
        error = (prediction.float() - target.float()).abs()
        value = self.reduce(((self.anchor + w) * error).reshape(shape), weight)
        with torch.no_grad():
            per_pixel = error.mean(1, keepdim=True)
            return value, {"l1": per_pixel.mean(), "milo": (n_scales * m * per_pixel).mean()}

    def mask(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The visibility mask m in (0, 1), (N, 1, H, W), float32; the metric's own, in (0, 4), over its n_scales.

        The gradient flows as configured.
        """
        with nullcontext() if self.mask_gradient else torch.no_grad():
            return self.metric.predict_mask(prediction, target) / self.metric.n_scales

    def __repr__(self) -> str:
        kind, start, end = self.curriculum.kind, self.curriculum.start_step, self.curriculum.end_step
        curriculum = kind if kind == "constant" else f"{kind} over steps {start} to {end}"
        return (
            f"{type(self).__name__}(weights: {self.weights}, curriculum: {curriculum}, "
            f"mask_gradient={self.mask_gradient}, normalize={self.normalize}, anchor={self.anchor:g}, "
            f"loss_weight={self.loss_weight:g}, reduction={self.reduction!r})"
        )


class MILOLoss(_MaskedLoss[MILO]):
    """MILO as a loss on RGB (N, 3, H, W) or grey (N, 1, H, W) images in [0, 1].

    ``loss(prediction, target, weight=None, *, step=None)`` is, with e = prediction - target, the mask m in (0, 1) that
    MILO predicts for the pair, and w = (1 - a)(1 - m) + a m at the curriculum's position a,

        loss_weight * (anchor * mean(|e|) + 4 * mean(w * |e|)).

    At a = 1 (always, without a curriculum) and without an anchor it is the metric's raw error. It trains nothing of its
    own: the metric's weights are buffers outside of parameters and state dict.

    Beside other losses, such as a GAN's or a perceptual one, take ``normalize=True``: the scale is then L1's all the
    way, and ``loss_weight`` is the weight that L1 had. Without it a curriculum takes the loss from four times L1 to a
    fraction of it. Loss over L1, with official weights on 24 crops of BSDS500's photographs:

    ================================================  =========  =====  ===========
    at the curriculum's position                      0          0.5    1
    ================================================  =========  =====  ===========
    noise of sigma 5 to 50                            3.9-4.0    2.0    0.01-0.13
    blur of 1 and 2 pixels, output of a small MAE     3.8-3.9    2.0    0.05-0.17
    both with ``normalize``                           0.99-1.00  1.00   1.01-1.48
    ================================================  =========  =====  ===========

    Args:
        weights: ``official``, ``mini``, ``auto`` or a path; see `MILO.from_pretrained`. Weights whose recorded
            agreement with the official ones is below this project's goal are warned of, once.
        curriculum: ``constant``, ``linear`` or ``cosine``; see `Curriculum`.
        total_steps: the step at which the curriculum ends; required unless constant.
        start_step: the step up to which it stays at its start.
        mask_gradient: False takes the mask as a constant weight. True lets gradients flow through it too, which is
            another loss (gradient cosine 0.15 on upstream's sample pair): from random weights, training through the
            mask ended in a pattern that the mask does not see, at every scale this project tried: 20.1 dB, below its
            noisy input.
        normalize: divide w by its mean per image in place of the factor 4, so that every image pulls equally.
        anchor: L1 with this factor is added; L1 + k MILO is ``anchor=1 / k, loss_weight=k``.
        compute_dtype: ``torch.bfloat16`` computes the mask network in bfloat16; best with the mask as a constant, see
            `MILO.from_pretrained`.
        loss_weight: factor on the result.
        reduction: ``mean``, ``sum`` or ``none`` (element-wise).

    Raises:
        WeightsError: the weights can neither be found nor downloaded, or are damaged.
        ConfigError: an argument means nothing, such as a curriculum without an end.

    Example:
        >>> import torch
        >>> from milo_restore import MILOLoss
        >>> loss = MILOLoss("mini", curriculum="cosine", total_steps=1000)
        >>> prediction = torch.rand(2, 3, 64, 64, requires_grad=True)
        >>> value, watched = loss.terms(prediction, torch.rand(2, 3, 64, 64), step=1)
        >>> value.backward()
        >>> prediction.grad.shape, sorted(watched)
        (torch.Size([2, 3, 64, 64]), ['l1', 'milo'])
        >>> list(loss.parameters())
        []
    """

    _kind = MILO


class LatentMILOLoss(_MaskedLoss[LatentMILO]):
    """MILO as a loss on latents (N, C, h, w), shifted and scaled as their VAE says; the formula is `MILOLoss`'s.

    Args:
        weights: ``official``, for latents of Stable Diffusion 1 or 2's VAE; ``flux2-taef2``, for FLUX.2's; ``mini``,
            for those of the shipped tiny world's; or a path; see `LatentMILO`. Weights whose recorded agreement with
            the official ones is below this project's goal are warned of, once.
        curriculum: ``constant``, ``linear`` or ``cosine``; see `Curriculum`.
        total_steps: the step at which the curriculum ends; required unless constant.
        start_step: the step up to which it stays at its start.
        mask_gradient: False takes the mask as a constant weight; True lets gradients flow through it too, which is
            another loss, and one that training from random weights has gamed: see `MILOLoss`.
        normalize: divide w by its mean per latent in place of the factor 4, so that every latent pulls equally.
        anchor: L1 with this factor is added; L1 + k MILO is ``anchor=1 / k, loss_weight=k``.
        compute_dtype: ``torch.bfloat16`` computes the mask network in bfloat16; best with the mask as a constant.
        loss_weight: factor on the result.
        reduction: ``mean``, ``sum`` or ``none`` (element-wise).

    Raises:
        WeightsError: the weights can neither be found nor downloaded, or are damaged.
        ConfigError: an argument means nothing, such as a curriculum without an end.

    Example:
        >>> import torch
        >>> from milo_restore import LatentMILOLoss
        >>> loss = LatentMILOLoss("mini")
        >>> prediction = torch.randn(2, 4, 32, 32, requires_grad=True)
        >>> loss(prediction, torch.randn(2, 4, 32, 32)).backward()
    """

    _kind = LatentMILO
