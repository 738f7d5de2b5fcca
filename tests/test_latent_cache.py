"""The cache of latents and text embeddings: what it is keyed by, what it survives."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from milo_restore.data import SampleKey
from milo_restore.data.degraded_patches import DegradedPairs
from milo_restore.data.latent_cache import (
    cache_latents,
    cached_embeddings,
    shard_file,
)
from milo_restore.data.sources import Item, Source
from milo_restore.data.texts import TextSettings
from milo_restore.errors import ConfigError, DataError
from milo_restore.files.hashes import images_sha256, module_sha256
from milo_restore.files.quarantine import Quarantine

PATCH, SAMPLES, SEED = 16, 6, 5
SHARD = 2


class Encoder:
    """Stands in for VAE and cleaner: one pixel of each 8x8 cell; counts what it is asked."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, degraded, target):
        self.images += len(target)
        cells = [images[..., ::8, ::8].contiguous() for images in (degraded, target)]
        return {"condition": cells[0], "mean": cells[1]}


def photographs(count: int = 3):
    rng = np.random.default_rng(0)
    return [(f"{number}.png", rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)) for number in range(count)]


def build(folder: Path, encode=None, pairs=None, said=None, **changes):
    options = {
        "identity": {"vae": "a"},
        "samples": SAMPLES,
        "patch": PATCH,
        "seed": SEED,
        "batch": 4,
        "shard": SHARD,
        **changes,
    }
    pairs = DegradedPairs(photographs(), "noise", seed=SEED) if pairs is None else pairs
    say = (lambda text: None) if said is None else said.append
    return cache_latents(pairs, Encoder() if encode is None else encode, folder, say=say, **options)


def everything(cache):
    return [cache[SampleKey(1, 0, position, PATCH)] for position in range(len(cache))]


def test_a_cached_sample_is_what_encoding_it_gives(tmp_path):
    pairs = DegradedPairs(photographs(), "noise", seed=SEED)
    cache = build(tmp_path, pairs=pairs)
    assert len(cache) == SAMPLES
    found = {sample["mean"].numpy().tobytes(): sample for sample in everything(cache)}
    assert len(found) == SAMPLES  # each epoch visits each sample once
    for number in range(SAMPLES):
        sample = pairs[SampleKey(0, number, number, PATCH)]
        wanted = Encoder()(sample["input"][None], sample["target"][None])
        cached = found[wanted["mean"][0].numpy().tobytes()]
        assert torch.equal(cached["condition"], wanted["condition"][0])
        assert cached["name"] == sample["name"]


def test_epochs_have_other_orders_and_the_key_decides_alone(tmp_path):
    cache = build(tmp_path, samples=12)
    orders = [
        [cache[(9, 0, 12 * epoch + place, PATCH)]["mean"].numpy().tobytes() for place in range(12)] for epoch in (0, 1)
    ]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])
    assert torch.equal(cache[(1, 0, 7, PATCH)]["mean"], cache[(5, 3, 7, PATCH)]["mean"])


def test_nothing_is_encoded_twice_and_a_stopped_encoding_goes_on(tmp_path):
    encode = Encoder()
    first = build(tmp_path, encode)
    assert encode.images == SAMPLES
    build(tmp_path, encode)
    assert encode.images == SAMPLES
    shard_file(first.folder, 2).unlink()
    build(tmp_path, encode)
    assert encode.images == SAMPLES + SHARD
    larger = build(tmp_path, encode, samples=SAMPLES + 3)  # a larger pool holds the smaller one
    assert encode.images == SAMPLES + SHARD + 3
    build(tmp_path, encode, samples=SAMPLES + 4)  # and its last shard what it had of it
    assert encode.images == SAMPLES + SHARD + 4
    assert len(list(larger.folder.glob("*.safetensors"))) == 5


@pytest.mark.parametrize(
    "changes",
    [{"identity": {"vae": "b"}}, {"patch": 8}, {"seed": 6}, {"identity": {"vae": "a", "degradation": "face"}}],
)
def test_whatever_the_latents_depend_on_names_the_folder(tmp_path, changes):
    first, second = build(tmp_path), build(tmp_path, **changes)
    assert first.folder != second.folder
    assert json.loads((first.folder / "identity.json").read_text()) == {"patch": PATCH, "seed": SEED, "vae": "a"}


def test_processes_share_the_work(tmp_path):
    encoders = [Encoder(), Encoder()]
    caches = [build(tmp_path, encode, share=(rank, 2)) for rank, encode in enumerate(encoders)]
    assert [encode.images for encode in encoders] == [4, 2]  # shards 0 and 2, and shard 1
    alone = build(tmp_path / "alone")
    for one, other in zip(everything(caches[0]), everything(alone)):
        assert torch.equal(one["mean"], other["mean"])


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-7], lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda _: b""]
)
def test_a_damaged_file_is_refused_by_name_and_encoded_anew(tmp_path, damage):
    cache = build(tmp_path)
    before = everything(cache)
    path = shard_file(cache.folder, 1)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="00001.safetensors.*damaged"):
        everything(cache)
    said: list[str] = []
    again = build(tmp_path, said=said)
    assert len(said) == 1
    assert str(path) in said[0]
    for one, other in zip(everything(again), before):
        assert torch.equal(one["condition"], other["condition"])


def test_a_pool_knows_what_it_was_made_without(tmp_path):
    small = [*photographs(), ("small.png", np.zeros((9, 30, 3), np.uint8))]

    def pool(workers=0):
        pairs = DegradedPairs(small, "noise", seed=SEED, quarantine=Quarantine())
        return build(tmp_path, pairs=pairs, samples=8, workers=workers)

    first = pool(workers=1)
    assert "small.png" not in {sample["name"] for sample in everything(first)}
    for cache in (first, pool()):  # found while it was encoded, and read from it
        assert cache.quarantine.drain() == [("small.png", "a patch of 16 pixels does not fit into 30x9")]


def test_captions_go_with_their_samples(tmp_path):
    class Captioned(Source):
        def __len__(self):
            return 3

        def path(self, number):
            return f"{number}.png"

        def read(self, number):
            return Item(*photographs()[number], texts=(f"text {number}",))

    texts = TextSettings(empty=0.3)
    pairs = DegradedPairs(Captioned(), "noise", seed=SEED, texts=texts)
    samples = everything(build(tmp_path, pairs=pairs, samples=12))
    assert {sample["text"] for sample in samples} == {"", "text 0", "text 1", "text 2"}
    assert all(sample["text"] in ("", f"text {sample['name'][0]}") for sample in samples)


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    cache = build(tmp_path)
    intact = shard_file(cache.folder, 0).read_bytes()
    written = Path.write_bytes

    def full(path, data):
        written(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match="No space left on device"):
        build(tmp_path, samples=SAMPLES + 1)
    monkeypatch.undo()
    assert shard_file(cache.folder, 0).read_bytes() == intact
    assert not shard_file(cache.folder, SAMPLES // SHARD).exists()
    assert not [path for path in tmp_path.rglob("*") if ".tmp-" in path.name]


def test_another_patch_and_an_empty_pool_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds latents of 16-pixel crops, not of 32"):
        build(tmp_path)[(1, 0, 0, 32)]
    with pytest.raises(ConfigError, match="at least 1 sample"):
        build(tmp_path, samples=0)


def test_embeddings_are_computed_once(tmp_path):
    asked: list[str] = []

    def embed(text):
        asked.append(text)
        return torch.full((1, 2, 3), float(len(text)))

    first = cached_embeddings(["", "noisy"], embed, tmp_path, "clip")
    again = cached_embeddings(["noisy"], embed, tmp_path, "clip")
    assert asked == ["", "noisy"]
    assert torch.equal(again["noisy"], torch.full((1, 2, 3), 5.0))
    assert torch.equal(first["noisy"], again["noisy"])
    cached_embeddings(["noisy"], embed, tmp_path, "another clip")
    assert asked == ["", "noisy", "noisy"]


def test_hashes_see_every_pixel_and_every_weight():
    images = photographs()
    changed = [(name, image.copy()) for name, image in images]
    changed[2][1][-1, -1, -1] ^= 1
    assert images_sha256(images) == images_sha256([("renamed", image) for _, image in images])
    assert images_sha256(images) != images_sha256(changed)
    assert images_sha256(images) != images_sha256(images[::-1])
    module = torch.nn.BatchNorm2d(3)
    before = module_sha256(module)
    assert before == module_sha256(module)
    module.running_mean[1] += 1e-6
    assert before != module_sha256(module)
