"""World of latent_restore.py: a frozen autoencoder, photographs as its latents, and a small network."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset
from train_tiny_world import LatentCrops

from milo_restore.data import SampleKey, keyed_rng, load_collection, to_tensor, to_uint8
from milo_restore.data.degraded_patches import DegradedPairs
from milo_restore.data.image_sets import centre_crop
from milo_restore.data.latent_cache import cache_latents
from milo_restore.data.restoration_pairs import RestorationPair
from milo_restore.files.hashes import images_sha256
from milo_restore.metric import LatentSpace
from milo_restore.models.vae import LatentCodec, load_vae

Task = Literal["denoise", "x4"]
SIGMA, SCALE = 25, 4  # noise in 8-bit units; how much smaller the input of super-resolution is
TITLES: dict[str, str] = {"denoise": f"sigma {SIGMA}", "x4": f"{SCALE}x"}
SEED = 5  # of crops and degradations, which are encoded once; a run's own seed draws windows and the network's start


@dataclass(frozen=True)
class LatentData:
    """The photographs: named data sets, ``photographs`` (scikit-image's; no download), or folders."""

    train: tuple[str, ...] = ("BSD400",)  # named data sets, photographs, or folders of images
    test: tuple[str, ...] = ("CBSD68",)  # the same; nothing of them is trained on
    root: str | None = None  # where named data sets lie; null: MILO_RESTORE_ASSETS, then the cache
    crops: int = 400  # training crops, which are encoded once
    crop: int = 256  # their side in pixels; training sees windows of them
    test_side: int = 256  # centre squares of the test images, in pixels
    test_images: int = 32  # of each set, the first ones in the order of their names
    quick_images: int = 4  # test images looked at during training; the final evaluation takes all
    cache: str = "runs/latents"  # folder of the encoded crops, and of what was measured; any number of runs share it

    def __post_init__(self) -> None:
        if not (self.train and self.test) or min(self.crops, self.test_images, self.quick_images) < 1:
            raise ValueError("train and test need an entry each, crops, test_images and quick_images at least 1")
        if self.crop % 8 or self.test_side % 8:
            raise ValueError("crop and test_side must be multiples of 8, the pixels along a latent cell")


def degrade(image: Tensor, task: str, rng: np.random.Generator) -> Tensor:
    """Degrade an image (3, H, W) in [0, 1], sides multiples of 4, as an 8-bit file would hold it."""
    if task == "denoise":
        noise = torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32))
        degraded = image + SIGMA / 255 * noise
    else:
        small = F.interpolate(image[None], scale_factor=1 / SCALE, mode="bicubic", antialias=True).clamp(0, 1)
        degraded = F.interpolate((255 * small).round() / 255, scale_factor=SCALE, mode="bicubic")[0]
    return (255 * degraded.clamp(0, 1)).round() / 255


class Degraded(Dataset[dict[str, Any]]):
    """Crops of photographs with what was done to them; a pure function of the key, as `DegradedPairs`."""

    def __init__(self, images: list[tuple[str, NDArray[np.uint8]]], task: str) -> None:
        self.clean, self.task = DegradedPairs(images, None, seed=SEED), task

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """``input`` and ``target``, (3, p, p), and ``name``."""
        sample, (step, index, *_) = self.clean[key], key
        rng = keyed_rng(SEED, "degrade", step, index)
        return {"input": degrade(sample["target"], self.task, rng), "target": sample["target"], "name": sample["name"]}


class Residual(nn.Sequential):
    """Two convolutions, each after SiLU, added to what goes in."""

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C, h, w) to the same shape."""
        one, other = self
        return features + other(F.silu(one(F.silu(features))))


class OneStep(nn.Module):
    """Residual 3x3 convolutions at the latent's size, their output added to the condition.

    The last layer starts at zero: an untrained network gives the condition back.

    Args:
        channels: of a latent.
        width: of the features.
        blocks: of two convolutions each.
    """

    def __init__(self, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        pairs = [[nn.Conv2d(width, width, 3, padding=1) for _ in range(2)] for _ in range(blocks)]
        self.blocks = nn.Sequential(*(Residual(*pair) for pair in pairs))
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, condition: Tensor) -> Tensor:
        """Latents (N, C, h, w), scaled and shifted, to the same."""
        return condition + self.last(self.blocks(self.first(condition)))


@dataclass(frozen=True)
class World:
    """A frozen autoencoder, the latents to train on, and the photographs to measure on.

    Attributes:
        codec: the autoencoder.
        clean: latents of the training crops, (N, C, h, w).
        condition: of the same, degraded.
        tests: held-out photographs, by set.
        latents: of these by `id`: degraded and clean, (1, C, h, w) each.
        images: sha256 of what is trained on.
        decoded: pictures of these latents, which every run of a process shows.
    """

    codec: LatentCodec
    clean: Tensor
    condition: Tensor
    tests: dict[str, list[RestorationPair]]
    latents: dict[int, tuple[Tensor, Tensor]]
    images: str
    decoded: dict[int, NDArray[np.uint8]] = field(default_factory=dict)

    def windows(self, seed: int) -> LatentCrops:
        """The training latents, of which a key draws a window of its patch: ``latent`` and ``condition``."""
        return LatentCrops(self.clean, self.condition, None, seed)

    def limit(self, pair: RestorationPair, number: int) -> NDArray[np.uint8]:
        """The target through the autoencoder: no restorer of its latents can pass it."""
        return self._picture(self.latents[id(pair)][1])

    def untouched(self, pair: RestorationPair, number: int) -> NDArray[np.uint8]:
        """The degraded photograph through it: the network before training."""
        return self._picture(self.latents[id(pair)][0])

    @torch.no_grad()
    def restore(self, model: nn.Module, pair: RestorationPair, number: int) -> NDArray[np.uint8]:
        """One pass, decoded; (H, W, 3)."""
        condition = self.latents[id(pair)][0].to(next(model.parameters()).device)
        return self.decode(model.eval()(condition))

    @torch.no_grad()
    def decode(self, latent: Tensor) -> NDArray[np.uint8]:
        """One latent (1, C, h, w) to (H, W, 3)."""
        return to_uint8(self.codec.decode(latent)[0].clamp(0, 1).cpu())

    def _picture(self, latent: Tensor) -> NDArray[np.uint8]:
        if id(latent) not in self.decoded:
            self.decoded[id(latent)] = self.decode(latent)
        return self.decoded[id(latent)]


@functools.cache
def codec_of(vae: str, device: torch.device) -> tuple[LatentCodec, LatentSpace]:
    """An autoencoder by name, as `load_vae`, and what is known of its latents.

    Raises:
        WeightsError: it cannot be had.
    """
    codec = load_vae(vae, device)
    return codec, LatentSpace(codec.channels, codec.scaling, codec.shift, codec.sha256, codec.name)


@functools.cache
def photographs(data: LatentData) -> tuple[list[Any], dict[str, list[Any]]]:
    """Names and pixels of what is trained on, and of what is measured, by set.

    Raises:
        DataError: a data set is missing, or has images that are too small.
    """
    train = [image for name in data.train for image in load_collection(name, data.root)]
    tests = {name: load_collection(name, data.root)[: data.test_images] for name in data.test}
    return train, {
        name: [(file, centre_crop(image, data.test_side)) for file, image in found] for name, found in tests.items()
    }


@functools.cache
def load_world(vae: str, task: Task, data: LatentData, device: torch.device) -> World:
    """Degrade and encode everything; the training crops once, whatever the run, and the rest once a process.

    Args:
        vae: as `load_vae`.
        task: what is done to the photographs.
        data: which.
        device: where the autoencoder computes.

    Raises:
        WeightsError: the autoencoder cannot be had.
        DataError: a data set is missing.
    """
    from tqdm import tqdm

    codec, _ = codec_of(vae, device)
    train, held_out = photographs(data)
    images = images_sha256(train)

    def encode(degraded: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"condition": codec.encode(degraded), "clean": codec.encode(target)}

    about = {"vae": codec.sha256, "images": images, "task": f"{task}, {TITLES[task]}"}
    pool = cache_latents(
        Degraded(train, task), encode, data.cache, identity=about, samples=data.crops, patch=data.crop, seed=SEED,
        device=device,
    )  # fmt: skip
    samples = [pool[SampleKey(0, number, number, data.crop)] for number in range(data.crops)]
    clean, condition = (torch.stack([sample[key] for sample in samples]) for key in ("clean", "condition"))
    tests: dict[str, list[RestorationPair]] = {}
    latents = {}
    for name, found in held_out.items():
        pairs = []
        for number, (file, image) in enumerate(tqdm(found, desc="encoding", unit="image", disable=None)):
            degraded = degrade(to_tensor(image), task, keyed_rng(0, "held out", number))
            pairs.append(RestorationPair(file, degraded, image))
            both = encode(degraded[None], to_tensor(image)[None])
            latents[id(pairs[-1])] = both["condition"], both["clean"]
        tests[f"{name}, {TITLES[task]}"] = pairs
    return World(codec, clean, condition, tests, latents, images)
