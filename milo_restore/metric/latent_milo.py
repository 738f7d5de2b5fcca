"""MILO in the latent space of an autoencoder."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from milo_restore.metric.checks import check_latent_values, strange_to_the_tiny_world
from milo_restore.metric.latent_space import ANY_OF_FOUR, STABLE_DIFFUSION, TINY_WORLD, LatentSpace
from milo_restore.metric.masked import MaskedMetric, Reduction
from milo_restore.metric.weights import WeightsInfo


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
