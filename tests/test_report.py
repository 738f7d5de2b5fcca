"""The report as a file: what it says, what it refuses, and how large it gets."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from report_runs import measured_runs

from milo_restore.cli import main
from milo_restore.data import read_image
from milo_restore.errors import ConfigError, DataError
from milo_restore.report import write_report
from milo_restore.report.collect import group_runs, read_runs

STRANGE = '<img src=x onerror=alert("1")>'


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return measured_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def runs(original, tmp_path):
    """A copy that a test may spoil; results.json name the copy's folders."""
    copies = []
    shutil.copytree(original[0].parent, tmp_path / "runs")
    for run in original:
        file = tmp_path / "runs" / run.name / "results.json"
        file.write_text(file.read_text().replace(str(run.parent), str(tmp_path / "runs")))
        copies.append(file.parent)
    return copies


def page_of(runs, tmp_path, **options):
    out = tmp_path / "report.html"
    write_report([str(run) for run in runs], out, progress=False, **options)
    return out.read_text(encoding="utf-8")


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def pixels(uri):
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


def test_the_numbers_are_those_of_the_results(runs, tmp_path):
    page = page_of(runs, tmp_path)
    strong, weak = (json.loads((run / "results.json").read_text()) for run in runs)
    rows = {
        re.sub("<.*?>", "", row.split("</th>")[0]): row for row in re.findall(r"<tr><th scope=\"row\">.*?</tr>", page)
    }
    assert f'data-value="{strong["means"]["psnr"]!r}"' in rows["strong"]
    assert 'class="best"' not in rows["strong"] + rows["weak"]  # three images tell nothing apart
    assert "ens is unavailable" in page
    assert strong["intervals"]["psnr"] is None
    assert 'title="n too small: 3, at least 10 are needed"' in rows["strong"]
    assert "<small>n too small</small>" in rows["strong"]
    (group,) = data_of(page)["groups"]
    assert group["metrics"] == {"psnr": "higher", "milo:mini": "lower"}
    expected = [image["values"]["psnr"] for image in weak["images"]]
    assert group["values"]["psnr"][1] == pytest.approx(expected, rel=1e-5)


def test_the_best_is_marked_where_it_differs_and_runs_are_compared(tmp_path):
    names = [str(number) for number in range(10)]
    methods = (("strong", 6), ("same", 6), ("weak", 18))
    runs = measured_runs(tmp_path, names, methods=methods, size=(24, 24))
    page = page_of([runs[0], runs[2]], tmp_path, images=2)
    best, worse = (json.loads((runs[place] / "results.json").read_text())["means"] for place in (0, 2))
    for metric in ("psnr", "milo:mini"):
        assert f'class="best"><span>{best[metric]:.5g}</span>' in page
        assert f'class="best"><span>{worse[metric]:.5g}</span>' not in page
    assert "Compared image by image" in page
    assert "strong - weak" in page
    assert "<svg" not in page.split("Compared image by image")[1].split("</details>")[0]  # ranks are for three
    page = page_of(runs, tmp_path, images=2)
    assert 'class="best"' not in page  # two are equal, so that neither is better than all others
    comparison = page.split("Compared image by image")[1].split("</details>")[0]
    assert comparison.count("<svg") == 2
    assert "not told apart by ranks: " in comparison


def test_intervals_are_printed_with_their_n(tmp_path):
    names = [str(number) for number in range(10)]
    run, *_ = measured_runs(tmp_path, names, methods=(("one", 6),), size=(24, 24))
    low, high = json.loads((run / "results.json").read_text())["intervals"]["psnr"]
    page = page_of([run], tmp_path, images=2)
    assert f'title="95% interval {low:.5g} to {high:.5g}, of 10 images"' in page
    assert f"<small>[{low:.4g}, {high:.4g}]</small>" in page
    assert "its 95% interval over images (Student&#39;s t, widened by Hall&#39;s" in page


def test_the_pictures_are_the_files(runs, tmp_path):
    (group,) = data_of(page_of(runs, tmp_path))["groups"]
    picture = group["pictures"][2]
    assert set(picture["shown"]) == {"input", "ref", "0", "1", "map0", "map1"}
    reference = read_image(runs[0].parent / "ref" / "2.png").astype(float)
    assert np.abs(pixels(picture["shown"]["ref"]) - reference).mean() < 4  # WebP
    assert pixels(picture["shown"]["input"]).shape == (20, 28, 3)
    assert pixels(picture["shown"]["map1"]).mean() > 1.2 * pixels(picture["shown"]["map0"]).mean() > 0


def test_nothing_outside_of_the_file_is_asked_for(runs, tmp_path):
    page = page_of(runs, tmp_path)
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    assert "url(" not in page
    assert "@import" not in page


def test_names_cannot_break_the_page(tmp_path):
    runs = measured_runs(tmp_path, names=("a", STRANGE.replace("/", "")), methods=(("<b>x</b>".replace("/", "_"), 6),))
    page = page_of(runs, tmp_path)
    assert STRANGE not in page
    assert html.escape("<b>x<_b>") in page
    (group,) = data_of(page)["groups"]
    assert sorted(group["names"]) == sorted(["a", STRANGE])


def test_it_fits_into_the_size_it_was_given(tmp_path):
    runs = measured_runs(tmp_path, names=tuple(map(str, range(6))), size=(240, 280))
    whole = page_of(runs, tmp_path)
    limit = 0.5
    assert len(whole.encode()) > limit * 1e6
    page = page_of(runs, tmp_path, max_mb=limit)
    assert len(page.encode()) <= limit * 1e6
    assert "Of larger images squares of" in page
    assert all(picture["note"] for picture in data_of(page)["groups"][0]["pictures"])
    with pytest.raises(DataError, match="do not fit into"):
        page_of(runs, tmp_path, max_mb=0.1)


def test_many_images_show_the_best_and_worst_only(tmp_path):
    names = tuple(f"{number:02d}" for number in range(60))
    runs = measured_runs(tmp_path, names=names, size=(20, 20), methods=(("strong", 6),))
    page = page_of(runs, tmp_path, maps=False)
    (group,) = data_of(page)["groups"]
    assert len(group["names"]) == 60
    order = np.argsort(group["values"]["milo:mini"][0])
    shown = {picture["image"] for picture in group["pictures"]}
    assert shown == {*order[:25], *order[-25:]}
    assert "60 images; pictures of 50 of them" in page
    (group,) = data_of(page_of(runs, tmp_path, images=7, maps=False))["groups"]
    assert {picture["image"] for picture in group["pictures"]} == {*order[:4], *order[-3:]}


def test_every_runs_best_and_worst_have_pictures(tmp_path):
    """What is best in one run is worst in the other, so that all have nearly one mean."""
    names = tuple(f"{number:02d}" for number in range(30))
    runs = measured_runs(tmp_path, names=names, size=(20, 20), methods=(("there", 6), ("back", 6)))
    results = json.loads((runs[1] / "results.json").read_text())
    values = [image["values"] for image in results["images"]]
    for image, other in zip(results["images"], reversed(values)):
        image["values"] = other
    (runs[1] / "results.json").write_text(json.dumps(results))
    (group,) = data_of(page_of(runs, tmp_path, images=20, maps=False))["groups"]
    assert group["ranking"] == "milo:mini"
    shown = {picture["image"] for picture in group["pictures"]}
    assert len(shown) == 20
    for values in group["values"]["milo:mini"]:
        order = np.argsort(values)
        assert shown >= {*order[:5], *order[-5:]}


def test_changed_and_lost_images(runs, tmp_path):
    lost = runs[1] / "restored" / "1.png"
    lost.unlink()
    (group,) = data_of(page_of(runs, tmp_path))["groups"]
    assert group["pictures"][1]["missing"] == {"1": f"{lost} is not there any more"}
    assert "1" not in group["pictures"][1]["shown"]
    shutil.copy(runs[0] / "restored" / "0.png", runs[1] / "restored" / "0.png")
    with pytest.raises(DataError, match=r"0\.png: has changed since .*results\.json was written\. Measure it again"):
        page_of(runs, tmp_path)


def test_provenance_is_shown(runs, tmp_path):
    for place, run in enumerate(runs):
        record = {
            "group": "Table 9, sigma 5", "method": f"M{place}", "notice": "smoke numbers", "order": 1 - place,
            "paper": {"psnr": 33.2, "ens": 0.19, "fsim": 0.5}, "digits": {"psnr": 2, "ens": 4},
            "configs": {"a.yaml": "steps: 3 # <few>"}, "seed": {"train": 7}, "commands": ["accelerate launch x"],
        }  # fmt: skip
        (run / "provenance.json").write_text(json.dumps(record))
    page = page_of(runs, tmp_path)
    assert '<p class="notice">smoke numbers.</p>' in page
    assert data_of(page)["groups"][0]["runs"] == ["M1", "M0"]
    for text in (
        "paper 33.20",
        "the paper prints M1 0.1900, M0 0.1900",
        "fsim was not measured; the paper prints M1 0.5",
        "steps: 3 # &lt;few&gt;",
        "train: 7",
    ):
        assert text in page
    assert "<code>accelerate launch x</code>" in page
    assert "Table 9, sigma 5" in page


def test_runs_on_other_images_make_other_sections(runs, tmp_path):
    other = measured_runs(tmp_path / "other", names=("8", "9"), methods=(("strong", 6),), ref=False)
    groups = group_runs(read_runs([str(run) for run in (*runs, *other)]))
    assert [[run.label for run in group.runs] for group in groups] == [["strong", "weak"], ["strong"]]
    page = page_of((*runs, *other), tmp_path)
    assert [len(group["pictures"]) for group in data_of(page)["groups"]] == [3, 2]
    assert not any(role.startswith("map") for role in data_of(page)["groups"][1]["pictures"][0]["shown"])


@pytest.mark.parametrize("record", [[], {"paper": None}, {"paper": {"psnr": "34"}}, {"configs": None}, {"order": None}])
def test_a_provenance_of_another_kind_is_one_line(runs, tmp_path, record):
    (runs[0] / "provenance.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"is no provenance\.json of format 1"):
        page_of(runs, tmp_path)


def test_inputs_are_those_of_all_runs_or_none(runs, tmp_path):
    assert "Of larger images" not in page_of(runs, tmp_path)
    shutil.copytree(runs[0].parent / "lq", tmp_path / "others")
    file = runs[1] / "results.json"
    results = json.loads(file.read_text())
    results["input"] = str(tmp_path / "others")
    file.write_text(json.dumps(results))
    page = page_of(runs, tmp_path)
    assert "input" not in data_of(page)["groups"][0]["pictures"][0]["shown"]
    assert "the runs name different folders of them" in page
    results["input"] = None
    results["metrics"]["milo:mini"]["weights_sha256"] = "other"
    file.write_text(json.dumps(results))
    with pytest.raises(DataError, match="was measured with other weights than mini"):
        page_of(runs, tmp_path)
    assert "input" in data_of(page_of(runs, tmp_path, maps=False))["groups"][0]["pictures"][0]["shown"]
    shutil.copy(runs[0].parent / "lq" / "0.png", runs[0].parent / "lq" / "1.png")
    with pytest.raises(DataError, match=r"lq/1\.png: has changed since"):
        page_of(runs, tmp_path, maps=False)


def test_what_cannot_be_compared_is_refused(runs, tmp_path):
    with pytest.raises(ConfigError, match="is given twice"):
        read_runs([str(runs[0]), str(runs[0] / "results.json")])
    with pytest.raises(DataError, match="no such results"):
        read_runs([str(tmp_path / "nothing")])
    labels = [run.label for run in group_runs(read_runs([f"A={runs[0]}", f"A={runs[1]}"]))[0].runs]
    assert labels == ["A (strong)", "A (weak)"]
    other = measured_runs(tmp_path / "other", names=("8",), methods=(("strong", 6),))
    for run in (runs[0], other[0]):
        (run / "provenance.json").write_text(json.dumps({"group": "G"}))
    with pytest.raises(ConfigError, match="has other images or references"):
        group_runs(read_runs([str(runs[0]), str(other[0])]))


def test_the_command(runs, tmp_path, capsys):
    words = [f"Ours={runs[0]}", str(runs[1] / "results.json"), "--out", str(tmp_path / "r.html"), "--title", "A & B"]
    assert main(["report", *words]) == 0
    assert re.search(r"r\.html: 0\.\d MB, 1 groups, pictures of 3 of 3 images", capsys.readouterr().out)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<title>A &amp; B</title>" in page
    assert data_of(page)["groups"][0]["runs"] == ["Ours", "weak"]
    (tmp_path / "file").touch()
    assert main(["report", str(runs[0]), "--out", str(tmp_path / "file" / "r.html")]) == 2
    assert main(["report", str(runs[0]), "--out", str(tmp_path / "r2.html"), "--images", "0"]) == 2
    for size in ("nan", "inf", "0"):
        assert main(["report", str(runs[0]), "--out", str(tmp_path / "r2.html"), "--max-mb", size]) == 2
    assert not (tmp_path / "r2.html").exists()
