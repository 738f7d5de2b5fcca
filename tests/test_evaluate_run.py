"""Pairing folders, metrics by name, the run with its cache and processes, and the numbers themselves."""

from __future__ import annotations

import importlib
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_two_processes
from offline_pyiqa import offline
from PIL import Image
from skimage.metrics import structural_similarity

from milo_restore import MILO
from milo_restore.data import evaluation_noise, find_dataset, held_out_photographs, read_image, to_tensor, write_png
from milo_restore.errors import ConfigError, DataError
from milo_restore.measure import run
from milo_restore.measure.folders import find_images, image_size
from milo_restore.measure.metrics import (
    Batch,
    MetricUnavailable,
    Protocol,
    find_metric,
    from_pyiqa,
    load_metric,
    load_metrics,
    table,
)
from milo_restore.measure.results import make_results, to_csv, to_json
from milo_restore.measure.run import measure
from milo_restore.opinions.coefficients import correlate_scores

TESTS = Path(__file__).parent
CPU = torch.device("cpu")


def pairs(count=10, side=64, strength=6):
    """Distorted crops of photographs with their references: noise, and coarse quantisation of some."""
    photographs = [image for _, image in held_out_photographs()]
    made = []
    for number in range(count):
        clean = photographs[number % 2][20 * number : 20 * number + side, 30 : 30 + side + number]
        rng = np.random.default_rng(number)
        noisy = clean + rng.normal(0, 8 + strength * number, clean.shape)
        if number % 3 == 0:
            noisy = noisy // 32 * 32
        made.append((np.clip(np.round(noisy), 0, 255).astype(np.uint8), clean))
    return made


def save(folder, arrays):
    for name, array in arrays.items():
        write_png(folder / f"{name}.png", array)
    return folder


@pytest.fixture
def folders(tmp_path):
    """Four pairs, two of them of one size."""
    made = pairs(4, 48)
    made[3] = pairs(1, 48)[0][::-1]
    names = ["b", "a", "d", "c"]
    return (save(tmp_path / "pred", {name: p[0] for name, p in zip(names, made)}),
            save(tmp_path / "ref", {name: p[1] for name, p in zip(names, made)}))  # fmt: skip


def metrics_of(*names, protocol=None):
    return load_metrics(names, protocol or Protocol(), CPU, skip_unavailable=False)[0]


# Numbers


def test_psnr_and_ssim_are_the_formulas():
    made = pairs()
    batches = [Batch([image], [clean]) for image, clean in made]
    for name, formula in {
        "psnr": lambda x, y: 10 * math.log10(255**2 / np.mean((x.astype(float) - y) ** 2)),
        "ssim": lambda x, y: structural_similarity(
            x, y, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        ),
        "mae": lambda x, y: np.abs(x.astype(float) - y).mean() / 255,
    }.items():
        metric = load_metric(name)
        found = [metric.measure(batch)[0] for batch in batches]
        assert found == pytest.approx([formula(*pair) for pair in made], abs=1e-6)
        assert np.ptp(found) > 0.05


def test_psnr_and_ssim_are_pyiqas():
    pyiqa = pytest.importorskip("pyiqa")
    made = pairs(strength=1)
    tensors = [[to_tensor(array)[None] for array in pair] for pair in made]
    batches = [Batch([image], [clean]) for image, clean in made]
    for ours, colour, border, theirs, options, tolerance in (
        ("psnr", "rgb", 0, "psnr", {}, 1e-4),
        ("psnr", "rgb", 4, "psnr", {"crop_border": 4}, 1e-4),
        ("psnr", "y", 4, "psnry", {"crop_border": 4, "color_space": "ycbcr"}, 2e-4),  # pyiqa adds 1e-8 to the MSE
        ("ssim", "rgb", 0, "ssimc", {}, 1e-4),
        ("ssim", "rgb", 4, "ssimc", {"crop_border": 4}, 1e-4),
        ("ssim", "y", 4, "ssim", {"crop_border": 4, "color_space": "ycbcr"}, 4e-3),  # pyiqa rounds Y to integers
    ):
        metric = load_metric(ours, Protocol(colour, border))
        reference = pyiqa.create_metric(theirs, device="cpu", **options)
        expected = [float(reference(*pair)) for pair in tensors]
        assert [metric.measure(batch)[0] for batch in batches] == pytest.approx(expected, abs=tolerance)
        assert metric.formal.startswith(f"as pyiqa's {theirs}")


@pytest.mark.golden
def test_psnr_and_ssim_of_ten_real_images(shared):
    """At sigma 10: under heavy noise pyiqa's SSIM is up to 1e-3 off, as it counts negative correlations as none."""
    pyiqa = pytest.importorskip("pyiqa")
    theirs = {name: pyiqa.create_metric(name, device="cpu") for name in ("psnr", "ssimc")}
    ours = {name: load_metric(name) for name in ("psnr", "ssim")}
    for path in find_dataset("Kodak24", shared)[:10]:
        clean = read_image(path)[:256, :256]
        image = np.clip(clean + 255 * evaluation_noise(clean.shape, 10) + 0.5, 0, 255).astype(np.uint8)
        pair = [to_tensor(array)[None] for array in (image, clean)]
        found = [ours[name].measure(Batch([image], [clean]))[0] for name in ("psnr", "ssim")]
        assert found == pytest.approx([float(theirs[name](*pair)) for name in ("psnr", "ssimc")], abs=1e-4)
        formula = structural_similarity(
            image, clean, channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        error = np.mean((image.astype(float) - clean) ** 2)
        assert found == pytest.approx([10 * math.log10(255**2 / error), formula], abs=1e-4)


def test_pyiqas_traps_are_still_there():
    """Where this fails, pyiqa has changed, and what names.py and the README say about it must change."""
    pyiqa = pytest.importorskip("pyiqa")
    image, clean = pairs(3)[2]
    batch, same = Batch([image], [clean]), Batch([clean], [clean])
    # The distorted image first.
    vif = load_metric("vif").measure(batch)[0]
    direct = pyiqa.create_metric("vif", device="cpu")
    assert vif == pytest.approx(float(direct(batch.image_tensor, batch.reference_tensor)), abs=1e-6)
    assert abs(vif - float(direct(batch.reference_tensor, batch.image_tensor))) > 0.01
    # PSNR ends at 80 dB there, nowhere here.
    assert load_metric("pyiqa:psnr").measure(same)[0] == pytest.approx(80, abs=1e-3)
    assert load_metric("psnr").measure(same)[0] == math.inf
    # "ssim" is of Y, "ssimc" of RGB; ours is of RGB.
    ours, luma, colour = (load_metric(n).measure(batch)[0] for n in ("ssim", "pyiqa:ssim", "ssimc"))
    assert ours == pytest.approx(colour, abs=1e-4)
    assert abs(luma - colour) > 0.01
    direct = pyiqa.create_metric("ssim", device="cpu")(batch.image_tensor, batch.reference_tensor)
    assert direct.dtype == torch.float64  # which a float32 sum of losses would turn into another type
    # Y is YIQ's, in the full range, not BasicSR's from 16 to 235: 20 log10(255 / 219) = 1.32 dB apart.
    yiq = image.astype(float) - clean
    expected = 10 * math.log10(255**2 / np.mean((yiq @ (0.299, 0.587, 0.114)) ** 2))
    assert load_metric("psnry").measure(batch)[0] == pytest.approx(expected, abs=2e-3)
    basicsr = load_metric("psnr", Protocol("y")).measure(batch)[0]
    assert basicsr - expected == pytest.approx(20 * math.log10(255 / 219), abs=0.01)
    assert not load_metric("psnry").lower_better


def test_pyiqas_correlations_keep_the_sign_until_they_are_mapped():
    """Its benchmark takes absolute values and is not in the wheel; `correlate` prints the sign."""
    pytest.importorskip("pyiqa")
    from pyiqa.metrics.correlation_coefficient import calculate_plcc, calculate_srcc

    assert importlib.util.find_spec("pyiqa.benchmark_results") is None
    scores = np.linspace(-3, 3, 60)
    opinions = 5 / (1 + np.exp(2 * scores)) + np.random.default_rng(0).normal(0, 0.05, 60)  # lower is better
    theirs = calculate_srcc(scores, opinions), calculate_plcc(scores, opinions)
    assert max(theirs) < -0.9
    assert calculate_plcc(scores, opinions, fit_scale="logistic_4params") > 0.99  # a map takes the sign away
    ours = correlate_scores(scores, opinions, np.arange(60) // 10)
    assert ours.srcc.value == pytest.approx(theirs[0], abs=1e-12)
    assert ours.pearson == pytest.approx(theirs[1], abs=1e-12)


def test_clip_can_be_imported_under_todays_setuptools():
    pytest.importorskip("pyiqa")
    before = "pkg_resources" in sys.modules
    for name in [name for name in sys.modules if name in ("clip", "clip.clip", "pyiqa.archs.clip_imports")]:
        del sys.modules[name]
    with from_pyiqa.pkg_resources():
        assert importlib.import_module("pyiqa.archs.clip_imports").clip.available_models()
    if not before and importlib.util.find_spec("pkg_resources") is None:
        assert "pkg_resources" not in sys.modules


def test_the_seed_belongs_to_the_image():
    torch.manual_seed(7)
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    expected = torch.rand(1).item()
    torch.manual_seed(7)
    drawn = []
    for _ in range(2):
        with from_pyiqa._one_seed(CPU):
            drawn.append((torch.rand(1).item(), np.random.rand()))  # noqa: NPY002
    assert drawn[0] == drawn[1]
    assert torch.rand(1).item() == expected
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_milo_is_the_metrics_own():
    made = [pair for pair in pairs(1)] * 2
    milo = MILO.from_pretrained("mini")
    found = load_metric("milo:mini")
    expected = float(milo(to_tensor(made[0][0])[None], reference=to_tensor(made[0][1])[None]))
    batch = Batch([made[0][0], made[0][1]], [made[0][1]] * 2)
    assert found.measure(batch) == pytest.approx([expected, 0], rel=1e-5)
    assert found.as_dict()["weights_sha256"] == milo.weights.sha256
    assert found.lower_better


def test_niqe_of_basicsr_and_what_it_refuses():
    niqe = load_metric("niqe-basicsr")
    _, rocket = held_out_photographs()[1]
    crop = rocket[:200, :200]
    noisy = np.clip(crop + np.random.default_rng(0).normal(0, 40, crop.shape), 0, 255).astype(np.uint8)
    clean, bad = niqe.measure(Batch([crop, noisy], None))
    assert niqe.lower_better
    assert 2 < clean < bad - 3
    with pytest.raises(DataError, match="two blocks of 96x96 pixels, got 190x100"):
        niqe.measure(Batch([rocket[:100, :190]], None))


@pytest.mark.golden
def test_st_lpips_is_the_packages(shared):
    pytest.importorskip("stlpips_pytorch")
    pair = [read_image(shared / "data" / "iqa" / "milo_pair" / f"{name}.png") for name in ("dist", "ref")]
    metric = load_metric("st-lpips")
    assert metric.measure(Batch(pair, pair[1:] * 2)) == pytest.approx([0.273378, 0], abs=1e-5)
    assert "IPython" not in sys.modules or importlib.util.find_spec("IPython") is not None


@pytest.mark.golden
def test_noise_of_sigma_25_on_cbsd68(shared, tmp_path):
    squares, arrays = [], {}
    for path in find_dataset("CBSD68", shared):
        clean = read_image(path)
        noise = 255 * evaluation_noise(clean.shape, 25)
        squares.append(10 * math.log10(255**2 / np.mean(noise**2)))
        if len(arrays) < 6:  # grey enough that 8-bit files clip nothing
            arrays[path.stem] = (clean // 4 + 96, np.round(clean // 4 + 96 + noise))
    assert np.mean(squares) == pytest.approx(20.17, abs=0.05)
    ref = save(tmp_path / "ref", {name: pair[0] for name, pair in arrays.items()})
    pred = save(tmp_path / "pred", {f"{name}_noisy": pair[1].astype(np.uint8) for name, pair in arrays.items()})
    found = measure(find_images(pred, ref), metrics_of("psnr", "pyiqa:psnr", "milo"), tmp_path / "cache")
    assert np.mean([row["psnr"] for row in found.values]) == pytest.approx(20.17, abs=0.05)
    assert [row["psnr"] for row in found.values] == pytest.approx([row["pyiqa:psnr"] for row in found.values], abs=1e-4)
    assert all(0.001 < row["milo"] < 0.1 for row in found.values)


@pytest.mark.golden
def test_the_surrogate_says_what_it_is(shared):
    image, clean = pairs(1)[0]
    metric = load_metric("ens-surrogate")
    value, best = metric.measure(Batch([image, clean], [clean, clean]))
    assert 0 < value < best - 0.2 < 5
    assert best == pytest.approx(np.mean([4.28, 4.39, 4.65, 4.27]), abs=0.01)
    note = metric.as_dict()["note"]
    assert note.startswith("not the paper's Ens.")
    for member in ("e-mae (sha256", "e-mse (sha256", "e-psnr (sha256", "e-ssim (sha256", "own-scaler"):
        assert member in note


# Names


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pnsr", "'pnsr': no such metric. Did you mean 'psnr'?"),
        ("psnr:mini", "takes no such weights"),
        ("milo:", "takes no such weights"),
        ("pyiqa:milo", "no such metric"),
    ],
)
def test_unknown_names(name, words):
    with pytest.raises(ConfigError) as caught:
        find_metric(name)
    assert words in str(caught.value)


def test_which_metrics_need_references():
    names = ("psnr", "milo:x", "pyiqa:ssim", "lpips", "ens-surrogate", "ens", "musiq", "clipiqa", "niqe-basicsr")
    assert [find_metric(name).reference for name in names] == [True] * 6 + [False] * 3


def test_what_cannot_be_had_stops_the_run_or_is_skipped(monkeypatch):
    offline(monkeypatch, "musiq", "niqe", "new_nr")
    load = {"protocol": Protocol(), "device": CPU}
    with pytest.raises(MetricUnavailable) as caught:
        load_metrics(["psnr", "musiq"], **load, skip_unavailable=False)
    assert str(caught.value).startswith("musiq: pyiqa 9.9 cannot load it (<urlopen error no network here>)")
    assert "assets fetch --metrics musiq" in str(caught.value)
    assert str(caught.value).endswith("--skip-unavailable goes on without it")
    with pytest.raises(MetricUnavailable, match="2 metrics are unavailable: musiq: .*; ens: the paper's E-DeepWSD"):
        load_metrics(["psnr", "musiq", "ens"], **load, skip_unavailable=False)
    metrics, unavailable = load_metrics(["musiq", "psnr", "ens", "psnr"], **load, skip_unavailable=True)
    assert [metric.name for metric in metrics] == ["psnr"]
    assert list(unavailable) == ["musiq", "ens"]
    assert "ens-surrogate" in unavailable["ens"].mend
    with pytest.raises(MetricUnavailable, match="no network here"):  # nothing is left
        load_metrics(["musiq"], **load, skip_unavailable=True)
    assert find_metric("new_nr").reference is False  # unknown here, known to that pyiqa


# Folders


def touch(folder, *names, size=(20, 16)):
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", size).save(folder / name)
    return folder


@pytest.mark.parametrize(
    ("preds", "refs", "names"),
    [
        (["b.png", "a.bmp"], ["a.png", "b.png"], ["a.png", "b.png"]),
        (["a_lq.png", "b_lq.png"], ["a.png", "b.jpg"], ["a.png", "b.jpg"]),
        (["x_lq.png"], ["x.png"], ["x.png"]),
        (["0801.png"], ["0801x4.png"], ["0801x4.png"]),
        (["a_Restormer_25.png", "b_Restormer_25.png"], ["a_HR.png", "b_HR.png"], ["a_HR.png", "b_HR.png"]),
        (["a_1.png", "b_1.png"], ["a.png", "b.png"], ["a.png", "b.png"]),
        (["a_lq.png", "a.png"], ["a.png", "a_lq.png"], ["a.png", "a_lq.png"]),
    ],
)
def test_names_are_paired(tmp_path, preds, refs, names):
    found = find_images(touch(tmp_path / "pred", *preds), touch(tmp_path / "ref", *refs))
    assert [image.name for image in found] == names
    for image in found:
        assert image.ref.name == image.name
        assert image.pred.stem[0] == image.ref.stem[0]
    assert found[0].size == (20, 16)


def test_inputs_may_be_smaller_and_come_alone(tmp_path):
    pred = touch(tmp_path / "pred", "a.png", "b.png")
    inputs = touch(tmp_path / "in", "a_x4.png", "b_x4.png", size=(5, 4))
    found = find_images(pred, None, inputs)
    assert [(image.name, image.input.name, image.ref) for image in found] == [
        ("a.png", "a_x4.png", None),
        ("b.png", "b_x4.png", None),
    ]


@pytest.mark.parametrize(
    ("preds", "refs", "words"),
    [
        (["a.png"], ["a.png", "b.png"], "pred has no counterpart of b.png"),
        (
            ["a.png", "c.png"],
            ["a.png", "b.png"],
            "ref has no counterpart of c.png; {root}/pred has no counterpart of b",
        ),
        (["a_lq.png", "b_lq.png", "c_lq.png"], ["a.png", "b.png"], "ref has no counterpart of c_lq.png. Files"),
        (["a_lq.png", "b.png"], ["a.png", "b.png"], "a_lq.png"),
        (["a.png", "a.jpg"], ["a.png"], "pred: a.jpg and a.png have one name"),
        ([], ["a.png"], "pred: holds no images"),
        (["a.png"], [], "ref: holds no images"),
    ],
)
def test_what_cannot_be_paired_is_named(tmp_path, preds, refs, words):
    with pytest.raises(DataError) as caught:
        find_images(touch(tmp_path / "pred", *preds), touch(tmp_path / "ref", *refs))
    assert words.format(root=tmp_path) in str(caught.value)


def test_different_sizes_are_named(tmp_path):
    pred, ref = touch(tmp_path / "pred", "a.png", "b.png"), touch(tmp_path / "ref", "a.png")
    touch(ref, "b.png", size=(16, 20))
    with pytest.raises(DataError, match=r"pred/b.png is 20x16, .*ref/b.png 16x20. Nothing is resized"):
        find_images(pred, ref)


def test_sizes_are_those_after_rotation(tmp_path):
    image = Image.new("RGB", (20, 16))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg") == (16, 20) == read_image(tmp_path / "a.jpg").shape[1::-1]
    (tmp_path / "b.png").write_bytes(b"no image")
    image.save(tmp_path / "c.png", exif=exif)
    assert image_size(tmp_path / "c.png") == (16, 20) == read_image(tmp_path / "c.png").shape[1::-1]
    with pytest.raises(DataError, match=r"b.png: cannot be read as an image"):
        image_size(tmp_path / "b.png")


# The run


def unreadable(folder, kind):
    path = folder / "a.png"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "deep":
        Image.fromarray(np.zeros(image_size(path)[::-1], np.uint16)).save(path)
    else:
        Image.new("RGBA", image_size(path), (1, 2, 3, 100)).save(path)


@pytest.mark.parametrize(
    ("kind", "words"),
    [("truncated", "cannot be read"), ("deep", "more than 8 bits"), ("see-through", "transparent pixels")],
)
@pytest.mark.parametrize("role", [0, 1])
def test_unreadable_files_are_named_and_the_rest_is_kept(folders, tmp_path, kind, words, role):
    whole = (folders[role] / "a.png").read_bytes()
    unreadable(folders[role], kind)
    with pytest.raises(DataError) as caught:
        measure(find_images(*folders), metrics_of("psnr"), tmp_path / "cache")
    assert str(folders[role] / "a.png") in str(caught.value)
    assert words in str(caught.value)
    (folders[role] / "a.png").write_bytes(whole)
    measure(find_images(*folders), metrics_of("psnr"), tmp_path / "cache")


def test_grey_images_and_opaque_rgba_are_measured(tmp_path):
    grey = pairs(1)[0][1][..., 0]
    (tmp_path / "pred").mkdir()
    (tmp_path / "ref").mkdir()
    Image.fromarray(grey).save(tmp_path / "pred" / "a.png")
    Image.fromarray(np.dstack([grey, grey, grey, np.full_like(grey, 255)])).save(tmp_path / "ref" / "a.png")
    found = measure(find_images(tmp_path / "pred", tmp_path / "ref"), metrics_of("ssim", "mae"), tmp_path / "cache")
    assert found.values == ({"ssim": 1.0, "mae": 0.0},)


@pytest.fixture
def read(monkeypatch):
    """The names of the files that were decoded."""
    names, original = [], run.read_image

    def count(path):
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(run, "read_image", count)
    return names


def test_a_second_run_computes_only_what_is_new(folders, tmp_path, read):
    cache, images = tmp_path / "cache", find_images(*folders)
    first = measure(images, metrics_of("psnr", "milo:mini"), cache)
    assert [image.name for image in images] == ["a.png", "b.png", "c.png", "d.png"]
    assert first.computed == {"psnr": 4, "milo:mini": 4}
    read.clear()
    again = measure(images, metrics_of("psnr", "milo:mini"), cache)
    assert again.computed == {"psnr": 0, "milo:mini": 0}
    assert read == []
    assert (again.values, again.hashes) == (first.values, first.hashes)
    more = measure(images, metrics_of("psnr", "ssim"), cache)
    assert more.computed == {"psnr": 0, "ssim": 4}
    assert [row["psnr"] for row in more.values] == [row["psnr"] for row in first.values]
    other = measure(images, metrics_of("psnr", protocol=Protocol("y", 4)), cache)
    assert other.computed == {"psnr": 4}  # another protocol is another number
    assert all(a["psnr"] != b["psnr"] for a, b in zip(first.values, other.values))
    read.clear()
    write_png(folders[0] / "b.png", read_image(folders[1] / "b.png"))
    changed = measure(images, metrics_of("psnr", "milo:mini"), cache)
    assert changed.computed == {"psnr": 1, "milo:mini": 1}
    assert read == ["b.png", "b.png"]
    assert changed.values[1] == {"psnr": None, "milo:mini": 0.0}
    assert changed.failures[1] == {"psnr": "infinite: equal to its reference"}
    assert measure(images, metrics_of("psnr"), cache).failures[1] == {"psnr": "infinite: equal to its reference"}


def test_batches_hold_equal_sizes_and_change_nothing(folders, tmp_path, monkeypatch):
    seen, metrics = [], metrics_of("milo:mini", "psnr")
    work = run._work

    def spy(one, *rest):
        seen.append([images[number].name for number in one.images])
        return work(one, *rest)

    monkeypatch.setattr(run, "_work", spy)
    images = find_images(*folders)
    single = measure(images, metrics, tmp_path / "one")
    assert sorted(map(len, seen)) == [1, 1, 1, 1]
    seen.clear()
    batched = measure(images, metrics, tmp_path / "two", batch_size=4)
    assert sorted(seen) == [["a.png"], ["b.png", "c.png"], ["d.png"]]
    for one, two in zip(single.values, batched.values):
        assert two == pytest.approx(one, rel=1e-5)


def test_one_images_refusal_is_not_the_others(folders, tmp_path):
    metric = metrics_of("mae")[0]

    def refuse(batch):
        if any(np.array_equal(image, read_image(folders[0] / "b.png")) for image in batch.images):
            raise RuntimeError("Calculated padded\n input size is too small")
        return [float("nan") if image.shape[1] == 49 else 1.0 for image in batch.images]

    broken = type(metric)(**{**vars(metric), "measure": refuse})
    images = find_images(*folders)
    found = measure(images, [broken], tmp_path / "cache", batch_size=4)
    assert found.failures[1] == {"mae": "Calculated padded input size is too small"}
    assert found.failures[0] == {"mae": "the metric gave nan"}
    assert [row["mae"] for row in found.values] == [None, None, 1.0, 1.0]
    places = {"pred": folders[0], "ref": folders[1], "input": None}
    results = make_results(places, images, [broken], {}, Protocol(), found, "cpu")
    assert (results["means"], results["counts"]) == ({"mae": 1.0}, {"mae": 2})
    assert (results["intervals"], results["interval"]["level"]) == ({"mae": None}, 0.95)
    assert results["interval"]["none"] == {"mae": "n too small: 2, at least 10 are needed"}
    assert json.loads(to_json(results))["images"][1]["failures"] == found.failures[1]
    assert to_csv(results).splitlines()[2].startswith("b.png,b.png,b.png,,48,48,,mae: Calculated")


def test_an_interrupted_run_goes_on(folders, tmp_path, monkeypatch):
    add, written = run.ScoreCache.add, []

    def interrupt(cache, *arguments):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(arguments)
        add(cache, *arguments)

    images, metrics = find_images(*folders), metrics_of("psnr", "mae")
    monkeypatch.setattr(run.ScoreCache, "add", interrupt)
    with pytest.raises(KeyboardInterrupt):
        measure(images, metrics, tmp_path / "cache")
    monkeypatch.setattr(run.ScoreCache, "add", add)
    assert sum(measure(images, metrics, tmp_path / "cache").computed.values()) == 5


def test_a_changed_score_is_computed_again_and_said(folders, tmp_path, capsys):
    images, metrics = find_images(*folders), metrics_of("mae")
    first = measure(images, metrics, tmp_path / "cache")
    (file,) = (tmp_path / "cache").glob("*.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    start = lines[1].index('"score": "0.') + len('"score": "0.')
    changed = str((int(lines[1][start]) + 1) % 10)  # one flipped digit, still JSON
    unsummed = json.dumps({key: value for key, value in json.loads(lines[2]).items() if key != "sum"}) + "\n"
    file.write_text("".join([lines[0], lines[1][:start] + changed + lines[1][start + 1 :], unsummed, *lines[3:]]))
    capsys.readouterr()
    again = measure(images, metrics, tmp_path / "cache")
    assert (again.values, again.computed) == (first.values, {"mae": 2})
    assert f"{file}: lines 2, 3 cannot be read, or not as written" in capsys.readouterr().err


def test_two_processes_find_what_one_finds(folders, tmp_path):
    torn = save(tmp_path / "torn", {path.stem: read_image(path) for path in folders[0].iterdir()})
    unreadable(torn, "truncated")
    run_two_processes("evaluate_run_worker.py", tmp_path)
    images, metrics = find_images(*folders), metrics_of("psnr", "ssim", "milo:mini")
    expected = json.loads(json.dumps(asdict(measure(images, metrics, tmp_path / "alone", batch_size=2))))
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert {**found["measured"], "values": None} == {**expected, "values": None}
        values = [*found["measured"]["values"], *found["few"]["values"]]
        for row, alone in zip(values, [*expected["values"], expected["values"][0]], strict=True):
            assert row == pytest.approx(alone, rel=1e-5)
        assert found["again"] == {**found["measured"], "computed": {"psnr": 0, "ssim": 0, "milo:mini": 0}}
        assert found["torn"].startswith(f"{torn / 'a.png'}: cannot be read as an image")
        assert found["no reference"].startswith("psnr: compares with a reference")


def test_the_protocol_is_checked():
    with pytest.raises(ConfigError, match="neither rgb nor y"):
        Protocol("lab")
    with pytest.raises(ConfigError, match="less than 0"):
        Protocol(border=-1)
    assert table.ABSENT["ens"][0] in str(pytest.raises(MetricUnavailable, load_metric, "ens").value)
