"""Agreement of a metric in training with opinions, people's or a teacher's, on pairs that it does not train on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from milo_restore.data import keyed_rng, read_image, to_tensor
from milo_restore.metric import MaskedMetric
from milo_restore.opinions.datasets import OpinionPair, opinion_pairs
from milo_restore.opinions.logistic import fit_logistic
from milo_restore.teach.latent_pairs import mask_of_cells
from milo_restore.teach.pairs import DistortedPairs

Encode = Callable[[Tensor], Tensor]
"""(N, 3, H, W) images to what the metric takes: themselves, or latents."""
Mask = Callable[[Tensor, Tensor], Tensor]
"""Images and references, (N, 3, H, W), to a teacher's masks, (N, 1, H, W)."""
Arrays = Sequence[NDArray[np.uint8]]
"""An image and its reference, (H, W, 3)."""
Pair = Callable[[], tuple[Tensor, Tensor]]
"""Gives both as the metric takes them, (1, C, H, W), on the CPU."""


class Rater(Protocol):
    """Anything that predicts opinions."""

    def mos(self, image: Tensor, *, reference: Tensor) -> Tensor:
        """Predicted mean opinion scores, (N,), of pairs (N, C, H, W)."""


@dataclass(frozen=True)
class HeldOut:
    """Pairs with opinions.

    Attributes:
        source: what they are, in words.
        images: functions that give a distorted image and its reference, (1, C, H, W), on the CPU.
        opinions: one per pair, higher is better.
        masks: functions that give a teacher's mask, (1, 1, H, W), on the CPU; empty without a teacher of masks.
    """

    source: str
    images: tuple[Pair, ...]
    opinions: NDArray[np.float64]
    masks: tuple[Callable[[], Tensor], ...] = ()


def held_out_pairs(
    pairs: DistortedPairs,
    count: int | None,
    side: int,
    label: Callable[[Tensor, Tensor], Tensor],
    encode: Encode,
    device: torch.device,
    mask: Mask | None = None,
) -> HeldOut:
    """Distorted images with a teacher's opinions.

    Args:
        pairs: of images that are not trained on.
        count: how many, chosen at random but always the same; None: all.
        side: of the centre crop that is compared, in pixels.
        label: the teacher: images and references, (N, 3, H, W), to MOS (N,).
        encode: applied after labelling.
        device: where the teacher and ``encode`` compute.
        mask: the teacher's, of images; that of latents is its mean over each cell.
    """
    numbers = keyed_rng(pairs.seed, "held out").permutation(len(pairs))[:count]
    edge = (pairs.square - side) // 2

    def found() -> Iterator[tuple[Arrays, float]]:
        for number in tqdm(sorted(numbers), desc="held-out pairs", unit="pair", leave=False, disable=None):
            both = [array[edge : edge + side, edge : edge + side] for array in pairs.images(pairs.pair(int(number)))]
            image, reference = (to_tensor(array)[None].to(device) for array in both)
            yield both, float(label(image, reference))

    return _keep_all("held-out pairs", found(), encode, device, mask)


def held_out_kadid(
    root: str | Path, count: int | None, seed: int, encode: Encode, device: torch.device, mask: Mask | None = None
) -> HeldOut:
    """Pairs of KADID-10k's training split with people's opinions; ``count`` of them, or all; ``mask`` as above.

    Raises:
        DataError: the data set is incomplete or damaged.
    """
    found = opinion_pairs("kadid10k", Path(root), "kadid-train")
    return held_out_people(found, "pairs of kadid-train", count, seed, encode, device, mask)


def held_out_people(
    found: Sequence[OpinionPair],
    what: str,
    count: int | None,
    seed: int,
    encode: Encode,
    device: torch.device,
    mask: Mask | None = None,
) -> HeldOut:
    """Pairs with people's opinions; ``count`` of them, or all; ``what`` they are, in words; the rest as above.

    Raises:
        DataError: an image cannot be read.
    """
    chosen = [found[i] for i in sorted(keyed_rng(seed, "held out").permutation(len(found))[:count])]
    read = functools.cache(read_image)  # one reference in memory for its 125 pairs: 4.8 GB for the whole split, not 9.6
    bar = tqdm(chosen, desc="pairs with opinions", unit="pair", leave=False, disable=None)
    both = (((read_image(pair.distorted), read(pair.reference)), pair.score) for pair in bar)
    return _keep_all(what, both, encode, device, mask)


def _keep_all(
    what: str, found: Iterable[tuple[Arrays, float]], encode: Encode, device: torch.device, mask: Mask | None
) -> HeldOut:
    images, opinions, masks = [], [], []
    for arrays, opinion in found:
        images.append(_keep(encode, arrays, device))
        opinions.append(opinion)
        if mask is not None:
            masks.append(_keep_mask(mask, encode, arrays, images[-1], device))
    return HeldOut(f"{len(images)} {what}", tuple(images), np.array(opinions), tuple(masks))


@torch.no_grad()
def _keep(encode: Encode, arrays: Arrays, device: torch.device) -> Pair:
    """A pair, ready to be compared: images stay 8-bit in memory, latents are computed once."""
    image, reference = (np.ascontiguousarray(array) for array in arrays)
    if encode is as_they_are:
        return lambda: (to_tensor(image)[None], to_tensor(reference)[None])
    latents = tuple(encode(to_tensor(array)[None].to(device)).cpu() for array in (image, reference))
    return lambda: (latents[0], latents[1])


@torch.no_grad()
def _keep_mask(mask: Mask, encode: Encode, arrays: Arrays, pair: Pair, device: torch.device) -> Callable[[], Tensor]:
    """A pair's mask by the teacher: of images when asked for, which saves the memory; of latents computed once."""
    if encode is as_they_are:
        return lambda: mask(*(image.to(device) for image in pair())).cpu()
    found = mask_of_cells(mask(*(to_tensor(array)[None].to(device) for array in arrays)).cpu(), pair()[1])
    return lambda: found


def as_they_are(images: Tensor) -> Tensor:
    """The encoding of the image domain: none."""
    return images


@torch.no_grad()
def agreement(metric: Rater, held_out: HeldOut, device: torch.device) -> dict[str, float]:
    """Spearman's correlation of predicted MOS with opinions, and Pearson's after the logistic; 0 where undefined.

    Returns:
        ``srcc`` and ``plcc``. A metric that says the same of all images agrees with nothing: 0.
    """
    from scipy.stats import pearsonr, spearmanr

    scores = []
    for pair in held_out.images:
        image, reference = (tensor.to(device) for tensor in pair())
        scores.append(float(metric.mos(image, reference=reference)))
    predicted = np.array(scores)
    if not np.isfinite(predicted).all() or np.ptp(predicted) == 0:
        return {"srcc": 0.0, "plcc": 0.0}
    mapped = fit_logistic(predicted, held_out.opinions).predict(predicted)
    plcc = float(pearsonr(mapped, held_out.opinions).statistic) if np.ptp(mapped) > 0 else 0.0
    return {"srcc": float(spearmanr(predicted, held_out.opinions).statistic), "plcc": plcc}


@torch.no_grad()
def mask_agreement(metric: MaskedMetric, held_out: HeldOut, device: torch.device) -> dict[str, float]:
    """Agreement of a metric's masks and gradients with those of ``held_out``'s teacher; medians over the pairs.

    Returns:
        ``mask_correlation``, Pearson's, pixel by pixel, constant masks left out; and ``gradient_cosine``, of the two
        losses' gradients with the mask as a constant.
    """
    correlations, cosines = [], []
    for pair, wanted in zip(held_out.images, held_out.masks, strict=True):
        image, reference = (tensor.to(device) for tensor in pair())
        masks = [metric.mask(image, reference=reference), wanted().to(device)]
        correlations.append(float(torch.corrcoef(torch.stack([mask.flatten() for mask in masks]))[0, 1]))
        gradients = [(mask * (image - reference).sign()).flatten() for mask in masks]
        cosines.append(float(F.cosine_similarity(gradients[0], gradients[1], 0)))
    return {"mask_correlation": float(np.nanmedian(correlations)), "gradient_cosine": float(np.nanmedian(cosines))}
