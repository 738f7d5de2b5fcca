"""PSNR and SSIM against their formulas, the denoising protocol, heat maps and grids."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab
from skimage.metrics import structural_similarity
from torch import nn

from milo_restore import MILO
from milo_restore.data import find_dataset, held_out_photographs, read_image, to_tensor
from milo_restore.errors import DataError, NumericsError
from milo_restore.measure import (
    comparison_grid,
    denoise,
    denoising_samples,
    evaluate_denoiser,
    heat_map,
    psnr,
    ssim,
    summary_table,
    with_colour_bar,
)

TESTS = Path(__file__).parent
RGB = np.zeros((16, 16, 3), np.uint8)


class Identity(nn.Module):
    def forward(self, x):
        return x


class Mean(nn.Module):
    """A 3x3 mean: a denoiser that is better than nothing. In training mode it would ruin the picture."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        if self.training or torch.is_grad_enabled():
            return torch.zeros_like(x)
        return self.scale * nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class Perfect(nn.Module):
    def __init__(self, clean):
        super().__init__()
        self.clean = clean

    def forward(self, x):
        return self.clean[None] + 1e-4  # less than half an 8-bit step


class NotFinite(nn.Module):
    """Gives NaN for the one of `pictures` numbered ``at``."""

    def __init__(self, at):
        super().__init__()
        self.height = pictures()[at][1].shape[0]

    def forward(self, x):
        return x * float("nan") if x.shape[2] == self.height else x


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


def test_an_idle_denoiser_scores_as_its_input():
    metric = MILO.untrained().freeze()
    scores = evaluate_denoiser(Identity(), pictures(), 25, metric)
    assert [row.name for row in scores.rows] == ["c", "a", "b"]
    for row, (_, clean) in zip(scores.rows, pictures()):
        assert (row.psnr, row.ssim) == (row.input_psnr, row.input_ssim)
        assert row.milo == pytest.approx(row.input_milo, rel=1e-5)
        # The protocol, written out: legacy seed 0 per image, float noise, clamped and rounded afterwards.
        noise = np.random.RandomState(0).normal(0, 25 / 255.0, clean.shape)
        noisy = np.clip(np.float32(clean) / 255 + noise, 0, 1)
        mse = np.mean((np.round(noisy * 255) - clean) ** 2)
        assert row.psnr == pytest.approx(10 * math.log10(255**2 / mse), abs=1e-3)
        quantised = torch.from_numpy(np.round(noisy * 255).astype(np.float32) / 255).permute(2, 0, 1)[None]
        expected = metric(quantised, reference=to_tensor(clean)[None]).item()
        assert row.milo == pytest.approx(expected, rel=1e-4)
    assert scores.means()["psnr"] == pytest.approx(np.mean([row.psnr for row in scores.rows]))


def test_a_perfect_denoiser_and_json():
    name, clean = pictures()[0]
    scores = evaluate_denoiser(Perfect(to_tensor(clean)), [(name, clean)], 50, MILO.untrained().freeze())
    row = scores.rows[0]
    assert (row.psnr, row.ssim, row.milo) == (math.inf, 1.0, 0.0)
    assert row.input_psnr < 16
    content = json.loads(json.dumps(scores.as_dict(), allow_nan=False))
    assert content["sigma"] == 50
    assert content["means"]["psnr"] is None
    assert content["images"][0]["psnr"] is None
    assert content["images"][0]["input_psnr"] == row.input_psnr


def test_evaluation_is_in_eval_mode_without_gradients_and_leaves_the_model_as_it_was():
    model = nn.Sequential(Mean(), Mean())
    model.train()
    model[1].eval()
    scores = evaluate_denoiser(model, pictures(), 25)
    assert scores.means()["psnr"] > scores.means()["input_psnr"] + 3
    assert [module.training for module in model.modules()] == [True, True, False]
    assert "milo" not in scores.means()
    assert scores.rows[0].milo is None
    assert scores.milo_weights is None


def test_a_diverged_network_is_named():
    with pytest.raises(NumericsError, match="^a: the network's output holds NaN"):
        evaluate_denoiser(NotFinite(at=1), pictures(), 25)


def test_images_that_cannot_be_measured_are_named():
    with pytest.raises(DataError, match="no images"):
        evaluate_denoiser(Identity(), [], 25)
    with pytest.raises(DataError, match="^tiny.png: sides must be at least 16, got 12x12"):
        evaluate_denoiser(Identity(), [("tiny.png", RGB[:12, :12])], 25, MILO.untrained().freeze())
    with pytest.raises(DataError, match="^tiny.png: SSIM needs sides"):
        evaluate_denoiser(Identity(), [("tiny.png", RGB[:10, :12])], 25)


def test_denoise_takes_and_gives_one_image():
    name, clean = pictures()[0]
    assert np.array_equal(denoise(Identity(), to_tensor(clean) + 0.001), clean)


def test_two_processes_share_the_images_and_agree(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    commands = [[sys.executable, str(TESTS / "evaluate_worker.py"), str(tmp_path), str(r), str(port)] for r in (0, 1)]
    running = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        for process in running:
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in running:
            process.kill()
    expected = evaluate_denoiser(Mean(), pictures(), 25).as_dict()
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        rows = [*found["scores"]["images"], found["scores"]["means"], *found["few"]["images"]]
        for row, alone in zip(rows, [*expected["images"], expected["means"], expected["images"][0]], strict=True):
            assert row.keys() == alone.keys()
            for key, value in alone.items():
                assert row[key] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), key
        assert found["error"].startswith("a: the network's output holds NaN")


def test_summary_table():
    scores = evaluate_denoiser(Mean(), pictures(), 25, MILO.untrained().freeze())
    means = scores.means()
    head, rule, line = summary_table([("Kodak24", 25.0, scores)]).splitlines()
    assert head.split()[:4] == ["data", "set", "sigma", "images"]
    assert set(rule) == {"-"}
    assert line.startswith("Kodak24   25     3       ")
    assert f"{means['input_psnr']:.2f} -> {means['psnr']:.2f}" in line
    assert f"{means['input_milo']:.5f} -> {means['milo']:.5f}" in line


def test_samples_show_input_output_target_and_mask():
    (_, clean), *_ = images = pictures()[:2]
    metric = MILO.untrained().freeze()
    grid = denoising_samples(Identity(), images, 25, metric)
    height, width = clean.shape[:2]
    assert grid.shape[0] == 24 + height + 4 + images[1][1].shape[0]
    matches = [
        x for x in range(grid.shape[1] - width + 1) if np.array_equal(grid[24 : 24 + height, x : x + width], clean)
    ]
    assert len(matches) == 1  # the target, where it belongs: after the noisy input and the output, which are equal
    first, second = grid[24 : 24 + height, :width], None
    second = [x for x in range(1, matches[0]) if np.array_equal(grid[24 : 24 + height, x : x + width], first)]
    assert len(second) == 1
    assert psnr(np.ascontiguousarray(first), clean) == evaluate_denoiser(Identity(), images, 25).rows[0].psnr
    mask = metric.mask(to_tensor(np.ascontiguousarray(first))[None], reference=to_tensor(clean)[None])
    expected = heat_map(mask[0, 0], 1.0)
    assert any(  # a value on the border of two colours may be drawn in either
        np.mean(grid[24 : 24 + height, x : x + width] == expected) > 0.999
        for x in range(matches[0] + width, grid.shape[1] - width + 1)
    )
    assert denoising_samples(Identity(), images, 25).shape[1] < grid.shape[1]


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


@pytest.mark.golden
def test_sigma_25_on_cbsd68(shared):
    paths = find_dataset("CBSD68", shared)
    images = [(path.name, read_image(path)) for path in paths[:3]]
    metric = MILO.from_pretrained(shared / "weights" / "milo" / "MILO.pth")
    scores = evaluate_denoiser(Mean(), images, 25, metric)
    for row in scores.rows:
        # Unclipped noise of sigma 25 has 20.17 dB; clamping takes some of it away.
        assert 20.17 < row.input_psnr < 21.0
        assert row.psnr > row.input_psnr + 2
        assert row.milo > 0  # and which of the two is lower depends on the texture: a mean blurs
        assert row.input_milo > 0
    assert scores.milo_weights is not None
    assert "a1d66a7e0ebe" in scores.milo_weights
