"""Protocols by name: every number against BasicSR's own arguments or a formula; modcrop, subfolders, names, subsets."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from basicsr.metrics import calculate_niqe, calculate_psnr, calculate_ssim
from conftest import REPOSITORY
from offline_pyiqa import offline
from PIL import Image

from milo_restore.cli import main
from milo_restore.data import held_out_photographs, write_png
from milo_restore.errors import ConfigError, DataError
from milo_restore.measure.compare import compare_runs
from milo_restore.measure.folders import find_images, find_pairs
from milo_restore.measure.metrics import PROTOCOLS, Batch, Protocol, load_metric, load_metrics
from milo_restore.measure.run import measure

FACTS = {  # colour, border, modcrop: as the rows' sources have them
    "rgb": ("rgb", 0, 1), "y": ("y", 0, 1), "restormer": ("rgb", 0, 1), "swinir-x2": ("y", 2, 2),
    "swinir-x3": ("y", 3, 3), "swinir-x4": ("y", 4, 4), "diffbir": ("rgb", 0, 1), "stablesr": ("y", 0, 1),
    "seesr": ("y", 4, 1), "codeformer": ("rgb", 0, 1),
}  # fmt: skip
FORMER = {"denoising": "restormer", "super-resolution": "diffbir", "super-resolution-y": "swinir-x4"}


@pytest.fixture(scope="module")
def pair():
    """A noisy crop of a photograph and the clean one, of sides that neither 2, 3 nor 4 divides."""
    clean = held_out_photographs()[0][1][:121, :241]
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 12, clean.shape), 0, 255).astype(np.uint8)
    noisy[:, :2] = 0  # what a border is for
    return noisy, clean


def value(name, protocol, pair):
    return load_metric(name, protocol).measure(Batch([pair[0]], [pair[1]]))[0]


def cropped(pair, modcrop):
    return [np.ascontiguousarray(image[: 121 // modcrop * modcrop, : 241 // modcrop * modcrop]) for image in pair]


@pytest.mark.parametrize("name", FACTS)
def test_psnr_and_ssim_are_basicsrs_with_the_published_arguments(name, pair):
    colour, border, modcrop = FACTS[name]
    protocol = PROTOCOLS[name]
    assert (protocol.colour, protocol.border, protocol.modcrop, protocol.name) == (colour, border, modcrop, name)
    bgr = [image[..., ::-1] for image in cropped(pair, modcrop)]
    how = {"crop_border": border, "test_y_channel": colour == "y", "input_order": "HWC"}
    assert value("psnr", protocol, pair) == pytest.approx(calculate_psnr(*bgr, **how), abs=1e-6)
    assert value("ssim", protocol, pair) == pytest.approx(calculate_ssim(*bgr, **how), abs=1e-6)
    assert protocol.source


def test_former_names_are_aliases():
    assert {name: PROTOCOLS[name].name for name in PROTOCOLS} == {**{name: name for name in FACTS}, **FORMER}


def test_psnr_of_swinir_x4_is_the_formula(pair):
    image, clean = (array.astype(float) @ (65.481, 128.553, 24.966) / 255 + 16 for array in cropped(pair, 4))
    error = np.mean((image - clean)[4:-4, 4:-4] ** 2)
    assert value("psnr", PROTOCOLS["swinir-x4"], pair) == pytest.approx(10 * math.log10(255**2 / error), abs=1e-4)


def test_every_metric_sees_what_is_left(pair):
    protocol = Protocol(border=4, modcrop=4)
    left = [image[4:-4, 4:-4] for image in cropped(pair, 4)]
    for name in ("mae", "milo:mini", "pyiqa:psnr", "fsim"):
        if name in ("pyiqa:psnr", "fsim"):
            pytest.importorskip("pyiqa")
        found, whole = value(name, protocol, pair), value(name, None, pair)
        assert found == pytest.approx(value(name, None, left), rel=1e-6)
        assert abs(found - whole) > 1e-3 * abs(whole)
    metric = load_metric("niqe-basicsr", PROTOCOLS["seesr"])
    photograph = held_out_photographs()[0][1]
    expected = calculate_niqe(photograph[..., ::-1], crop_border=4)
    assert metric.measure(Batch([photograph], None)) == pytest.approx([expected], abs=1e-6)
    assert metric.formal == "calculate_niqe, crop_border=4"


def test_what_is_cut_is_part_of_the_caches_key(tmp_path, pair):
    for folder, image in zip("pr", pair):
        write_png(tmp_path / folder / "a.png", image)
    protocols = [Protocol(), Protocol(border=4), Protocol(modcrop=4), Protocol(psnr_cap=20), Protocol("y")]
    for name, count in {"psnr": 5, "mae": 3, "milo:mini": 3, "niqe-basicsr": 3}.items():
        assert len({str(load_metric(name, protocol).identity()) for protocol in protocols}) == count
    images = find_images(tmp_path / "p", tmp_path / "r")
    found = [measure(images, [load_metric("mae", protocol)], tmp_path / "cache") for protocol in protocols[:3]]
    assert [one.computed for one in found] == [{"mae": 1}] * 3
    assert len({one.values[0]["mae"] for one in found}) == 3


def test_a_border_that_leaves_nothing_is_an_images_failure(tmp_path, pair):
    for folder, image in zip("pr", pair):
        write_png(tmp_path / folder / "a.png", image[:8])
        write_png(tmp_path / folder / "b.png", image)
    images = find_images(tmp_path / "p", tmp_path / "r")
    found = measure(images, [load_metric("mae", PROTOCOLS["seesr"])], None)
    assert found.failures == ({"mae": "241x8 leaves nothing within a border of 4"}, {})


def test_checkpoints_are_the_protocols(monkeypatch, capsys):
    offline(monkeypatch, "maniqa", "maniqa-pipal", "musiq")
    names = ["psnr", "maniqa", "musiq", "pyiqa:maniqa", "maniqa-pipal"]
    for name, expected in (("seesr", ["maniqa-pipal", "musiq", "pyiqa:maniqa"]),
                           ("diffbir", ["maniqa", "musiq", "pyiqa:maniqa", "maniqa-pipal"])):  # fmt: skip
        _, unavailable = load_metrics(names, PROTOCOLS[name], "cpu", skip_unavailable=True)
        assert list(unavailable) == expected
    assert str(PROTOCOLS["seesr"]).endswith("; maniqa is maniqa-pipal")


def test_the_cap_counts_images_equal_to_their_references(tmp_path, pair):
    noisy, clean = pair
    for folder, first in (("p", noisy), ("r", clean)):
        write_png(tmp_path / folder / "a.png", first)
        write_png(tmp_path / folder / "b.png", clean)
    out = tmp_path / "r.json"
    command = ["evaluate", "--pred", tmp_path / "p", "--ref", tmp_path / "r", "--metrics", "psnr", "--out", out]
    assert main([*map(str, command), "--cache", str(tmp_path / "c"), "--psnr-cap", "80"]) == 0
    results = json.loads(out.read_text())
    values = [image["values"]["psnr"] for image in results["images"]]
    assert values == [pytest.approx(value("psnr", None, pair)), 80]
    assert results["counts"] == {"psnr": 2}
    assert results["protocol"]["psnr_cap"] == 80
    assert results["protocol"]["name"] == "rgb with psnr-cap 80"
    assert results["metrics"]["psnr"]["name"] == "as pyiqa's psnr, at most 80 dB"
    for wrong in ("0", "inf"):
        assert main([*map(str, command), "--psnr-cap", wrong]) == 2


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="modcrop: 0 is less than 1. Give the scale factor"):
        Protocol(modcrop=0)
    with pytest.raises(ConfigError, match="psnr_cap: nan is no positive number"):
        Protocol(psnr_cap=math.nan)


def evaluate(tmp_path, *arguments, metrics=("mae",)):
    words = ["evaluate", "--pred", tmp_path / "p", "--ref", tmp_path / "r", "--out", tmp_path / "r.json", "--cache",
             tmp_path / "cache", "--device", "cpu", "--metrics", *metrics, *arguments]  # fmt: skip
    return main([str(word) for word in words])


def test_modcrop_measures_what_was_refused(tmp_path, pair, capsys):
    write_png(tmp_path / "p" / "a.png", cropped(pair, 4)[0])
    write_png(tmp_path / "r" / "a.png", pair[1])
    assert evaluate(tmp_path) == 2
    assert "a.png is 240x120, " in (line := capsys.readouterr().err)
    assert "--modcrop SCALE does that (2, 3, 4, 8 would fit)" in line
    assert evaluate(tmp_path, "--protocol", "swinir-x4", metrics=("psnr", "mae")) == 0
    printed = capsys.readouterr().out
    assert "border 4, cut to multiples of 4 before, peak 255" in printed
    assert "swinir-x4: JingyunLiang/SwinIR main_test_swinir.py" in printed
    results = json.loads((tmp_path / "r.json").read_text())
    bgr = [image[..., ::-1] for image in cropped(pair, 4)]
    expected = calculate_psnr(*bgr, crop_border=4, test_y_channel=True)
    assert results["means"]["psnr"] == pytest.approx(expected, abs=1e-6)
    names = {name: about["name"] for name, about in results["metrics"].items()}
    assert names["mae"] == "mae, crop_border=4"
    assert results["protocol"]["source"].startswith("JingyunLiang/SwinIR")
    assert main(["report", str(tmp_path / "r.json"), "--output", str(tmp_path / "page.html")]) == 0


def test_protocols_are_listed_with_their_sources(capsys):
    assert main(["evaluate", "--list-protocols"]) == 0
    listed = capsys.readouterr().out
    for name, row in PROTOCOLS.items():
        assert name in listed
        assert f"{row.source}\n" in listed
    recipes = (REPOSITORY / "recipes" / "README.md").read_text()
    assert [name for name in PROTOCOLS if f"`{name}`" not in recipes] == []


def fill(folder, *names, size=(20, 16)):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(folder / name)
    return folder


def test_what_is_passed_over_is_counted(tmp_path, capsys):
    pred, ref = fill(tmp_path / "p", "a.png", "x/b.png", "y/z/b.png", ".hidden/c.png"), fill(tmp_path / "r", "a.jpg")
    (pred / "results.json").write_text("{}")
    assert evaluate(tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"1 image of {pred}"
    assert lines[1] == (
        f"left out of {pred}: 2 files in subfolders, which --recursive takes (x/, y/); 1 file of other kinds (.json)"
    )
    assert lines[2].startswith("protocol: ")
    fill(ref, "x/b.png", "y/z/b.png")
    assert evaluate(tmp_path, "--recursive") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"3 images of {pred}", f"left out of {pred}: 1 file of other kinds (.json)"]
    images = json.loads((tmp_path / "r.json").read_text())["images"]
    assert [image["name"] for image in images] == ["a.jpg", "x/b.png", "y/z/b.png"]
    assert main(["report", str(tmp_path / "r.json"), "--output", str(tmp_path / "page.html")]) == 0
    assert "y/z/b" in (tmp_path / "page.html").read_text()
    (pred / "a.png").unlink()
    assert evaluate(tmp_path) == 2
    error = capsys.readouterr().err
    assert f"{pred}: holds no images itself, but 2 images in subfolders, such as x/. --recursive takes them" in error


def test_only_present_takes_a_subset_of_the_references(tmp_path, capsys):
    pred, ref = fill(tmp_path / "p", "b_out.png"), fill(tmp_path / "r", "a.png", "b.png", "c.png")
    assert evaluate(tmp_path) == 2
    error = capsys.readouterr().err
    assert "has no counterpart of a.png, c.png. Files are paired by name" in error
    assert f"--only-present leaves out what only {ref} has" in error
    assert evaluate(tmp_path, "--only-present") == 0
    assert f"left out of {ref}: 2 files without counterpart (a.png, c.png)" in capsys.readouterr().out
    assert main(["score", str(ref), str(pred), "--weights", "mini", "--only-present"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"left out of {ref}: 2 files without counterpart (a.png, c.png)"
    assert lines[3].split()[:2] == ["b", "0.0000000"]
    fill(pred, "d_out.png")
    with pytest.raises(DataError, match="has no counterpart of d_out.png"):
        find_images(pred, ref, only_present=True)


@pytest.mark.parametrize(
    ("preds", "refs"),
    [
        (["0801_SwinIR.png", "0802_SwinIR.png"], ["0801.png", "0802.png"]),
        (["0801_SwinIR.png"], ["0801.png"]),
        (["0801_MyExperiment.png"], ["0801.png"]),
        (["0801x4.png"], ["0801.png"]),
        (["0801x4w1.png"], ["0801.png"]),
        (["0801x4_SwinIR.png", "0802x4_SwinIR.png"], ["0801.png", "0802.png"]),
        (["0801x4_out.png"], ["0801.png"]),
        (["img_001_SRF_4_LR.png"], ["img_001.png"]),
        (["img_001_SRF_4_LR.png", "img_011_SRF_4_LR.png"], ["img_001_SRF_4_HR.png", "img_011_SRF_4_HR.png"]),
        (["img_001_SRF_4_SR.png"], ["img_001_SRF_4_HR.png"]),
        (["baby_x4_SR.png"], ["baby_HR.png"]),
        (["Canon_001_LR4.png"], ["Canon_001_HR.png"]),
        (["P1_x1.png", "P2_x1.png"], ["P1_x4.png", "P2_x4.png"]),
    ],
)
def test_names_of_programs_and_data_sets_pair(tmp_path, preds, refs):
    pred, ref = fill(tmp_path / "p", *preds), fill(tmp_path / "r", *refs)
    assert [(image.pred.name, image.ref.name) for image in find_images(pred, ref)] == list(zip(preds, refs))
    assert [(two.name, one.name) for _, one, two in find_pairs(ref, pred)] == list(zip(preds, refs))


@pytest.mark.parametrize(
    ("preds", "refs"),
    [
        (["img_001.png"], ["img_002.png"]),  # one file each, and nothing says that its number is an ending
        (["cat_left.png"], ["cat_right.png"]),
        (["k0_5000.png", "k1_10000.png"], ["k0.png", "k1.png"]),
        (["x/a.png"], ["y/a.png"]),
    ],
)
def test_other_names_do_not(tmp_path, preds, refs):
    pred, ref = fill(tmp_path / "p", *preds), fill(tmp_path / "r", *refs)
    with pytest.raises(DataError, match="has no counterpart of"):
        find_images(pred, ref, recursive=True)


def test_only_what_was_measured_alike_is_compared(tmp_path, pair):
    runs = {}
    for run, options in {"whole": [], "border": ["--border", "4"], "modcrop": ["--modcrop", "2"],
                         "named": ["--protocol", "restormer"]}.items():  # fmt: skip
        for number in range(3):
            write_png(tmp_path / "p" / f"{number}.png", pair[0][number:])
            write_png(tmp_path / "r" / f"{number}.png", pair[1][number:])
        assert evaluate(tmp_path, *options, metrics=("psnr", "mae")) == 0
        runs[run] = json.loads((tmp_path / "r.json").read_text())
    assert [one.metric for one in compare_runs({run: runs[run] for run in ("whole", "named")})] == ["psnr", "mae"]
    for other in ("border", "modcrop"):
        with pytest.raises(DataError, match="no metric was measured alike"):
            compare_runs({run: runs[run] for run in ("whole", other)})
