"""KADID's distortions: the table, what holds for both generators, and the clipping one against formulas of its own.

The published generator is held by its own outputs in test_kadid_published.py.
"""

from __future__ import annotations

import functools
import io
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage import color, filters

from milo_restore import MILO
from milo_restore.data import held_out_photographs, read_image, to_tensor
from milo_restore.data.kadid import DISTORTIONS, GENERATORS, LEVELS, clipped, find_distortion, model
from milo_restore.data.kadid import distort as distort_by
from milo_restore.data.kadid.clipped import _disk, _line
from milo_restore.errors import ConfigError, DataError, NumericsError

EVERY = [(kind.number, level) for kind in DISTORTIONS for level in range(1, LEVELS + 1)]
RANDOM = {3, 5, 11, 12, 13, 14, 15, 19, 20, 23}
SIZES = [(16, 16), (17, 53), (40, 16), (64, 49)]
distort = functools.partial(distort_by, generator="clipped")


@pytest.fixture(scope="module")
def photograph():
    """The cat, 160x192 pixels."""
    return held_out_photographs()[0][1][60:220, 100:292].copy()


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def grey(value, side=256):
    return np.full((side, side, 3), value, np.uint8)


def level(number, level):
    return DISTORTIONS[number - 1].levels[level - 1]


def psnr(image, reference):
    error = np.mean((image.astype(float) - reference) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


# --- the table


def test_the_table_is_kadids():
    assert [kind.number for kind in DISTORTIONS] == list(range(1, 26))
    assert {kind.number for kind in DISTORTIONS if kind.random} == RANDOM
    assert {kind.number for kind in DISTORTIONS if not kind.ordered} == {18, 25}
    assert len({kind.name for kind in DISTORTIONS}) == 25
    groups = [len(list(members)) for _, members in itertools.groupby(DISTORTIONS, lambda kind: kind.group)]
    assert groups == [3, 5, 2, 5, 3, 5, 2]
    assert DISTORTIONS[9].levels == (43, 36, 24, 7, 4)
    assert DISTORTIONS[8].levels[4] == 400
    assert [sum(kind.levels) for kind in DISTORTIONS] == pytest.approx(
        [8.6, 21, 23, 30, 30, 168, 0.3, 21, 613, 114, 0.021, 0.0066, 0.066, 0.086, 0.34, 2.5, 1.55, 0, 1.85, 300, 0.86,
         66, 30, 24, -0.55]
    )  # fmt: skip


def test_every_distortion_names_its_parameter_and_unit():
    for kind in DISTORTIONS:
        text = " ".join(kind.apply.__doc__.split())
        assert text.startswith(f"{kind.number:02d}: ")
        assert "the parameter" in text.lower(), kind.name
        assert {"pixels": "pixels", "values in [0, 1]": "values in [0, 1]", "share of values": "share of values",
                "": ""}[kind.unit] in text, kind.name  # fmt: skip


def test_distortions_are_found_by_number_and_name():
    assert find_distortion("11").name == "white noise"
    assert find_distortion(25).number == 25
    assert find_distortion("Colour_Quantisation").number == 6
    assert find_distortion("non eccentricity patch").number == 20
    with pytest.raises(ConfigError, match="Did you mean 'gaussian blur'"):
        find_distortion("gausian blur")
    with pytest.raises(ConfigError, match="numbers are 1 to 25"):
        find_distortion("26")


# --- what holds for all


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("size", SIZES)
def test_shape_type_and_determinism(size, generator):
    image = random_image(*size)
    before = image.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, level in EVERY:
            result = distort_by(image, number, level, seed=5, generator=generator)
            assert result.shape == image.shape
            assert result.dtype == np.uint8
            assert not np.shares_memory(result, image)
            again = distort_by(image, number, level, seed=5, generator=generator)
            np.testing.assert_array_equal(result, again, f"{number} level {level}")
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("value", [0, 128, 255])
def test_flat_images_survive(value, generator):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, level in EVERY:
            assert distort_by(grey(value, 33), number, level, generator=generator).shape == (33, 33, 3)


@pytest.mark.parametrize("generator", GENERATORS)
def test_only_the_random_ones_depend_on_the_seed(photograph, generator):
    for kind in DISTORTIONS:
        results = [
            distort_by(photograph, kind.number, 5, seed=seed, generator=generator).tobytes() for seed in range(4)
        ]
        # Type 5's displacements are whole pixels, of which there are some 64 (published: 19): two may fall together.
        assert len(set(results)) in ((3, 4) if kind.number == 5 else (4,) if kind.random else (1,)), kind.name


@pytest.mark.parametrize("generator", GENERATORS)
def test_views_and_copies_give_the_same(photograph, generator):
    view = np.asfortranarray(photograph)[::2, ::-1]
    for number in (11, 20, 9):
        one, other = (distort_by(each, number, 3, generator=generator) for each in (view, view.copy()))
        np.testing.assert_array_equal(one, other)


def test_images_and_levels_draw_apart():
    """The noise of two flat images, and of two levels, is as independent as that of two seeds."""
    noises = [distort(grey(value), 11, level, seed=seed).astype(float).ravel() - value
              for value, level, seed in ((120, 3, 0), (121, 3, 0), (120, 4, 0), (120, 3, 1))]  # fmt: skip
    assert np.abs(np.corrcoef(noises) - np.eye(4)).max() < 0.01
    places = {np.argwhere((distort(grey(value), 23, 1) != value).any(2)).tobytes() for value in range(100, 110)}
    assert len(places) == 10


def test_the_identities(photograph):
    for number, level in ((18, 3), (25, 3), (1, 1), (3, 1), (8, 1)):
        np.testing.assert_array_equal(distort(photograph, number, level), photograph, f"{number} level {level}")
    changed = [pair for pair in EVERY if (distort(photograph, *pair) != photograph).any()]
    assert len(changed) == 120  # all others


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("number", [1, 2, 6, 9, 10, 11, 12, 13, 14, 15, 16, 17, 19, 21, 22, 24])
def test_psnr_falls_from_level_to_level(photograph, number, generator):
    whole = distort_by(photograph, 18, 3, generator=generator)  # published: the stretched photograph
    values = [psnr(distort_by(photograph, number, level, generator=generator), whole) for level in range(1, 6)]
    assert all(first > second for first, second in itertools.pairwise(values)), values


@pytest.mark.parametrize(("arguments", "error", "words"), [
    ((random_image(20, 20), 0, 1), ConfigError, "distortion: must be a whole number from 1 to 25, got 0"),
    ((random_image(20, 20), 26, 1), ConfigError, "got 26"),
    ((random_image(20, 20), 1.0, 1), ConfigError, "got 1.0"),
    ((random_image(20, 20), 1, 6), ConfigError, "level: must be a whole number from 1 to 5"),
    ((random_image(20, 20), 1, True), ConfigError, "got True"),
    ((random_image(20, 20), 11, 1, 2**63), ConfigError, "seed: must be a whole number of 64 bits"),
    ((random_image(20, 15), 1, 1), DataError, "at least 16x16 pixels, got 15x20"),
    ((random_image(20, 20)[..., 0], 1, 1), DataError, r"got \(20, 20\) uint8"),
    ((random_image(20, 20) / 255, 1, 1), DataError, "float64"),
    ((torch.zeros(20, 20, 3), 1, 1), DataError, "got Tensor"),
])  # fmt: skip
def test_wrong_input_is_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        distort(*arguments[:3], seed=arguments[3] if len(arguments) > 3 else 0)


def test_another_generator_is_refused():
    with pytest.raises(ConfigError, match="generator: no generator 'kadid'. There are published and clipped"):
        distort_by(random_image(20, 20), 1, 1, generator="kadid")


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("result", [np.full((20, 20, 3), np.nan, np.float32), np.zeros((20, 19, 3), np.float32)])
def test_nan_and_another_size_do_not_pass(monkeypatch, result, generator):
    broken = model.Distortion(1, "x", "x", "x", "", (1, 2, 3, 4, 5), lambda image, value: result)
    monkeypatch.setattr(model, "DISTORTIONS", (broken, *DISTORTIONS[1:]))
    monkeypatch.setattr(model, "CHANGED", {})
    with pytest.raises(NumericsError, match="distortion 1, level 2"):
        distort_by(random_image(20, 20), 1, 2, generator=generator)


# --- the clipping generator, each against a formula


def test_gaussian_blur_is_scipys(photograph):
    for number in (3, 5):
        sigma = level(1, number)
        radius = math.ceil(2 * sigma)
        expected = np.stack([ndimage.gaussian_filter(photograph[..., c].astype(float), sigma, radius=radius,
                                                     mode="reflect") for c in range(3)], 2)  # fmt: skip
        assert np.abs(distort(photograph, 1, number) - expected).max() < 0.6


def test_the_disk_has_the_right_area_and_the_line_the_right_length():
    for radius in (1, 2, 4, 6, 8):
        disk = _disk(radius)
        assert disk.sum() == pytest.approx(1, abs=1e-5)
        assert disk.max() == pytest.approx(1 / (math.pi * radius**2), rel=0.02)
        np.testing.assert_allclose(disk, disk.T[::-1], atol=1e-7)
    for length, angle in itertools.product((1, 2, 4, 6, 10), (0.0, 0.7, math.pi / 2, 2.5)):
        line = _line(length, angle)
        assert line.sum() == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(line, line[::-1, ::-1], atol=1e-6)
        rows, columns = np.indices(line.shape) - line.shape[0] // 2
        along = rows * math.sin(angle) + columns * math.cos(angle)
        across = rows * math.cos(angle) - columns * math.sin(angle)
        assert abs((line * along**2).sum() - length**2 / 12) < 0.4  # that of a uniform line
        assert (line * across**2).sum() < 0.3
    np.testing.assert_allclose(_line(4, 0.0)[3], [0, 0.125, 0.25, 0.25, 0.25, 0.125, 0], atol=1e-6)  # as in MATLAB


def test_blurs_keep_the_mean(photograph):
    for number, at in itertools.product((1, 2, 3), range(1, 6)):
        assert abs(distort(photograph, number, at).mean() - photograph.mean()) < 1


def test_colours_in_lab(photograph):
    lab = color.rgb2lab(photograph)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scikit-image: colours out of range
        for at in (2, 5):
            expected = color.lab2rgb(lab * [1, level(8, at), level(8, at)])
            assert np.abs(distort(photograph, 8, at) / 255 - expected).max() < 0.6 / 255
        diffused = lab.copy()
        for channel in (1, 2):
            diffused[..., channel] = 3 * ndimage.gaussian_filter(lab[..., channel], 6.5, radius=13, mode="reflect")
        assert np.abs(distort(photograph, 4, 2) / 255 - color.lab2rgb(diffused)).max() < 1.1 / 255


def test_colour_shift_moves_green_and_only_green(photograph):
    for at in range(1, 6):
        result = distort(photograph, 5, at)
        np.testing.assert_array_equal(result[..., [0, 2]], photograph[..., [0, 2]])
        assert (result[..., 1] != photograph[..., 1]).mean() > 0.3
    edge = grey(40, 96)
    edge[30:60, 30:60] = 200
    result = distort(edge, 5, 4)[..., 1].astype(float)
    # At the edge the blend is full: what was moved away by 8 pixels is as dark as the surroundings, or nearly.
    assert result[30:60, 30:60].min() < 90
    assert (result[:8] == 40).all()


def test_colour_quantisation_has_no_more_colours_than_asked(photograph):
    counts = [len(np.unique(distort(photograph, 6, at).reshape(-1, 3), axis=0)) for at in range(1, 6)]
    assert all(count <= most for count, most in zip(counts, (64, 48, 32, 16, 8)))
    assert counts[4] == 8
    ramp = np.repeat(np.linspace(0, 255, 256).round().astype(np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    assert np.abs(distort(ramp, 6, 5).mean(0) - ramp.mean(0)).max() < 40  # dithered: right on average
    assert (distort(ramp, 6, 5)[0] != distort(ramp, 6, 5)[1]).any()


def test_saturation_in_hsv(photograph):
    hsv = color.rgb2hsv(photograph)
    for at in range(1, 6):
        expected = color.hsv2rgb(hsv * [1, level(7, at), 1]).clip(0, 1)
        assert np.abs(distort(photograph, 7, at) / 255 - expected).max() < 0.51 / 255
    without = distort(photograph, 7, 4)
    np.testing.assert_array_equal(without, photograph.max(2, keepdims=True).repeat(3, 2))


def test_jpeg_is_pillows(photograph):
    for at, quality in enumerate((43, 36, 24, 7, 4), 1):
        file = io.BytesIO()
        Image.fromarray(photograph).save(file, "JPEG", quality=quality)
        np.testing.assert_array_equal(distort(photograph, 10, at), np.asarray(Image.open(file)))


def test_jpeg2000_keeps_the_ratio():
    image = held_out_photographs()[0][1]
    for at, ratio in enumerate((16, 32, 45, 120, 400), 1):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG2000", quality_mode="rates", quality_layers=[ratio], irreversible=True)
        np.testing.assert_array_equal(distort(image, 9, at), np.asarray(Image.open(file)))
        assert image.size / len(file.getvalue()) == pytest.approx(ratio, rel=0.25)


@pytest.mark.parametrize("at", range(1, 6))
def test_noise_has_its_variance(at):
    noise = (distort(grey(128), 11, at) / 255 - 128 / 255).reshape(-1, 3)
    assert noise.var() == pytest.approx(level(11, at), rel=0.02)
    assert abs(noise.mean()) < 1e-3
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.02
    colour = color.rgb2ycbcr(distort(grey(128), 12, at)).reshape(-1, 3) / 255
    assert colour.var(axis=0) == pytest.approx(level(12, at) * np.ones(3), rel=0.1)
    factor = distort(grey(128), 14, at) / 128 - 1
    assert factor.var() == pytest.approx(level(14, at), rel=0.02)
    assert (distort(grey(0), 14, at) == 0).all()


def test_the_noise_in_ycbcr_seen_in_rgb():
    noise = (distort(grey(128), 12, 5) / 255).reshape(-1, 3)
    assert noise.var(axis=0) / level(12, 5) == pytest.approx([3.9, 2.2, 5.4], rel=0.03)  # told in the docstring


@pytest.mark.parametrize("at", range(1, 6))
def test_salt_and_pepper_have_their_density(at):
    result = distort(grey(128, 512), 13, at)
    for value in (0, 255):
        assert (result == value).mean() == pytest.approx(level(13, at) / 2, rel=0.12)
    assert set(np.unique(result)) == {0, 128, 255}
    hit = result != 128
    assert (hit.any(2) & ~hit.all(2)).mean() > 2 * level(13, at)  # channels apart


def test_denoising_takes_most_noise_away(photograph):
    for at in range(1, 6):
        variance = level(15, at)
        flat = distort(grey(128), 15, at) / 255
        assert flat.var() < 0.12 * variance
        assert abs(flat.mean() - 128 / 255) < 0.02
    sharp, smooth = (np.abs(np.diff(image.astype(float), axis=0)).mean() for image in
                     (photograph, ndimage.gaussian_filter(distort(photograph, 15, 1), (1, 1, 0))))  # fmt: skip
    assert smooth < sharp


def test_tone_curves(photograph):
    ramp = np.arange(256, dtype=np.uint8)[None, :, None].repeat(16, 0).repeat(3, 2)
    x = np.arange(256) / 255
    for at, amount in enumerate((0.3, 0.15, 0, -0.4, -0.6), 1):
        cubic = np.polyfit([0, 0.25, 0.75, 1], [0, 0.25 - amount / 4, 0.75 + amount / 4, 1], 3)
        assert np.abs(distort(ramp, 25, at)[0, :, 0] / 255 - np.polyval(cubic, x).clip(0, 1)).max() < 0.51 / 255
    # On greys Lab's lightness is not linear in the value: two thirds of the result are the parabola.
    lightness = color.rgb2lab(ramp[:1])[0, :, 0] / 100
    for number, sign in ((16, 1), (17, -1)):
        for at in range(1, 6):
            bend = sign * 2 * level(number, at)
            lab = np.zeros((1, 256, 3))
            lab[0, :, 0] = 100 * (lightness + bend * lightness * (1 - lightness)).clip(0, 1)
            expected = (2 * (x + bend * x * (1 - x)).clip(0, 1) + color.lab2rgb(lab)[0, :, 0]) / 3
            assert np.abs(distort(ramp, number, at)[0, :, 0] / 255 - expected).max() < 1 / 255
    means = [distort(photograph, number, at).mean() for number, at in ((17, 5), (17, 1), (16, 1), (16, 5))]
    assert means == sorted(means)
    assert means[1] < photograph.mean() < means[2]


def test_mean_shift_moves_the_mean():
    for at, shift in enumerate((0.15, 0.08, 0, -0.08, -0.15), 1):
        np.testing.assert_array_equal(distort(grey(100), 18, at), grey(round(100 + 255 * shift)))
    assert (distort(grey(250), 18, 1) == 255).all()


def test_jitter_displaces_by_its_deviation():
    """On a ramp of slope 2 per pixel, bilinear displacement is read off the values; five passes add up."""
    ramp = (2 * np.arange(127, dtype=np.uint8) + 1)[None, :, None].repeat(128, 0).repeat(3, 2)
    for at in (3, 4, 5):
        moved = (distort(ramp, 19, at)[:, 12:-12].astype(float) - ramp[:, 12:-12]) / 2
        # Each pass averages the earlier ones' displacements over two pixels by two, which shrinks them.
        assert 1.0 < moved.std() / level(19, at) <= math.sqrt(5) + 0.2
        assert abs(moved.mean()) < 0.05
        np.testing.assert_array_equal(moved[..., 0], moved[..., 2])  # the channels move together


def test_patches_come_from_nearby():
    image = np.zeros((160, 160, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(160)[:, None], np.arange(160)[None, :]  # every pixel tells its place
    for at in range(1, 6):
        result = distort(image, 20, at).astype(int)
        far = np.abs(result[..., :2] - image[..., :2]).max(2)
        changed = (far > 0).mean()
        assert 0.1 < changed < level(20, at) * 256 / 160**2
        assert (far[far > 0] <= 8 * 5).all()  # patches of patches of patches
        assert (far <= 8).mean() > 0.8


def test_pixelate_counts():
    for at in range(1, 6):
        image = random_image(100, 140)
        result = distort(image, 21, at)
        factor = 0.95 - level(21, at) ** 0.6
        rows = 1 + (np.abs(np.diff(result.astype(int), axis=0)).max((1, 2)) > 0).sum()
        columns = 1 + (np.abs(np.diff(result.astype(int), axis=1)).max((0, 2)) > 0).sum()
        assert (rows, columns) == (round(100 * factor), round(140 * factor))
        assert {tuple(colour) for colour in result.reshape(-1, 3)} <= {tuple(c) for c in image.reshape(-1, 3)}


def test_quantisation_is_multi_level_otsu(photograph):
    for classes in (2, 3, 4):
        thresholds = filters.threshold_multiotsu(photograph.reshape(-1, 1), classes, hist=_counts(photograph))
        table = clipped._class_means(np.bincount(photograph.ravel(), minlength=256), classes)
        region = np.digitize(photograph, thresholds, right=True)
        expected = np.array([round(photograph[region == i].mean()) for i in range(classes)])[region]
        np.testing.assert_array_equal(table[photograph], expected)
    counts = [len(np.unique(distort(photograph, 22, at))) for at in range(1, 6)]
    assert counts == [20, 16, 13, 10, 7]
    assert all(abs(distort(photograph, 22, at).mean() - photograph.mean()) < 0.5 for at in range(1, 6))
    few = grey(9, 32)
    few[:5] = 70  # fewer values than levels: nothing to merge
    np.testing.assert_array_equal(distort(few, 22, 5), few)


def _counts(image):
    return np.bincount(image.ravel(), minlength=256).astype(float), np.arange(256)


def test_blocks_are_counted():
    # Blocks may overlap, so the number is the largest seen over some seeds.
    for at, blocks in ((1, 2), (3, 6)):
        areas = []
        for seed in range(20):
            changed = (distort(grey(1, 512), 23, at, seed=seed) != 1).any(2)
            areas.append(changed.sum() / 32**2)
        assert max(areas) == blocks
        assert min(areas) > 0.5 * blocks
    assert len(np.unique(distort(grey(1, 512), 23, 5).reshape(-1, 3), axis=0)) in (10, 11)  # and the background
    assert len(np.unique(distort(random_image(16, 20), 23, 5).reshape(-1, 3), axis=0)) < 16 * 20


def test_sharpening_on_a_step():
    step = grey(90, 64)
    step[:, 32:] = 150
    lab = color.rgb2lab(step)[..., 0]
    blurred = ndimage.gaussian_filter(lab, 3, radius=6, mode="reflect")
    for at in (1, 3):
        expected = (lab + level(24, at) * (lab - blurred)).clip(0, 100)
        got = color.rgb2lab(distort(step, 24, at))[..., 0]
        assert np.abs(got - expected).max() < 0.5
    result = distort(step, 24, 1)
    assert result[:, 31].max() < 80
    assert result[:, 32].min() > 160


# --- the order of the levels, as the metric sees it


@pytest.mark.golden
@pytest.mark.parametrize("generator", GENERATORS)
def test_milos_error_rises_with_the_level(shared, monkeypatch, generator):
    """Mean of 20 photographs. 18 and 25 have the reference in or near their middle; of the 23 ordered types all rise.

    But two of the published: 05 at level 5 only shifts what level 4 has shifted, and 21 takes uneven steps.
    """
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(shared))
    images = [read_image(path) for path in sorted((shared / "data/bsds500/val").glob("*.jpg"))[:20]]
    assert len(images) == 20
    milo = MILO.from_pretrained("official")
    means = {}
    with torch.no_grad():
        for kind in DISTORTIONS:
            # To save time only the middle is scored, but blocks and patches, being few, fall anywhere.
            side, scored = (96, 96) if kind.number in (20, 23) else (192, 48)
            whole = [_centre(image, side) for image in images]
            steps = [[distort_by(image, kind.number, at, generator=generator) for image in whole]
                     for at in range(1, 6)]  # fmt: skip
            reference, *batches = (torch.stack([to_tensor(_centre(image, scored)) for image in batch])
                                   for batch in (whole, *steps))  # fmt: skip
            means[kind.number] = [float(milo(batch, reference=reference).mean()) for batch in batches]
    falling = {number for number, values in means.items() if any(a >= b for a, b in itertools.pairwise(values))}
    uneven = {5, 21} if generator == "published" else set()
    assert falling == {18, 25} | uneven, {number: means[number] for number in falling}
    for number in (18, 25):
        least = min(means[number])
        assert means[number][0] > means[number][1] > means[number][2]
        assert means[number][3] < means[number][4]
        assert least == means[number][2] or (number, generator) == (25, "published")
        assert (least == 0) == (generator == "clipped")


def _centre(image, side):
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return np.ascontiguousarray(image[top : top + side, left : left + side])
