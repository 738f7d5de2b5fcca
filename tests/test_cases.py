"""The filed cases of ``shared/cases``: each file gives the right number, or is refused by name."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile

from milo_restore.cli import main
from milo_restore.data import read_image
from milo_restore.errors import DataError
from milo_restore.measure.folders import image_size, left_out

pytestmark = pytest.mark.golden

REFUSED = {
    "rgb16_planar.tif": "holds more than 8 bits",
    "rgb16_planar_ramp.tif": "holds more than 8 bits",
    "zero_filled.jpg": r"cannot be read as an image \(Corrupt JPEG data",
}
READ = {"orientation6.tif": (64, 48, 3), "zero_filled_original.jpg": (72, 96, 3)}
PAIRS = {  # options, and restored images with their references
    "nested": (["--recursive"], {"p/a.png": "r/a.png", "p/b.png": "r/b.png", "p/sub/c.png": "r/sub/c.png"}),
    "modcrop": (["--modcrop", "4"], {"p/a.png": "r/a.png"}),
    "pairs": ([], {"out/0801_SwinIR.png": "ref/0801.png", "out/0802_SwinIR.png": "ref/0802.png"}),
}
FOLDERS = {"nested": ("p", "r"), "modcrop": ("p", "r"), "pairs": ("out", "ref")}


@pytest.fixture
def cases(shared):
    folder = shared / "cases"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


def evaluate(cases, case, tmp_path, *options):
    pred, ref = (cases / case / part for part in FOLDERS[case])
    words = ["--metrics", "mae", "psnr", "milo:mini", "--psnr-cap", "80", "--cache", str(tmp_path)]
    out = tmp_path / "results.json"
    code = main(["evaluate", "--pred", str(pred), "--ref", str(ref), "--out", str(out), *words, *options])
    return json.loads(out.read_text()) if code == 0 else None


def test_every_file_is_held_by_a_test(cases):
    known = {f"images/{name}" for name in (*REFUSED, *READ)}
    known |= {f"{case}/{file}" for case, (_, pairs) in PAIRS.items() for pair in pairs.items() for file in pair}
    assert {path.relative_to(cases).as_posix() for path in cases.rglob("*") if path.is_file()} == known


@pytest.mark.parametrize("name", REFUSED)
def test_images_that_are_refused(cases, name):
    with pytest.raises(DataError, match=f"{name}: {REFUSED[name]}"):
        read_image(cases / "images" / name)


@pytest.mark.parametrize("name", READ)
def test_images_that_are_read(cases, name):
    path = cases / "images" / name
    assert read_image(path).shape == READ[name] == (*image_size(path)[::-1], 3)
    if path.suffix == ".tif":  # orientation 6: a quarter to the right
        assert np.array_equal(read_image(path), np.rot90(tifffile.imread(path), -1))


@pytest.mark.parametrize("case", PAIRS)
def test_pairs_are_measured_each_with_its_own_reference(cases, case, tmp_path):
    options, pairs = PAIRS[case]
    results = evaluate(cases, case, tmp_path, *options)
    pred, ref = FOLDERS[case]
    found = {f"{pred}/{image['pred']}": (f"{ref}/{image['ref']}", image["values"]) for image in results["images"]}
    assert {name: reference for name, (reference, _) in found.items()} == pairs
    for name, (reference, values) in found.items():
        restored, clean = (read_image(cases / case / file).astype(float) for file in (name, reference))
        error = restored - clean[: restored.shape[0], : restored.shape[1]]
        assert values["mae"] == pytest.approx(np.abs(error).mean() / 255, abs=1e-7)
        mse = np.square(error).mean()
        assert values["psnr"] == pytest.approx(min(80, 10 * np.log10(255**2 / mse)) if mse else 80, abs=1e-9)


def test_score_measures_them_as_evaluate_does(cases, tmp_path, capsys):
    for case, (options, pairs) in PAIRS.items():
        values = [image["values"]["milo:mini"] for image in evaluate(cases, case, tmp_path, *options)["images"]]
        restored, clean = (str(cases / case / part) for part in FOLDERS[case])
        file = tmp_path / "scores.json"
        assert main(["score", clean, restored, "--weights", "mini", *options, "--json", str(file)]) == 0
        rows = json.loads(file.read_text())["pairs"]
        assert [row["raw_error"] for row in rows] == pytest.approx(values, abs=1e-6)
        assert [f"{FOLDERS[case][1]}/{row['name']}.png" for row in rows] == list(pairs.values())


def test_without_their_option_they_are_refused_or_said_to_be_left_out(cases, tmp_path, capsys):
    assert evaluate(cases, "modcrop", tmp_path) is None
    assert "a.png is 96x64" in (said := capsys.readouterr().err)
    assert "--modcrop SCALE does that (2, 3, 4, 8 would fit)" in said
    pred, ref = (str(cases / "modcrop" / part) for part in FOLDERS["modcrop"])
    assert main(["score", ref, pred, "--weights", "mini"]) == 2
    assert "--modcrop SCALE cuts both to multiples of it" in capsys.readouterr().err
    assert len(evaluate(cases, "nested", tmp_path)["images"]) == 2
    assert "1 file in subfolders, which --recursive takes (sub/)" in capsys.readouterr().out
    (line,) = left_out({cases / "nested" / "p": []}, recursive=True)
    assert line.endswith("3 files without counterpart (a.png, b.png, sub/c.png)")


def test_a_map_of_a_pair_that_is_cut(cases, tmp_path, capsys):
    pair = [str(cases / "modcrop" / part / "a.png") for part in ("r", "p")]
    words = ["--weights", "mini", "--out", str(tmp_path / "map.png"), "--no-scale"]
    assert main(["map", *pair, *words]) == 2
    assert main(["map", *pair, *words, "--modcrop", "4"]) == 0
    assert read_image(tmp_path / "map.png").shape == (64, 96, 3)
