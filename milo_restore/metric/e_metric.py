"""Base of the E-metrics ("masking-enhanced" in their papers): a known metric behind a visibility mask.

MILO grew out of these. `milo_restore.metric.e_pixel` has the four on pixels, which train MILO, and
`milo_restore.metric.e_features` the three on VGG16's features. `milo_restore.metric.features` has two on these features
without masks, which keep the same contract.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from typing import ClassVar, TypeVar

from torch import Tensor, nn

from milo_restore.errors import warn_renamed
from milo_restore.metric.checks import as_rgb, check_image_values, check_pair, image_channels
from milo_restore.metric.freeze import freeze_into_buffers
from milo_restore.metric.weights import WeightsInfo

E = TypeVar("E", bound="EMetric")


class EMaskNetwork(nn.Sequential):
    """Three 3x3 convolutions, 2C -> 64 -> 64 -> 1, ReLU between them, sigmoid at the end; one scale.

    The order of the input's two images, or of their features, is each metric's own.

    Args:
        channels: C, of one image or of its features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(2 * channels, 64, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(inplace=True), nn.Conv2d(64, 1, 3, padding=1), nn.Sigmoid(),
        )  # fmt: skip


class EMetric(nn.Module, ABC):
    """Base of the E-metrics. Built directly, a metric has random trainable weights.

    Attributes:
        name: its name to the loaders and to ``milo-restore assets``.
        higher_is_better: True if a higher raw value means a better image.
        weights: which weights were loaded; None for a metric built directly.
    """

    name: ClassVar[str]
    higher_is_better: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.weights: WeightsInfo | None = None
        self._values_seen = False

    @property
    def lower_better(self) -> bool:
        """The former name of ``not higher_is_better``."""
        warn_renamed("lower_better", "not higher_is_better")
        return not self.higher_is_better

    def freeze(self: E) -> E:
        """Turn every parameter into a buffer, outside of state dicts; the metric can no longer be trained."""
        return freeze_into_buffers(self)

    @abstractmethod
    def forward(self, image: Tensor, *, reference: Tensor) -> Tensor:
        """The raw value per image, (N,), from pairs of (N, 3, H, W) RGB or (N, 1, H, W) grey images in [0, 1]."""

    def _prepare(self, image: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Checked RGB batches, in the dtype of the weights."""
        check_pair(image, reference, image_channels(image))
        image, reference = as_rgb(image), as_rgb(reference)
        # Reading values makes an accelerator wait for everything queued before; there only the first batch is read.
        if image.device.type == "cpu" or not self._values_seen:
            check_image_values(image, reference)
            self._values_seen = True
        dtype = next(itertools.chain(self.parameters(), self.buffers())).dtype
        return image.to(dtype), reference.to(dtype)
