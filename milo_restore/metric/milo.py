"""MILO: errors weighted, pixel by pixel, by how visible they are (Cogalan et al., ACM TOG 44(6), 2025).

A small network looks at the distorted image and the reference at four scales and predicts a visibility mask; the
score is the mean of mask times absolute difference. The same in Stable Diffusion's latent space is `LatentMILO`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from milo_restore.errors import ConfigError
from milo_restore.metric.checks import as_rgb, check_image_values, check_latent_values, check_pair
from milo_restore.metric.freeze import freeze_into_buffers
from milo_restore.metric.network import N_SCALES, MaskNetwork, ScoreScaler, visibility_mask
from milo_restore.metric.weights import WeightsInfo, fill, load_weights

M = TypeVar("M", bound="MaskedError")


class MaskedError(nn.Module):
    """What MILO and LatentMILO share. Use one of those two.

    Built directly, a metric has random trainable weights (that is how MILO is trained); from `from_pretrained` it is
    frozen: its weights are buffers, so that no optimizer, gradient or DDP bucket ever sees them.

    Attributes:
        channels: channels of one image or latent.
        n_scales: pyramid levels; the mask lies in (0, n_scales).
        weights: which weights were loaded; None for a metric built directly.
    """

    channels: ClassVar[int]
    n_scales: ClassVar[int] = N_SCALES
    _asset: ClassVar[str]
    _shipped: ClassVar[str | None]
    _refuse_values: Callable[[Tensor, Tensor], None]

    def __init__(self) -> None:
        super().__init__()
        self.mask_network = MaskNetwork(self.channels)
        self.scaler = ScoreScaler()
        self.weights: WeightsInfo | None = None
        self._values_seen = False

    @classmethod
    def from_pretrained(
        cls: type[M], weights: str | Path = "official", *, compute_dtype: torch.dtype = torch.float32
    ) -> M:
        """A frozen metric with trained weights.

        Args:
            weights: ``official`` (the authors', found offline or downloaded once, sha256 checked), ``mini`` (shipped),
                or the path of a .pth or .safetensors file.
            compute_dtype: ``torch.float32`` is exact. ``torch.bfloat16`` computes the wide convolutions in bfloat16,
                faster where the hardware has it (see ``milo-restore bench``): on the golden images scores move by
                less than 1 % and gradients with the mask as a constant keep a cosine above 0.999; gradients through
                the mask keep one of 0.98 only, for the mask switches almost like a threshold.

        Raises:
            WeightsError: a file is missing, damaged or of another architecture.
            ConfigError: another dtype.
        """
        if compute_dtype not in (torch.float32, torch.bfloat16):
            raise ConfigError(f"{compute_dtype} is neither torch.float32 nor torch.bfloat16", where="compute_dtype")
        state, info = load_weights(weights, cls._asset, cls._shipped)
        metric = cls()
        fill(metric, state, info)
        metric.weights = info
        metric.freeze().mask_network.compute_in(compute_dtype)
        return metric

    def freeze(self: M) -> M:
        """Turn every parameter into a buffer, outside of state dicts; the metric can no longer be trained."""
        return freeze_into_buffers(self)

    def forward(self, image: Tensor, *, reference: Tensor) -> Tensor:
        """The raw error per image: mean over channels and pixels of mask * |image - reference|.

        Args:
            image: distorted images, (N, C, H, W): RGB in [0, 1], or latents times the VAE's scaling factor.
            reference: what they should be, same shape. Keyword-only, for the metric is not symmetric.

        Returns:
            (N,), float32; 0 for identical images, lower is better.

        Raises:
            DataError: wrong rank, channels, size (below 16), device or value range, or NaN.
        """
        return self._masked_error(image, reference).mean((1, 2, 3))

    def mask(self, image: Tensor, *, reference: Tensor) -> Tensor:
        """The visibility mask, (N, 1, H, W), in (0, 4); divide by `n_scales` for (0, 1). Arguments as in `forward`."""
        return self.predict_mask(*self._prepare(image, reference))

    def map(self, image: Tensor, *, reference: Tensor) -> Tensor:
        """Where the visible errors are: S(masked error, mean over channels) - S(0), (N, 1, H, W), in [0, 0.869).

        S is the learned map from masked error to (0, 1); 0 means no visible error. Arguments as in `forward`.
        """
        error = self._masked_error(image, reference).mean(1, keepdim=True)
        return self.scaler(error) - self.scaler(torch.zeros_like(error))  # a scalar S(0) may round differently

    def quality(self, image: Tensor, *, reference: Tensor) -> Tensor:
        """Mean of `map` per image, (N,): upstream's "Quality Score". 0 = identical, at most 0.869: lower is better."""
        return self.map(image, reference=reference).mean((1, 2, 3))

    def mos(self, image: Tensor, *, reference: Tensor) -> Tensor:
        """Predicted mean opinion score 5 (1 - S(raw error)), (N,), upstream's since ee6159c; higher is better.

        Identical images get 4.346 from the official weights, not 5.
        """
        return self.mos_of(self(image, reference=reference))

    def mos_of(self, error: Tensor) -> Tensor:
        """The mean opinion score that raw errors (N,) stand for: 5 (1 - S(error)), (N,)."""
        return 5 * (1 - self.scaler(error[:, None, None, None])[:, 0, 0, 0])

    def predict_mask(self, image: Tensor, reference: Tensor) -> Tensor:
        """`mask` without looking at the values: for losses, where a diverging prediction is not bad input."""
        # A training loop may run under autocast; the metric keeps the precision it was built with.
        with torch.autocast(image.device.type, enabled=False):
            return visibility_mask(self.mask_network, image.float(), reference.float())

    def check_values(self, image: Tensor, reference: Tensor) -> None:
        """Refuse values that are no images (or latents) in the expected range.

        Reading values makes an accelerator wait for everything queued before; there only the first batch is read.

        Raises:
            DataError: naming the range found and the conversion that mends it.
        """
        if image.device.type == "cpu" or not self._values_seen:
            self._refuse_values(image, reference)
            self._values_seen = True

    def _masked_error(self, image: Tensor, reference: Tensor) -> Tensor:
        image, reference = self._prepare(image, reference)
        return self.predict_mask(image, reference) * (image - reference).abs()

    def _prepare(self, image: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        check_pair(image, reference, self.channels)
        self.check_values(image, reference)
        return image.float(), reference.float()


class MILO(MaskedError):
    """MILO on RGB images in [0, 1]; grey (N, 1, H, W) is repeated to three channels.

    Example:
        >>> milo = MILO.from_pretrained("mini")
        >>> reference = torch.rand(2, 3, 64, 64)
        >>> milo(reference, reference=reference).tolist()
        [0.0, 0.0]
    """

    channels = 3
    _asset = "milo"
    _shipped = "milo_mini.safetensors"

    _refuse_values = staticmethod(check_image_values)

    def predict_mask(self, image: Tensor, reference: Tensor) -> Tensor:
        """As in `MaskedError`, with grey images repeated to three channels."""
        return super().predict_mask(as_rgb(image), as_rgb(reference))

    def _prepare(self, image: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        return super()._prepare(as_rgb(image), as_rgb(reference))


class LatentMILO(MaskedError):
    """MILO on latents (N, 4, h, w), times the VAE's scaling factor.

    ``official`` is for latents of Stable Diffusion 1 or 2's VAE, times 0.18215; ``mini`` for those of the shipped tiny
    world's VAE (see `milo_restore.models.tiny`). Latents of other VAEs (SDXL, SD 3, FLUX) lie elsewhere.
    """

    channels = 4
    _asset = "milo-latent"
    _shipped = "milo_latent_mini.safetensors"
    _refuse_values = staticmethod(check_latent_values)
