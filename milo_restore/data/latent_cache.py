"""Latents and text embeddings on disk: what frozen networks say about fixed samples is computed once.

A training sample changes with every step, so its latents can only be kept where crops, flips and degradations are
numbered in advance: a pool of so many fixed samples, visited in a new order each epoch. The VAE's distribution is kept,
not a draw from it, so that each visit still draws its own latent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from milo_restore.data.keys import SampleKey, epoch_order
from milo_restore.errors import ConfigError, DataError
from milo_restore.files.hashes import tensors_sha256, text_sha256
from milo_restore.files.write import replace_file, replacing
from milo_restore.processes import gather, rank_and_size

Encode = Callable[[Tensor, Tensor], Mapping[str, Tensor]]
"""Degraded images and targets, (N, 3, p, p), to named latents, (N, 4, p / 8, p / 8) each."""


class CachedLatents(Dataset[dict[str, Any]]):
    """A pool of latents read from its folder. Make it with `cache_latents`.

    Args:
        folder: one file per sample, see `sample_file`.
        samples: how many there are.
        patch: side of the images that were encoded, in pixels.
        seed: of the order in which the pool is visited.
    """

    def __init__(self, folder: Path, samples: int, patch: int, seed: int) -> None:
        self.folder, self.samples, self.patch, self.seed = folder, samples, patch, seed

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """The latents under their names, float32 without the batch dimension, and ``name``.

        Args:
            key: which of the pool comes at ``position`` is a permutation of the whole pool, another one each epoch.

        Raises:
            ConfigError: another patch than the one that was encoded: a latent cell sees more than its own pixels.
            DataError: the file is missing or damaged; it is named.
        """
        _, _, position, patch = key
        if patch != self.patch:
            what = f"the cache holds latents of {self.patch}-pixel crops, not of {patch}"
            raise ConfigError(what, where="training.stages", mend="Use one patch size, or train without a cache")
        epoch, place = divmod(position, self.samples)
        path = sample_file(self.folder, int(epoch_order(self.seed, epoch, self.samples)[place]))
        tensors, name = _read(path)
        return {**tensors, "name": name}


def cache_latents(
    pairs: Any,
    encode: Encode,
    folder: str | Path,
    *,
    identity: Mapping[str, Any],
    samples: int,
    patch: int,
    seed: int,
    device: torch.device | str = "cpu",
    batch: int = 8,
    workers: int = 0,
    share: tuple[int, int] | None = None,
    say: Callable[[str], None] = print,
) -> CachedLatents:
    """Encode each sample of a pool that is not in the cache yet. Interrupted, it goes on where it was.

    Sample p of the pool is ``pairs[SampleKey(0, p, p, patch)]``: step 0, which no training run has.

    Args:
        pairs: ``pairs[key]`` gives ``input`` and ``target``, (3, p, p), and ``name``; a pure function of the key.
        encode: what to keep of them.
        folder: of all caches; this one gets a folder of its own in it, named by a digest of what it depends on.
        identity: all that the latents depend on beside what follows: hashes of the images, the VAE and the cleaner
            (`milo_restore.files.hashes`), the degradation's settings. JSON values.
        samples: size of the pool.
        patch: side of the crops, in pixels.
        seed: the run's.
        device: where ``encode`` computes.
        batch: samples at a time.
        workers: processes that degrade images.
        share: this process's number and how many there are: each encodes its part, and then waits for the others; by
            default as launched.
        say: told of each damaged file, which is encoded anew.

    Raises:
        ConfigError: an empty pool.
        DataError: an image cannot be read, or the cache cannot be written; what it holds already stays.
    """
    if samples < 1:
        raise ConfigError(f"needs at least 1 sample, got {samples}", where="cache.samples")
    about = json.dumps({**identity, "patch": patch, "seed": seed}, sort_keys=True, indent=1)
    home = Path(folder) / text_sha256(about)[:16]
    share = share or rank_and_size()
    if share[0] == 0:
        replace_file(home / "identity.json", about + "\n")
    missing = [number for number in range(share[0], samples, share[1]) if not _intact(sample_file(home, number), say)]
    keys = [SampleKey(0, number, number, patch) for number in missing]
    loader = DataLoader(_Listed(pairs, keys), batch_size=batch, num_workers=workers)
    bar = tqdm(total=len(missing), desc="encoding", unit="sample", disable=None if missing else True)
    with bar, torch.no_grad():
        for first, content in zip(range(0, len(missing), batch), loader):
            latents = encode(content["input"].to(device), content["target"].to(device))
            parts = {key: value.float().cpu() for key, value in latents.items()}
            for place, name in enumerate(content["name"]):
                path = sample_file(home, missing[first + place])
                _write(path, {key: value[place] for key, value in parts.items()}, name)
                bar.update()
    gather(None)  # the others may read what this process has written, and it what they have
    return CachedLatents(home, samples, patch, seed)


def cached_embeddings(
    texts: Sequence[str], embed: Callable[[str], Tensor], folder: str | Path, encoder: str
) -> dict[str, Tensor]:
    """Embeddings of texts, each computed once: a text encoder need not be loaded again for a prompt it has seen.

    Args:
        texts: the prompts.
        embed: a prompt to its embedding, (1, L, D); called for those that are not in the cache.
        folder: of all caches.
        encoder: names the text encoder, by its path or hash.

    Raises:
        DataError: the cache cannot be written.
    """
    found = {}
    for text in texts:
        digest = text_sha256(json.dumps([encoder, text]))[:32]
        path = Path(folder) / "texts" / f"{digest}.safetensors"
        if not _intact(path, print):
            _write(path, {"embedding": embed(text).detach().float().cpu()}, text)
        found[text] = _read(path)[0]["embedding"]
    return found


def sample_file(folder: Path, number: int) -> Path:
    """Path of a sample of the pool; at most a thousand files share a folder."""
    return folder / f"{number // 1000:04d}" / f"{number:07d}.safetensors"


class _Listed(Dataset[Any]):
    def __init__(self, pairs: Any, keys: Sequence[SampleKey]) -> None:
        self.pairs, self.keys = pairs, keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int) -> Any:
        sample = self.pairs[self.keys[number]]
        return {key: sample[key] for key in ("input", "target", "name")}


def _write(path: Path, tensors: Mapping[str, Tensor], name: str) -> None:
    content = {key: value.contiguous() for key, value in tensors.items()}
    # As bytes first: a full disk then shows as an OSError, which `replacing` words.
    data = save(content, {"name": name, "sha256": tensors_sha256(content)})
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    try:
        with safe_open(path, "pt") as file:
            # Copied: what safetensors gives lies in the mapped file, and ends the process if that is cut short.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118  no mapping
            about = file.metadata() or {}
        if about.get("sha256") != tensors_sha256(tensors):
            raise ValueError("its sha256 is another")
    except (OSError, SafetensorError, ValueError) as error:
        mend = "Start again with --resume latest: it is encoded anew"
        raise DataError(f"the cached file is missing or damaged ({error})", where=path, mend=mend) from error
    return tensors, about["name"]


def _intact(path: Path, say: Callable[[str], None]) -> bool:
    if not path.exists():
        return False
    try:
        _read(path)
    except DataError as error:
        say(f"{path}: {error.what}: it is written anew")
        return False
    return True
