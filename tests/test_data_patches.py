"""Keys, noise and training patches: what is drawn, and that nothing but the key decides it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from milo_restore.data import (
    NoisyPatches,
    SampleKey,
    evaluation_input,
    evaluation_noise,
    find_dataset,
    keyed_rng,
    read_image,
    to_tensor,
)
from milo_restore.data.noise import draw_noise, noise_range
from milo_restore.data.noisy_patches import orient
from milo_restore.errors import ConfigError, DataError


def images(count: int = 5, height: int = 40, width: int = 56) -> list[tuple[str, np.ndarray]]:
    """Images whose pixels tell where they come from: red = row, green = column, blue = number of the image."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return [(f"{n}.png", np.dstack([rows, columns, np.full_like(rows, n)])) for n in range(count)]


def keys(steps: int, batch: int, patch: int = 16) -> list[SampleKey]:
    return [SampleKey(s, i, (s - 1) * batch + i, patch) for s in range(1, steps + 1) for i in range(batch)]


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[k], b[k]) for k in ("input", "target", "sigma")) and a["name"] == b["name"]


# Keys


def test_keyed_rng_is_a_function_of_its_key():
    draw = keyed_rng(7, "noise", 3, 4).integers(2**62, size=4)
    np.testing.assert_array_equal(draw, keyed_rng(7, "noise", 3, 4).integers(2**62, size=4))
    others = [(8, "noise", 3, 4), (7, "crop", 3, 4), (7, "noise", 4, 3), (7, "noise", 3), (7, "noise", 3, 4, 0)]
    others += [(7, "noise", 3, 4 + 2**32), (-7, "noise", 3, 4), (7, "noise", -3, 4)]
    for seed, stream, *key in others:
        assert not np.array_equal(draw, keyed_rng(seed, stream, *key).integers(2**62, size=4))


def test_keyed_rng_does_not_drift():
    """Numbers of one key, written down: a change of them changes every run that is resumed."""
    assert keyed_rng(100, "noise", 1, 2).integers(1000, size=4).tolist() == [401, 993, 923, 345]


def test_keyed_rng_is_uniform_over_keys():
    draws = np.array([keyed_rng(0, "crop", step, index).integers(8) for step in range(125) for index in range(8)])
    counts = np.bincount(draws, minlength=8)
    assert ((counts - 125) ** 2 / 125).sum() < 24.3  # chi square with 7 degrees of freedom, 0.1%


# Noise


@pytest.mark.parametrize("sigma", [15, 25, 50])
def test_training_noise_has_the_level_asked_for(sigma):
    noise, level = draw_noise(keyed_rng(0, "noise"), (3, 400, 400), noise_range(sigma))
    assert noise.dtype == np.float32
    assert level == sigma
    assert noise.std() * 255 == pytest.approx(sigma, rel=0.005)
    assert abs(noise.mean()) * 255 < 0.005 * sigma
    assert ((noise / noise.std()) ** 4).mean() == pytest.approx(3, rel=0.02)  # Gaussian
    assert np.corrcoef(noise[:, :, 1:].ravel(), noise[:, :, :-1].ravel())[0, 1] == pytest.approx(0, abs=0.01)


def test_blind_levels_are_uniform():
    low, high = noise_range([0, 50])
    levels = np.array([draw_noise(keyed_rng(1, "noise", n), (1,), (low, high))[1] for n in range(2000)])
    assert levels.min() >= 0
    assert levels.max() <= 50
    assert levels.mean() == pytest.approx(25, abs=1.2)
    assert np.histogram(levels, 5, (0, 50))[0].min() > 330  # 400 expected


@pytest.mark.parametrize("sigma", [-1, float("nan"), float("inf"), (50, 0), (1, 2, 3), (5,)])
def test_impossible_levels(sigma):
    with pytest.raises(ConfigError, match="sigma"):
        noise_range(sigma)


def test_evaluation_noise_follows_the_published_protocol():
    np.random.seed(0)  # noqa: NPY002
    expected = np.random.normal(0, 25 / 255.0, (33, 47, 3))  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    noise = evaluation_noise((33, 47, 3), 25)
    np.testing.assert_array_equal(noise, expected)
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    image = np.full((33, 47, 3), 250, np.uint8)
    noisy = evaluation_input(image, 25)
    assert noisy.max() > 1  # unclipped
    single = np.float32(image) / 255.0
    single += expected  # in place, as published: float64 noise onto a float32 image
    np.testing.assert_array_equal(noisy.numpy(), single.transpose(2, 0, 1))
    assert evaluation_input(image[:, :, :1], 25).shape == (1, 33, 47)
    assert not torch.equal(noisy, evaluation_input(image, 25, seed=1))
    with pytest.raises(DataError, match="uint8"):
        evaluation_input(image[:, :, 0], 25)


@pytest.mark.golden
def test_sigma_25_on_cbsd68(shared):
    ratios = []
    for path in find_dataset("CBSD68", shared)[::6]:
        image = read_image(path)
        error = (evaluation_input(image, 25) - to_tensor(image)).double().square().mean()
        ratios.append(-10 * torch.log10(error).item())
    assert np.mean(ratios) == pytest.approx(20.17, abs=0.05)


# Patches


def test_orient_gives_all_eight():
    square = np.arange(9).reshape(3, 3, 1)
    views = {orient(square, number).tobytes() for number in range(8)}
    assert len(views) == 8
    assert orient(square, 0).tobytes() == square.tobytes()


def test_sample_is_a_crop_plus_unclipped_noise():
    data = NoisyPatches(images(), sigma=25, seed=3, augment=False)
    sample = data[SampleKey(1, 2, 3, 16)]
    assert sample["input"].shape == sample["target"].shape == (3, 16, 16)
    assert sample["input"].dtype == sample["target"].dtype == torch.float32
    assert sample["input"].is_contiguous()
    assert sample["target"].is_contiguous()
    assert sample["sigma"] == 25
    levels = (sample["target"] * 255).round().numpy().astype(int)
    top, left = levels[0, 0, 0], levels[1, 0, 0]
    number = data.image_number(3)
    assert sample["name"] == f"{number}.png"
    crop = images()[number][1][top : top + 16, left : left + 16]
    assert torch.equal(sample["target"], to_tensor(crop))
    assert sample["input"].min() < 0  # dark images: noise leaves the range
    assert torch.equal(data[(1, 2, 3, 16)]["input"], sample["input"])  # a plain tuple will do


def test_noise_comes_after_augmentation():
    """Augmentation moves the picture, not the noise: the noise of a key is the same with and without it."""
    plain, turned = (NoisyPatches(images(), sigma=25, seed=3, augment=augment) for augment in (False, True))
    differing = 0
    for key in keys(4, 4):
        a, b = plain[key], turned[key]
        torch.testing.assert_close(a["input"] - a["target"], b["input"] - b["target"], atol=1e-6, rtol=0)
        differing += not torch.equal(a["target"], b["target"])
    assert differing >= 10  # 7 of 8 are turned


def test_each_epoch_visits_every_image_once_in_another_order():
    data = NoisyPatches(images(), sigma=25, seed=3)
    epochs = [[data.image_number(5 * epoch + n) for n in range(5)] for epoch in range(6)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3
    other = NoisyPatches(images(), sigma=25, seed=4)
    assert epochs != [[other.image_number(5 * epoch + n) for n in range(5)] for epoch in range(6)]


def test_crops_reach_every_corner():
    data = NoisyPatches(images(1, 18, 18), sigma=0, augment=False)
    corners = {tuple((data[key]["target"][:2, 0, 0] * 255).round().int().tolist()) for key in keys(30, 4)}
    assert corners == {(row, column) for row in range(3) for column in range(3)}


@pytest.mark.parametrize("mixup", [False, True])
def test_every_sample_has_noise_of_its_own(mixup):
    data = NoisyPatches(images(), sigma=25, mixup=mixup)
    samples = [data[key] for key in keys(6, 4, 32)]
    noise = torch.stack([(sample["input"] - sample["target"]).flatten() for sample in samples])
    correlation = torch.corrcoef(noise) - torch.eye(len(samples))
    assert correlation.abs().max() < 0.1  # six standard deviations of 3072 independent pixels


@pytest.mark.parametrize("mixup", [False, True])
def test_samples_do_not_depend_on_order_or_earlier_draws(mixup):
    wanted = keys(6, 4)
    data = NoisyPatches(images(), sigma=(0, 50), seed=9, mixup=mixup)
    first = [data[key] for key in wanted]
    again = NoisyPatches(images(), sigma=(0, 50), seed=9, mixup=mixup)
    np.random.default_rng(0)
    torch.manual_seed(123)
    for key in reversed(wanted):
        sample = first[wanted.index(key)]
        assert same(sample, again[key])
    inputs = torch.stack([sample["input"] for sample in first])
    assert len(torch.unique(inputs.flatten(1), dim=0)) == len(wanted)
    assert not same(first[0], NoisyPatches(images(), sigma=(0, 50), seed=10, mixup=mixup)[wanted[0]])


def test_workers_do_not_matter():
    data = NoisyPatches(images(), sigma=(0, 50), seed=1, mixup=True)
    batches = [keys(6, 4)[start : start + 4] for start in range(0, 24, 4)]
    loaded = [list(DataLoader(data, batch_sampler=batches, num_workers=workers)) for workers in (0, 2)]
    assert len(loaded[0]) == 6
    for a, b in zip(*loaded):
        for name in ("input", "target", "sigma"):
            assert torch.equal(a[name], b[name])
        assert a["name"] == b["name"]
    assert loaded[0][0]["sigma"].shape == (4,)


def test_the_split_over_processes_does_not_matter():
    data = NoisyPatches(images(), sigma=25, seed=1, mixup=True)
    whole = {key.index: data[key] for key in keys(1, 8)}
    for process in range(2):
        for key in keys(1, 8)[process::2]:
            assert same(data[key], whole[key.index])


def test_mixup():
    plain = NoisyPatches(images(), sigma=25, seed=5)
    mixed = NoisyPatches(images(), sigma=25, seed=5, mixup=True)
    steps, shares = 400, []
    for step in range(1, steps + 1):
        share = mixed._own_share(step)
        key = SampleKey(step, 0, step, 16)
        assert same(plain[key], mixed[key]) == (share == 1)
        if share < 1:
            shares.append(float(share))
            assert mixed[key]["sigma"] == pytest.approx(25 * np.hypot(share, 1 - share), rel=1e-5)
    assert len(shares) == pytest.approx(steps / 2, abs=40)  # on half of the steps
    assert np.mean(shares) == pytest.approx(0.5, abs=0.06)
    assert np.var(shares) == pytest.approx(0.25 / 3.4, rel=0.25)  # Beta(1.2, 1.2)


def test_mixed_noise_has_the_level_told():
    data = NoisyPatches(images(3, 140, 140), sigma=25, seed=5, mixup=True)
    step = next(step for step in range(1, 50) if 0.3 < data._own_share(step) < 0.7)
    sample = data[(step, 0, 0, 128)]
    assert (sample["input"] - sample["target"]).std() * 255 == pytest.approx(sample["sigma"].item(), rel=0.02)


def test_refusals():
    small = [*images(2), ("small.png", np.zeros((12, 90, 3), np.uint8))]
    data = NoisyPatches(small, sigma=25)
    assert data[(1, 0, 0, 12)]["input"].shape == (3, 12, 12)
    with pytest.raises(DataError, match=r"small\.png: a patch of 13 pixels does not fit into 90x12\. Cap .* at 12"):
        data[(1, 0, 0, 13)]
    with pytest.raises(ConfigError, match="patch"):
        data[(1, 0, 0, 0)]
    with pytest.raises(DataError, match="no images"):
        NoisyPatches([], sigma=25)
    with pytest.raises(DataError, match=r"grey\.png: expected"):
        NoisyPatches([("grey.png", np.zeros((20, 20), np.uint8))], sigma=25)
    with pytest.raises(ConfigError, match="sigma"):
        NoisyPatches(images(), sigma=-1)
    with pytest.raises(ConfigError, match="seed"):
        NoisyPatches(images(), sigma=1, seed=2**63)


def test_without_noise_input_is_target():
    sample = NoisyPatches(images(), sigma=0)[(1, 0, 0, 16)]
    assert torch.equal(sample["input"], sample["target"])
