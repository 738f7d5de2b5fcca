"""Distorted pairs as latents: encoded once, labelled once, kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from milo_restore.data.images import to_tensor
from milo_restore.data.keys import SampleKey
from milo_restore.errors import ConfigError, DataError
from milo_restore.files.write import replacing
from milo_restore.teach.pairs import DistortedPairs

Targets = dict[str, Tensor]
"""Targets of a batch by a teacher: ``labels`` (N,), and by a teacher of masks ``masks``, ``errors`` (N, 1, H, W)."""


class LatentPairs(Dataset[dict[str, Any]]):
    """Pairs of `DistortedPairs` as latents with labels, read from a cache. Make it with `encode_pairs`.

    The cache holds one file per reference image: its latent, those of its distorted versions, and their labels.

    Args:
        pairs: the images.
        folder: the cache.
        identity: names all that the cached numbers depend on, beside the image itself.
        factor: pixels per latent cell, along a side.
    """

    def __init__(self, pairs: DistortedPairs, folder: Path, identity: str, factor: int) -> None:
        self.pairs, self.folder, self.identity, self.factor = pairs, folder, identity, factor
        # 16 bytes each, for a million references are read for their names once only; zeros: not read yet.
        self._names = np.zeros((len(pairs.references), 16), np.uint8)

    def file(self, reference: int) -> Path:
        """Path of a reference's latents, named by a digest of its pixels, its distortions and ``identity``."""
        if not self._names[reference].any():
            # Which distortion a single one is depends on the place in the list, and that on how many were chosen.
            made = [pair[1:] for pair in self.pairs.pairs_of(reference)]
            head = json.dumps([self.identity, made]).encode()
            digest = hashlib.sha256(head + b"\0" + self.pairs.square_of(reference).tobytes()).digest()
            self._names[reference] = np.frombuffer(digest[:16], np.uint8)
        return self.folder / f"{self._names[reference].tobytes().hex()}.safetensors"

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """``image`` and ``reference``, (C, s, s) float32 with s = square / factor; ``label``, a scalar; ``name``.

        And the teacher's ``mask`` and masked ``error``, (1, s, s) each, where the cache holds them.

        Raises:
            ConfigError: another patch than the whole square: a latent cell sees more than its own pixels.
            DataError: the cached file is missing or damaged.
        """
        if key[3] != self.pairs.square:
            what = f"a patch of {key[3]} is not the whole square of {self.pairs.square}"
            raise ConfigError(what, where="patch", mend="Latents are not cropped: use the two same numbers")
        pair = self.pairs.at(key[2])
        place = self.pairs.index_of(pair)
        path = self.file(pair.reference)
        try:
            with safe_open(path, "pt") as file:
                image, label = file.get_slice("images")[place], file.get_slice("labels")[place]
                reference = file.get_tensor("reference")
                held = {"mask": "masks", "error": "errors"}
                dense = {key: file.get_slice(name)[place] for key, name in held.items() if name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            mend = "Delete it and start again: it is encoded anew"
            raise DataError(f"cached latents cannot be read ({error})", where=path, mend=mend) from error
        return {"image": image, "reference": reference, "label": label, **dense, "name": self.pairs.name(pair)}


def mask_of_cells(mask: Tensor, latents: Tensor) -> Tensor:
    """An image's mask (N, 1, H, W) as one of its latents (N, C, h, w): means over the cells' pixels, (N, 1, h, w)."""
    return F.adaptive_avg_pool2d(mask, (latents.shape[-2], latents.shape[-1]))


@torch.no_grad()
def encode_pairs(
    pairs: DistortedPairs,
    folder: str | Path,
    encode: Callable[[Tensor], Tensor],
    teach: Callable[[Tensor, Tensor], Tensor | Targets],
    *,
    identity: dict[str, Any],
    device: torch.device,
    batch: int = 16,
    share: tuple[int, int] = (0, 1),
) -> LatentPairs:
    """Encode and label every pair that is not in the cache yet. Interrupted, it goes on where it was.

    Args:
        pairs: the images.
        folder: the cache; made where it is missing.
        encode: (N, 3, H, W) in [0, 1] to latents (N, C, h, w), already shifted and scaled.
        teach: images and references, (N, 3, H, W), to MOS (N,), or to `Targets`; what has pixels is kept as means
            over cells (`mask_of_cells`).
        identity: names the encoder, the teacher and what it teaches, by hashes.
        device: where both compute.
        batch: images at a time.
        share: this process's number and how many there are: each encodes its part. Wait for all before reading.

    Raises:
        DataError: an image cannot be read, or the cache cannot be written.
    """
    settings = [pairs.square, pairs.seed, pairs.one_each, pairs.distortions]
    settings += [] if pairs.generator == "clipped" else [pairs.generator]  # caches from when there was no other stay
    first = encode(to_tensor(pairs.square_of(0))[None].to(device))
    names = json.dumps([identity, settings], sort_keys=True)
    latents = LatentPairs(pairs, Path(folder), names, pairs.square // first.shape[-1])
    for number in tqdm(range(len(pairs.references)), desc="encoding references", unit="image", disable=None):
        path = latents.file(number)
        if number % share[1] != share[0] or path.exists():
            continue
        reference = to_tensor(pairs.square_of(number))[None].to(device)
        arrays = [pairs.images(pair)[0] for pair in pairs.pairs_of(number)]
        parts: list[Targets] = []
        for start in range(0, len(arrays), batch):
            images = torch.stack([to_tensor(array) for array in arrays[start : start + batch]]).to(device)
            encoded = encode(images)
            said = teach(images, reference.expand_as(images))
            said = {"labels": said} if isinstance(said, Tensor) else said
            dense = {key: mask_of_cells(value, encoded) if value.ndim > 1 else value for key, value in said.items()}
            parts.append({key: value.float().cpu() for key, value in {"images": encoded, **dense}.items()})
        content = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        content["reference"] = encode(reference)[0].float()
        with replacing(path) as temporary:
            save_file({key: value.cpu().contiguous() for key, value in content.items()}, temporary)
    return latents
