"""PSNR and SSIM against their formulas, heat maps and grids."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab
from skimage.metrics import structural_similarity

from milo_restore.data import held_out_photographs
from milo_restore.errors import DataError
from milo_restore.measure import psnr, ssim
from milo_restore.measure.metrics import Batch, Protocol, load_metric, pixel
from milo_restore.show.grid import comparison_grid, heat_map, with_colour_bar

RGB = np.zeros((16, 16, 3), np.uint8)


def pictures():
    """Three small crops of photographs, of different sizes, names out of order."""
    (_, chelsea), (_, rocket) = held_out_photographs()
    return [("c", chelsea[100:164, 100:180]), ("a", rocket[200:249, 300:351]), ("b", chelsea[50:100, 50:100])]


def noisy_version(image, spread, seed=1):
    noise = np.random.default_rng(seed).normal(0, spread, image.shape)
    return np.clip(np.round(image + noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("spread", [2, 25, 90])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_psnr_and_ssim_are_the_textbook_ones(number, spread):
    clean = pictures()[number][1]
    noisy = noisy_version(clean, spread)
    mse = np.mean((clean.astype(float) - noisy.astype(float)) ** 2)
    assert psnr(noisy, clean) == pytest.approx(10 * math.log10(255**2 / mse), abs=1e-9)
    expected = structural_similarity(
        noisy, clean, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(noisy, clean) == pytest.approx(expected, abs=1e-6)
    assert ssim(noisy, clean) < 0.999


def test_the_data_range_is_never_guessed():
    dark = np.full((32, 32, 3), 1, np.uint8)
    darker = np.zeros((32, 32, 3), np.uint8)
    assert psnr(dark, darker) == pytest.approx(20 * math.log10(255), abs=1e-9)
    assert ssim(dark, darker) == pytest.approx(2.55**2 / (1 + 2.55**2), abs=1e-6)


def test_identical_images():
    image = pictures()[0][1]
    assert psnr(image, image) == math.inf
    assert ssim(image, image) == 1.0


@pytest.mark.parametrize(
    ("image", "reference", "words"),
    [
        (RGB.astype(float), RGB, "image: expected an (H, W, 3) uint8 array, got (16, 16, 3) float64"),
        (RGB, RGB[..., 0], "reference: expected"),
        (RGB, RGB[:, :15], "shapes differ: image (16, 16, 3), reference (16, 15"),
        (torch.zeros(3, 16, 16), RGB, "got Tensor"),
    ],
)
@pytest.mark.parametrize("function", [psnr, ssim])
def test_other_arrays_are_refused(function, image, reference, words):
    with pytest.raises(DataError) as caught:
        function(image, reference)
    assert words in str(caught.value)


def test_ssim_refuses_less_than_its_window():
    small = np.zeros((10, 40, 3), np.uint8)
    with pytest.raises(DataError, match="at least 11 pixels, got 10x40"):
        ssim(small, small)


@pytest.mark.parametrize("colour", ["rgb", "y"])
@pytest.mark.parametrize("border", [0, 3])
def test_psnr_and_ssim_are_basicsrs_in_tiles_of_any_height(monkeypatch, colour, border):
    from basicsr.metrics import calculate_psnr, calculate_ssim

    clean = pictures()[1][1]
    noisy = noisy_version(clean, 25)
    options = {"crop_border": border, "test_y_channel": colour == "y"}
    expected = [
        function(noisy[..., ::-1], clean[..., ::-1], **options) for function in (calculate_psnr, calculate_ssim)
    ]
    metrics = [load_metric(name, Protocol(colour, border)) for name in ("psnr", "ssim", "mae")]
    found = []
    for pixels in (1, 51 * 7, 2**16):
        monkeypatch.setattr(pixel, "TILE_PIXELS", pixels)
        monkeypatch.setattr(pixel, "WASTE", 1)
        found.append([metric.measure(Batch([noisy], [clean]))[0] for metric in metrics])
    assert found[0] == found[1] == found[2]
    # BasicSR's Y is in float32, ours in float64.
    assert found[0][0] == (expected[0] if colour == "rgb" else pytest.approx(expected[0], abs=1e-6))
    assert found[0][1] == pytest.approx(expected[1], abs=1e-12 if colour == "rgb" else 1e-6)


def test_a_missing_row_of_the_overlap_would_be_seen(monkeypatch):
    clean = pictures()[1][1]
    noisy = noisy_version(clean, 25)
    whole, tiles = ssim(noisy, clean), pixel._tiles
    monkeypatch.setattr(pixel, "TILE_PIXELS", 1)
    monkeypatch.setattr(pixel, "WASTE", 1)
    assert ssim(noisy, clean) == whole
    monkeypatch.setattr(pixel, "_tiles", lambda *pair, luma, overlap: tiles(*pair, luma=luma, overlap=overlap + 1))
    assert abs(ssim(noisy, clean) - whole) > 1e-5


MEMORY = """
import re, resource
import numpy as np
import torch
from milo_restore.measure.metrics import Batch, load_metric

class Cheap(torch.nn.Module):  # the network's own activations are those of a tile; computing them takes long
    def forward(self, stacked):
        return stacked[:, :1] * 1

torch.set_num_threads(1)
metrics = [load_metric(name) for name in ("psnr", "ssim", "mae", "milo:mini")]
metrics[-1].module.mask_network = Cheap()

def measure(megapixels, more=None):
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY,) * 2)
    pair = [np.full((round((megapixels * 1e6) ** 0.5),) * 2 + (3,), value, np.uint8) for value in (100, 110)]
    if more is not None:  # a limit: the peak in /proc has the imports' own in it, and less where others press for pages
        data = int(re.search("VmData:(.*)kB", open("/proc/self/status").read())[1]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (data + more * 2**20, resource.RLIM_INFINITY))
    values = [metric.measure(Batch(pair[:1], pair[1:]))[0] for metric in metrics]
    assert np.isfinite(values).all()

measure(2)
measure(7, 32)
measure(16, 32)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_beside_its_8_bit_pixels_a_large_image_needs_what_a_small_one_does():
    """Within 32 MiB: at 16 megapixels one image in float32 has 183, and the masks of all coarser levels 20."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed goes back: no fragments are counted
    done = subprocess.run([sys.executable, "-c", MEMORY], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_heat_map_is_linear_monotone_and_clipped():
    values = torch.linspace(0, 4, 256).repeat(3, 1)
    picture = heat_map(values, 4)
    assert picture.shape == (3, 256, 3)
    assert picture[0, 0].max() <= 5  # black
    assert picture[0, 255].min() > 180  # pale yellow: red and green above blue
    assert picture[0, 255].argmin() == 2
    lightness = rgb2lab(picture)[0, :, 0]
    assert (np.diff(lightness) > -0.2).all()
    assert np.abs(lightness - np.linspace(lightness[0], lightness[-1], 256)).max() < 6  # perceptually uniform
    assert np.array_equal(heat_map(values * 2, 8), picture)
    assert np.array_equal(heat_map(torch.full((2, 2), 9.0), 4)[0, 0], picture[0, 255])


@pytest.mark.parametrize(("values", "top"), [(torch.zeros(1, 4, 4), 1.0), (torch.zeros(4, 4), 0.0)])
def test_heat_map_refuses(values, top):
    with pytest.raises(DataError):
        heat_map(values, top)


def test_colour_bar_keeps_the_map_and_shows_the_scale():
    picture = heat_map(torch.rand(90, 60), 2.0)
    framed = with_colour_bar(picture, 2.0, "MILO mask")
    assert np.array_equal(framed[24:114, :60], picture)
    bar = framed[24:114, 60 + 8 + 10]
    assert np.array_equal(bar[0], heat_map(torch.full((1, 1), 2.0), 2.0)[0, 0])
    assert np.array_equal(bar[-1], heat_map(torch.zeros(1, 1), 2.0)[0, 0])
    assert (framed[24:114, 60 + 8 + 20 :] < 128).any()  # the numbers


def test_grid_places_every_pixel():
    red, blue = np.full((20, 200, 3), (255, 0, 0), np.uint8), np.full((30, 160, 3), (0, 0, 255), np.uint8)
    grid = comparison_grid({"left": [red, blue], "right": [blue, red]})
    assert grid.shape == (24 + 30 + 4 + 30, 200 + 4 + 200, 3)
    assert (grid[24:44, :200] == red).all()
    assert (grid[24:54, 204:364] == blue).all()
    assert (grid[58:88, :160] == blue).all()
    assert (grid[58:78, 204:] == red).all()
    assert (grid[44:54, :200] == 255).all()
    assert (grid[:24, :200] < 128).any()


def test_grid_widens_for_a_long_title():
    small = np.zeros((8, 8, 3), np.uint8)
    assert comparison_grid({"a title wider than its image": [small], "b": [small]}).shape[1] > 150


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({}, "at least one"),
        ({"a": []}, "at least one"),
        ({"a": [np.zeros((4, 4, 3), np.uint8)], "b": []}, "'a' has 1, 'b' has 0"),
        ({"a": [np.zeros((4, 4, 3), np.float32)]}, "a: expected"),
    ],
)
def test_grid_refuses(columns, words):
    with pytest.raises(DataError, match=words):
        comparison_grid(columns)
