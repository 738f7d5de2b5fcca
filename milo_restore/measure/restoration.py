"""Blind restoration, measured: full sampling on held-out degraded images, beside the input and the cleaner alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from milo_restore.data import to_tensor, to_uint8
from milo_restore.errors import DataError, NumericsError
from milo_restore.measure.metrics import psnr, ssim
from milo_restore.measure.sharing import finite, milo_error, named_weights, over_processes
from milo_restore.metric import MILO
from milo_restore.show.grid import comparison_grid, heat_map
from milo_restore.show.text import text_table

if TYPE_CHECKING:
    from milo_restore.loss import DiffusionLoss

STAGES = ("input", "cleaner", "output")
METRICS = ("psnr", "ssim", "milo")
MASK_SHARE = 0.995
"""The colours of the masks end where this share of all their values lies below: they are small, and a few stand out."""

Restore = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""``restore(image, number)``: (1, 3, H, W) in [0, 1] to the restored and the merely cleaned image, of one size.

The number is the image's place in its set: the key of what the sampler draws."""


@dataclass(frozen=True)
class RestorationPair:
    """A held-out image. Make such pairs with a degradation, or read them from two folders.

    Attributes:
        name: of the image.
        degraded: (3, H, W) float32, of the target's size; noise may leave [0, 1].
        target: (H, W, 3) uint8 RGB.
    """

    name: str
    degraded: Tensor
    target: NDArray[np.uint8]


@dataclass(frozen=True)
class RestorationScores:
    """Scores of a restorer on a set of images.

    Attributes:
        milo_weights: which MILO weights measured; None where none did.
        rows: one per image, in the order given: its ``name``, and input_psnr, input_ssim, input_milo, cleaner_psnr ...
            output_milo. PSNR is in dB; MILO is the raw error, lower is better.
    """

    milo_weights: str | None
    rows: tuple[dict[str, Any], ...]

    def means(self) -> dict[str, float]:
        """The means over images, under the names of ``rows``."""
        names = [name for name in self.rows[0] if name != "name"]
        return {name: sum(row[name] for row in self.rows) / len(self.rows) for name in names}

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON, which has no infinity: the PSNR of identical images becomes None."""
        return {**asdict(self), "means": finite(self.means()), "rows": [finite(row) for row in self.rows]}


def pipeline_restorer(pipeline: Any, *, seed: int = 0, **options: Any) -> Restore:
    """A `DiffBIRPipeline` as a function of one image, clamped to [0, 1], and its number, which ``seed`` is added to.

    Args:
        pipeline: on its device.
        seed: of the sampling.
        options: of the pipeline's call: ``steps``, ``guidance_scale``, ``start``, ...
    """

    def restore(image: Tensor, number: int) -> tuple[Tensor, Tensor]:
        output = pipeline(image.clamp(0, 1), seed=seed + number, output_type="pt", **options)
        return output.images, output.cleaned

    return restore


def evaluate_restorer(
    restore: Restore,
    pairs: Sequence[RestorationPair],
    milo: MILO | None = None,
    *,
    progress: bool | None = None,
    title: str = "restoring",
) -> RestorationScores:
    """Restore images and score input, cleaned image and output against the target.

    All three are clamped to [0, 1] and rounded to 8 bits; PSNR, SSIM and MILO are taken from those 8 bits, in RGB,
    without cutting a border.

    Under ``accelerate launch`` each of N processes takes every N-th image, and all return all scores: call it on every
    process, after what starts the process group. Scores do not depend on N.

    Args:
        restore: see `Restore`; `pipeline_restorer` makes one.
        pairs: the images.
        milo: the metric, on any device; None leaves it out.
        progress: show a bar on the main process; by default where standard error is a terminal.
        title: of the bar.

    Raises:
        DataError: no image, or one whose sizes differ; it is named.
        NumericsError: the output is not finite; the image is named.
    """
    if not pairs:
        raise DataError("there are no images to evaluate on")

    def score(number: int) -> dict[str, Any]:
        pair = pairs[number]
        scores: dict[str, Any] = {"name": pair.name}
        for stage, image in zip(STAGES, _restored(restore, pair, number)):
            values = (psnr(image, pair.target), ssim(image, pair.target), milo_error(milo, image, pair.target))
            scores |= {f"{stage}_{metric}": value for metric, value in zip(METRICS, values) if value is not None}
        return scores

    rows = over_processes(len(pairs), score, title=title, progress=progress)
    return RestorationScores(named_weights(milo), tuple(rows))


def restoration_samples(
    restore: Restore,
    pairs: Sequence[RestorationPair],
    mask: Callable[[Tensor, Tensor], Tensor],
    mask_title: str = "MILO mask",
) -> NDArray[np.uint8]:
    """A picture to look at: input | cleaner | output | target | mask, one row per image. No process waits for another.

    Args:
        restore: as in `evaluate_restorer`.
        pairs: the images.
        mask: output and target, (1, 3, H, W) in [0, 1], to a mask in (0, 1), (1, 1, h, w); of a latent mask each cell
            becomes a square. Its colours run from 0 (black) to the value in the title and above (pale yellow).
        mask_title: of the last column.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    columns: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in (*STAGES, "target")}
    masks: list[Tensor] = []
    for number, pair in enumerate(pairs):
        images = _restored(restore, pair, number)
        with torch.no_grad():
            values = mask(to_tensor(images[-1])[None], to_tensor(pair.target)[None]).float().cpu()
        masks.append(nn.functional.interpolate(values, size=pair.target.shape[:2], mode="nearest")[0, 0])
        for column, picture in zip(columns.values(), (*images, pair.target)):
            column.append(picture)
    # numpy's quantile, for torch's has a limit on the number of values
    top = float(np.quantile(torch.cat([mask.flatten() for mask in masks]).numpy(), MASK_SHARE)) or 1.0
    columns[f"{mask_title} (0 to {top:.2g})"] = [heat_map(mask, top) for mask in masks]
    return comparison_grid(columns)


def restoration_table(results: Sequence[tuple[str, RestorationScores]]) -> str:
    """A table for the terminal: one line per set, input -> cleaner -> output, means over images.

    Args:
        results: what to call the set, such as ``held-out-photographs, sigma 25``, and its scores.
    """
    head = ("input -> cleaner -> output", "images", "PSNR (dB)", "SSIM", "MILO (lower is better)")
    lines = [head]
    for name, scores in results:
        means = scores.means()
        cells = [
            " -> ".join(f"{means[f'{stage}_{metric}']:.{digits}f}" for stage in STAGES)
            if f"output_{metric}" in means
            else "-"
            for metric, digits in zip(METRICS, (2, 4, 5))
        ]
        lines.append((name, str(len(scores.rows)), cells[0], cells[1], cells[2]))
    return text_table(lines)


@torch.no_grad()
def held_out_loss(
    control: nn.Module,
    unet: Any,
    loss: DiffusionLoss,
    latents: Mapping[str, Tensor],
    context: Tensor,
    *,
    timesteps: Sequence[int] = (100, 300, 500, 700, 900),
    seed: int = 0,
) -> dict[str, float]:
    """The losses on held-out latents, at fixed timesteps with fixed noise: a few forward passes, no sampling.

    Args:
        control: an `IRControlNet`.
        unet: the frozen UNet.
        loss: the training's; it is taken where its curriculum ends.
        latents: ``mean``, the targets', and ``condition``, (N, 4, h, w) each, times the VAE's scaling factor.
        context: text embedding, (1, L, D).
        timesteps: of each latent; the noise is another one at each.
        seed: of the noise.

    Returns:
        ``loss``, and ``mse``, the plain mean square of the residual, which compares between kinds of loss.
    """
    # diffusers takes seconds, and who only restores or writes images needs none of it.
    from milo_restore.loss.parametrization import noised, prediction_target
    from milo_restore.models.diffbir import predict

    z0, condition = latents["mean"], latents["condition"]
    last = loss.curriculum.end_step
    values: list[tuple[Tensor, Tensor]] = []
    for z_t, noise, times in noised(loss.scheduler, z0, timesteps, seed):
        prediction = predict(unet, control, z_t, times, context, condition)
        mse = (prediction.float() - prediction_target(loss.scheduler, z0, noise, times)).square().mean()
        value = loss(prediction, z_t, z0, noise, times, step=last, condition=condition)
        values.append((value, mse))
    return {name: torch.stack(parts).mean().item() for name, parts in zip(("loss", "mse"), zip(*values))}


def _restored(restore: Restore, pair: RestorationPair, number: int) -> list[NDArray[np.uint8]]:
    """Input, cleaned image and output as 8-bit arrays; errors name the image."""
    try:
        output, cleaned = restore(pair.degraded[None], number)
        arrays = [to_uint8(image) for image in (pair.degraded, cleaned[0], output[0])]
    except NumericsError as error:
        mend = "The network has diverged, or its weights do not fit"
        raise NumericsError("the restored image holds NaN or infinite values", where=pair.name, mend=mend) from error
    except DataError as error:
        raise DataError(error.what, where=pair.name, mend=error.mend) from error
    for array in arrays:
        if array.shape != pair.target.shape:
            raise DataError(f"came out as {array.shape}, the target is {pair.target.shape}", where=pair.name)
    return arrays
