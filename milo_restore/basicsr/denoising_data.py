"""Clean images made noisy for BasicSR: the data set that Restormer's published denoising configurations name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from milo_restore.data.images import list_images, read_image
from milo_restore.data.noise import draw_noise, evaluation_input, noise_range
from milo_restore.data.noisy_patches import orient
from milo_restore.errors import ConfigError, DataError

__all__ = ["Dataset_GaussianDenoising"]

_SIGMA_TYPES = ("constant", "random", "choice")


class Dataset_GaussianDenoising(Dataset[dict[str, Any]]):  # the name is what configurations say
    """A folder of clean images; Gaussian noise is added on the fly and never clipped.

    Training: a random crop, one of eight orientations, then noise. All of it comes from one generator per sample,
    seeded from torch's: the DataLoader seeds torch anew for every worker and epoch, while BasicSR sets NumPy to the
    same seed at each epoch. Validation: the fixed noise of `evaluation_noise` (NumPy's legacy generator, seed 0 for
    each image, (H, W, C) order), the same at every call; no global generator is touched.

    Args:
        opt: BasicSR's options of the data set:

            - ``phase``: ``train``, or anything else for validation (BasicSR sets it);
            - ``dataroot_gt``: the folder; subfolders are not read;
            - ``in_ch``: 3 for colour (default), 1 for grey;
            - ``gt_size``: side of the training crops, the largest where sizes are progressive;
            - ``geometric_augs``: flip and rotate (training; default true);
            - ``sigma_type``: ``constant``, ``random`` (uniform in a range) or ``choice`` (from a list) (training);
            - ``sigma_range``: the level, range or list that it means, in 8-bit units;
            - ``sigma_test``: the level of validation, in 8-bit units;
            - ``check_images``: decode every image once at the start (default true), so that a damaged or too small
              one stops the run before its first iteration and not after a day; BSD400 takes a few seconds.

    Raises:
        ConfigError: an option is missing or impossible.
        DataError: the folder is missing or empty; an image cannot be read, or is smaller than ``gt_size``.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        self.opt = opt
        self.train = opt.get("phase") == "train"
        self.where = f"datasets.{opt.get('phase', 'val')}"
        self.channels = opt.get("in_ch", 3)
        if self.channels not in (1, 3):
            raise ConfigError(f"{self.channels!r} is neither 1 (grey) nor 3 (colour)", where=f"{self.where}.in_ch")
        self._check_backend()
        self.paths = list_images(self._required("dataroot_gt"))
        if self.train:
            self.sigma_type, self.levels = self._read_levels()
            self.patch = self._read_patch()
            self.augment = bool(opt.get("geometric_augs", True))
        else:
            self.sigma = self._level(self._required("sigma_test"), "sigma_test")
        if opt.get("check_images", True):
            for path in self.paths:
                self._read(path)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One pair.

        Returns:
            ``lq`` (C, H, W) float32, noisy, leaving [0, 1]; ``gt`` (C, H, W) float32 in [0, 1], RGB; ``lq_path`` and
            ``gt_path``, both the clean image's. Training: H = W = ``gt_size``.
        """
        path = self.paths[index]
        image = self._read(path)
        lq, gt = self._training_pair(image) if self.train else (evaluation_input(image, self.sigma), _tensor(image))
        return {"lq": lq, "gt": gt, "lq_path": str(path), "gt_path": str(path)}

    def _training_pair(self, image: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        rng = np.random.Generator(np.random.Philox(int(torch.randint(2**62, ()))))
        height, width = image.shape[:2]
        top, left = int(rng.integers(height - self.patch + 1)), int(rng.integers(width - self.patch + 1))
        crop = image[top : top + self.patch, left : left + self.patch]
        if self.augment:
            crop = orient(crop, int(rng.integers(8)))
        gt = _tensor(crop)
        level = self._draw_level(rng)
        noise, _ = draw_noise(rng, tuple(gt.shape), (level, level))
        return gt + torch.from_numpy(noise), gt

    def _draw_level(self, rng: np.random.Generator) -> float:
        if self.sigma_type == "random":
            return float(rng.uniform(self.levels[0], self.levels[1]))
        return self.levels[int(rng.integers(len(self.levels)))]  # a constant is a choice from one

    def _read(self, path: Path) -> NDArray[np.uint8]:
        """(H, W, C) uint8, C = ``in_ch``; refused where a training crop does not fit."""
        image = read_image(path)
        if self.train and min(image.shape[:2]) < self.patch:
            what = f"a patch of {self.patch} pixels does not fit into {image.shape[1]}x{image.shape[0]}"
            mend = f"Lower {self.where}.gt_size (and gt_sizes), or leave this image out"
            raise DataError(what, where=path, mend=mend)
        if self.channels == 1:
            return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)[..., None]
        return image

    def _required(self, key: str) -> Any:
        if self.opt.get(key) is None:
            raise ConfigError("is missing", where=f"{self.where}.{key}")
        return self.opt[key]

    def _check_backend(self) -> None:
        backend = (self.opt.get("io_backend") or {}).get("type", "disk")
        if backend != "disk":
            mend = "Give type: disk and a folder of images"
            raise ConfigError(f"{backend!r} is not supported here", where=f"{self.where}.io_backend.type", mend=mend)

    def _read_patch(self) -> int:
        patch = self._required("gt_size")
        if type(patch) is not int or patch < 1:
            raise ConfigError(f"{patch!r} is not a positive whole number", where=f"{self.where}.gt_size")
        return patch

    def _read_levels(self) -> tuple[str, list[float]]:
        kind, given = self._required("sigma_type"), self._required("sigma_range")
        if kind not in _SIGMA_TYPES:
            what = f"{kind!r} is not one of {', '.join(_SIGMA_TYPES)}"
            raise ConfigError(what, where=f"{self.where}.sigma_type")
        levels = [self._level(value, "sigma_range") for value in (given if isinstance(given, list) else [given])]
        where = f"{self.where}.sigma_range"
        if kind == "constant" and len(levels) != 1:
            raise ConfigError(f"{given!r} is not one level", where=where, mend="Give one, or sigma_type: choice")
        if kind == "random":
            noise_range(levels)
        if not levels:
            raise ConfigError("is empty", where=where)
        return kind, levels

    def _level(self, value: Any, key: str) -> float:
        try:
            return noise_range(float(value))[0]
        except (TypeError, ValueError) as error:
            what = f"{value!r} is not a noise level"
            raise ConfigError(what, where=f"{self.where}.{key}", mend="Use 8-bit units, such as 25") from error


def _tensor(image: NDArray[np.uint8]) -> Tensor:
    """(H, W, C) uint8 to (C, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(255)
