"""The protocol of PSNR and SSIM: what a number depends on beside the images, chosen once and printed with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from milo_restore.errors import ConfigError

_SSIM = "Gaussian window 11x11, sigma 1.5, K 0.01 and 0.03, valid pixels only, no downsampling, mean over channels"


@dataclass(frozen=True)
class Protocol:
    """Colour and border of `psnr` and `ssim`; all other metrics see the whole RGB image.

    Attributes:
        colour: ``rgb``, or ``y``: the luma of YCbCr in BasicSR's limited range, 16 to 235, not rounded.
        border: pixels cut off at each side.
    """

    colour: Literal["rgb", "y"] = "rgb"
    border: int = 0

    def __post_init__(self) -> None:
        if self.colour not in ("rgb", "y"):
            raise ConfigError(f"{self.colour!r} is neither rgb nor y", where="colour")
        if self.border < 0:
            raise ConfigError(f"{self.border} is less than 0", where="border")

    def as_dict(self) -> dict[str, Any]:
        """Everything that is fixed or chosen, for the results."""
        return {
            "colour": self.colour, "border": self.border, "peak": 255, "quantisation": "8-bit", "ssim": _SSIM,
            "resize": "none", "applies_to": "psnr and ssim; other metrics see the whole 8-bit RGB image, from 0 to 1",
        }  # fmt: skip

    def __str__(self) -> str:
        colour = "RGB" if self.colour == "rgb" else "Y of BasicSR's YCbCr (16 to 235)"
        return (
            f"psnr and ssim of {colour}, border {self.border}, peak 255; 8-bit files, nothing resized; SSIM: {_SSIM}; "
            "other metrics of the whole RGB image"
        )


PROTOCOLS = {
    "denoising": Protocol(),  # Restormer's evaluation: RGB, no border, 8-bit
    "super-resolution": Protocol(),  # DiffBIR publishes no metric code; its tables are of whole RGB images
    "super-resolution-y": Protocol("y", 4),  # what BasicSR's and most x4 tables print
}
