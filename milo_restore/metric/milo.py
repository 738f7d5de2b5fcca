"""MILO: errors weighted, pixel by pixel, by how visible they are (Cogalan et al., ACM TOG 44(6), 2025).

A small network looks at the distorted image and the reference at four scales and predicts a visibility mask; the
score is the mean of mask times absolute difference. The same in an autoencoder's latent space is `LatentMILO`.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from milo_restore.errors import ConfigError
from milo_restore.files.hub import at_revision
from milo_restore.files.state import fill
from milo_restore.metric.checks import (
    as_rgb,
    check_image_values,
    check_latent_values,
    check_pair,
    fold_video,
    image_channels,
    strange_to_the_tiny_world,
)
from milo_restore.metric.freeze import freeze_into_buffers
from milo_restore.metric.latent_space import ANY_OF_FOUR, STABLE_DIFFUSION, TINY_WORLD, LatentSpace
from milo_restore.metric.network import MaskNetwork, ScoreScaler, traced, visibility_mask, wants_gradient
from milo_restore.metric.pyramid import N_SCALES
from milo_restore.metric.tiles import Tile, mask_tiles, tile_means
from milo_restore.metric.weights import WeightsInfo, load_weights

M = TypeVar("M", bound="MaskedMetric")
Reduction = Literal["none", "mean", "sum"]


class MILOScores(NamedTuple):
    """The three scores of a batch, each as the metric's method of that name gives it: (N,) float32 by default.

    Attributes:
        raw_error: what calling the metric gives; 0 for identical images, lower is better.
        quality: upstream's "Quality Score", in [0, 0.869]; lower is better.
        mos: predicted mean opinion score, in (0, 5); higher is better.
    """

    raw_error: Tensor
    quality: Tensor
    mos: Tensor


class MaskedMetric(nn.Module, ABC):
    """Base of `MILO` and `LatentMILO`; use one of those two.

    A metric is frozen: its weights are buffers, so that no optimizer, gradient, DDP bucket or state dict ever sees
    them. `untrained` gives one to train. Making one leaves torch's random numbers as they were.

    Args:
        weights: ``official`` (the authors', found offline or downloaded once, sha256 checked), ``mini`` (shipped), or
            the path of a .pth or .safetensors file, or a folder or a repository of the Hugging Face hub, OWNER/NAME or
            OWNER/NAME@REVISION, that `milo_restore.hub.push_to_hub` wrote. MILO knows ``auto``, too: ``official``
            where it is at hand or can be downloaded within seconds, else ``mini``; which, and why, is said once on
            stderr.
        compute_dtype: ``torch.float32`` is exact. ``torch.bfloat16`` computes the wide convolutions in bfloat16,
            faster where the hardware has it (see ``milo-restore bench``): on the golden images scores move by less
            than 1 % and gradients with the mask as a constant keep a cosine above 0.999; gradients through the mask
            keep one of 0.98 only, for the mask switches almost like a threshold.
        reduction: of the scores that `forward`, `quality` and `mos` give: ``none`` (N,), ``mean`` or ``sum``, scalars.

    Raises:
        WeightsError: a file is missing, damaged or of another architecture.
        ConfigError: another dtype or reduction.

    Attributes:
        channels: channels of one image or latent.
        n_scales: pyramid levels; the mask lies in (0, n_scales).
        higher_is_better: False: of `forward` and `quality`, a lower score is a better image.
        weights: which weights were loaded; None for an untrained metric.
    """

    channels: int
    weights: WeightsInfo | None
    n_scales: ClassVar[int] = N_SCALES
    higher_is_better: ClassVar[bool] = False
    _asset: ClassVar[str]
    _shipped: ClassVar[dict[str, str]]
    _knows_auto: ClassVar[bool] = True

    def __init__(
        self,
        weights: str | Path = "official",
        *,
        compute_dtype: torch.dtype = torch.float32,
        reduction: Reduction = "none",
    ) -> None:
        if compute_dtype not in (torch.float32, torch.bfloat16):
            raise ConfigError(f"{compute_dtype} is neither torch.float32 nor torch.bfloat16", where="compute_dtype")
        if weights == "auto" and not self._knows_auto:
            mend = "Take 'official' for Stable Diffusion 1 or 2, 'flux2-taef2' for FLUX.2, 'mini' for the tiny world"
            raise ConfigError("the latent weights are for different VAEs, so none stands in", where="auto", mend=mend)
        super().__init__()
        state, info = load_weights(weights, self._asset, self._shipped)
        self._adopt(info)
        with torch.device("meta"):  # where initial values, which no one needs, cost neither time nor random numbers
            self._build(reduction)
        fill(self, state, info.path, assign=True)
        self.weights = info
        self.freeze().mask_network.compute_in(compute_dtype)

    def _adopt(self, info: WeightsInfo) -> None:
        """Take from what a weights file says what the network's shape depends on."""

    def _build(self, reduction: Reduction) -> None:
        if reduction not in ("none", "mean", "sum"):
            raise ConfigError(f"{reduction!r} is none of none, mean, sum", where="reduction")
        self.reduction = reduction
        self.mask_network = MaskNetwork(self.channels)
        self.scaler = ScoreScaler()
        self.weights = None
        self._values_seen = False

    @classmethod
    def from_pretrained(
        cls: type[M],
        weights: str | Path = "official",
        *,
        revision: str | None = None,
        compute_dtype: torch.dtype = torch.float32,
        reduction: Reduction = "none",
    ) -> M:
        """The same as the constructor, under the name that other libraries use.

        ``revision`` is a branch, a tag or a commit of a repository on the hub; a ConfigError for other weights.
        """
        return cls(at_revision(weights, revision), compute_dtype=compute_dtype, reduction=reduction)

    @classmethod
    def untrained(cls: type[M], *, reduction: Reduction = "none") -> M:
        """A metric with random weights that are parameters: MILO is trained with it, and its scores mean nothing."""
        metric = cls.__new__(cls)
        nn.Module.__init__(metric)
        metric._build(reduction)
        return metric

    def freeze(self: M) -> M:
        """Turn every parameter into a buffer, outside of state dicts; the metric can no longer be trained."""
        return freeze_into_buffers(self)

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """The raw error per image: mean over channels and pixels of mask * |image - reference|.

        Args:
            image: distorted images, (N, C, H, W): RGB in [0, 1], or latents times the VAE's scaling factor; or videos
                (N, T, C, H, W), whose frames are images.
            reference: what they should be, same shape. The metric is not symmetric: name it, or mind the order.

        Returns:
            (N,), or (N, T) for videos, or a scalar as ``reduction`` says; float32. 0 for identical images, lower is
            better.

        Raises:
            DataError: wrong rank, channels, size (below 16), device or value range, or NaN.
        """
        return self._reduce(self._means(image, reference, _itself)[0])

    def mask(self, image: Tensor, reference: Tensor) -> Tensor:
        """The visibility mask as upstream's program has it, (N, 1, H, W) or (N, T, 1, H, W), in (0, 4).

        It is the sum of one visibility in (0, 1) per scale. Divided by `n_scales` it is the m in (0, 1) of the losses'
        formulas and of their ``mask``. Arguments as in `forward`.
        """
        image, reference, videos = self._prepare(image, reference)
        return self._unfold(self.predict_mask(image, reference), videos)

    def map(self, image: Tensor, reference: Tensor) -> Tensor:
        """Map of visible errors: S(masked error, mean over channels) - S(0), in [0, 0.869).

        S is the learned map from masked error to (0, 1); 0 means no visible error. Arguments as in `forward`, shapes as
        in `mask`.
        """
        image, reference, videos = self._prepare(image, reference)
        if wants_gradient(self.mask_network, image, reference):
            found = self._map_of(self.predict_mask(image, reference) * (image - reference).abs())
        else:
            found = torch.empty_like(image[:, :1], memory_format=torch.contiguous_format)
            for tile in self._tiles(image, reference):
                found[tile.place] = self._map_of(tile.error())
        return self._unfold(found, videos)

    def quality(self, image: Tensor, reference: Tensor) -> Tensor:
        """Mean of `map` per image, upstream's "Quality Score"; shapes as in `forward`.

        0 = identical, at most 0.869: lower is better.
        """
        return self._reduce(self._means(image, reference, self._map_of)[0])

    def mos(self, image: Tensor, reference: Tensor) -> Tensor:
        """Predicted mean opinion score 5 (1 - S(raw error)), upstream's since ee6159c; shapes as in `forward`.

        Higher is better. Identical images get 4.346 from the official weights, not 5.
        """
        return self._reduce(self.mos_of(self._means(image, reference, _itself)[0]))

    def scores(self, image: Tensor, reference: Tensor) -> MILOScores:
        """Raw error, `quality` and `mos` for one pass through the mask network; arguments and errors as `forward`."""
        raw, quality = self._means(image, reference, _itself, self._map_of)
        return MILOScores(*map(self._reduce, (raw, quality, self.mos_of(raw))))

    def mos_of(self, error: Tensor) -> Tensor:
        """The mean opinion scores that raw errors stand for: 5 (1 - S(error)), the same shape."""
        return 5 * (1 - self.scaler(error.reshape(-1, 1, 1, 1)).reshape(error.shape))

    def predict_mask(self, image: Tensor, reference: Tensor) -> Tensor:
        """`mask` without looking at the values: for losses, where a diverging prediction is not bad input.

        Under ``torch.no_grad()``, or where nothing asks for a gradient, it runs faster and keeps nothing.
        """
        # A training loop may run under autocast; the metric keeps the precision it was built with.
        with torch.autocast(image.device.type, enabled=False):
            return visibility_mask(self.mask_network, self._seen(image).float(), self._seen(reference).float())

    def check_values(self, image: Tensor, reference: Tensor) -> None:
        """Refuse values that are no images (or latents) in the expected range.

        Reading values makes an accelerator wait for everything queued before; there only the first batch is read.
        Under ``torch.compile``, an export or a trace there are no values to read.

        Raises:
            DataError: naming the range found and the conversion that mends it.
        """
        if traced() or (image.device.type != "cpu" and self._values_seen):
            return
        self._refuse_values(image, reference)
        self._values_seen = True

    def __repr__(self) -> str:
        return f"{type(self).__name__}(weights: {self.weights or 'untrained'}, reduction={self.reduction!r})"

    def _means(self, image: Tensor, reference: Tensor, *values: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """The mean over pixels and channels of each function of the masked error, (N,) or (N, T)."""
        image, reference, videos = self._prepare(image, reference)
        if wants_gradient(self.mask_network, image, reference):
            error = self.predict_mask(image, reference) * (image - reference).abs()
            means = [value(error).mean((1, 2, 3)) for value in values]
        else:
            means = tile_means(self._tiles(image, reference), math.prod(image.shape[2:]), values)
        return [self._unfold(mean, videos) for mean in means]

    def _tiles(self, image: Tensor, reference: Tensor) -> Iterator[Tile]:
        return mask_tiles(self.mask_network, self._seen(image), self._seen(reference))

    def _map_of(self, error: Tensor) -> Tensor:
        error = error.mean(1, keepdim=True)
        return self.scaler(error) - self.scaler(torch.zeros_like(error))  # a scalar S(0) may round differently

    def _prepare(self, image: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """Checked batches, float32, and the shape (N, T) of what were videos."""
        image, reference, videos = fold_video(image, reference)
        check_pair(image, reference, self.channels_of(image))
        self.check_values(image, reference)
        return image.float(), reference.float(), videos

    def channels_of(self, image: Tensor) -> int:
        """Number of channels that an image should have."""
        return self.channels

    def _seen(self, image: Tensor) -> Tensor:
        """Input of the mask network from an image."""
        return image

    @abstractmethod
    def _refuse_values(self, image: Tensor, reference: Tensor) -> None: ...

    def _unfold(self, result: Tensor, videos: tuple[int, ...]) -> Tensor:
        return result.unflatten(0, videos) if videos else result

    def _reduce(self, scores: Tensor) -> Tensor:
        return scores if self.reduction == "none" else getattr(scores, self.reduction)()


class MILO(MaskedMetric):
    """MILO on RGB images in [0, 1]; grey (N, 1, H, W) is repeated to three channels.

    Arguments as in `MaskedMetric`.

    Example:
        >>> import torch
        >>> from milo_restore import MILO
        >>> milo = MILO("mini")
        >>> reference = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
        >>> noisy = (reference + 0.1 * torch.randn(1, 3, 64, 64)).clamp(0, 1)
        >>> milo(reference, reference).item()
        0.0
        >>> bool(milo(noisy, reference) > 0), bool(milo.mos(noisy, reference) < milo.mos(reference, reference))
        (True, True)
        >>> milo.mask(noisy, reference).shape
        torch.Size([1, 1, 64, 64])
    """

    channels: int = 3
    _asset = "milo"
    _shipped: ClassVar[dict[str, str]] = {"mini": "milo_mini.safetensors"}

    @torch.no_grad()
    def raw_error_8bit(self, image: Tensor, reference: Tensor) -> Tensor:
        """The raw errors of 8-bit images: what calling the metric with ``image / 255`` gives, within 1e-6.

        Neither the images nor the mask are ever whole in floating point: beside them it takes a tile, however large
        they are.

        Args:
            image: distorted images, (N, 3, H, W) or grey (N, 1, H, W), uint8.
            reference: what they should be, the same.

        Returns:
            (N,), float32; no gradient.

        Raises:
            DataError: another type, rank, size, device or number of channels.
        """
        check_pair(image, reference, self.channels_of(image), eight_bit=True)
        return tile_means(self._tiles(image, reference), math.prod(image.shape[2:]), [_itself])[0]

    def _seen(self, image: Tensor) -> Tensor:
        return as_rgb(image)

    def channels_of(self, image: Tensor) -> int:
        """Number of channels that an image should have: 1 for a grey one, else 3."""
        return image_channels(image)

    def _refuse_values(self, image: Tensor, reference: Tensor) -> None:
        check_image_values(image, reference)


class LatentMILO(MaskedMetric):
    """MILO on latents (N, C, h, w) of one autoencoder, shifted and scaled as diffusion models are trained on them.

    Arguments as in `MaskedMetric`, but not ``auto``. Weights are for one space of latents, which `space` names:

    ===============  =========================================================  ========  ========
    weights          for the latents of                                         channels  scaling
    ===============  =========================================================  ========  ========
    ``official``     Stable Diffusion 1 or 2's VAE                              4         0.18215
    ``flux2-taef2``  FLUX.2, encoded by TAEF2 (`milo_restore.models.taef2`)     32        1
    ``mini``         the shipped tiny world's VAE (`milo_restore.models.tiny`)  4         0.88466
    a path           what its file says; older files say nothing
    ===============  =========================================================  ========  ========

    Latents of another number of channels are refused. Others of the same number lie elsewhere all the same: where the
    autoencoder is known, `check_space` compares. ``mini`` warns once where latents are not its own for certain.
    ``recipes/train_milo.py`` trains weights for any autoencoder.

    Attributes:
        space: which latents; see `LatentSpace`.

    Example:
        >>> import torch
        >>> from milo_restore import LatentMILO
        >>> milo = LatentMILO("mini")
        >>> latents = torch.randn(2, 4, 32, 32)
        >>> milo(latents, latents).tolist()
        [0.0, 0.0]
        >>> milo.mask(0.9 * latents, latents).shape
        torch.Size([2, 1, 32, 32])
    """

    channels: int = 4
    space: LatentSpace
    _asset = "milo-latent"
    _shipped: ClassVar[dict[str, str]] = {
        "mini": "milo_latent_mini.safetensors",
        "flux2-taef2": "milo_latent_flux2_taef2.safetensors",
    }
    _known: ClassVar[dict[str, LatentSpace]] = {"official": STABLE_DIFFUSION, "mini": TINY_WORLD}
    _knows_auto = False
    _warned = False

    def _adopt(self, info: WeightsInfo) -> None:
        stated = LatentSpace.from_metadata(info.metadata, Path(info.path))
        self.space = self._known.get(info.name, stated)
        self.channels = self.space.channels

    @classmethod
    def untrained(cls, *, reduction: Reduction = "none", space: LatentSpace = ANY_OF_FOUR) -> LatentMILO:
        """A metric of a space of latents with random weights that are parameters, as in `MaskedMetric`."""
        metric = cls.__new__(cls)
        nn.Module.__init__(metric)
        metric.space, metric.channels = space, space.channels
        metric._build(reduction)
        return metric

    def check_space(self, space: LatentSpace, where: str = "latents") -> None:
        """Refuse the latents of another autoencoder than the weights are for, where that can be told.

        Args:
            space: what is known of the latents: channels, and where known scaling, shift and the sha256 of the VAE.
            where: what they belong to, for the error.

        Raises:
            ConfigError: naming what differs.
        """
        self.space.refuse_unless(space, where)

    def _refuse_values(self, image: Tensor, reference: Tensor) -> None:
        check_latent_values(image, reference, self.space.scaling)
        if self.weights is None or self.weights.name != "mini" or self._warned:
            return
        if strange := strange_to_the_tiny_world(reference):
            self._warned = True
            mend = "For Stable Diffusion 1 and 2 take 'official'"
            warnings.warn(
                f"'mini' of LatentMILO knows the tiny world's latents only, and {strange}. {mend}", stacklevel=4
            )


def _itself(error: Tensor) -> Tensor:
    return error
