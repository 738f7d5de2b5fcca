"""People's opinions as what trains a metric: crops of KADID-10k's images, with the opinion of the whole image."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from milo_restore.data.images import read_image, to_tensor
from milo_restore.data.keys import SampleKey, epoch_order, keyed_rng
from milo_restore.errors import ConfigError, DataError
from milo_restore.opinions.datasets import OpinionPair

_read_reference = functools.lru_cache(maxsize=128)(read_image)  # 65 of KADID-10k's train: 38 MB in each worker


class OpinionCrops(Dataset[dict[str, Any]]):
    """A random crop of a distorted image and of its reference, at the same place, and people's opinion of the image.

    A sample is a pure function of ``seed`` and its key; each epoch visits every pair once.

    Args:
        pairs: with opinions of which higher is better.
        seed: of the order and the crops.

    Raises:
        DataError: no pairs, or opinions of which lower is better.
    """

    def __init__(self, pairs: Sequence[OpinionPair], seed: int) -> None:
        if not pairs:
            raise DataError("no pairs with opinions to train on")
        if not all(pair.higher_better for pair in pairs):
            raise DataError("lower is better in these opinions; a metric learns a MOS", where=pairs[0].distorted)
        self.pairs, self.seed = list(pairs), seed

    def __len__(self) -> int:
        """The number of pairs, which is the length of an epoch. Keys go on beyond it."""
        return len(self.pairs)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """One sample: ``image``, ``reference``, (3, p, p) float32 in [0, 1]; ``label``, float32, a scalar; ``name``.

        Raises:
            DataError: an image cannot be read, or the two differ in size.
            ConfigError: the patch is larger than the image.
        """
        step, index, position, patch = key
        epoch, place = divmod(position, len(self))
        pair = self.pairs[int(epoch_order(self.seed, epoch, len(self))[place])]
        image, reference = read_image(pair.distorted), _read_reference(pair.reference)
        if image.shape != reference.shape:
            raise DataError("differs in size from its reference", where=pair.distorted, mend="Get the data set anew")
        if patch > min(image.shape[:2]):
            what = f"a patch of {patch} does not fit into {image.shape[1]}x{image.shape[0]}"
            raise ConfigError(what, where=pair.distorted, mend="Lower patch in training.stages")
        rng = keyed_rng(self.seed, "crop", step, index)
        top, left = (int(rng.integers(side - patch + 1)) for side in image.shape[:2])
        window = (slice(top, top + patch), slice(left, left + patch))
        return {
            "image": to_tensor(image[window]), "reference": to_tensor(reference[window]),
            "label": torch.tensor(pair.score, dtype=torch.float32), "name": pair.distorted.name,
        }  # fmt: skip


def split_references(
    pairs: Sequence[OpinionPair], count: int, seed: int
) -> tuple[list[OpinionPair], list[OpinionPair]]:
    """Pairs to train on, and those of ``count`` references that are kept back, chosen at random by ``seed``.

    Raises:
        ConfigError: no reference would be left to train on.
    """
    names = sorted({pair.reference for pair in pairs})
    if not 0 <= count < len(names):
        what = f"keeps back {count} of the {len(names)} references to train on"
        raise ConfigError(what, where="data.validation_references", mend="Keep back fewer")
    kept = {names[i] for i in keyed_rng(seed, "validation references").permutation(len(names))[:count]}
    return [p for p in pairs if p.reference not in kept], [p for p in pairs if p.reference in kept]
