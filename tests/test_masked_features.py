"""E-VGG, E-LPIPS and E-DISTS: the formulas against loops, gradients, batches, and files that are other ones."""

from __future__ import annotations

import math
import subprocess
from dataclasses import replace
from pathlib import Path

import lpips
import pooch
import pytest
import requests
import torch
from torch import nn

from milo_restore import files
from milo_restore.errors import ConfigError, DataError, WeightsError
from milo_restore.files import registry
from milo_restore.files.hashes import git_blob_of, sha256_of
from milo_restore.measure.metrics import MetricUnavailable, find_metric, load_metric
from milo_restore.metric import E_FEATURES, load_e_features
from milo_restore.metric.e_features import CHANNELS, EDISTS, ELPIPS, EVGG, L2Pool

CLASSES = {"e-vgg": EVGG, "e-lpips": ELPIPS, "e-dists": EDISTS}
MEAN, STD = (torch.tensor(values).double() for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@pytest.fixture(scope="module")
def metrics():
    """The three with random weights, in double precision."""
    torch.manual_seed(3)
    return {name: kind().double().eval() for name, kind in CLASSES.items()}


def pair(number=2, height=16, width=18):
    reference = torch.rand(number, 3, height, width, dtype=torch.float64)
    return (reference + 0.1 * torch.randn_like(reference)).clamp(0, 1), reference


def pooled(features, name):
    """2x2 means, 2x2 maxima or DISTS' L2 pooling of (C, H, W), value by value."""
    channels, height, width = features.shape
    if name == "e-dists":
        hann = [0.5, 1.0, 0.5]
        out = torch.zeros(channels, (height + 1) // 2, (width + 1) // 2, dtype=features.dtype)
        for row in range(out.shape[1]):
            for column in range(out.shape[2]):
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        y, x = 2 * row + dy, 2 * column + dx
                        if 0 <= y < height and 0 <= x < width:
                            out[:, row, column] += hann[dy + 1] * hann[dx + 1] / 4 * features[:, y, x] ** 2
        return (out + 1e-12).sqrt()
    blocks = features[:, : height // 2 * 2, : width // 2 * 2].reshape(channels, height // 2, 2, width // 2, 2)
    return blocks.mean((2, 4)) if name == "e-vgg" else blocks.amax((2, 4))


def plain(metric, image, reference):
    """One value, from the description of the authors' programs, with the metric's own convolutions."""
    name = metric.name
    convolutions = [layer for stage in metric.stages for layer in stage.modules() if isinstance(layer, nn.Conv2d)]
    per_stage = (2, 2, 3, 3, 3)

    def features(x):
        found = []
        if name != "e-vgg":
            x = torch.stack([(x[c] - MEAN[c]) / STD[c] for c in range(3)])
        left = list(convolutions)
        for number, count in enumerate(per_stage):
            x = x if number == 0 else pooled(x, name)
            for _ in range(count):
                x = left.pop(0)(x[None])[0].clamp(min=0)
            length = x.square().sum(0).sqrt().clamp(min=1e-12)
            found.append(x / length if name == "e-lpips" else x)
        return found

    distorted, clean = features(image), features(reference)
    if name == "e-dists":
        distorted, clean = [image, *distorted], [reference, *clean]
    value, start = 0.0, 0
    for stage, (x, y) in enumerate(zip(distorted, clean)):
        both = torch.cat([x, y] if name == "e-vgg" else [y, x])
        mask = metric.mask_networks[stage](both[None])[0, 0]
        for c in range(x.shape[0]):
            if name == "e-vgg":
                value += (mask * (x[c] - y[c]).abs()).mean() / sum(CHANNELS)
            elif name == "e-lpips":
                value += metric.heads[stage][0, c, 0, 0] * (mask * (x[c] - y[c])).square().mean()
            else:
                a, b = mask * x[c], mask * y[c]
                total = metric.alpha.sum() + metric.beta.sum()
                covariance = (a * b).mean() - a.mean() * b.mean()
                texture = (2 * a.mean() * b.mean() + 1e-6) / (a.mean() ** 2 + b.mean() ** 2 + 1e-6)
                structure = (2 * covariance + 1e-6) / (a.var(unbiased=False) + b.var(unbiased=False) + 1e-6)
                alpha, beta = metric.alpha[0, start + c, 0, 0], metric.beta[0, start + c, 0, 0]
                value -= (alpha * texture + beta * structure) / total
        start += x.shape[0]
    return float(value + (1 if name == "e-dists" else 0))


@pytest.mark.parametrize("name", CLASSES)
def test_the_formula_is_the_description(metrics, name):
    image, reference = pair(1)
    with torch.no_grad():
        found = metrics[name](image, reference=reference)
        expected = plain(metrics[name], image[0], reference[0])
    assert found.shape == (1,)
    assert float(found) == pytest.approx(expected, rel=1e-9)
    assert expected > 1e-6


@pytest.mark.parametrize("name", CLASSES)
def test_batches_are_their_images_and_equal_images_give_nothing(metrics, name):
    image, reference = pair(3)
    with torch.no_grad():
        together = metrics[name](image, reference=reference)
        apart = torch.cat([metrics[name](image[n : n + 1], reference=reference[n : n + 1]) for n in range(3)])
        torch.testing.assert_close(together, apart, rtol=1e-10, atol=1e-13)
        assert metrics[name](reference, reference=reference).abs().max() < 1e-13
        swapped = metrics[name](reference, reference=image)
    assert not torch.allclose(together, swapped, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", CLASSES)
def test_the_gradient_is_the_slope(metrics, name):
    image, reference = pair(1)
    image.requires_grad_()
    metrics[name](image, reference=reference).sum().backward()
    direction = image.grad / image.grad.norm()
    step = 1e-6
    with torch.no_grad():
        inside = image.clamp(2 * step, 1 - 2 * step)
        values = [metrics[name](inside + sign * step * direction, reference=reference) for sign in (1, -1)]
    slope = float((values[0] - values[1]) / (2 * step))
    assert slope == pytest.approx(float(image.grad.norm()), rel=2e-2)


def test_l2_pooling_of_a_constant_keeps_it_inside():
    out = L2Pool()(torch.full((1, 2, 8, 8), 3.0))
    assert out.shape == (1, 2, 4, 4)
    torch.testing.assert_close(out[:, :, 1:, 1:], torch.full((1, 2, 3, 3), 3.0))
    assert float(out[0, 0, 0, 0]) == pytest.approx(3 * math.sqrt(0.75**2))


def test_bad_images_are_refused(metrics):
    image, reference = pair()
    for wrong in (image * 255, image[:, :2], image[..., :8]):
        with pytest.raises(DataError):
            metrics["e-vgg"](wrong, reference=reference)


# Files


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Files in the published format, with random numbers, and their hashes in place of the published ones."""
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(tmp_path))
    monkeypatch.setenv("MILO_RESTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    known = {name: registry.weight_file(name) for name in files.WEIGHTS}
    monkeypatch.setattr(registry, "weight_file", known.__getitem__)
    folder = tmp_path / "weights" / "enhanced_iqm"
    folder.mkdir(parents=True)
    for name, kind in CLASSES.items():
        state = {}
        for number, channels in enumerate(kind.channels, 1):
            for layer, (out, into) in {"conv1": (64, 2 * channels), "conv2": (64, 64), "conv3": (1, 64)}.items():
                state[f"mask_finder_{number}.{layer}.0.weight"] = torch.randn(out, into, 3, 3) * 0.05
                state[f"mask_finder_{number}.{layer}.0.bias"] = torch.randn(out) * 0.05
        torch.save({**state, "stage1.0.weight": torch.zeros(1)}, folder / kind.file)
        known[name] = replace(known[name], git_blob=git_blob_of(folder / kind.file))
    torch.save({part: torch.rand(1, sum(EDISTS.channels), 1, 1) for part in ("alpha", "beta")}, folder / "DISTS.pth")
    known["dists"] = replace(known["dists"], sha256=sha256_of(folder / "DISTS.pth"))
    return folder


@pytest.fixture
def backbone(published, tmp_path, monkeypatch):
    """VGG16's file with random numbers, where torch.hub keeps it."""
    from torchvision.models import vgg16

    path = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    path.parent.mkdir(parents=True)
    features = vgg16(weights=None).features.state_dict()
    torch.save({f"features.{key}": value for key, value in features.items()}, path)
    known, others = replace(registry.weight_file("vgg16"), sha256=sha256_of(path)), registry.weight_file
    monkeypatch.setattr(registry, "weight_file", lambda name: known if name == "vgg16" else others(name))
    return path


@pytest.mark.parametrize("name", E_FEATURES)
def test_published_files_fill_the_metric(published, backbone, name):
    metric = load_e_features(name)
    masks = torch.load(published / metric.file, weights_only=True)
    assert torch.equal(metric.mask_networks[4][2].weight, masks["mask_finder_5.conv2.0.weight"])
    assert torch.equal(metric.mask_networks[-1][4].bias, masks[f"mask_finder_{len(metric.channels)}.conv3.0.bias"])
    state = torch.load(backbone, weights_only=True)
    assert torch.equal(list(metric.stages[4].children())[1].weight, state["features.24.weight"])
    assert torch.equal(list(metric.stages[0].children())[2].bias, state["features.2.bias"])
    if name == "e-dists":
        alpha = torch.load(published / "DISTS.pth", weights_only=True)["alpha"]
        assert torch.equal(metric.alpha, alpha)
    if name == "e-lpips":
        assert all((head >= 0).all() for head in metric.heads)
        heads = torch.load(Path(lpips.__file__).parent / "weights/v0.1/vgg.pth", "cpu", weights_only=True)
        assert all(torch.equal(head, heads[f"lin{n}.model.1.weight"]) for n, head in enumerate(metric.heads))
    assert not list(metric.parameters())
    assert metric.weights.path == str(published / metric.file)
    image, reference = pair()
    image = image.float().requires_grad_()
    metric(image, reference=reference.float()).sum().backward()
    assert image.grad.abs().sum() > 0


def test_a_hash_is_gits(tmp_path):
    file = tmp_path / "x.pth"
    file.write_bytes(bytes(range(256)) * 40)
    theirs = subprocess.run(
        ["git", "hash-object", str(file)], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert git_blob_of(file) == theirs


def test_another_file_is_refused_by_its_hash(published, backbone):
    path = published / "E_VGG.pth"
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"E_VGG\.pth: is damaged or another file \(git blob"):
        load_e_features("e-vgg")


def test_a_file_that_does_not_fill_all_masks_is_refused(published, backbone, tmp_path):
    state = torch.load(published / "E_LPIPS.pth", weights_only=True)
    missing = {key: value for key, value in state.items() if not key.startswith("mask_finder_3.conv2")}
    torch.save(missing, tmp_path / "missing.pth")
    with pytest.raises(WeightsError, match="does not fit e-lpips's masks: 2 missing: "):
        load_e_features("e-lpips", tmp_path / "missing.pth")
    torch.save({**state, "mask.weight": torch.zeros(1)}, tmp_path / "strange.pth")
    with pytest.raises(WeightsError, match=r"holds 'mask\.weight', which is no part of e-lpips"):
        load_e_features("e-lpips", tmp_path / "strange.pth")
    with pytest.raises(WeightsError, match="does not fit e-dists's masks: "):
        load_e_features("e-dists", published / "E_LPIPS.pth")


def test_what_is_missing_says_where_it_belongs(published, backbone, monkeypatch, tmp_path):
    (published / "DISTS.pth").unlink()
    with pytest.raises(WeightsError, match=r"DISTS\.pth: is not there\. Run .*fetch dists', or get http.*enhanced_iqm"):
        load_e_features("e-dists")
    backbone.write_bytes(backbone.read_bytes()[:-10])
    with pytest.raises(WeightsError, match=r"vgg16-397923af\.pth: is damaged"):
        load_e_features("e-vgg")
    backbone.unlink()

    def offline(*arguments, **options):
        raise requests.exceptions.ConnectionError("no network")

    monkeypatch.setattr(pooch, "retrieve", offline)
    with pytest.raises(WeightsError, match=r"vgg16-397923af\.pth cannot be downloaded .*Where there is a network, run"):
        load_e_features("e-vgg")
    with pytest.raises(ConfigError, match="Known: e-vgg, e-lpips, e-dists"):
        load_e_features("e-deepwsd")


def test_evaluate_offers_them(published, backbone, tmp_path, monkeypatch):
    assert all(find_metric(name).reference for name in E_FEATURES)
    metric = load_metric("e-lpips")
    assert (metric.reference, metric.lower_better) == (True, True)
    (published / "E_LPIPS.pth").unlink()
    with pytest.raises(MetricUnavailable, match=r"E_LPIPS\.pth: is not there\. Run .*assets fetch e-lpips'"):
        load_metric("e-lpips")
