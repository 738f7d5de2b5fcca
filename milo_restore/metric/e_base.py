"""What the masking-enhanced metrics, of pixels and of features, have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, TypeVar

from torch import Tensor, nn

from milo_restore.metric.checks import as_rgb, check_image_values, check_pair
from milo_restore.metric.freeze import freeze_into_buffers
from milo_restore.metric.weights import WeightsInfo

E = TypeVar("E", bound="MaskingEnhanced")


class EMaskNetwork(nn.Sequential):
    """Three 3x3 convolutions, 2C -> 64 -> 64 -> 1, ReLU between them, sigmoid at the end; one scale.

    Args:
        channels: C, of one image or of its features. Which of the two comes first, each metric says: not MILO's order.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(2 * channels, 64, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(inplace=True), nn.Conv2d(64, 1, 3, padding=1), nn.Sigmoid(),
        )  # fmt: skip


class MaskingEnhanced(nn.Module):
    """A classical metric behind a visibility mask. Built directly, it has random trainable weights.

    Attributes:
        name: its name to `load_enhanced` or `load_feature_metric`, and to ``milo-restore evaluate``.
        lower_better: whether a lower raw value means a better image.
        weights: which weights were loaded; None for a metric built directly.
    """

    name: ClassVar[str]
    lower_better: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.weights: WeightsInfo | None = None
        self._values_seen = False

    def freeze(self: E) -> E:
        """Turn every parameter into a buffer, outside of state dicts; the metric can no longer be trained."""
        return freeze_into_buffers(self)

    @abstractmethod
    def forward(self, image: Tensor, *, reference: Tensor) -> Tensor:
        """The raw value per image.

        Args:
            image: distorted images, (N, 3, H, W), RGB in [0, 1]; grey (N, 1, H, W) is repeated to three channels.
            reference: what they should be, same shape. Keyword-only, for the metric is not symmetric.

        Returns:
            (N,), differentiable through masks and features; range and direction as each class says.

        Raises:
            DataError: wrong rank, channels, size (below 16), device or value range, or NaN.
        """

    def _checked(self, image: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        image, reference = as_rgb(image), as_rgb(reference)
        check_pair(image, reference, 3)
        # Reading values makes an accelerator wait for everything queued before; there only the first batch is read.
        if image.device.type == "cpu" or not self._values_seen:
            check_image_values(image, reference)
            self._values_seen = True
        return image, reference
