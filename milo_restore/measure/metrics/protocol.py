"""Protocols: what a number depends on beside the images and the metric, chosen once and printed with it.

`PROTOCOLS` has those of published tables by name. Each says which public file or thread it was read from, and what
these leave open; a setting that nothing public states is this project's choice, and its row says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from milo_restore.errors import ConfigError, DataError

_SSIM = "Gaussian window 11x11, sigma 1.5, K 0.01 and 0.03, valid pixels only, no downsampling, mean over channels"


@dataclass(frozen=True)
class Protocol:
    """Settings of a measurement: colour of `psnr` and `ssim`, what is cut off for every metric, which checkpoints.

    Attributes:
        colour: of ``psnr`` and ``ssim``: ``rgb``, or ``y``: the luma of YCbCr in BasicSR's limited range, 16 to 235,
            not rounded. All other metrics take RGB.
        border: pixels cut off at each side, for every metric.
        modcrop: restored images and references are cut to multiples of this at the right and at the bottom, before the
            border, for every metric; 1 cuts nothing.
        psnr_cap: the largest ``psnr`` in dB, also of an image equal to its reference; None: that is infinite, and no
            part of the mean.
        name: of the protocol.
        checkpoints: pyiqa's name of what a short name of a metric means here; others mean what they always do.
        set_reference: what metrics of whole folders, such as FID, compare with; None where nothing public says it.
        source: where it was read, and what that leaves open.
    """

    colour: Literal["rgb", "y"] = "rgb"
    border: int = 0
    modcrop: int = 1
    psnr_cap: float | None = None
    name: str = ""
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    set_reference: str | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if self.colour not in ("rgb", "y"):
            raise ConfigError(f"{self.colour!r} is neither rgb nor y", where="colour")
        if self.border < 0:
            raise ConfigError(f"{self.border} is less than 0", where="border")
        if self.modcrop < 1:
            raise ConfigError(f"{self.modcrop} is less than 1", where="modcrop", mend="Give the scale factor")
        if self.psnr_cap is not None and not 0 < self.psnr_cap < float("inf"):
            raise ConfigError(f"{self.psnr_cap} is no positive number of dB", where="psnr_cap")

    def cut(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The part of an image that is measured, (H, W, 3) to (h, w, 3), as a view.

        Raises:
            DataError: nothing is left.
        """
        height, width = (side - side % self.modcrop for side in image.shape[:2])
        if min(height, width) <= 2 * self.border:
            cut = f"a border of {self.border}" + (f" after modcrop {self.modcrop}" if self.modcrop > 1 else "")
            raise DataError(f"{image.shape[1]}x{image.shape[0]} leaves nothing within {cut}")
        return image[self.border : height - self.border, self.border : width - self.border]

    def as_dict(self) -> dict[str, Any]:
        """Everything that is fixed or chosen, for the results."""
        entries = {
            "name": self.name, "colour": self.colour, "border": self.border, "modcrop": self.modcrop, "peak": 255,
            "quantisation": "8-bit", "ssim": _SSIM, "resize": "none",
            "applies_to": "colour, peak and ssim: psnr and ssim, other metrics take RGB from 0 to 1; border and "
            "modcrop: every metric",
            "psnr_cap": self.psnr_cap, "checkpoints": _meanings(self.checkpoints),
            "set_reference": self.set_reference, "source": self.source,
        }  # fmt: skip
        return {key: value for key, value in entries.items() if value not in (None, "")}

    def __str__(self) -> str:
        colour = f"psnr and ssim of {self._colour}, {self._cut}, peak 255"
        capped = "" if self.psnr_cap is None else f", at most {self.psnr_cap:g} dB"
        return f"{colour}{capped}; 8-bit files, nothing resized; SSIM: {_SSIM}; {self._others}"

    @property
    def brief(self) -> str:
        """Settings that differ between protocols, in one line."""
        return f"psnr and ssim of {self._colour}, {self._cut}; {self._others}"

    @property
    def _colour(self) -> str:
        return "RGB" if self.colour == "rgb" else "Y of BasicSR's YCbCr (16 to 235)"

    @property
    def _cut(self) -> str:
        multiples = f", cut to multiples of {self.modcrop} before" if self.modcrop > 1 else ""
        return f"border {self.border}{multiples}"

    @property
    def _others(self) -> str:
        image = "RGB, cut in the same way" if self.border or self.modcrop > 1 else "the whole RGB image"
        return "; ".join(filter(None, (f"other metrics of {image}", _meanings(self.checkpoints))))


def _meanings(checkpoints: Mapping[str, str]) -> str:
    return ", ".join(f"{name} is {checkpoint}" for name, checkpoint in checkpoints.items())


def _swinir(scale: int) -> Protocol:
    return Protocol(
        "y", scale, scale, name=f"swinir-x{scale}",
        source="JingyunLiang/SwinIR main_test_swinir.py, classical_sr and lightweight_sr: PSNR and SSIM, border = "
        "scale, the reference cut to the output's size. It prints RGB, too (--colour rgb)",
    )  # fmt: skip


_ROWS = (
    Protocol(name="rgb", source="BasicSR basicsr/metrics/psnr_ssim.py: whole images"),
    Protocol("y", name="y", source="BasicSR basicsr/metrics/psnr_ssim.py with test_y_channel: whole images"),
    Protocol(
        name="restormer",
        source="swz30/Restormer Denoising/evaluate_gaussian_color_denoising.py: PSNR of whole RGB images. Its SSIM is "
        "commented out; other tasks have scripts of their own (issue 40)",
    ),
    _swinir(2),
    _swinir(3),
    _swinir(4),
    Protocol(
        name="diffbir",
        source="not stated in public: XPixelGroup/DiffBIR holds no metric code (issue 178 asks for it). Whole RGB "
        "images and pyiqa's defaults are this project's choice; which MANIQA was used is not known",
    ),
    Protocol(
        "y", name="stablesr",
        source="IceClear/StableSR issues 45 (the Y channel) and 68 (pyiqa). Not stated: border, which Y (here "
        "BasicSR's), and FID's reference; checkpoints are pyiqa's defaults",
    ),
    Protocol(
        "y", 4, name="seesr", checkpoints={"maniqa": "maniqa-pipal"},
        set_reference="the references, whole images, by pyiqa's fid (cswry/OSEDiff test_metrics.py)",
        source="cswry/SeeSR issues 30 (border 4, MANIQA_PIPAL-ae6d356b.pth) and 60 (pyiqa's lpips, dists, niqe, musiq "
        "and clipiqa come near the printed values; 28.17 dB is 1.32 above what YIQ's luma gave, as BasicSR's Y is). "
        "The authors' later cswry/OSEDiff test_metrics.py has the same metrics and cuts nothing (--border 0)",
    ),
    Protocol(
        name="codeformer", set_reference="FFHQ, not the references (sczhou/CodeFormer issue 43)",
        source="not stated in public: sczhou/CodeFormer holds no script (ohayonguy/PMRF issue 5). Whole RGB images, as "
        "issue 314 has them, are this project's choice; options/CodeFormer_stage3.yml cuts 4 in a validation that is "
        "never run (--border 4), and LPIPS's network is not known",
    ),
)  # fmt: skip
_FORMER = {"denoising": "restormer", "super-resolution": "diffbir", "super-resolution-y": "swinir-x4"}

PROTOCOLS: dict[str, Protocol] = {row.name: row for row in _ROWS}
"""By name; a former name is the same protocol: ``denoising``, ``super-resolution``, ``super-resolution-y``."""
PROTOCOLS |= {former: PROTOCOLS[name] for former, name in _FORMER.items()}


def protocols_text() -> str:
    """Every protocol, what it does and where that was read, for the terminal."""
    lines = []
    for row in _ROWS:
        former = [old for old, name in _FORMER.items() if name == row.name]
        lines += [row.name + (f" (formerly {', '.join(former)})" if former else ""), f"    {row.brief}"]
        lines += [f"    metrics of folders compare with {row.set_reference}"] if row.set_reference else []
        lines.append(f"    source: {row.source}")
    return "\n".join([*lines, f"All: peak 255, 8-bit files, nothing resized; SSIM: {_SSIM}"])
