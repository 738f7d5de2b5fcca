"""The images that a blind restorer trains and is tested on: which, how they are degraded, and what is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from milo_restore.data.degrade import (
    BlindNoiseSettings,
    CodeFormerSettings,
    Degradation,
    FaceSettings,
    RealESRGANSettings,
    build_degradation,
)
from milo_restore.data.degraded_patches import DegradedPairs, FilePairs, Files
from milo_restore.data.image_sets import PHOTOGRAPHS, centre_crop, identity_of, load_collection
from milo_restore.data.images import list_images_below, to_tensor
from milo_restore.data.keys import keyed_rng
from milo_restore.data.restoration_pairs import RestorationPair, noisy_pairs
from milo_restore.files import DATASETS, find_dataset
from milo_restore.files.hashes import sha256_of, text_sha256

FACE = "astronaut-face"
FACE_ROWS, FACE_COLUMNS = slice(0, 256), slice(96, 352)  # of scikit-image's astronaut


@dataclass(frozen=True)
class DegradedData:
    """The images to train and test on: named data sets, ``photographs`` (scikit-image's; no download), or folders."""

    train: tuple[str, ...] = ("photographs",)
    test: tuple[str, ...] = ("held-out-photographs",)  # astronaut-face: the face in one of the photographs
    leave_out: tuple[str, ...] = ()  # file names that are not trained on
    root: str | None = None  # where named data sets lie; null: MILO_RESTORE_ASSETS, then the cache
    in_memory: bool = True  # false: folders' images are read each time they are needed
    degradation: Literal["noise", "codeformer", "realesrgan", "face"] = "codeformer"  # one of the following
    noise: BlindNoiseSettings = field(default_factory=BlindNoiseSettings)
    codeformer: CodeFormerSettings = field(default_factory=CodeFormerSettings)
    realesrgan: RealESRGANSettings = field(default_factory=RealESRGANSettings)
    face: FaceSettings = field(default_factory=FaceSettings)
    on_device: bool = False  # realesrgan: degrade on the accelerator
    test_sigmas: tuple[float, ...] = (15.0, 25.0, 50.0)  # noise: levels of the test images, in 8-bit units
    test_side: int | None = None  # centre squares of the test images, in pixels; null: whole images
    test_images: int | None = None  # so many of each set, the first ones by their names; null: all
    quick_images: int = 2  # test images looked at during training; the final evaluation takes all

    def __post_init__(self) -> None:
        if not (self.train and self.test and self.test_sigmas) or min(self.quick_images, self.test_images or 1) < 1:
            raise ValueError("train, test and test_sigmas need an entry each, test_images and quick_images 1 at least")
        for name in ("noise", "codeformer", "realesrgan", "face"):
            settings = getattr(self, name)
            if name != self.degradation and settings != type(settings)():
                raise ValueError(f"{name} is set, but the degradation is {self.degradation}")
        if self.on_device and self.degradation != "realesrgan":
            raise ValueError("on_device needs degradation: realesrgan; the others run in the data workers")

    @property
    def chosen(self) -> Degradation:
        """The degradation with its settings."""
        return build_degradation(self.degradation, getattr(self, self.degradation))


def collection(name: str, data: DegradedData) -> list[tuple[str, NDArray[np.uint8]]]:
    """A set of images in memory, by name or folder."""
    if name != FACE:
        return load_collection(name, data.root)
    astronaut = dict(PHOTOGRAPHS["photographs"]())["astronaut.png"]
    return [(f"{FACE}.png", astronaut[FACE_ROWS, FACE_COLUMNS].copy())]


def training_pairs(data: DegradedData, seed: int) -> DegradedPairs:
    """Degraded and clean patches of the training images; with ``on_device``, clean ones and their keys."""
    degradation = None if data.on_device else data.chosen
    if data.in_memory:
        images = [image for name in data.train for image in collection(name, data) if image[0] not in data.leave_out]
        return DegradedPairs(images, degradation, seed=seed)
    named = [find_dataset(name, Path(data.root) if data.root else None) if name in DATASETS
             else list_images_below(name) for name in data.train]  # fmt: skip
    paths = [path for found in named for path in found if path.name not in data.leave_out]
    return FilePairs(Files(paths), degradation, seed=seed)


def held_out(data: DegradedData) -> dict[str, list[RestorationPair]]:
    """The test images, degraded the same way each time; denoising has one set for each noise level."""
    sets: dict[str, list[RestorationPair]] = {}
    for name in data.test:
        images = [
            (file, centre_crop(image, data.test_side)) for file, image in collection(name, data)[: data.test_images]
        ]
        if data.degradation == "noise":
            for sigma in data.test_sigmas:
                sets[f"{name}, sigma {sigma:g}"] = noisy_pairs(images, sigma)
        else:
            sets[f"{name}, {data.degradation}"] = [
                _degraded(number, *image, data) for number, image in enumerate(images)
            ]
    return sets


def pieces(pairs: Sequence[RestorationPair], side: int) -> tuple[Tensor, Tensor]:
    """The four corners and the centre of each test image: degraded and clean, (N, 3, s, s).

    Args:
        pairs: the images.
        side: s; less where an image is smaller, in steps of one latent cell.
    """
    side = min(side, *(length // 8 * 8 for pair in pairs for length in pair.target.shape[:2]))
    degraded, clean = [], []
    for pair in pairs:
        down, right = (length - side for length in pair.target.shape[:2])
        for top, left in ((0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)):
            window = (slice(None), slice(top, top + side), slice(left, left + side))
            degraded.append(pair.degraded[window])
            clean.append(to_tensor(pair.target)[window])
    return torch.stack(degraded), torch.stack(clean)


def fingerprint(pairs: DegradedPairs, data: DegradedData) -> dict[str, str]:
    """Identity of a run's training data: the images (on disk by name and size) and the degradation's values."""
    images = identity_of(pairs.images.paths if isinstance(pairs, FilePairs) else pairs.images)
    return {"images": images, "degradation": repr(data.chosen), "flip": str(pairs.flip)}


def contents(pairs: DegradedPairs, samples: int) -> str:
    """A hash of the files that the first samples come from; images in memory are in the fingerprint already."""
    if not isinstance(pairs, FilePairs):
        return ""
    used = sorted({pairs.image_number(position) for position in range(samples)})
    return text_sha256(" ".join(sha256_of(pairs.images.paths[number]) for number in used))


def _degraded(number: int, name: str, image: NDArray[np.uint8], data: DegradedData) -> RestorationPair:
    """One test image. Its target is the image itself, also where training sharpens targets."""
    clean = image.astype(np.float32) / np.float32(255)
    degraded, _ = data.chosen(clean, keyed_rng(0, "held out", number))
    return RestorationPair(name, torch.from_numpy(np.ascontiguousarray(degraded.transpose(2, 0, 1))), image)
