"""The E-metrics against upstream's own outputs, and what they refuse."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from milo_restore.errors import ConfigError, DataError, WeightsError
from milo_restore.metric import E_PIXEL, load_e_pixel
from milo_restore.metric.e_pixel import EMAE, EMSE, EPSNR, ESSIM

CLASSES = {"e-mae": EMAE, "e-mse": EMSE, "e-psnr": EPSNR, "e-ssim": ESSIM}


@pytest.fixture(scope="module")
def golden(shared):
    archive = np.load(shared / "golden" / "e_metrics.npz")
    return {key: torch.from_numpy(np.asarray(archive[key])) for key in archive.files}


@pytest.fixture(scope="module")
def official(shared):
    return {name: load_e_pixel(name) for name in E_PIXEL}


@pytest.fixture(params=E_PIXEL)
def untrained(request):
    return CLASSES[request.param]().freeze()


def picture(path):
    return torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)[None] / 255


@pytest.mark.golden
@pytest.mark.parametrize("name", ["e-mae", "e-mse"])
def test_equals_upstream(official, golden, shared, name):
    metric, key = official[name], name.replace("-", "_")
    image, reference = golden["0.dist"], golden["0.ref"]
    assert metric(image, reference=reference).item() == pytest.approx(golden[f"{key}.0"].item(), abs=1e-6, rel=1e-5)
    torch.testing.assert_close(metric.map(image, reference=reference), golden[f"{key}.0.map"], atol=1e-5, rtol=0)
    pair = shared / "data/iqa/milo_pair"
    score = metric(picture(pair / "dist.png"), reference=picture(pair / "ref.png")).item()
    assert score == pytest.approx(golden[f"{key}.pair"].item(), abs=1e-6, rel=1e-5)


@pytest.mark.golden
def test_e_ssim_equals_the_parts_of_upstream(official, golden, shared):
    ours = official["e-ssim"].map(golden["0.dist"], reference=golden["0.ref"])
    # Upstream rounds 1 - SSIM in float32; in double precision its map is 8e-6 from its own, as ours is.
    torch.testing.assert_close(ours, golden["e_ssim.0.map"], atol=1e-5, rtol=0)
    pair = shared / "data/iqa/milo_pair"
    ours = official["e-ssim"].map(picture(pair / "dist.png"), reference=picture(pair / "ref.png"))
    assert ours.mean().item() == pytest.approx(golden["e_ssim.pair.map_mean"].item(), abs=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "expected"),
    [("e-mae", 0.00326350), ("e-mse", 0.00038454), ("e-psnr", 47.847351), ("e-ssim", 0.00902012)],
)
def test_upstream_own_pair(official, shared, name, expected):
    folder = shared / "data/iqa/tid2013_subset"
    image, reference = picture(folder / "distorted_images/i23_01_3.bmp"), picture(folder / "reference_images/I23.BMP")
    score = official[name](image, reference=reference).item()
    assert score == pytest.approx(expected, abs=1e-8 if expected < 1 else 1e-5)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "identical"), [("e-mae", 4.27839), ("e-mse", 4.38870), ("e-psnr", 4.64805), ("e-ssim", 4.27463)]
)
def test_mos_falls_as_noise_rises(official, golden, name, identical):
    metric, reference = official[name], golden["0.ref"]
    noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(0))
    levels = (reference, *((reference + sigma * noise).clamp(0, 1) for sigma in (0.01, 0.03, 0.1, 0.3)))
    scores = [metric.mos(image, reference=reference).item() for image in levels]
    assert scores[0] == pytest.approx(identical, abs=1e-4)
    assert scores == sorted(scores, reverse=True)
    assert scores[0] - scores[-1] > 2
    raw = [metric(image, reference=reference).item() for image in levels]
    assert raw == sorted(raw, reverse=metric.higher_is_better)


@pytest.mark.golden
def test_scalers_never_rise_with_quality(official):
    ranges = {"e-mae": (0, 1), "e-mse": (0, 1), "e-psnr": (100, 4), "e-ssim": (0, 1)}
    for name, (best, worst) in ranges.items():
        raw = torch.linspace(best, worst, 10_001)[:, None, None, None]
        scaled = official[name].scaler(official[name].scaler_gain * raw).flatten()
        assert scaled.diff().min() > -1e-6, name
        assert scaled[-1] - scaled[0] > 0.75, name


@pytest.mark.golden
def test_dropped_weights_change_no_score(official, shared, golden):
    upstream = torch.load(shared / "weights/enhanced_iqm/E_MAE.pth", weights_only=True)
    plain = EMAE()
    plain.load_state_dict(
        {
            key.replace("mask_finder_1.conv1.0", "mask_network.0")
            .replace("mask_finder_1.conv2.0", "mask_network.2")
            .replace("mask_finder_1.conv3.0", "mask_network.4")
            .replace("scaler_network.model", "scaler"): value
            for key, value in upstream.items()
        }
    )
    expected = plain(golden["0.dist"], reference=golden["0.ref"])
    assert official["e-mae"](golden["0.dist"], reference=golden["0.ref"]).item() == pytest.approx(expected.item())
    weights = dict(official["e-mae"].named_buffers())["mask_network.2.weight"]
    assert (weights == 0).float().mean() > 0.5
    assert weights[weights != 0].abs().min() > 1e-10


@pytest.mark.golden
@pytest.mark.parametrize("name", E_PIXEL)
def test_gradient(official, golden, name):
    metric, reference = official[name], golden["0.ref"]
    image = golden["0.dist"].clone().requires_grad_()
    metric(image, reference=reference).sum().backward()
    assert torch.isfinite(image.grad).all()
    assert image.grad.abs().max() > 1e-6
    same = reference.clone().requires_grad_()
    score = metric(same, reference=reference)
    metric.mos(same, reference=reference).sum().backward()
    assert score.item() == (pytest.approx(150) if name == "e-psnr" else 0)
    assert same.grad.abs().max() == 0
    assert metric.map(reference, reference=reference).abs().max() == 0


@pytest.mark.golden
def test_official_is_found_checked_and_named(official, shared, tmp_path, monkeypatch):
    assert official["e-mae"].weights.sha256.startswith("80c8ff5e7ca0")
    assert Path(official["e-mae"].weights.path).resolve() == shared / "weights/enhanced_iqm/E_MAE.pth"
    monkeypatch.setenv("MILO_RESTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(tmp_path))
    shutil.copy(shared / "weights/enhanced_iqm/MAE.pth", tmp_path / "E_MAE.pth")  # the same shapes
    with pytest.raises(WeightsError, match=r"E_MAE\.pth: is damaged or another file"):
        load_e_pixel("e-mae")


@pytest.mark.golden
def test_files_of_other_metrics_are_refused(shared):
    with pytest.raises(WeightsError, match=r"E_MSE\.pth: holds the weights of e-mse, not of e-mae"):
        load_e_pixel("e-mae", shared / "weights/enhanced_iqm/E_MSE.pth")
    with pytest.raises(WeightsError, match=r"MILO\.pth: holds the weights of milo, not of e-ssim"):
        load_e_pixel("e-ssim", shared / "weights/milo/MILO.pth")


def test_another_architecture_is_refused(tmp_path):
    torch.save({"mask_finder_1.conv1.0.weight": torch.zeros(32, 6, 3, 3)}, tmp_path / "small.pth")
    with pytest.raises(WeightsError, match=r"small\.pth: does not fit EPSNR"):
        load_e_pixel("e-psnr", tmp_path / "small.pth")


def test_own_files_load(tmp_path):
    fresh = ESSIM()
    torch.save(fresh.state_dict(), tmp_path / "own.pth")
    image, reference = torch.rand(2, 3, 24, 24), torch.rand(2, 3, 24, 24)
    loaded = load_e_pixel("e-ssim", tmp_path / "own.pth")
    torch.testing.assert_close(loaded(image, reference=reference), fresh(image, reference=reference))


def test_unknown_metrics():
    with pytest.raises(ConfigError, match="'e-vgg': no such .*without a scaler"):
        load_e_pixel("e-vgg")
    with pytest.raises(ConfigError, match="Known: e-mae, e-mse, e-psnr, e-ssim"):
        load_e_pixel("mae")
    with pytest.raises(WeightsError, match="no mini weights"):
        load_e_pixel("e-mae", "mini")


def test_scores_of_a_batch_are_those_of_its_images(untrained):
    image, reference = torch.rand(3, 3, 37, 50), torch.rand(3, 3, 37, 50)
    for score in (untrained, untrained.mos):
        singly = torch.cat([score(image[i : i + 1], reference=reference[i : i + 1]) for i in range(3)])
        assert singly.shape == (3,)
        torch.testing.assert_close(score(image, reference=reference), singly, atol=1e-6, rtol=1e-5)
    assert untrained.map(image, reference=reference).shape == (3, 1, 37, 50)


def test_frozen_grey_and_autocast(untrained):
    assert list(untrained.parameters()) == []
    assert untrained.state_dict() == {}
    assert not untrained.training
    image, reference = torch.rand(1, 1, 32, 40), torch.rand(1, 1, 32, 40)
    plain = untrained(image, reference=reference)
    rgb = untrained(image.expand(-1, 3, -1, -1), reference=reference.expand(-1, 3, -1, -1))
    torch.testing.assert_close(plain, rgb)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(untrained(image, reference=reference), plain)
    assert untrained(image.double(), reference=reference.double()).dtype == torch.float32


def test_masked_ssim_is_that_of_scikit_image():
    skimage_metrics = pytest.importorskip("skimage.metrics")
    x, y = torch.rand(1, 3, 40, 48), torch.rand(1, 3, 40, 48)
    ours = 1 - ESSIM()._local_errors(torch.ones(1, 1, 40, 48), x, y)
    _, theirs = skimage_metrics.structural_similarity(
        x[0].numpy(), y[0].numpy(), channel_axis=0, gaussian_weights=True, use_sample_covariance=False, data_range=1.0,
        full=True,
    )  # fmt: skip
    inside = (..., slice(5, -5), slice(5, -5))
    np.testing.assert_allclose(ours[0][inside].numpy(), theirs[inside], atol=1e-5)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(3, 32, 32), "Add the batch dimension"),
        (torch.rand(1, 4, 32, 32), "expected 3 channels"),
        (torch.rand(1, 3, 32, 31), "shapes differ"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "expected floating point"),
        (torch.full((1, 3, 32, 32), torch.nan), "NaN"),
        (255 * torch.ones(1, 3, 32, 32), "divide 8-bit values by 255"),
        (torch.rand(1, 3, 32, 32, device="meta"), "devices differ"),
    ],
)
def test_bad_input_is_refused(untrained, image, message):
    with pytest.raises(DataError, match=message):
        untrained(image, reference=torch.rand(1, 3, 32, 32))
