"""Gaussian denoising, measured as Restormer's published results are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from numpy.typing import NDArray
from torch import Tensor, nn

from milo_restore.data import evaluation_input, to_uint8
from milo_restore.errors import DataError, NumericsError
from milo_restore.measure.metrics import psnr, ssim
from milo_restore.measure.sharing import finite, metric_pair, milo_error, named_weights, over_processes
from milo_restore.metric import MILO
from milo_restore.show.grid import comparison_grid, heat_map
from milo_restore.show.text import text_table

MASK_TOP = 1.0
"""Where the colours of the sample pictures' MILO mask end: of (0, 4), a mask of leftover noise rarely passes 1."""


@dataclass(frozen=True)
class ImageScores:
    """One image's scores; those of the noisy input, clamped and quantised like the output, under ``input_``.

    Attributes:
        name: of the image.
        psnr: in dB, see `milo_restore.measure.psnr`; inf where the output is the target.
        ssim: see `milo_restore.measure.ssim`.
        milo: MILO's raw error, lower is better; None where no metric was given.
        input_psnr: the same of the noisy input.
        input_ssim: the same of the noisy input.
        input_milo: the same of the noisy input.
    """

    name: str
    psnr: float
    ssim: float
    milo: float | None
    input_psnr: float
    input_ssim: float
    input_milo: float | None


@dataclass(frozen=True)
class DenoisingScores:
    """Scores of a denoiser on a set of images.

    Attributes:
        sigma: noise level in 8-bit units.
        milo_weights: which MILO weights measured; None where none did.
        rows: one per image, in the order given.
    """

    sigma: float
    milo_weights: str | None
    rows: tuple[ImageScores, ...]

    def means(self) -> dict[str, float]:
        """The means over images: psnr, ssim, milo, input_psnr, input_ssim, input_milo (no milo where not measured)."""
        means = {}
        for name in [field.name for field in fields(ImageScores)][1:]:
            values = [getattr(row, name) for row in self.rows]
            if None not in values:
                means[name] = sum(values) / len(values)
        return means

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON, which has no infinity: the PSNR of identical images becomes None."""
        return {
            "sigma": self.sigma,
            "milo_weights": self.milo_weights,
            "means": finite(self.means()),
            "images": [finite(asdict(row)) for row in self.rows],
        }


def evaluate_denoiser(
    model: nn.Module,
    images: Sequence[tuple[str, NDArray[np.uint8]]],
    sigma: float,
    milo: MILO | None = None,
    *,
    device: torch.device | str | None = None,
    progress: bool | None = None,
) -> DenoisingScores:
    """Denoise images with fixed noise and score the results.

    Each image gets the noise of `milo_restore.data.evaluation_noise` (the same whenever its size is the same), neither
    clipped nor quantised. The model sees the whole image in float32; its output is clamped to [0, 1] and rounded to
    8 bits; PSNR, SSIM and MILO are taken from those 8 bits, in RGB, without cutting a border.

    Under ``accelerate launch`` each of N processes takes every N-th image, and all return all scores: call it on every
    process, after anything that starts the process group (`milo_restore.train.fit`, ``Accelerator()``). Scores do not
    depend on N.

    Memory: the whole image goes through at once, and Restormer's use grows with the number of pixels. Where an image
    does not fit on the accelerator, move the model to the CPU for its evaluation.

    Args:
        model: (1, 3, H, W) float32 in, the same out, for any H and W. Evaluated in eval mode, which is undone.
        images: names and clean (H, W, 3) uint8 RGB arrays, sides of at least 16.
        sigma: noise level in 8-bit units, such as 25.
        milo: the metric, on any device; None leaves it out.
        device: where the model's input goes; by default where the model's first parameter is.
        progress: show a bar on the main process; by default where standard error is a terminal.

    Raises:
        DataError: no image, or one that is no (H, W, 3) uint8 array or too small.
        NumericsError: the model's output is not finite; the image is named.
    """
    if not images:
        raise DataError("there are no images to evaluate on")

    def score(number: int) -> ImageScores:
        return _score(model, *images[number], sigma, milo, device)

    rows = over_processes(len(images), score, title=f"sigma {sigma:g}", progress=progress)
    return DenoisingScores(float(sigma), named_weights(milo), tuple(rows))


def denoise(model: nn.Module, noisy: Tensor, *, device: torch.device | str | None = None) -> NDArray[np.uint8]:
    """Restore one image: float (3, H, W) in, clamped and rounded (H, W, 3) uint8 out.

    Raises:
        NumericsError: the output holds NaN or infinite values.
    """
    with _evaluating(model) as bare:
        if device is None:
            device = next((parameter.device for parameter in bare.parameters()), torch.device("cpu"))
        return to_uint8(bare(noisy[None].to(device))[0])


def denoising_samples(
    model: nn.Module,
    images: Sequence[tuple[str, NDArray[np.uint8]]],
    sigma: float,
    milo: MILO | None = None,
    *,
    device: torch.device | str | None = None,
) -> NDArray[np.uint8]:
    """A picture to look at: input | output | target | MILO mask, one row per image. No process waits for another.

    The mask is that of the output against the target, coloured from 0 (black) to `MASK_TOP` and above (pale yellow).

    Args:
        model: as in `evaluate_denoiser`, as are the other arguments.
        images: names and clean images.
        sigma: noise level in 8-bit units.
        milo: without it there is no fourth column.
        device: as in `evaluate_denoiser`.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    columns: dict[str, list[NDArray[np.uint8]]] = {f"input (sigma {sigma:g})": [], "output": [], "target": []}
    masks: list[NDArray[np.uint8]] = []
    for _, clean in images:
        noisy = evaluation_input(clean, sigma)
        output = denoise(model, noisy, device=device)
        for column, picture in zip(columns.values(), (to_uint8(noisy), output, clean)):
            column.append(picture)
        if milo is not None:
            image, reference = metric_pair(milo, output, clean)
            with torch.no_grad():
                masks.append(heat_map(milo.mask(image, reference=reference)[0, 0], MASK_TOP))
    if milo is not None:
        columns[f"MILO mask (0 to {MASK_TOP:g})"] = masks
    return comparison_grid(columns)


def summary_table(results: Sequence[tuple[str, float, DenoisingScores]]) -> str:
    """A table for the terminal: one line per data set and noise level, noisy input -> output, means over images.

    Args:
        results: name of the data set, sigma, scores.
    """
    head = ("data set", "sigma", "images", "PSNR (dB)", "SSIM", "MILO (lower is better)")
    lines = [head]
    for name, sigma, scores in results:
        means = scores.means()
        pair = [f"{means[f'input_{key}']:.{digits}f} -> {means[key]:.{digits}f}" if key in means else "-"
                for key, digits in (("psnr", 2), ("ssim", 4), ("milo", 5))]  # fmt: skip
        lines.append((name, f"{sigma:g}", str(len(scores.rows)), pair[0], pair[1], pair[2]))
    return text_table(lines)


def _score(
    model: nn.Module,
    name: str,
    clean: NDArray[np.uint8],
    sigma: float,
    milo: MILO | None,
    device: torch.device | str | None,
) -> ImageScores:
    """One image's scores; errors name it."""
    noisy = evaluation_input(clean, sigma)
    raw = to_uint8(noisy)
    try:
        output = denoise(model, noisy, device=device)
        visible, input_visible = (milo_error(milo, array, clean) for array in (output, raw))
        return ImageScores(
            name, psnr(output, clean), ssim(output, clean), visible, psnr(raw, clean), ssim(raw, clean), input_visible
        )
    except NumericsError as error:
        mend = "The network has diverged, or its weights do not fit"
        raise NumericsError("the network's output holds NaN or infinite values", where=name, mend=mend) from error
    except DataError as error:
        raise DataError(error.what, where=name, mend=error.mend) from error


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The bare model in eval mode without gradients; a DDP wrapper would make the processes wait for each other."""
    bare: nn.Module = extract_model_from_parallel(model)
    modes = [(module, module.training) for module in bare.modules()]
    bare.eval()
    try:
        with torch.no_grad():
            yield bare
    finally:
        for module, training in modes:
            module.training = training
