"""The images that a blind restorer trains and is tested on: which, how they are degraded, and what is held out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from milo_restore.config import as_dict
from milo_restore.data.crops import CropKind, enlarged
from milo_restore.data.degrade import (
    BlindNoiseSettings,
    CodeFormerSettings,
    Degradation,
    FaceSettings,
    RealESRGANSettings,
    build_degradation,
)
from milo_restore.data.degraded_patches import DegradedPairs
from milo_restore.data.image_sets import PHOTOGRAPHS, centre_crop, identity_of, load_collection
from milo_restore.data.images import to_tensor
from milo_restore.data.index import Row
from milo_restore.data.keys import keyed_rng
from milo_restore.data.listed import Listed, list_once
from milo_restore.data.listing import LISTS, TABLES, Columns, Part, list_entry, with_captions
from milo_restore.data.restoration_pairs import RestorationPair, noisy_pairs
from milo_restore.data.sources import InMemory, Source, scale_between
from milo_restore.data.texts import TextSettings
from milo_restore.errors import DataError
from milo_restore.files import DATASETS, find_dataset
from milo_restore.files.hashes import text_sha256
from milo_restore.files.quarantine import Quarantine

FACE = "astronaut-face"
FACE_ROWS, FACE_COLUMNS = slice(0, 256), slice(96, 352)  # of scikit-image's astronaut


@dataclass(frozen=True)
class Captions(TextSettings):
    """Captions of the training images, and which samples show them."""

    source: str | None = None  # columns: of tables, .txt of shards; a text file: a line for each image; null: none


@dataclass(frozen=True)
class DegradedData:
    """The images to train and test on.

    Named data sets, ``photographs`` (scikit-image's; no download), or folders; to train on also lists (.txt), tables
    (.jsonl, .parquet) and WebDataset shards (.tar), see `milo_restore.data.listing`.
    """

    train: tuple[str, ...] = ("photographs",)  # named data sets, photographs, or folders with all below them
    test: tuple[str, ...] = ("held-out-photographs",)  # astronaut-face: the face in one of the photographs
    leave_out: tuple[str, ...] = ()  # file names that are not trained on
    root: str | None = None  # where named data sets lie; null: MILO_RESTORE_ASSETS, then the cache
    in_memory: bool = True  # false: folders' images are read each time they are needed, as those of lists always are
    degraded: tuple[str, ...] = ()  # degradation: paired: of each entry of train its counterpart; tables have a column
    test_degraded: tuple[str, ...] = ()  # the same of test
    columns: Columns = field(default_factory=Columns)
    captions: Captions = field(default_factory=Captions)
    crop: CropKind = "random"  # adm-center: the whole shorter side made a patch, as DiffBIR trains; adm-random
    flip: bool = True  # mirror half of the patches; DiffBIR's own configurations do not
    degradation: Literal["noise", "codeformer", "realesrgan", "face", "paired"] = "codeformer"  # one of the following
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
        self._check_pairs()
        for name in ("noise", "codeformer", "realesrgan", "face"):
            settings = getattr(self, name)
            if name != self.degradation and settings != type(settings)():
                raise ValueError(f"{name} is set, but the degradation is {self.degradation}")
        if self.on_device and self.degradation != "realesrgan":
            raise ValueError("on_device needs degradation: realesrgan; the others run in the data workers")

    def _check_pairs(self) -> None:
        if self.degradation != "paired":
            if self.degraded or self.test_degraded:
                raise ValueError("degraded and test_degraded need degradation: paired")
            return
        if self.degraded and len(self.degraded) != len(self.train):
            raise ValueError(f"degraded has {len(self.degraded)} entries for {len(self.train)} of train")
        if len(self.test_degraded) != len(self.test):
            raise ValueError(f"test_degraded has {len(self.test_degraded)} entries for {len(self.test)} of test")
        if self.crop != "random":
            raise ValueError("degradation: paired needs crop: random; the others would resize what is degraded")

    @property
    def chosen(self) -> Degradation | None:
        """The degradation with its settings; None for pairs."""
        if self.degradation == "paired":
            return None
        return build_degradation(self.degradation, getattr(self, self.degradation))

    @property
    def listed(self) -> bool:
        """Whether the training images stay on disk."""
        plain = all(Path(entry).suffix.lower() not in (*LISTS, *TABLES, ".tar") for entry in self.train)
        return not (plain and self.in_memory and self.captions.source is None and self.degradation != "paired")


def collection(
    name: str, data: DegradedData, quarantine: Quarantine | None = None
) -> list[tuple[str, NDArray[np.uint8]]]:
    """A set of images in memory, by name or folder; what cannot be read is an error, or goes into quarantine."""
    if name != FACE:
        return load_collection(name, data.root, quarantine)
    astronaut = dict(PHOTOGRAPHS["photographs"]())["astronaut.png"]
    return [(f"{FACE}.png", astronaut[FACE_ROWS, FACE_COLUMNS].copy())]


def training_pairs(
    data: DegradedData,
    seed: int,
    *,
    quarantine: Quarantine | None = None,
    home: Path | None = None,
    resume: bool = False,
) -> DegradedPairs:
    """Degraded and clean patches of the training images; with ``on_device``, clean ones and their keys.

    Args:
        data: which.
        seed: the run's.
        quarantine: what cannot be trained on goes there; None: it is an error.
        home: the run folder, for the list of images on disk; None: it stays in memory.
        resume: take the list that is there.

    Raises:
        DataError: there are no images, or what names them is wrong.
    """
    source: Source
    if data.listed:
        about = {name: value for name, value in as_dict(data).items() if name in _LISTED_BY}
        source = list_once(_parts(data), home, about, again=resume)
    else:
        source = InMemory([image for name in data.train for image in collection(name, data, quarantine)
                           if image[0] not in data.leave_out])  # fmt: skip
    texts = None if data.captions.source is None else data.captions
    degradation = None if data.on_device else data.chosen
    return DegradedPairs(
        source, degradation, seed=seed, flip=data.flip, crop=data.crop, texts=texts, quarantine=quarantine
    )


_LISTED_BY = {"train", "degraded", "leave_out", "root", "columns", "captions", "degradation"}
"""Settings that the list of images follows from."""


def _parts(data: DegradedData) -> Iterator[Part]:
    """The rows of all training images on disk, listed as they are asked for."""
    captions = data.captions.source == "columns"
    parts = (_part(entry, other, data, captions) for entry, other in zip_longest(data.train, data.degraded))
    if data.captions.source is None or captions:
        return parts
    return with_captions(parts, Path(data.captions.source))


def _part(entry: str, degraded: str | None, data: DegradedData, captions: bool) -> Part:
    if entry in PHOTOGRAPHS:
        what = "are in memory; images on disk do not go with them"
        raise DataError(what, where=entry, mend="Set data.in_memory: true, or name folders, lists or shards only")
    if entry in DATASETS:
        paths = find_dataset(entry, Path(data.root) if data.root else None)
        root, other = os.path.commonpath([path.parent for path in paths]), ""
        rows = (Row(path.relative_to(root).as_posix()) for path in paths)
    else:
        root, other, rows = list_entry(entry, degraded, data.columns, captions)  # type: ignore[assignment]
    if not data.leave_out:
        return root, other, rows
    return root, other, (row for row in rows if Path(row.path).name not in data.leave_out)


def held_out(data: DegradedData) -> dict[str, list[RestorationPair]]:
    """The test images, degraded the same way each time; denoising has one set for each noise level."""
    sets: dict[str, list[RestorationPair]] = {}
    degradation = data.chosen
    if degradation is None:
        return {name: _test_pairs(name, other, data) for name, other in zip(data.test, data.test_degraded)}
    for name in data.test:
        images = [
            (file, centre_crop(image, data.test_side)) for file, image in collection(name, data)[: data.test_images]
        ]
        if data.degradation == "noise":
            for sigma in data.test_sigmas:
                sets[f"{name}, sigma {sigma:g}"] = noisy_pairs(images, sigma)
        else:
            sets[f"{name}, {data.degradation}"] = [
                _degraded(number, *image, degradation) for number, image in enumerate(images)
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
    """Identity of a run's training data: the images (on disk by what lists them) and the degradation's values."""
    source = pairs.source
    images = source.identity() if isinstance(source, Listed) else identity_of(source.images)  # type: ignore[attr-defined]
    return {"images": images, "degradation": repr(data.chosen), "flip": str(pairs.flip)}


def contents(pairs: DegradedPairs, samples: int) -> str:
    """A hash of size and time of change of the files that the first samples come from; nothing is read for it.

    Images in memory are in the fingerprint with all their pixels already.
    """
    if not isinstance(pairs.source, Listed):
        return ""
    return text_sha256(pairs.source.stamps(sorted({pairs.image_number(position) for position in range(samples)})))


def _degraded(number: int, name: str, image: NDArray[np.uint8], degradation: Degradation) -> RestorationPair:
    """One test image. Its target is the image itself, also where training sharpens targets."""
    clean = image.astype(np.float32) / np.float32(255)
    degraded, _ = degradation(clean, keyed_rng(0, "held out", number))
    return RestorationPair(name, torch.from_numpy(np.ascontiguousarray(degraded.transpose(2, 0, 1))), image)


def _test_pairs(name: str, other: str, data: DegradedData) -> list[RestorationPair]:
    """The test images of a folder with their counterparts, enlarged to their size; centre squares of both."""
    pairs = []
    source = list_once([list_entry(name, other, data.columns, False)], None, {}, again=False)
    for number in range(len(source)):
        item = source.read(number)
        if item.degraded is None:
            raise DataError("has no degraded counterpart", where=source.path(number))
        scale = scale_between(source.path(number), item.image, item.degraded)
        both = [centre_crop(image, data.test_side) for image in (item.image, enlarged(item.degraded, scale))]
        pairs.append(RestorationPair(item.name, to_tensor(both[1]), both[0]))
    return pairs
