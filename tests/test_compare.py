"""Comparing methods: the statistics against scipy and published values, and what is printed of them."""

from __future__ import annotations

import csv
import io
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy import stats

from milo_restore.cli import main
from milo_restore.data import find_dataset, list_images, read_image, write_png
from milo_restore.errors import DataError
from milo_restore.measure.compare import compare_runs, compare_values, critical_difference, holm
from milo_restore.show.ranks import rank_diagram

SVG = "{http://www.w3.org/2000/svg}"


def results(values, *, better="higher", metric="psnr", refs=str, weights=None):
    """A results.json's content, as far as a comparison reads it."""
    images = [
        {"name": f"{number}.png", "values": {metric: value}, "sha256": {"ref": refs(number)}}
        for number, value in enumerate(values)
    ]
    about = {"better": better, "name": metric, "weights_sha256": weights}
    return {"images": images, "metrics": {metric: about}, "protocol": {"colour": "rgb"}}


def scores(count=24, seed=0):
    """Images that differ by 3 dB, and methods that differ by 0.1."""
    rng = np.random.default_rng(seed)
    images = rng.normal(26, 3, count)
    return {name: images + shift + rng.normal(0, 0.1, count) for name, shift in (("A", 0.0), ("B", 0.1), ("C", 0.11))}


def test_what_images_share_cancels():
    values = scores()
    found = compare_values("psnr", values, lower_better=False)
    pair = next(pair for pair in found.pairs if (pair.first, pair.second) == ("A", "B"))
    difference = values["A"] - values["B"]
    assert pair.difference.mean == pytest.approx(difference.mean())
    assert pair.p == stats.wilcoxon(difference).pvalue
    assert pair.wins == (difference > 0).sum()
    assert pair.losses == (difference < 0).sum()
    assert pair.holds  # although the means' own intervals overlap by far
    assert abs(difference.mean()) < np.std(values["A"]) / 10
    unsure = next(pair for pair in found.pairs if (pair.first, pair.second) == ("B", "C"))
    assert not unsure.holds
    assert found.best is None  # the best mean is not better than the second best
    two = {name: values[name] for name in "AB"}
    assert compare_values("psnr", two, lower_better=False).best == "B"
    assert compare_values("psnr", two, lower_better=True).best == "A"


def test_corrections_and_ranks_are_the_published_ones():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    # Demsar 2006: four classifiers on 14 data sets, section 3.2.2; and the table's q of 2.343 for three
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert critical_difference(3, 6) == pytest.approx(2.343 * np.sqrt(3 * 4 / 36), abs=1e-3)
    assert critical_difference(2, 14) is None
    found = compare_values("x", {"a": [1, 2, 3], "b": [1, 3, 2], "c": [4, 4, 4]}, lower_better=True)
    assert found.ranks == pytest.approx({"a": 1.5, "b": 1.5, "c": 3.0})
    assert found.alike == [("a", "b", "c")]  # three images tell nothing apart


def test_methods_far_apart_in_rank_are_told_apart():
    rng = np.random.default_rng(3)
    columns = {name: shift + rng.normal(0, 0.3, 60) for name, shift in (("a", 0.0), ("b", 0.01), ("c", 5.0))}
    found = compare_values("x", columns, lower_better=True)
    assert found.ranks["c"] == 3
    assert [set(group) for group in found.alike] == [{"a", "b"}]
    picture = ElementTree.fromstring(rank_diagram(found.ranks, found.alike, found.critical_difference))
    words = " ".join(str(text.text) for text in picture.iter(f"{SVG}text"))
    assert "3.00 c" in words
    bars = [line for line in picture.iter(f"{SVG}line") if line.get("stroke-width") == "4"]
    assert len(bars) == 1


def test_images_without_a_value_are_left_out_and_said():
    found = compare_values("x", {"a": [1.0, None, 3.0], "b": [1.5, 2.0, 3.5]}, lower_better=True)
    assert (found.images, found.left_out) == (2, 1)
    assert found.means == {"a": 2.0, "b": 2.5}
    assert found.pairs[0].difference.ends is None  # two images are too few for an interval
    assert not found.pairs[0].holds
    with pytest.raises(DataError, match="no image has a value"):
        compare_values("x", {"a": [1.0, None], "b": [None, 1.0]}, lower_better=True)
    same = compare_values("x", {"a": [1.0] * 9, "b": [1.0] * 9}, lower_better=True)
    assert (same.pairs[0].p, same.pairs[0].wins, same.pairs[0].losses, same.best) == (1.0, 0, 0, None)


def test_only_like_is_compared_with_like():
    one, other = results([1.0, 2.0]), results([1.0, 2.0])
    with pytest.raises(DataError, match="needs two runs"):
        compare_runs({"one": one})
    with pytest.raises(DataError, match="^other: other images or references than one's"):
        compare_runs({"one": one, "other": results([1.0, 2.0], refs=lambda number: "else")})
    with pytest.raises(DataError, match="no metric was measured alike"):
        compare_runs({"one": one, "other": results([1.0, 2.0], weights="others")})
    other["protocol"] = {"colour": "y"}
    with pytest.raises(DataError, match="no metric was measured alike"):
        compare_runs({"one": one, "other": other})


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Three filters of noisy images, measured by the command line."""
    monkeypatch.setenv("MILO_RESTORE_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(1)
    for number in range(10):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        clean = np.asarray(small.resize((48, 48), Image.Resampling.BICUBIC))
        noisy = Image.fromarray(np.clip(clean + rng.normal(0, 20, clean.shape), 0, 255).astype(np.uint8))
        write_png(tmp_path / "ref" / f"{number}.png", clean)
        for name, radius in (("soft", 1.0), ("softer", 1.5), ("none", 0.0)):
            blurred = noisy.filter(ImageFilter.GaussianBlur(radius))
            write_png(tmp_path / name / f"{number}.png", np.asarray(blurred))
    folders = [tmp_path / name for name in ("soft", "softer", "none")]
    for folder in folders:
        words = ["--ref", str(tmp_path / "ref"), "--metrics", "psnr", "mae", "--out", str(folder / "results.json")]
        assert main(["evaluate", "--pred", str(folder), *words]) == 0
    return [str(folder) for folder in folders]


def test_the_command_prints_all_styles(measured, tmp_path, capsys):
    capsys.readouterr()
    diagram = tmp_path / "ranks.svg"
    words = ["compare", *measured, "--metrics", "psnr"]
    assert main([*words, "--diagram", str(diagram), "--output", str(tmp_path / "out.txt")]) == 0
    text = capsys.readouterr().out
    assert (tmp_path / "out.txt").read_text() == text
    assert "psnr ↑, 10 images" in text
    assert "soft - none" in text
    assert "mae" not in text
    assert ElementTree.parse(diagram).getroot().tag == f"{SVG}svg"
    means = {name: json.loads((tmp_path / name / "results.json").read_text())["means"]["psnr"] for name in
             ("soft", "softer", "none")}  # fmt: skip
    best = f"{max(means.values()):.5g}"
    assert main([*words, "--style", "markdown"]) == 0
    markdown = capsys.readouterr().out
    assert f"**{best}**" in markdown
    assert markdown.count("**") == 4  # the title, and the best mean, which is better than both others
    assert main([*words, "--style", "latex"]) == 0
    latex = capsys.readouterr().out
    assert f"\\textbf{{{best}}}" in latex
    assert latex.count("\\begin{tabular}") == latex.count("\\bottomrule") == 2
    assert main(["compare", *measured, "--style", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["metric"] for row in rows] == ["psnr"] * 3 + ["mae"] * 3
    assert float(rows[0]["low"]) < float(rows[0]["difference"]) < float(rows[0]["high"])
    assert float(rows[1]["difference"]) == pytest.approx(means["soft"] - means["none"])
    assert {row["holds"] for row in rows} <= {"True", "False"}


def test_what_cannot_be_compared_is_one_line(measured, tmp_path, capsys):
    assert main(["compare", measured[0]]) == 2
    assert "needs two runs" in capsys.readouterr().err
    assert main(["compare", *measured, "--metrics", "ssim"]) == 2
    assert "not measured by all runs: ssim. They share psnr, mae" in capsys.readouterr().err
    assert main(["compare", *measured, "--diagram", str(tmp_path / "x.svg")]) == 2
    assert "a diagram is of one metric" in capsys.readouterr().err
    assert not (tmp_path / "x.svg").exists()


@pytest.mark.golden
def test_two_filters_of_kodak_crops_are_told_apart(shared, tmp_path, monkeypatch):
    """The means' own intervals overlap, the paired one leaves out zero."""
    monkeypatch.setenv("MILO_RESTORE_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for path in find_dataset("Kodak24", shared):
        clean = read_image(path)[100:228, 100:228]
        noise = rng.normal(0, 15, clean.shape)
        write_png(tmp_path / "ref" / f"{path.stem}.png", clean)
        for name, share in (("a", 1.0), ("b", 0.97)):  # one filter, but three percent less noise to remove
            noisy = Image.fromarray(np.clip(clean + share * noise, 0, 255).astype(np.uint8))
            blurred = noisy.filter(ImageFilter.GaussianBlur(0.7))
            write_png(tmp_path / name / f"{path.stem}.png", np.asarray(blurred))
    found = {}
    for name in "ab":
        file = tmp_path / name / "results.json"
        words = ["--ref", str(tmp_path / "ref"), "--metrics", "psnr", "--out", str(file)]
        assert main(["evaluate", "--pred", str(tmp_path / name), *words]) == 0
        found[name] = json.loads(file.read_text())
    assert len(list_images(tmp_path / "ref")) == 24
    low, high = zip(*(found[name]["intervals"]["psnr"] for name in "ab"))
    assert max(low) < min(high)
    (pair,) = compare_runs(found)[0].pairs
    assert pair.holds
    assert abs(pair.difference.mean) < 0.3
