"""Training pairs for MILO: which references, which distortions, squares and crops, as images and as latents."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from milo_restore.data import to_tensor, training_photographs
from milo_restore.data.kadid import distort
from milo_restore.errors import ConfigError, DataError
from milo_restore.teach.latent_pairs import encode_pairs
from milo_restore.teach.pairs import DistortedPairs, Pair, centre_square, find_references

PHOTOGRAPHS = training_photographs()[:2]
CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    """Twelve small images in two folders, as ImageNet's classes are stored, and files that are none."""
    rng = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / f"class{i % 2}" / f"{i:02d}.{'jpeg' if i % 3 else 'PNG'}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    (tmp_path / "class0" / "notes.txt").write_text("no image")
    (tmp_path / "class0" / ".hidden.png").write_text("no image")
    return tmp_path


def test_references_are_counted_as_table_1_writes_them(folder):
    everything, star = find_references(folder, None, 1)
    assert len(everything) == 12
    assert not star
    assert everything == sorted(everything)
    some, star = find_references(folder, 5, 1)
    assert (len(some), star) == (5, False)
    assert set(some) < set(everything)
    assert find_references(folder, "5*", 1) == (some, True)
    assert find_references(folder, "*", 1) == (everything, True)
    assert find_references(folder, "5*8", 1) == (some, 8)
    assert find_references(folder, 5, 2)[0] != some
    for wrong in ("0", "ten", "10K", "1.5k", "k", "-3", "5**", "5*0", "5*x"):
        with pytest.raises(ConfigError, match="no number of reference images"):
            find_references(folder, wrong, 1)
    with pytest.raises(DataError, match="holds 12 images, 10000 are wanted"):
        find_references(folder, "10k", 1)
    with pytest.raises(DataError, match="holds 12 images, 1000000 are wanted"):
        find_references(folder, "1M*", 1)
    with pytest.raises(DataError, match="no such folder"):
        find_references(folder / "nowhere", None, 1)
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="holds 0 images"):
        find_references(folder / "empty", None, 1)


def test_the_square_is_the_largest_in_the_centre():
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 10:50] = 200
    assert (centre_square(image, 40) == 200).all()
    assert (centre_square(image, 16) == 200).all()
    assert (centre_square(image.transpose(1, 0, 2), 20) == 200).all()


def test_every_pair_comes_once_an_epoch():
    pairs = DistortedPairs(PHOTOGRAPHS, distortions=(3, 11), square=32)
    assert len(pairs) == 2 * 2 * 5
    first, second = ([pairs.at(epoch * 20 + i) for i in range(20)] for epoch in (0, 1))
    wanted = {Pair(r, d, level) for r in (0, 1) for d in (3, 11) for level in range(1, 6)}
    assert set(first) == set(second) == wanted
    assert first != second
    assert pairs.pairs_of(1) == [pair for pair in (pairs.pair(i) for i in range(20)) if pair.reference == 1]
    assert all(pairs.pairs_of(pair.reference)[pairs.index_of(pair)] == pair for pair in wanted)


def test_a_star_gives_each_reference_one_distortion_for_ever():
    many = [(str(i), PHOTOGRAPHS[0][1]) for i in range(300)]
    pairs = DistortedPairs(many, one_each=True, square=32)
    assert len(pairs) == 300
    drawn = {pair.reference: pair for pair in (pairs.at(i) for i in range(300))}
    assert len(drawn) == 300
    assert {pairs.at(300 + i) for i in range(300)} == set(drawn.values())
    assert {pair.distortion for pair in drawn.values()} == set(range(1, 26))
    assert {pair.level for pair in drawn.values()} == {1, 2, 3, 4, 5}
    assert pairs.pairs_of(7) == [drawn[7]]


def test_a_sample_is_a_crop_of_the_distorted_square():
    pairs = DistortedPairs(PHOTOGRAPHS, distortions=(11,), square=48, seed=3)
    sample = pairs[(4, 1, 6, 48)]
    pair = pairs.at(6)
    square = centre_square(PHOTOGRAPHS[pair.reference][1], 48)
    assert (sample["reference"] * 255).round().byte().permute(1, 2, 0).numpy().tolist() == square.tolist()
    noisy = distort(square, 11, pair.level, seed=3)
    assert (sample["image"] * 255).round().byte().permute(1, 2, 0).numpy().tolist() == noisy.tolist()
    assert f"distortion 11 level {pair.level}" in sample["name"]
    crop = pairs[(4, 1, 6, 16)]
    windows = torch.from_numpy(noisy).permute(2, 0, 1).float().div(255).unfold(1, 16, 1).unfold(2, 16, 1)
    at = (windows - crop["image"][:, None, None]).abs().amax((0, 3, 4)).argmin()
    same = torch.from_numpy(square.copy()).permute(2, 0, 1).float().div(255).unfold(1, 16, 1).unfold(2, 16, 1)
    assert torch.equal(windows.flatten(1, 2)[:, at], crop["image"])
    assert torch.equal(same.flatten(1, 2)[:, at], crop["reference"])
    other = copy.deepcopy(pairs)[(4, 1, 6, 16)]  # by the same methods that workers get theirs
    assert torch.equal(other["image"], crop["image"])
    with pytest.raises(ConfigError, match="a patch of 49 does not fit"):
        pairs[(4, 1, 6, 49)]


def test_the_generator_is_the_published_one_unless_said_otherwise():
    pairs = DistortedPairs(PHOTOGRAPHS, distortions=(18,), square=48)
    former = DistortedPairs(PHOTOGRAPHS, distortions=(18,), square=48, generator="clipped")
    pair = Pair(1, 18, 5)
    square = pairs.square_of(1)
    np.testing.assert_array_equal(pairs.images(pair)[0], distort(square, 18, 5))
    np.testing.assert_array_equal(former.images(pair)[0], distort(square, 18, 5, generator="clipped"))
    assert (pairs.images(pair)[0] != former.images(pair)[0]).any()
    with pytest.raises(ConfigError, match="no generator 'faithful'"):
        DistortedPairs(PHOTOGRAPHS, generator="faithful")


def test_impossible_pairs_are_refused():
    with pytest.raises(DataError, match="no reference images"):
        DistortedPairs([])
    with pytest.raises(ConfigError, match="at least 16"):
        DistortedPairs(PHOTOGRAPHS, square=15)
    with pytest.raises(ConfigError, match="not numbers from 1 to 25"):
        DistortedPairs(PHOTOGRAPHS, distortions=(0, 3))


class _Counting:
    """An encoder that averages 8x8 pixels, and counts."""

    def __init__(self):
        self.images = 0

    def __call__(self, images):
        self.images += len(images)
        small = torch.nn.functional.avg_pool2d(images, 8)
        return torch.cat([small, small.mean(1, keepdim=True)], 1)


def test_latents_are_encoded_once(tmp_path):
    pairs = DistortedPairs(PHOTOGRAPHS, distortions=(11, 23), square=128)
    encode, cpu = _Counting(), torch.device("cpu")

    def label(image, reference):
        return (image - reference).abs().mean((1, 2, 3))

    def make(**identity):
        return encode_pairs(pairs, tmp_path / "cache", encode, label, identity=identity, device=cpu, batch=4)

    latents = make(vae="a")
    assert encode.images == 1 + 2 * (10 + 1)  # one to learn the latents' size
    again = make(vae="a")
    assert encode.images == 1 + 2 * 11 + 1
    sample = again[(1, 0, 5, 128)]
    image, reference = (torch.from_numpy(side.copy()) for side in pairs.images(pairs.at(5)))
    wanted = encode(image.permute(2, 0, 1)[None].float() / 255)[0]
    torch.testing.assert_close(sample["image"], wanted)
    torch.testing.assert_close(sample["reference"], encode(reference.permute(2, 0, 1)[None].float() / 255)[0])
    expected = label(*(side.permute(2, 0, 1)[None].float() / 255 for side in (image, reference)))[0]
    torch.testing.assert_close(sample["label"], expected)
    before = encode.images
    make(vae="b")
    assert encode.images == before + 1 + 2 * 11  # another VAE
    with pytest.raises(ConfigError, match="not the whole square"):
        latents[(1, 0, 5, 64)]
    file = latents.file(pairs.at(5).reference)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"safetensors: cached latents cannot be read.*Delete it"):
        latents[(1, 0, 5, 128)]
    file.unlink()
    make(vae="a")  # goes on where a file is missing
    with safe_open(file, "pt") as content:
        assert content.get_slice("images").get_shape() == [10, 4, 16, 16]


def test_latents_do_not_depend_on_what_the_cache_held(folder, tmp_path):
    """Of more references, the same image may be given another distortion; its older latents are not that."""
    cpu, encode = torch.device("cpu"), _Counting()

    def make(count, cache):
        files, star = find_references(folder, count, 1)
        pairs = DistortedPairs(files, one_each=star, square=128, seed=1)
        return encode_pairs(
            pairs, tmp_path / cache, encode, lambda i, r: (i - r).mean((1, 2, 3)), identity={}, device=cpu
        )

    make("6*", "warm")
    warm, cold = make("12*", "warm"), make("12*", "cold")
    for position in range(12):
        one, other = (latents[(1, 0, position, 128)] for latents in (warm, cold))
        assert one["name"] == other["name"]
        torch.testing.assert_close(one["image"], other["image"])
        torch.testing.assert_close(one["label"], other["label"])


def test_latents_of_another_generator_are_not_taken(tmp_path):
    def make(**options):
        pairs = DistortedPairs(PHOTOGRAPHS, distortions=(18,), square=128, **options)
        return encode_pairs(
            pairs, tmp_path, encode, lambda i, r: (i - r).mean((1, 2, 3)), identity={}, device=torch.device("cpu")
        )

    encode = _Counting()
    former, latents = make(generator="clipped"), make()
    assert encode.images == 2 * (1 + 2 * 6)  # both encoded all: one to learn the size, then image and levels
    assert former.file(0) != latents.file(0)
    brightest = max(range(10), key=lambda position: former.pairs.at(position).level == 1)
    one, other = (each[(1, 0, brightest, 128)] for each in (former, latents))
    assert (one["image"] - other["image"]).abs().max() > 0.02


def test_latents_are_found_without_reading_images(tmp_path, monkeypatch):
    pairs = DistortedPairs(PHOTOGRAPHS, distortions=(11,), square=128)
    options = {"identity": {}, "device": torch.device("cpu")}
    latents = encode_pairs(pairs, tmp_path, _Counting(), lambda i, r: (i - r).mean((1, 2, 3)), **options)
    sample = latents[(1, 0, 3, 128)]
    monkeypatch.setattr(pairs, "square_of", None)
    assert torch.equal(latents[(1, 0, 3, 128)]["image"], sample["image"])


def test_masks_of_images_become_masks_of_cells(tmp_path):
    pairs = DistortedPairs(PHOTOGRAPHS, distortions=(11,), square=128)

    def mask(image, reference):
        return (image - reference).abs().amax(1, keepdim=True)

    def teach(image, reference):
        m = mask(image, reference)
        return {"labels": (image - reference).mean((1, 2, 3)), "masks": m, "errors": m * m}

    latents = encode_pairs(pairs, tmp_path, _Counting(), teach, identity={}, device=torch.device("cpu"))
    sample = latents[(1, 0, 3, 128)]
    image, reference = (to_tensor(side) for side in pairs.images(pairs.at(3)))
    wanted = mask(image[None], reference[None])[0].reshape(1, 16, 8, 16, 8).mean((2, 4))
    torch.testing.assert_close(sample["mask"], wanted)
    wanted = mask(image[None], reference[None])[0].square().reshape(1, 16, 8, 16, 8).mean((2, 4))
    torch.testing.assert_close(sample["error"], wanted)


def test_processes_share_the_encoding(tmp_path):
    pairs = DistortedPairs(PHOTOGRAPHS, distortions=(11,), square=128)
    options = {"identity": {}, "device": torch.device("cpu")}
    for process in (0, 1):
        encode = _Counting()
        encode_pairs(pairs, tmp_path, encode, lambda i, r: (i - r).mean((1, 2, 3)), share=(process, 2), **options)
        assert encode.images == 1 + 5 + 1
        assert len(list(tmp_path.iterdir())) == process + 1


def test_each_photograph_may_get_several_random_distortions(tmp_path):
    pairs = DistortedPairs(PHOTOGRAPHS, one_each=8, square=128, seed=3)
    assert len(pairs) == 16
    found = [pairs.pair(number) for number in range(16)]
    assert [pair.reference for pair in found] == [0] * 8 + [1] * 8
    assert len(set(found)) == 16
    assert pairs.pairs_of(1) == found[8:]
    assert [pairs.index_of(pair) for pair in found] == [*range(8), *range(8)]
    assert {pairs.at(position) for position in range(16)} == set(found)
    assert found != [DistortedPairs(PHOTOGRAPHS, one_each=8, square=128, seed=4).pair(number) for number in range(16)]
    with pytest.raises(ConfigError, match="11 different distortions each of 10"):
        DistortedPairs(PHOTOGRAPHS, one_each=11, distortions=(1, 2))
    encode = _Counting()
    latents = encode_pairs(pairs, tmp_path, encode, lambda i, r: (i - r).mean((1, 2, 3)), identity={}, device=CPU)
    assert encode.images == 1 + 2 * 9
    assert latents[(1, 0, 0, 128)]["name"] == pairs.name(pairs.at(0))


def test_unscaled_squares_are_cut_from_the_photograph():
    name, image = PHOTOGRAPHS[0]
    pairs = DistortedPairs([(name, image)] * 3, square=96, unscaled=True, seed=1)
    squares = [pairs.square_of(number) for number in range(3)]
    windows = np.lib.stride_tricks.sliding_window_view(image, (96, 96), (0, 1))
    for square in squares:
        corners = np.argwhere((windows[..., 0, 0] == square[0, 0]).all(-1))
        assert any(np.array_equal(image[y : y + 96, x : x + 96], square) for y, x in corners)
    assert not np.array_equal(squares[0], squares[1])
    with pytest.raises(DataError, match=r"no square of 600 pixels fits into 512x512\. Lower data\.square"):
        DistortedPairs([(name, image)], square=600, unscaled=True).square_of(0)
