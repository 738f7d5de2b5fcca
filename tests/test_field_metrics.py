"""The metrics of the supplement and of the field: FLIP, ColorVideoVDP, VGG, DeepWSD, PieAPP, WaDIQaM, FID and KID."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from offline_pyiqa import offline
from torch import nn

from milo_restore.cli import main
from milo_restore.data.images import read_image, write_png
from milo_restore.errors import ConfigError, DataError
from milo_restore.files import registry
from milo_restore.files.hashes import sha256_of
from milo_restore.measure import of_sets as measured_sets
from milo_restore.measure.metrics import Batch, MetricUnavailable, find_metric, load_metric, of_sets
from milo_restore.measure.metrics.from_pyiqa import missing_files
from milo_restore.measure.metrics.states import PAPER, metric_state, states_table
from milo_restore.metric import VGG, DeepWSD, load_features
from milo_restore.metric.features import CHANNELS, L2Pool, _transported


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def photograph(seed, height=48, width=64):
    """Smooth colours, as uint8."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((1, 3, 6, 8)))
    fine = nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return (fine[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)


def noisy(image, seed, spread=12):
    noise = np.random.default_rng(seed).normal(0, spread, image.shape)
    return (image + noise).clip(0, 255).astype(np.uint8)


# --- FLIP and ColorVideoVDP, by their authors' packages


def test_flip_is_the_packages():
    flip = pytest.importorskip("flip_evaluator")
    reference = photograph(1)
    images = [noisy(reference, 2), noisy(reference, 3, 30), reference]
    found = load_metric("flip").measure(Batch(images, [reference] * 3))
    for image, value in zip(images, found):
        floats = [array.astype(np.float32) / 255 for array in (reference, image)]
        error, _, about = flip.evaluate(*floats, "LDR", applyMagma=False)  # its own default of the display
        assert value == pytest.approx(error.mean(), rel=1e-5)
        assert about["ppd"] == pytest.approx(67.02, abs=0.01)
    assert found[2] == 0 < found[0] < found[1] < 1
    assert load_metric("flip").settings == "0.7 m from 0.7 m of 3840 pixels"


def test_colorvideovdp_is_the_packages_and_says_whose_place_it_takes():
    pycvvdp = pytest.importorskip("pycvvdp")
    reference = photograph(1)
    image = noisy(reference, 2)
    metric = load_metric("cvvdp")
    found = metric.measure(Batch([image, reference], [reference, reference]))
    theirs = pycvvdp.cvvdp(display_name="standard_4k", device=torch.device("cpu"), quiet=True)
    assert found[0] == pytest.approx(float(theirs.predict(image, reference, dim_order="HWC")[0]), rel=1e-6)
    assert found[0] < found[1] == pytest.approx(10)
    assert not metric.lower_better
    assert metric.note == "ColorVideoVDP stands in the place of HDR-VDP-2 and is another number"


@pytest.mark.parametrize(("name", "package"), [("flip", "flip-evaluator"), ("cvvdp", "cvvdp")])
def test_a_missing_package_is_named(monkeypatch, name, package):
    for module in ("flip_evaluator", "pycvvdp"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        MetricUnavailable, match=rf"needs {package}, which cannot be imported .* pip install {package} "
    ):
        load_metric(name)


# --- VGG and DeepWSD, on random weights


@pytest.fixture(scope="module")
def features():
    """Both with random weights, in double precision."""
    torch.manual_seed(3)
    return {kind.name: kind().double().freeze() for kind in (VGG, DeepWSD)}


def pair(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    reference = torch.rand(1, 3, height, width, dtype=torch.float64, generator=generator)
    other = reference + 0.1 * torch.randn(reference.shape, dtype=torch.float64, generator=generator)
    return other.clamp(0, 1), reference


def stages(metric, image, pool):
    """Features of (1, 3, H, W) by the metric's own convolutions, with other pooling."""
    found, left = [], [layer for stage in metric.stages for layer in stage if isinstance(layer, nn.Conv2d)]
    for number, count in enumerate((2, 2, 3, 3, 3)):
        image = image if number == 0 else pool(image)
        for _ in range(count):
            image = left.pop(0)(image).clamp(min=0)
        found.append(image)
    return found


def test_vgg_is_the_mean_difference_of_raw_features(features):
    image, reference = pair(17, 18)
    mine, theirs = (stages(features["vgg"], x, lambda x: nn.functional.avg_pool2d(x, 2)) for x in (image, reference))
    expected = sum(float((x[0, c] - y[0, c]).abs().mean()) for x, y in zip(mine, theirs) for c in range(x.shape[1]))
    found = features["vgg"](image, reference=reference)
    assert float(found) == pytest.approx(expected / sum(CHANNELS), rel=1e-9)


def quantile(level, cumulated):
    """The first place up to which there is so much mass, or the last."""
    return next((place for place, mass in enumerate(cumulated) if mass >= level), len(cumulated) - 1)


def transport(x, y):
    """Squared distance of two masses over 0, 1, ..., by every level at which one of them changes place."""
    first, second = np.cumsum(x), np.cumsum(y)
    levels, value, before = sorted([*first, *second]), 0.0, 0.0
    for level in levels:
        value += (level - before) * (quantile(level, first) - quantile(level, second)) ** 2
        before = level
    return value


def plain_deepwsd(metric, image, reference):
    """One value of images of at most 384 pixels, from the description, place by place."""
    both = [[x, *stages(metric, x, L2Pool().double())] for x in (image, reference)]
    total = 0.0
    for x, y in zip(*both):
        places = []
        for features in (x, y):
            channels, height, width = features.shape[1:]
            rows, columns = (round(side / 4) * 4 for side in (height, width))
            padded = np.zeros((channels, rows, columns))
            kept = min(rows, height), min(columns, width)
            padded[:, : kept[0], columns - kept[1] :] = features[0, :, : kept[0], width - kept[1] :]
            places.append(padded.reshape(16, -1).T)
        for a, b in zip(*places):
            distance = transport(a**2 / (places[0].sum() + 1e-6), b**2 / (places[1].sum() + 1e-6))
            weight = 1 / (math.sqrt(math.exp(-1 / (distance + 10))) * (distance + 10) ** 2)
            total += distance + weight * ((a - b) ** 2).sum()
    return math.log(1 + total / 6)


def test_deepwsd_is_the_description(features):
    metric = features["deepwsd"]
    image, reference = pair(34, 37)  # some stages are padded, others cut
    found = float(metric(image, reference=reference))
    assert found == pytest.approx(plain_deepwsd(metric, image, reference), rel=1e-8)
    assert found > 1e-3
    assert float(metric(reference, reference=image)) == pytest.approx(found, rel=1e-10)
    assert float(metric(reference, reference=reference)) == 0


def test_deepwsd_of_larger_images_is_averaged_first_and_squared(features):
    small = pair(34, 193)
    image, reference = (x.repeat_interleave(2, 2).repeat_interleave(2, 3) for x in small)
    expected = float(features["deepwsd"](small[0], reference=small[1])) ** 2
    assert float(features["deepwsd"](image, reference=reference)) == pytest.approx(expected, rel=1e-9)


def test_the_large_window_of_deepwsd():
    x, y = (torch.rand(1, 2, 16, 16, dtype=torch.float64) for _ in range(2))
    masses = [(v.reshape(256, 2).T ** 2 / (v.sum() + 1e-6)).numpy() for v in (x, y)]
    distances = [transport(a, b) for a, b in zip(*masses)]
    squares = (x - y).square().reshape(256, 2).sum(0).tolist()
    expected = sum(d + s / (math.exp(-1 / (d + 10)) ** 0.5 * (d + 10) ** 2) for d, s in zip(distances, squares))
    assert float(_transported(x, y, 16)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("size", "least"), [((32, 200), 33), ((640, 1300), 645), ((60, 400), 66)])
def test_deepwsd_says_what_is_too_small(features, size, least):
    blank = torch.zeros(1, 3, *size, dtype=torch.float64)
    with pytest.raises(DataError, match=f"DeepWSD needs sides of at least {least} pixels, got {size[1]}x{size[0]}"):
        features["deepwsd"](blank, reference=blank)


@pytest.fixture
def vgg16_file(tmp_path, monkeypatch):
    """VGG16's file with random numbers, where torch keeps it."""
    from torchvision.models import vgg16

    monkeypatch.delenv("MILO_RESTORE_ASSETS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    path.parent.mkdir(parents=True)
    state = vgg16(weights=None).features.state_dict()
    torch.save({f"features.{key}": value for key, value in state.items()}, path)
    known, others = replace(registry.weight_file("vgg16"), sha256=sha256_of(path)), registry.weight_file
    monkeypatch.setattr(registry, "weight_file", lambda name: known if name == "vgg16" else others(name))
    return path


@pytest.mark.parametrize("name", ["vgg", "deepwsd"])
def test_the_file_of_vgg16_fills_them(vgg16_file, name):
    metric = load_features(name)
    state = torch.load(vgg16_file, weights_only=True)
    assert torch.equal(list(metric.stages[4].children())[1].weight, state["features.24.weight"])
    named = load_metric(name)
    reference = photograph(1)
    found = named.measure(Batch([noisy(reference, 2), reference], [reference, reference]))
    assert found[1] == 0 < found[0]
    assert (named.weights_sha256, named.lower_better) == (sha256_of(vgg16_file), True)
    assert metric_state(name) == ("works", "")


def test_without_the_file_of_vgg16_one_line_helps(tmp_path, monkeypatch):
    for name in ("MILO_RESTORE_CACHE", "TORCH_HOME", "MILO_RESTORE_ASSETS"):
        monkeypatch.setenv(name, str(tmp_path))
    assert metric_state("deepwsd") == ("needs a file", "milo-restore assets fetch vgg16")
    with pytest.raises(MetricUnavailable, match=r"run 'milo-restore assets fetch vgg16', or get the file from https"):
        load_metric("deepwsd")
    with pytest.raises(ConfigError, match="Known: vgg, deepwsd"):
        load_features("vgg19")


# --- PieAPP and WaDIQaM, pyiqa's own networks without their weights


@pytest.mark.parametrize(("name", "module"), [("pieapp", "pieapp_arch"), ("wadiqam_fr", "wadiqam_arch")])
def test_pyiqas_networks_run(monkeypatch, name, module):
    pytest.importorskip("pyiqa")
    arch = importlib.import_module(f"pyiqa.archs.{module}")
    monkeypatch.setattr(arch, "load_pretrained_network", lambda *_, **__: None)
    metric = load_metric(name)
    reference = photograph(1, 96, 96)
    values = metric.measure(Batch([noisy(reference, 2)], [reference]))
    assert len(values) == 1
    assert math.isfinite(values[0])
    assert metric.reference
    assert not metric.batched


# --- the list of states


def test_every_metric_of_the_paper_has_a_row_that_tells_the_truth(tmp_path, monkeypatch):
    """What works loads without a network, and nothing else does."""
    monkeypatch.setenv("MILO_RESTORE_CACHE", str(tmp_path))
    table = states_table()
    for paper, name in PAPER:
        state, remedy = metric_state(name)
        assert f"{paper} " in table
        assert state in ("works", "needs a package", "needs a file", "unpublished")
        try:
            load_metric(name)
        except MetricUnavailable:
            assert state != "works"
            assert remedy
        else:
            assert state == "works"
    assert {name for _, name in PAPER if metric_state(name)[0] == "unpublished"} == {"e-deepwsd", "ens"}
    assert {"fsim", "cvvdp", "pieapp", "wadiqam_fr"} <= {name for _, name in PAPER}


def test_the_files_of_pyiqa_are_those_that_it_asks_for(tmp_path, monkeypatch):
    pytest.importorskip("pyiqa")
    folder = Path(importlib.util.find_spec("pyiqa.archs").submodule_search_locations[0])
    sources = "".join(path.read_text() for path in folder.glob("*.py"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for name, about in registry.upstream()["pyiqa"]["metrics"].items():
        assert f"'{about['file']}'" in sources
        address, place = missing_files(name)[0]
        assert address == f"https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/{about['file']}"
        assert place == tmp_path / "pyiqa" / about["file"]
    place.parent.mkdir()
    place.touch()
    assert missing_files("fid") == []


def test_a_list_of_metrics_prints_the_states(capsys):
    assert main(["evaluate", "--list-metrics"]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("HDR-VDP-2"))
    assert "ColorVideoVDP in its place, another number" in row
    assert any(line.split()[:3] == ["MAE", "mae", "works"] for line in lines)


def test_of_several_the_remedy_is_each_ones_own(monkeypatch, tmp_path):
    from milo_restore.measure.metrics import Protocol, load_metrics

    offline(monkeypatch, "lpips", "musiq")
    monkeypatch.setitem(sys.modules, "flip_evaluator", None)
    with pytest.raises(MetricUnavailable) as caught:
        load_metrics(("flip", "musiq", "ens", "lpips"), Protocol(), torch.device("cpu"), skip_unavailable=False)
    line = str(caught.value)
    assert "flip: pip install flip-evaluator (1 MB, no weights)" in line
    assert "run 'milo-restore assets fetch --metrics musiq lpips'" in line
    assert "ens: Use ens-surrogate" in line


def test_a_damaged_file_of_pyiqa_is_to_be_removed(monkeypatch):
    pyiqa = pytest.importorskip("pyiqa")

    def create(name, **_):
        raise RuntimeError("PytorchStreamReader failed reading zip archive")

    monkeypatch.setattr(pyiqa, "create_metric", create)
    with pytest.raises(
        MetricUnavailable, match=r"pyiqa is damaged, remove that, and .* fetch --metrics pieapp'"
    ) as caught:
        load_metric("pieapp")
    assert not caught.value.fetch


# --- FID and KID


def sets(count=(60, 70), dimensions=8):
    rng = np.random.default_rng(5)
    mixing = rng.normal(size=(dimensions, dimensions))
    return rng.normal(size=(count[0], dimensions)) @ mixing + 0.3, rng.normal(size=(count[1], dimensions))


@pytest.mark.parametrize("count", [(60, 70), (6, 5)])  # the second: fewer images than features
def test_fid_is_scipys_formula(count):
    from scipy.linalg import sqrtm

    x, y = sets(count)
    first, second = (np.cov(features, rowvar=False) for features in (x, y))
    away = x.mean(0) - y.mean(0)
    expected = away @ away + np.trace(first + second - 2 * sqrtm(first @ second).real)
    assert of_sets.frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)
    assert of_sets.frechet_distance(x, x) == pytest.approx(0, abs=1e-10)


def test_fid_and_kid_are_torchmetrics():
    fid, kid = (pytest.importorskip(f"torchmetrics.image.{name}") for name in ("fid", "kid"))
    x, y = sets((64, 64))
    tensors = [torch.from_numpy(features) for features in (x, y)]
    moments = [part for t in tensors for part in (t.mean(0), t.T.cov())]
    assert of_sets.frechet_distance(x, y) == pytest.approx(float(fid._compute_fid(*moments)), rel=1e-9)
    assert of_sets.kernel_distance(x, y) == pytest.approx(float(kid.poly_mmd(*tensors)), rel=1e-9)


def test_kid_of_unequal_sets_is_unbiased_and_cut_into_blocks(monkeypatch):
    x, y = sets((60, 70))
    found = of_sets.kernel_distance(x, y)
    mean = [np.mean([(a @ b / 8 + 1) ** 3 for i, a in enumerate(p) for j, b in enumerate(q) if p is not q or i != j])
            for p, q in ((x, x), (y, y), (x, y))]  # fmt: skip
    assert found == pytest.approx(mean[0] + mean[1] - 2 * mean[2], rel=1e-9)
    monkeypatch.setattr(of_sets, "_BLOCK", 7)
    assert of_sets.kernel_distance(x, y) == pytest.approx(found, rel=1e-12)
    halves = [of_sets.kernel_distance(*np.split(np.random.default_rng(n).normal(size=(40, 4)), 2)) for n in range(300)]
    assert abs(np.mean(halves)) < 3 * np.std(halves) / math.sqrt(300)


def test_images_are_prepared_as_clean_fid_does(tmp_path):
    fid = pytest.importorskip("pyiqa.archs.fid_arch")
    images = [photograph(1, 40, 61), photograph(2, 350, 400)]
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for image, path in zip(images, paths):
        write_png(path, image)
    theirs = fid.ResizeDataset(paths, "clean")
    for number, image in enumerate(images):
        torch.testing.assert_close(of_sets.prepare(image), (theirs[number] - 128) / 128, rtol=0, atol=1e-6)


class SmallNetwork(nn.Module):
    """Eight features, called as pyiqa's Inception."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 7, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, images, resize, normalise):
        assert not resize
        assert not normalise
        assert images.shape[1:] == (3, 299, 299)
        return [self.layers(images)]


@pytest.fixture
def small_network(monkeypatch):
    network = SmallNetwork()
    made = type("Metric", (), {"net": type("Net", (), {"model": network})})
    monkeypatch.setattr(of_sets, "create_pyiqa", lambda name, device: (made, "9.9"))
    return network


@pytest.fixture
def folders(tmp_path):
    for number in range(50):
        reference = photograph(number)
        write_png(tmp_path / "ref" / f"{number:02}.png", reference)
        for method, spread in (("a", 6), ("b", 40)):
            write_png(tmp_path / method / f"{number:02}.png", noisy(reference, number, spread))
    return tmp_path


def evaluate(folder, *more, metrics=("mae", "fid", "kid"), method="a"):
    words = ["--pred", folder / method, "--metrics", *metrics, "--output", folder / "runs" / method / "results.json"]
    words += ["--cache", folder / "cache", "--device", "cpu", *more]
    return main(["evaluate", *map(str, words)])


def test_a_folder_has_one_number(folders, small_network, capsys):
    assert evaluate(folders, "--ref", folders / "ref", "--csv", folders / "t.csv") == 0
    out = capsys.readouterr().out
    results = json.loads((folders / "runs/a/results.json").read_text())
    assert list(results["metrics"]) == ["mae"]
    assert list(results["sets"]) == ["fid", "kid"]
    fid = results["sets"]["fid"]
    assert (fid["n"], fid["references"], fid["better"]) == (50, 50, "lower")
    assert fid["against"] == str(folders / "ref")
    assert fid["warning"].startswith("50 images are fewer than 2,048: FID is too high")
    features = {}
    for part in ("a", "ref"):
        pictures = sorted((folders / part).iterdir())
        with torch.no_grad():
            rows = [small_network.layers(of_sets.prepare(read_image(path))[None]).flatten() for path in pictures]
        features[part] = torch.stack(rows).double().numpy()
    assert fid["value"] == pytest.approx(of_sets.frechet_distance(features["a"], features["ref"]), rel=1e-6)
    line = next(line for line in out.splitlines() if line.startswith("fid  "))
    assert line.endswith("50 against 50")
    assert "of the whole folder" in line
    assert "fid ↓" in out
    assert "no interval and no paired test" in out
    assert out.count("fewer than 2,048") == 2
    assert list(csv.DictReader((folders / "t.csv").open()).fieldnames)[6:] == ["mae", "failures"]


def test_other_references_need_not_pair(folders, small_network, capsys):
    for number in range(55):
        write_png(folders / "faces" / f"face{number}.png", photograph(100 + number, 64, 64))
    assert evaluate(folders, "--set-ref", folders / "faces", metrics=("fid",)) == 0
    fid = json.loads((folders / "runs/a/results.json").read_text())["sets"]["fid"]
    assert (fid["n"], fid["references"]) == (50, 55)
    capsys.readouterr()
    assert evaluate(folders, metrics=("fid",)) == 2
    assert "fid: compares with references. Give --ref, or --set-ref" in capsys.readouterr().err
    assert evaluate(folders, "--ref", folders / "ref", "--set-ref", folders / "faces", metrics=("mae",)) == 2
    assert "--set-ref: is for fid and kid" in capsys.readouterr().err


def test_few_images_are_refused_before_anything_is_measured(folders, small_network, capsys):
    (folders / "a" / "00.png").unlink()
    (folders / "ref" / "00.png").unlink()
    assert evaluate(folders, "--ref", folders / "ref") == 2
    assert "fid and kid: needs at least 50 images on each side, got 49 against 49" in capsys.readouterr().err
    assert not (folders / "cache").exists()


def test_compare_report_and_tables_show_them_and_test_nothing(folders, small_network, capsys):
    for method in ("a", "b"):
        assert evaluate(folders, "--ref", folders / "ref", method=method) == 0
    values = {m: json.loads((folders / f"runs/{m}/results.json").read_text())["sets"]["fid"]["value"] for m in "ab"}
    runs = [str(folders / "runs" / method) for method in ("a", "b")]
    capsys.readouterr()
    for style in ("text", "markdown", "latex"):
        assert main(["compare", *runs, "--style", style]) == 0
        out = capsys.readouterr().out
        assert f"{values['a']:.5g}" in out
        assert f"{values['b']:.5g}" in out
        assert "no paired test" in out
    assert main(["compare", *runs, "--style", "csv"]) == 0
    rows = {row["metric"]: row for row in csv.DictReader(capsys.readouterr().out.strip().splitlines())}
    assert float(rows["fid"]["difference"]) == pytest.approx(values["a"] - values["b"])
    assert (rows["fid"]["p"], rows["fid"]["holds"], rows["mae"]["holds"]) == ("", "", "True")
    assert main(["compare", *runs, "--metrics", "fid"]) == 0
    assert "p (Holm)" not in capsys.readouterr().out
    assert main(["tables", *runs]) == 0
    assert f"{values['b']:.4g}" in capsys.readouterr().out
    assert main(["report", *runs, "--output", str(folders / "report.html"), "--images", "2"]) == 0
    assert f"a: fid ↓ {values['a']:.5g}: 50 images against 50" in (folders / "report.html").read_text()


def test_only_sets_with_the_same_references_are_put_side_by_side(folders, small_network):
    for method in ("a", "b"):
        evaluate(folders, "--ref", folders / "ref", method=method)
    runs = {method: json.loads((folders / f"runs/{method}/results.json").read_text()) for method in "ab"}
    assert set(measured_sets.shared_sets(runs)) == {"fid", "kid"}
    runs["b"]["sets"]["kid"]["references_sha256"] = "other"
    assert set(measured_sets.shared_sets(runs)) == {"fid"}


def test_without_the_network_one_line_helps(folders, capsys, monkeypatch):
    offline(monkeypatch, "fid")
    assert evaluate(folders, "--ref", folders / "ref", metrics=("kid",)) == 2
    line = capsys.readouterr().err
    assert "kid: pyiqa 9.9 cannot load it" in line
    assert "run 'milo-restore assets fetch --metrics fid'" in line
    assert "pt_inception-2015-12-05-6726825d.pth as " in line
    assert evaluate(folders, "--ref", folders / "ref", "--skip-unavailable") == 0
    results = json.loads((folders / "runs/a/results.json").read_text())
    assert results["sets"] == {}
    assert set(results["unavailable"]) == {"fid", "kid"}
    assert "fid     unavailable: pyiqa 9.9 cannot load it" in capsys.readouterr().out


def test_where_a_value_per_image_is_wanted_they_are_refused(monkeypatch):
    assert find_metric("fid").whole
    assert find_metric("fid").reference
    with pytest.raises(MetricUnavailable, match="fid: is one number of a whole folder, not of an image"):
        load_metric("fid")
    with pytest.raises(MetricUnavailable, match="Of these, fid and kid are measured here"):
        load_metric("sfid")


def test_assets_fetch_loads_the_network(small_network, capsys):
    assert main(["assets", "fetch", "--metrics", "kid"]) == 0
    assert "kid: ready: pyiqa 9.9, weights: Inception V3 of FID" in capsys.readouterr().out


def test_new_names_hide_none_of_pyiqas():
    configs = pytest.importorskip("pyiqa.default_model_configs").DEFAULT_CONFIGS
    assert not {"vgg", "deepwsd", "flip", "cvvdp", "kid"} & set(configs)
