"""Latents and text embeddings on disk: what frozen networks say about fixed samples is computed once.

A training sample changes with every step, so its latents can only be kept where crops, flips and degradations are
numbered in advance: a pool of so many fixed samples, visited in a new order each epoch. The VAE's distribution is kept,
not a draw from it, so that each visit still draws its own latent.

A pool lies in shards of `SHARD` samples. A shard is read once as a whole when the pool is opened, against its sha256;
a sample that is read from it later, against a checksum of its own.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm import tqdm

from milo_restore.data.keys import SampleKey, epoch_order
from milo_restore.errors import ConfigError, DataError
from milo_restore.files.hashes import tensors_sha256, text_sha256
from milo_restore.files.quarantine import Quarantine
from milo_restore.files.write import replace_file, replacing
from milo_restore.processes import gather, rank_and_size

Encode = Callable[[Tensor, Tensor], Mapping[str, Tensor]]
"""Degraded images and targets, (N, 3, p, p), to named latents, (N, 4, p / 8, p / 8) each."""
SHARD = 256
"""Samples in a shard: 50 MB of 512-pixel samples, and what an encoding that is stopped has to do again at most."""
_MEND = "Start again with --resume latest: it is encoded anew"


class CachedLatents(Dataset[dict[str, Any]]):
    """A pool of latents read from its folder. Make it with `cache_latents`.

    Args:
        folder: of the shards, see `shard_file`.
        samples: how many there are.
        patch: side of the images that were encoded, in pixels.
        seed: of the order in which the pool is visited.
        shard: samples in a shard.
        quarantine: what could not be encoded, and was replaced.
    """

    def __init__(
        self,
        folder: Path,
        samples: int,
        patch: int,
        seed: int,
        shard: int = SHARD,
        quarantine: Quarantine | None = None,
    ) -> None:
        self.folder, self.samples, self.patch, self.seed, self.shard = folder, samples, patch, seed, shard
        self.quarantine = quarantine

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """The latents under their names, float32 without the batch dimension, ``name``, and ``text`` where it has one.

        Args:
            key: which of the pool comes at ``position`` is a permutation of the whole pool, another one each epoch.

        Raises:
            ConfigError: another patch than the one that was encoded: a latent cell sees more than its own pixels.
            DataError: the shard is missing or damaged; it is named.
        """
        _, _, position, patch = key
        if patch != self.patch:
            what = f"the cache holds latents of {self.patch}-pixel crops, not of {patch}"
            raise ConfigError(what, where="training.stages", mend="Use one patch size, or train without a cache")
        epoch, place = divmod(position, self.samples)
        number, row = divmod(int(epoch_order(self.seed, epoch, self.samples)[place]), self.shard)
        return _read_row(shard_file(self.folder, number), row)


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
    shard: int = SHARD,
    say: Callable[[str], None] = print,
) -> CachedLatents:
    """Encode each sample of a pool that is not in the cache yet. Interrupted, it goes on where it was.

    Sample p of the pool is ``pairs[SampleKey(0, p, p, patch)]``: step 0, which no training run has. Its caption, where
    it has one, is fixed with it.

    Args:
        pairs: ``pairs[key]`` gives ``input`` and ``target``, (3, p, p), and ``name``; a pure function of the key. Its
            ``quarantine``, where it has one, gets to know what the pool was made without.
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
        share: this process's number and how many there are: each encodes its shards, and then waits for the others; by
            default as launched.
        shard: samples in a shard.
        say: told of each damaged shard, which is encoded anew.

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
    pool = _Pool(home, samples, patch, shard)
    missing = pool.missing(share, say)
    keys = [key for _, part in missing for key in part]
    parts = [part[first : first + batch] for _, part in missing for first in range(0, len(part), batch)]
    loader = DataLoader(_Listed(pairs), batch_sampler=parts, num_workers=workers, collate_fn=_collate)
    bar = tqdm(total=len(keys), desc="encoding", unit="sample", disable=None if keys else True)
    with bar, torch.no_grad():
        batches = iter(loader)
        for number, part in missing:
            for _ in range(0, len(part), batch):
                content, found = next(batches)
                latents = encode(content["input"].to(device), content["target"].to(device))
                pool.take(number, {key: value.float().cpu() for key, value in latents.items()}, content, found)
                bar.update(len(content["name"]))
            pool.write(number)
    bad = dict(fault for faults in gather(pool.bad) for fault in faults.items())
    quarantine: Quarantine | None = getattr(pairs, "quarantine", None)
    if quarantine is not None:
        quarantine.tell(bad)
        quarantine.looked_at = max(quarantine.looked_at, min(quarantine.files, samples))
    return CachedLatents(home, samples, patch, seed, shard, quarantine)


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
            _write(path, {"embedding": embed(text).detach().float().cpu()}, {"text": text})
        found[text] = _read(path)[0]["embedding"]
    return found


def shard_file(folder: Path, number: int) -> Path:
    """Path of a shard of the pool."""
    return folder / f"{number:05d}.safetensors"


class _Pool:
    """A pool while it is being made: which samples are missing, and the rows of a shard until it is written."""

    def __init__(self, folder: Path, samples: int, patch: int, shard: int) -> None:
        self.folder, self.samples, self.patch, self.shard = folder, samples, patch, shard
        self.bad: dict[str, str] = {}  # of all shards that were looked at
        self.rows: list[dict[str, Tensor]] = []
        self.about: dict[str, Any] = {}

    def missing(self, share: tuple[int, int], say: Callable[[str], None]) -> list[tuple[int, list[SampleKey]]]:
        """Shards of this process that are not whole, and the keys of what they lack; every shard is read once."""
        found = []
        for number in range(share[0], -(-self.samples // self.shard), share[1]):
            first = number * self.shard
            have, about = self._whole(number, say)
            self.bad |= about.get("bad", {})
            last = min(first + self.shard, self.samples)
            keys = [SampleKey(0, place, place, self.patch) for place in range(first + have, last)]
            if keys:
                found.append((number, keys))
        return found

    def _whole(self, number: int, say: Callable[[str], None]) -> tuple[int, dict[str, Any]]:
        """Number of a shard's samples, and what belongs to them; none where it is damaged."""
        path = shard_file(self.folder, number)
        if not path.exists():
            return 0, {}
        try:
            _, about = _read(path)
        except DataError as error:
            say(f"{path}: {error.what}: it is written anew")
            return 0, {}
        return len(about["names"]), about

    def take(
        self, number: int, latents: Mapping[str, Tensor], content: Mapping[str, Any], found: list[tuple[str, str]]
    ) -> None:
        """Encoded samples, in their order; before the first ones of a shard, those that it has."""
        if not self.about:
            self.about = {"names": [], "texts": [], "sums": [], "bad": {}}
            path = shard_file(self.folder, number)
            if path.exists() and self._whole(number, lambda line: None)[0]:
                tensors, self.about = _read(path)
                self.rows.append(tensors)
        self.rows.append(dict(latents))
        self.about["names"] += content["name"]
        self.about["texts"] += content.get("text", [])
        self.about["bad"] |= dict(found)

    def write(self, number: int) -> None:
        """Write a shard that is whole."""
        tensors = {key: torch.cat([row[key] for row in self.rows]) for key in self.rows[0]}
        about, self.rows, self.about = self.about, [], {}
        about["sums"] = [_sum(row) for row in _rows_of(tensors)]
        self.bad |= about["bad"]
        _write(shard_file(self.folder, number), tensors, about)


class _Listed(Dataset[Any]):
    """Samples by lists of keys, and what reading them has brought to light."""

    def __init__(self, pairs: Any) -> None:
        self.pairs = pairs

    def __getitems__(self, keys: Sequence[SampleKey]) -> tuple[list[Any], list[tuple[str, str]]]:
        samples = [self.pairs[key] for key in keys]
        quarantine: Quarantine | None = getattr(self.pairs, "quarantine", None)
        kept = [
            {key: sample[key] for key in ("input", "target", "name", "text") if key in sample} for sample in samples
        ]
        return kept, [] if quarantine is None else quarantine.drain()


def _collate(fetched: Any) -> Any:
    return default_collate(fetched[0]), fetched[1]


def _rows_of(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    for row in range(len(next(iter(tensors.values())))):
        yield {key: value[row] for key, value in tensors.items()}


def _sum(row: Mapping[str, Tensor]) -> int:
    found = 0
    for key in sorted(row):
        found = zlib.crc32(row[key].contiguous().numpy().tobytes(), found)
    return found


def _write(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    content = {key: value.contiguous() for key, value in tensors.items()}
    # As bytes first: a full disk then shows as an OSError, which `replacing` words.
    data = save(content, {"about": json.dumps(about), "sha256": tensors_sha256(content)})
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All of a file, held against its sha256."""
    try:
        with safe_open(path, "pt") as file:
            # Copied: what safetensors gives lies in the mapped file, and ends the process if that is cut short.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118  no mapping
            about = file.metadata() or {}
        if about.get("sha256") != tensors_sha256(tensors):
            raise ValueError("its sha256 is another")
        return tensors, json.loads(about["about"])
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise DataError(f"the cached file is missing or damaged ({error})", where=path, mend=_MEND) from error


def _read_row(path: Path, row: int) -> dict[str, Any]:
    """One sample of a shard, held against its own checksum."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_slice(key)[row].clone() for key in file.keys()}  # noqa: SIM118  no mapping
            about = json.loads((file.metadata() or {})["about"])
        if _sum(tensors) != about["sums"][row]:
            raise ValueError("a sample's checksum is another")
    except (OSError, SafetensorError, ValueError, KeyError, IndexError) as error:
        raise DataError(f"the cached file is missing or damaged ({error})", where=path, mend=_MEND) from error
    texts = {"text": about["texts"][row]} if about["texts"] else {}
    return {**tensors, "name": about["names"][row], **texts}


def _intact(path: Path, say: Callable[[str], None]) -> bool:
    if not path.exists():
        return False
    try:
        _read(path)
    except DataError as error:
        say(f"{path}: {error.what}: it is written anew")
        return False
    return True
