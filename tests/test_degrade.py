"""Degradations: published ranges, what each stage does, and that nothing but the key decides a sample."""

from __future__ import annotations

import dataclasses
import pickle
import random
import sys

import numpy as np
import pytest
import torch
from skimage.data import astronaut

from milo_restore.config import as_dict, load_config
from milo_restore.data.degrade import (
    DEGRADATIONS,
    BlindNoiseSettings,
    CodeFormerSettings,
    FaceSettings,
    RealESRGANSettings,
    batch,
    build_degradation,
    realesrgan,
)
from milo_restore.data.degrade.arrays import jpeg, poisson_noise
from milo_restore.data.degrade.batch import degrade_batch
from milo_restore.data.degrade.codeformer import draw_codeformer
from milo_restore.data.degrade.kernels import Kernel, load_degradations
from milo_restore.data.degrade.noise import CameraDraw, camera_noise, draw_camera
from milo_restore.data.degrade.realesrgan import draw_realesrgan
from milo_restore.data.keys import keyed_rng
from milo_restore.errors import ConfigError, DataError

DRAWS = 2000


def photograph(height: int = 64, width: int = 64) -> np.ndarray:
    """A piece of a photograph, (H, W, 3) float32."""
    return astronaut()[20 : 20 + height, 180 : 180 + width].astype(np.float32) / np.float32(255)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]


def rng(index: int = 0, seed: int = 5) -> np.random.Generator:
    return keyed_rng(seed, "degrade", 1, index)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a.astype(float) - b) ** 2)))


def assert_within(values, low: float, high: float) -> None:
    """All values lie in the range, and they fill it evenly: both ends are nearly reached, the mean is the middle."""
    values = np.asarray(values)
    width = high - low
    assert low <= values.min() < low + 0.05 * width
    assert high - 0.05 * width < values.max() <= high
    assert abs(values.mean() - (low + high) / 2) < 5 * width / np.sqrt(12 * len(values))


def assert_share(hits, probability: float) -> None:
    """So many hits as the probability says, within five standard deviations."""
    hits = np.asarray(hits)
    assert abs(hits.mean() - probability) <= 5 * np.sqrt(probability * (1 - probability) / len(hits))


# Published values


def test_defaults_are_the_published_values():
    assert as_dict(CodeFormerSettings()) == {
        "kernel_size": 41, "kernel_shares": [0.5, 0.5], "blur_sigma": [0.1, 12], "downsample": [1, 12],
        "noise": [0, 15], "jpeg": [30, 100],
    }  # fmt: skip
    face = {"blur_sigma": [0.1, 10], "downsample": [0.8, 8], "noise": [0, 20], "jpeg": [60, 100]}
    assert as_dict(FaceSettings()) == as_dict(CodeFormerSettings()) | face
    first = {
        "blur_probability": 1, "blur_sigma": [0.2, 3], "resize_shares": [0.2, 0.7, 0.1], "resize": [0.15, 1.5],
        "gaussian_probability": 0.5, "noise": [1, 30], "poisson": [0.05, 3], "grey_probability": 0.4, "jpeg": [30, 95],
    }  # fmt: skip
    second = {
        "blur_probability": 0.8, "blur_sigma": [0.2, 1.5], "resize_shares": [0.3, 0.4, 0.3], "resize": [0.3, 1.2],
        "noise": [1, 25], "poisson": [0.05, 2.5],
    }  # fmt: skip
    assert as_dict(RealESRGANSettings()) == {
        "kernel_sizes": [7, 21], "kernel_shares": [0.45, 0.25, 0.12, 0.03, 0.12, 0.03], "beta_generalized": [0.5, 4],
        "beta_plateau": [1, 2], "sinc_probability": 0.1, "final_sinc_probability": 0.8, "first": first,
        "second": first | second, "scale": 4, "sharpen": True,
    }  # fmt: skip
    noise = BlindNoiseSettings()
    assert noise.sigma == (0, 50)
    assert noise.realistic == 0


@pytest.mark.parametrize("settings", [CodeFormerSettings(), FaceSettings()])
def test_codeformer_draws_from_its_ranges(settings):
    drawn = [draw_codeformer(settings, rng(i)) for i in range(DRAWS)]
    for name in ("downsample", "noise"):
        assert_within([getattr(d, name) for d in drawn], *getattr(settings, name))
    assert_within([d.quality for d in drawn], *settings.jpeg)
    assert {d.kernel.size for d in drawn} == {41}
    assert_share([d.kernel.kind == "iso" for d in drawn], 0.5)
    assert_within([d.kernel.sigma_x for d in drawn], *settings.blur_sigma)
    elliptic = [d.kernel for d in drawn if d.kernel.kind == "aniso"]
    assert_within([k.sigma_y for k in elliptic], *settings.blur_sigma)
    assert_within([k.angle for k in elliptic], -np.pi, np.pi)


def test_realesrgan_draws_from_its_ranges():
    settings = RealESRGANSettings()
    drawn = [draw_realesrgan(settings, rng(i)) for i in range(DRAWS)]
    for of, passes in ((settings.first, [d.first for d in drawn]), (settings.second, [d.second for d in drawn])):
        kernels = [p.kernel for p in passes if p.kernel]
        assert_share([p.kernel is not None for p in passes], of.blur_probability)
        assert_share([k.kind == "sinc" for k in kernels], 0.1)
        assert all(k.cutoff >= np.pi / (3 if k.size < 13 else 5) for k in kernels if k.kind == "sinc")
        assert_within([k.sigma_x for k in kernels if k.kind != "sinc"], *of.blur_sigma)
        kinds = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
        for kind, share in zip(kinds, settings.kernel_shares):
            assert_share([k.kind == kind for k in kernels if k.kind != "sinc"], share)
        for kind, (low, high) in (("generalized", (0.5, 4)), ("plateau", (1, 2))):
            betas = np.array([k.beta for k in kernels if k.kind.startswith(kind)])
            assert low <= betas.min() < betas.max() <= high
            assert_share(betas > 1, 0.5)
        assert_within([p.resize for p in passes if p.resize > 1], 1, of.resize[1])
        assert_within([p.resize for p in passes if p.resize < 1], of.resize[0], 1)
        for hits, share in zip(([p.resize > 1 for p in passes], [p.resize < 1 for p in passes]), of.resize_shares):
            assert_share(hits, share)
        assert_share([p.noise == "gaussian" for p in passes], of.gaussian_probability)
        assert_within([p.level for p in passes if p.noise == "gaussian"], *of.noise)
        assert_within([p.level for p in passes if p.noise == "poisson"], *of.poisson)
        assert_share([p.grey for p in passes], of.grey_probability)
        assert_within([p.quality for p in passes], *of.jpeg)
        for mode in ("area", "bilinear", "bicubic"):
            assert_share([p.mode == mode for p in passes], 1 / 3)
    finals = [d.final for d in drawn if d.final]
    assert_share([d.final is not None for d in drawn], 0.8)
    assert_within([k.cutoff for k in finals], np.pi / 3, np.pi)
    assert_share([d.jpeg_last for d in drawn], 0.5)
    sizes = [k.size for k in finals] + [d.first.kernel.size for d in drawn]
    assert set(sizes) == set(range(7, 22, 2))
    assert_share(np.array(sizes) == 21, 1 / 8)


def test_camera_draws_from_its_ranges():
    settings = BlindNoiseSettings()
    drawn = [draw_camera(settings, rng(i)) for i in range(DRAWS)]
    assert_within([d.shot for d in drawn], *settings.shot)
    assert_within([d.read for d in drawn], *settings.read)
    assert_share([d.correlation is not None for d in drawn], settings.correlated)
    assert_within([d.correlation for d in drawn if d.correlation is not None], *settings.correlation)
    assert_share([d.quality is not None for d in drawn], settings.compressed)
    assert_within([d.quality for d in drawn if d.quality is not None], *settings.jpeg)


def test_draws_do_not_drift():
    """One draw, written down: a change of it changes every run that is resumed."""
    drawn = draw_realesrgan(RealESRGANSettings(), keyed_rng(100, "degrade", 1, 2))
    assert (drawn.first.kernel.kind, drawn.first.kernel.size) == ("generalized_iso", 13)
    numbers = (drawn.first.resize, drawn.second.level, drawn.second.quality)
    assert [round(x, 4) for x in numbers] == [0.3326, 0.8669, 40.7638]


# Kernels


def moments(kernel: np.ndarray) -> np.ndarray:
    """Covariance of a kernel as a distribution over pixels, in (x, y) order."""
    place = np.arange(len(kernel)) - len(kernel) // 2
    x, y = np.meshgrid(place, place)
    return np.array([[np.sum(kernel * a * b) for a in (x, y)] for b in (x, y)])


@pytest.mark.parametrize(
    "kernel",
    [
        Kernel("iso", 41, 2.0, 2.0),
        Kernel("aniso", 41, 4.0, 1.5, 0.6),
        Kernel("generalized_iso", 21, 2.0, 2.0, 0.0, 0.7),
        Kernel("generalized_aniso", 21, 3.0, 1.0, 1.0, 3.0),
        Kernel("plateau_iso", 21, 2.0, 2.0, 0.0, 1.5),
        Kernel("plateau_aniso", 21, 3.0, 1.0, 1.0, 2.0),
        Kernel("sinc", 21, cutoff=1.5),
    ],
)
def test_kernels_keep_brightness_and_place(kernel):
    array = kernel.array()
    assert array.shape == (kernel.size, kernel.size)
    assert array.dtype == np.float32
    assert array.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(array, array[::-1, ::-1], atol=1e-7)
    round_kind = kernel.kind == "sinc" or kernel.kind.removesuffix("_iso") != kernel.kind or kernel.kind == "iso"
    assert np.allclose(array, array.T, atol=1e-7) == round_kind


def test_gaussian_kernels_have_the_widths_drawn():
    np.testing.assert_allclose(moments(Kernel("iso", 41, 2.0, 2.0).array()), 4 * np.eye(2), atol=1e-3)
    turn = np.array([[np.cos(0.6), -np.sin(0.6)], [np.sin(0.6), np.cos(0.6)]])
    expected = turn @ np.diag([16.0, 2.25]) @ turn.T
    np.testing.assert_allclose(moments(Kernel("aniso", 41, 4.0, 1.5, 0.6).array()), expected, atol=0.02)


def test_the_sinc_filter_stops_above_its_cutoff():
    response = np.abs(np.fft.rfft2(Kernel("sinc", 21, cutoff=1.5).array(), (64, 64)))[0]  # along one axis
    frequency = np.linspace(0, np.pi, len(response))
    assert response[frequency < 1.1].min() > 0.8  # cut off at 21 pixels, it ripples
    assert response[frequency > 1.9].max() < 0.2


# Nothing but the generator decides


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_a_sample_is_a_function_of_its_generator(name):
    degrade = build_degradation(name, realistic=0.5) if name == "noise" else build_degradation(name)
    image = photograph()
    for index in range(4):
        results = []
        for seed in (1, 2):
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            torch.manual_seed(seed)
            before = (random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state())  # noqa: NPY002
            results.append(degrade(image, rng(index)))
            assert random.getstate() == before[0]
            np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
            assert torch.equal(torch.get_rng_state(), before[2])
        for first, second in zip(*results):
            np.testing.assert_array_equal(first, second)
        assert not np.array_equal(degrade(image, rng(index + 1))[0], results[0][0])
    np.testing.assert_array_equal(image, photograph())


def test_importing_basicsr_leaves_numpy_its_warnings(monkeypatch):
    load_degradations()
    monkeypatch.delitem(sys.modules, "basicsr.data.degradations")
    with np.errstate(divide="raise", invalid="warn"):
        load_degradations.__wrapped__()
        assert np.geterr()["divide"] == "raise"
        assert np.geterr()["invalid"] == "warn"
    with np.errstate(all="raise"):
        assert np.isfinite(Kernel("sinc", 7, cutoff=2.0).array()).all()


@pytest.mark.parametrize("name", DEGRADATIONS)
@pytest.mark.parametrize("shape", [(37, 61), (16, 16), (2, 3)])
def test_sizes_stay_and_values_are_in_range(name, shape):
    degrade = build_degradation(name)
    image = photograph(*shape)
    for index in range(12):
        for result in degrade(image, rng(index)):
            assert result.shape == (*shape, 3)
            assert result.dtype == np.float32
            assert np.isfinite(result).all()
            if name != "noise":
                assert result.min() >= 0
                assert result.max() <= 1


# What each stage does


def test_codeformer_without_its_stages_is_nearly_the_image():
    gentle = {"blur_sigma": (0.1, 0.1), "downsample": (1, 1), "noise": (0, 0), "jpeg": (100, 100)}
    image = photograph(96, 96)
    degraded, target = build_degradation("codeformer", **gentle)(image, rng())
    assert target is image
    assert psnr(degraded, image) > 33  # chroma is subsampled
    worse = {
        "blur_sigma": (3, 3), "downsample": (4, 4), "noise": (15, 15), "jpeg": (30, 30),
    }  # fmt: skip
    for name, value in worse.items():
        single, _ = build_degradation("codeformer", **gentle | {name: value})(image, rng())
        assert psnr(single, image) < psnr(degraded, image) - 3, name


def test_codeformer_adds_noise_at_the_small_size():
    grey = np.full((256, 256, 3), 0.5, np.float32)
    gentle = {"blur_sigma": (0.1, 0.1), "noise": (15, 15), "jpeg": (100, 100)}
    for downsample, least, most in ((1, -0.05, 0.05), (8, 0.9, 1)):
        degrade = build_degradation("codeformer", downsample=(downsample, downsample), **gentle)
        luma = degrade(grey, rng())[0] @ np.float32([0.299, 0.587, 0.114]) - 0.5
        neighbours = np.corrcoef(luma[:, :-1].ravel(), luma[:, 1:].ravel())[0, 1]
        assert least < neighbours < most
    plain = build_degradation("codeformer", downsample=(1, 1), **gentle)(grey, rng())[0] @ np.float32([0.3, 0.59, 0.11])
    assert plain.std() * 255 == pytest.approx(15 * np.linalg.norm([0.299, 0.587, 0.114]), rel=0.03)


@pytest.mark.parametrize("sigma", [15, 25, 50])
def test_blind_noise_has_its_level_and_is_not_clipped(sigma):
    image = photograph(256, 256)
    noisy, target = build_degradation("noise", sigma=(sigma, sigma))(image, rng())
    noise = noisy - image
    assert target is image
    assert noise.std() * 255 == pytest.approx(sigma, rel=0.01)
    assert abs(noise.mean()) * 255 < 5 * sigma / np.sqrt(noise.size)
    assert noisy.min() < 0
    assert noisy.max() > 1


def test_blind_noise_levels_are_uniform():
    image = np.full((24, 24, 3), 0.5, np.float32)
    degrade = build_degradation("noise")
    levels = np.array([(degrade(image, rng(i))[0] - image).std() * 255 for i in range(1000)])
    assert levels.mean() == pytest.approx(25, abs=5 * 50 / np.sqrt(12 * 1000))
    assert np.histogram(levels, bins=5, range=(0, 50))[0] == pytest.approx(np.full(5, 200), abs=65)


def test_the_realistic_share_is_rounded_and_the_rest_is_not():
    degrade = build_degradation("noise", realistic=0.3)
    image = photograph(16, 16)

    def whole(array: np.ndarray) -> bool:
        return bool(np.abs(array * 255 - np.rint(array * 255)).max() < 1e-3)

    assert_share([whole(degrade(image, rng(i))[0]) for i in range(500)], 0.3)


@pytest.mark.parametrize("brightness", [0.2, 0.5, 0.8])
def test_camera_noise_grows_with_brightness(brightness):
    image = np.full((128, 128, 3), brightness, np.float32)
    noise = (camera_noise(image, CameraDraw(20.0, 8.0, None, None), rng()) - image) * 255
    assert noise.std() == pytest.approx(np.sqrt(8**2 + 20**2 * brightness), rel=0.02)
    assert abs(noise.mean()) < 0.5


def test_correlated_camera_noise_keeps_its_level():
    image = np.full((256, 256, 3), 0.5, np.float32)
    for correlation, neighbours in ((None, 0.0), (0.8, np.exp(-1 / (4 * 0.8**2)))):
        noise = (camera_noise(image, CameraDraw(0.0, 10.0, correlation, None), rng()) - image) * 255
        assert noise.std() == pytest.approx(10, rel=0.02)
        assert np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1] == pytest.approx(neighbours, abs=0.02)
    compressed = camera_noise(image, CameraDraw(0.0, 10.0, None, 30.0), rng())
    assert compressed.std() * 255 < 7  # JPEG drops what it cannot see


@pytest.mark.parametrize("grey", [False, True])
def test_poisson_noise_is_that_of_basicsr(grey):
    image = photograph(96, 96)
    state = np.random.get_state()  # noqa: NPY002
    theirs = load_degradations().generate_poisson_noise(image, 2.0, grey)
    np.random.set_state(state)  # noqa: NPY002
    ours = poisson_noise(rng(), image, 2.0, grey)
    assert np.broadcast_to(ours, image.shape).std() == pytest.approx(theirs.std(), rel=0.05 if grey else 0.03)
    bright = image.mean(-1) > 0.6
    ratio = [noise[bright].std() / noise[~bright].std() for noise in (np.broadcast_to(ours, image.shape), theirs)]
    assert ratio[0] == pytest.approx(ratio[1], rel=0.08)
    assert ratio[0] > 1.2


# Real-ESRGAN on arrays and on tensors


def quiet(**changes) -> RealESRGANSettings:
    """Without noise, so that both paths compute the same."""
    settings = RealESRGANSettings(**changes)
    passes = {
        name: dataclasses.replace(getattr(settings, name), noise=(0, 0), gaussian_probability=1.0)
        for name in ("first", "second")
    }
    return dataclasses.replace(settings, **passes)


def test_the_target_is_sharpened_where_asked():
    image = photograph(96, 96)
    _, sharp = build_degradation("realesrgan")(image, rng())
    from basicsr.utils.img_process_util import usm_sharp

    np.testing.assert_array_equal(sharp, usm_sharp(image))
    assert np.abs(np.diff(sharp, axis=0)).mean() > 1.1 * np.abs(np.diff(image, axis=0)).mean()
    assert build_degradation("realesrgan", sharpen=False)(image, rng())[1] is image
    _, on_tensors = degrade_batch(tensor(image), [(1, 0)], RealESRGANSettings(), 5)
    np.testing.assert_allclose(
        on_tensors[0].numpy().transpose(1, 2, 0), sharp, atol=1e-3
    )  # some pixels meet the threshold


@pytest.mark.parametrize("jpeg_last", [True, False])
def test_the_order_and_sizes_of_the_second_order_degradation(monkeypatch, jpeg_last):
    done = []

    def record(name):
        real = getattr(realesrgan, name)

        def stage(*arguments):
            result = real(*arguments)
            done.append((name, result.shape[:2]))
            return result

        monkeypatch.setattr(realesrgan, name, stage)

    for name in ("sharpen", "blur", "resize", "gaussian_noise", "poisson_noise", "jpeg"):
        record(name)
    settings = RealESRGANSettings(final_sinc_probability=1, second=realesrgan.SecondPass(blur_probability=1))
    index = next(i for i in range(50) if draw_realesrgan(settings, rng(i)).jpeg_last == jpeg_last)
    drawn = draw_realesrgan(settings, rng(index))
    realesrgan.degrade_realesrgan(photograph(80, 120), settings, rng(index))
    full, small = (80, 120), (20, 30)
    first = (int(80 * drawn.first.resize), int(120 * drawn.first.resize))
    second = (int(20 * drawn.second.resize), int(30 * drawn.second.resize))
    expected = [("sharpen", full), ("blur", full), ("resize", first), (drawn.first.noise + "_noise", first)]
    expected += [("jpeg", first), ("blur", first), ("resize", second), (drawn.second.noise + "_noise", second)]
    end = [("resize", small), ("blur", small)]
    expected += [*end, ("jpeg", small)] if jpeg_last else [("jpeg", second), *end]
    assert done == [*expected, ("resize", full)]


def test_both_paths_compute_the_same_but_for_noise_and_jpeg(monkeypatch):
    """To the last bits without area resizing, which OpenCV weights by area and torch by whole pixels."""
    monkeypatch.setattr(realesrgan, "jpeg", lambda image, quality: image)
    monkeypatch.setattr(batch, "_jpeg", lambda image, quality: image.clamp(0, 1))
    image = photograph(96, 128)
    degrade = build_degradation("realesrgan", quiet())
    areas = []
    for index in range(24):
        drawn = draw_realesrgan(quiet(), rng(index))
        areas.append("area" in (drawn.first.mode, drawn.second.mode, drawn.final_mode))
        on_arrays, _ = degrade(image, rng(index))
        on_tensors, _ = degrade_batch(tensor(image), [(1, index)], quiet(), 5)
        assert psnr(on_tensors[0].numpy().transpose(1, 2, 0), on_arrays) > (30 if areas[-1] else 70), index
    assert 4 < sum(areas) < 22


@pytest.mark.parametrize("quality", [30, 60, 95, 100])
def test_both_paths_compress_alike(quality):
    image = photograph(90, 75)  # not whole blocks
    on_arrays = jpeg(image, quality)
    on_tensors = batch._jpeg(tensor(image), quality)[0].numpy().transpose(1, 2, 0)
    losses = [psnr(image, on_arrays), psnr(image, on_tensors)]
    assert losses[0] == pytest.approx(losses[1], abs=1.5)
    assert psnr(on_arrays[-10:, -10:], on_tensors[-10:, -10:]) > 27  # no black border rings into the corner


def test_both_paths_draw_noise_of_the_same_strength():
    image = photograph(64, 64)
    loud = RealESRGANSettings(sharpen=False)
    keys = [(1, index) for index in range(40)]
    images = tensor(image).expand(len(keys), -1, -1, -1)
    on_tensors = degrade_batch(images, keys, loud, 5)[0].numpy().transpose(0, 2, 3, 1)
    degrade = build_degradation("realesrgan", loud)
    on_arrays = np.stack([degrade(image, rng(index))[0] for index in range(len(keys))])
    errors = [np.sqrt(((path - image) ** 2).mean((1, 2, 3))) for path in (on_arrays, on_tensors)]
    assert errors[1].mean() == pytest.approx(errors[0].mean(), rel=0.05)
    assert np.corrcoef(*errors)[0, 1] > 0.9  # the same draws are strong, and the same are weak


def test_batches_may_be_split_in_any_way():
    images = torch.cat([tensor(photograph(64, 48)), tensor(photograph(64, 48)[::-1])] * 2)
    keys = [(3, 0), (3, 1), (3, 2), (4, 0)]
    settings = RealESRGANSettings()
    state = torch.get_rng_state()
    whole = degrade_batch(images, torch.tensor(keys), settings, 9)
    torch.rand(3)
    parts = [degrade_batch(images[[n]], [keys[n]], settings, 9) for n in (2, 0, 3, 1)]
    for number in (0, 1):
        together = torch.cat([parts[n][number] for n in (1, 3, 0, 2)])
        # 8 bits and JPEG round: a value on a border may fall either way. Another key is 0.05 away.
        assert (whole[number] - together).square().mean().sqrt() < 1e-3
        assert whole[number].shape == images.shape
        assert whole[number].dtype == torch.float32
        assert whole[number].min() >= 0
        assert whole[number].max() <= 1
    torch.set_rng_state(state)
    degrade_batch(images, keys, settings, 9)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(whole[0], degrade_batch(images, keys, settings, 10)[0])
    assert not torch.equal(whole[0][0], whole[0][2])  # one image, two keys


def test_small_patches_go_through_the_batch_path():
    keys = [(1, index) for index in range(20)]
    degraded, _ = degrade_batch(tensor(photograph(26, 27)).expand(20, -1, -1, -1), keys, RealESRGANSettings(), 1)
    assert torch.isfinite(degraded).all()
    assert len({float(sample.mean()) for sample in degraded}) == 20


def test_what_the_batch_path_refuses():
    settings = RealESRGANSettings()
    with pytest.raises(DataError, match=r"26 pixels.*\(1, 3, 20, 64\)"):
        degrade_batch(torch.zeros(1, 3, 20, 64), [(1, 0)], settings, 1)
    with pytest.raises(DataError, match="2 images, but 1 keys"):
        degrade_batch(torch.zeros(2, 3, 32, 32), [(1, 0)], settings, 1)


# Building


def test_degradations_are_built_by_name():
    for name, kind in DEGRADATIONS.items():
        built = build_degradation(name)
        assert built == build_degradation(name, kind())
        assert pickle.dumps(built) == pickle.dumps(build_degradation(name))  # as spawned workers get it
    changed = build_degradation("noise", BlindNoiseSettings(realistic=0.5), sigma=(25, 25))
    assert (changed.settings.sigma, changed.settings.realistic) == ((25, 25), 0.5)
    assert repr(changed) != repr(build_degradation("noise"))


def test_settings_are_read_as_configuration():
    settings = load_config(RealESRGANSettings, None, ["second.noise=[0, 5]", "first.poisson=[0, 1]", "scale=2"])
    assert settings.second.noise == (0, 5)
    assert settings.second.blur_sigma == (0.2, 1.5)
    assert settings.first.poisson == (0, 1)
    with pytest.raises(ConfigError, match=r"jpeg is a range \[low, high\] in \[1, 100\], got \[30, 101\]"):
        load_config(CodeFormerSettings, None, ["jpeg=[30, 101]"])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gaussian", {}, "no degradation 'gaussian'. Known: codeformer, realesrgan, face, noise"),
        ("noise", {"level": 3}, "degradation noise: .*level"),
        ("noise", {"sigma": (30, 20)}, r"sigma is a range \[low, high\] at least 0, got \[30, 20\]"),
        ("noise", {"realistic": 1.5}, "realistic is a probability, got 1.5"),
        ("codeformer", {"kernel_size": 40}, "kernel_size is an odd number, got 40"),
        ("codeformer", {"kernel_shares": (0.5, 0.6)}, "kernel_shares are probabilities with the sum 1"),
        ("codeformer", {"blur_sigma": (0, float("nan"))}, "blur_sigma is a range"),
        ("realesrgan", {"beta_plateau": (2, 3)}, "beta_plateau is a range"),
        ("realesrgan", {"kernel_sizes": (6, 21)}, "kernel_sizes are two odd numbers"),
        ("realesrgan", {"scale": 0}, "scale is at least 1"),
        ("realesrgan", {"settings": CodeFormerSettings()}, "realesrgan takes RealESRGANSettings, got CodeFormer"),
    ],
)
def test_impossible_settings_are_refused(name, changes, message):
    with pytest.raises(ConfigError, match=message):
        build_degradation(name, **changes)


def test_impossible_images_are_refused():
    for image in (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.float32), np.zeros((8, 8, 4), np.float32)):
        with pytest.raises(DataError, match=r"expected an \(H, W, 3\) float32 array"):
            build_degradation("noise")(image, rng())
