"""``milo-restore correlate`` end to end: tables, files, the cache, and metrics that cannot be had."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import sys
import types
import urllib.error

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import kendalltau, spearmanr

from milo_restore import MILO
from milo_restore.cli import correlate as command_module
from milo_restore.cli import main
from milo_restore.data import read_image, to_tensor
from milo_restore.errors import ConfigError
from milo_restore.measure import metrics
from milo_restore.measure.metrics import Batch, MetricUnavailable, from_pyiqa, load_metric, table
from milo_restore.opinions import correlate, datasets, layouts
from milo_restore.opinions.coefficients import Coefficient


@pytest.fixture
def tid(tmp_path, monkeypatch):
    """A TID2013 of six references and two kinds; the opinions fall as the noise rises, nearly."""
    rng = np.random.default_rng(0)
    root, lines = tmp_path / "tid", []
    for folder in ("reference_images", "distorted_images"):
        (root / folder).mkdir(parents=True)
    for number in range(1, 7):
        clean = rng.integers(60, 190, (24, 20, 3), dtype=np.uint8)
        Image.fromarray(clean).save(root / "reference_images" / f"I{number:02d}.BMP")
        for kind in (1, 8):
            amount = int(rng.integers(2, 60))
            noisy = clean + rng.integers(-amount, amount + 1, clean.shape)
            Image.fromarray(noisy.astype(np.uint8)).save(root / "distorted_images" / f"i{number:02d}_{kind:02d}_1.bmp")
            lines.append(f"{8 - amount / 8 + rng.random() / 4:.4f} i{number:02d}_{kind:02d}_1.bmp")
    (root / "mos_with_names.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.setitem(layouts.LAYOUTS, "tid2013", dataclasses.replace(layouts.LAYOUTS["tid2013"], rows=12))
    return root


@pytest.fixture
def command(tid, tmp_path):
    """Runs the command on that data set with a cache of its own."""

    def run(*arguments, metrics=("mae",)):
        place = ("--dataset", "tid2013", "--root", tid, "--cache", tmp_path / "cache", "--device", "cpu")
        return main([str(word) for word in ("correlate", *place, "--metrics", *metrics, *arguments)])

    return run


@pytest.fixture
def computed(monkeypatch):
    """The names of the images that were really scored."""
    names, score = [], correlate._score

    def count(metric, pair, *images):
        names.append(pair.distorted.name)
        return score(metric, pair, *images)

    monkeypatch.setattr(correlate, "_score", count)
    return names


def plain(value, reference, side=16):
    """One image of one grey, against one of another."""
    return Batch(*([np.full((side, side, 3), level, np.uint8)] for level in (value, reference)))


def error_of(capsys):
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("milo-restore: error: ")
    return lines[-1]


def test_the_table_and_the_files(command, tid, tmp_path, capsys):
    files = ("--csv", tmp_path / "t.csv", "--json", tmp_path / "t.json", "--per-type")
    assert command(*files, metrics=("mae", "milo:mini", "mae")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tid2013: 12 pairs, 6 references; opinions: higher is better"
    assert [line.split()[:3] for line in lines[2:4]] == [["mae", "lower", "12"], ["milo:mini", "lower", "12"]]
    assert "mae: milo-restore" in lines[4]
    assert "milo_mini.safetensors, sha256" in lines[6]
    assert "01 Gaussian noise" in lines
    assert "mae: n too small: 6 references, at least 25 are needed" in lines

    pairs = datasets.opinion_pairs("tid2013", tid)
    opinions = [pair.score for pair in pairs]
    images = [[to_tensor(read_image(path))[None] for path in (p.distorted, p.reference)] for p in pairs]
    milo = MILO.from_pretrained("mini")
    scores = {
        "mae": [float((image - reference).abs().mean()) for image, reference in images],
        "milo:mini": [float(milo(image, reference=reference)) for image, reference in images],
    }
    rows = {(row["metric"], row["kind"]): row for row in csv.DictReader((tmp_path / "t.csv").open())}
    content = json.loads((tmp_path / "t.json").read_text())
    kinds = np.array([pair.kind for pair in pairs])
    for metric in content["metrics"]:
        expected = np.array(scores[metric["name"]])
        assert [pair["scores"][metric["name"]] for pair in content["pairs"]] == pytest.approx(expected, rel=1e-6)
        row = rows[metric["name"], "all"]
        assert float(row["srcc"]) == metric["all"]["srcc"]["value"] == spearmanr(expected, opinions)[0] < -0.9
        assert float(row["krcc"]) == kendalltau(expected, opinions)[0] < 0
        assert (row["srcc_low"], row["krcc_high"], metric["all"]["plcc"]["low"]) == ("", "", None)
        chosen = kinds == "08 Gaussian blur"
        part = rows[metric["name"], "08 Gaussian blur"]
        assert float(part["srcc"]) == spearmanr(expected[chosen], np.array(opinions)[chosen])[0]
        assert part["n"] == "6"
    assert content["metrics"][1]["weights_sha256"] == milo.weights.sha256
    assert len(content["metrics"][0]["all"]["fit"]["beta"]) == 4
    assert (content["pairs_found"], content["pairs_of"], content["unavailable"]) == (12, 12, {})
    assert content["interval"]["fewest"] == 25
    (both,) = content["comparison"]["pairs"]
    turned = [-metric["all"]["srcc"]["value"] for metric in content["metrics"]]  # both are errors
    assert both["srcc"]["difference"]["mean"] == pytest.approx(turned[0] - turned[1])
    assert (both["first"], both["second"], both["srcc"]["holds"], both["srcc"]["p"]) == (
        "mae",
        "milo:mini",
        False,
        None,
    )
    row = next(line for line in lines if line.startswith("mae - milo:mini"))
    assert row.split()[3:] == ["SRCC", f"{turned[0] - turned[1]:+.4f}", "n", "too", "small", "-", "-"]
    assert f"{float(rows['mae', 'all']['srcc']):.4f} (n too small)" in lines[2]
    assert str(Coefficient(0.7, 0.65, 0.75)) == "0.7000 [0.650, 0.750]"


def test_a_second_run_computes_nothing(command, computed, tid, tmp_path, capsys):
    assert command(metrics=("mae", "milo:mini")) == 0
    first = capsys.readouterr().out
    assert len(computed) == 24
    assert "12 scores computed, 0 from the cache" in first
    assert command(metrics=("mae", "milo:mini")) == 0
    again = capsys.readouterr().out
    assert len(computed) == 24
    assert again.splitlines()[:4] == first.splitlines()[:4]
    assert "0 scores computed, 12 from the cache" in again
    # Another image under the same name is another image; other weights are another metric.
    image = read_image(tid / "distorted_images" / "i01_01_1.bmp")
    Image.fromarray(255 - image).save(tid / "distorted_images" / "i01_01_1.bmp")
    assert command(metrics=("mae",)) == 0
    assert computed[24:] == ["i01_01_1.bmp"]
    torch.manual_seed(1)
    weights = tmp_path / "own.pth"
    torch.save(MILO.untrained().state_dict(), weights)
    assert command(metrics=("milo:mini", f"milo:{weights}")) == 0
    assert len(computed) == 24 + 1 + 1 + 12
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_an_interrupted_run_goes_on(command, computed, tmp_path, capsys, monkeypatch):
    add = correlate.ScoreCache.add

    def interrupt(self, *arguments):
        if len(computed) == 5:
            raise KeyboardInterrupt
        add(self, *arguments)

    monkeypatch.setattr(correlate.ScoreCache, "add", interrupt)
    assert command() == 130
    monkeypatch.setattr(correlate.ScoreCache, "add", add)
    assert command() == 0
    assert "8 scores computed, 4 from the cache" in capsys.readouterr().out
    assert len(computed) == 5 + 8


def test_a_damaged_cache_line_is_reported(command, computed, tmp_path, capsys):
    assert command() == 0
    whole = capsys.readouterr().out.splitlines()[1:3]
    (file,) = (tmp_path / "cache").iterdir()
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0], '{"reference": 3}\n', *lines[2:-1], lines[-1][:-20]]))  # and cut off
    assert command() == 0
    printed = capsys.readouterr().out
    assert f"{file}: lines 2, 12 cannot be read" in printed
    assert "2 scores computed, 10 from the cache" in printed
    assert printed.splitlines()[2:4] == whole
    assert computed[12:] == ["i01_08_1.bmp", "i06_08_1.bmp"]
    assert command() == 0  # what was appended after the cut line is read back
    assert "0 scores computed, 12 from the cache" in capsys.readouterr().out


def test_nan_scores_are_named(command, tmp_path, capsys, monkeypatch):
    score = correlate._score

    def broken(metric, pair, *images):
        bad = {"i02_01_1.bmp": float("nan"), "i05_08_1.bmp": float("inf")}
        return bad.get(pair.distorted.name, score(metric, pair, *images))

    monkeypatch.setattr(correlate, "_score", broken)
    for _ in range(2):  # the second time from the cache
        assert command("--json", tmp_path / "t.json") == 0
        printed = capsys.readouterr().out
        assert "mae: 2 scores are NaN or infinite and left out: i02_01_1.bmp, i05_08_1.bmp" in printed
        content = json.loads((tmp_path / "t.json").read_text())
        assert (content["metrics"][0]["all"]["n"], content["metrics"][0]["all"]["left_out"]) == (10, 2)
        assert content["metrics"][0]["not_finite"] == ["i02_01_1.bmp", "i05_08_1.bmp"]
        assert [pair["scores"]["mae"] for pair in content["pairs"]].count(None) == 2


def test_a_wrong_direction_is_said(command, tid, capsys):
    table = tid / "mos_with_names.txt"
    rows = [line.split() for line in table.read_text().splitlines()]
    table.write_text("\n".join(f"{9 - float(score):.4f} {name}" for score, name in rows))
    assert command() == 0
    assert "mae: the sign of SRCC contradicts the metric's stated direction" in capsys.readouterr().out


def test_only_present(command, tid, capsys):
    (tid / "distorted_images" / "i03_01_1.bmp").unlink()
    assert command() == 2
    assert "1 of 12 pairs lack an image: distorted_images/i03_01_1.bmp" in error_of(capsys)
    assert command("--only-present") == 0
    assert "tid2013: 11 of 12 pairs are there, 6 references" in capsys.readouterr().out


def test_refusals_come_before_any_work(command, computed, tid, tmp_path, capsys):
    assert command(metrics=("mae", "mioL")) == 2
    assert "'mioL': no such metric" in error_of(capsys)
    assert command(metrics=("mae", "niqe")) == 2
    assert "'niqe': does not look at the reference" in error_of(capsys)
    assert command(metrics=("psnr:mini",)) == 2
    assert "takes no such weights" in error_of(capsys)
    assert command(metrics=("mae", f"milo:{tmp_path / 'none.pth'}")) == 2
    assert "no such weight file" in error_of(capsys)
    (tmp_path / "file").touch()
    assert command("--csv", tmp_path / "file" / "t.csv") == 2
    assert "is a file" in error_of(capsys)
    assert command("--split", "kadid-test") == 2
    assert "a part of KADID-10k, not of TID2013" in error_of(capsys)
    Image.new("RGB", (30, 30)).save(tid / "reference_images" / "I04.BMP")
    assert computed == []
    assert command() == 2
    line = error_of(capsys)
    assert "sizes differ: 20x24 and 30x30" in line
    assert "i04_01_1.bmp" in line


def test_the_options_are_the_readers():
    """The command's own lists spare --help the import of numpy."""
    assert command_module._DATASETS == datasets.DATASETS
    assert command_module._SPLITS == datasets.SPLITS


# --- pyiqa


@pytest.fixture
def pretend(monkeypatch):
    """A pyiqa of which only psnr works: it says how much brighter the first image is."""

    class Network:
        def state_dict(self):
            return {"w": torch.ones(2)}

    class Metric:
        lower_better, metric_mode, net = True, "FR", Network()

        def __call__(self, image, reference):
            return (image - reference).mean((1, 2, 3))[:, None]

    def create_metric(name, device, **options):
        print("Downloading something")
        if name == "psnr":
            return Metric()
        assert options == {"backbone_pretrain": False} or name != "topiq_fr"
        raise urllib.error.URLError("Name or service not known")

    pyiqa, configs = types.ModuleType("pyiqa"), types.ModuleType("pyiqa.default_model_configs")
    pyiqa.__version__, pyiqa.create_metric = "9.9", create_metric
    configs.DEFAULT_CONFIGS = dict.fromkeys(("psnr", "lpips", "topiq_fr"), {"metric_mode": "FR"})
    monkeypatch.setitem(sys.modules, "pyiqa", pyiqa)
    monkeypatch.setitem(sys.modules, "pyiqa.default_model_configs", configs)


def test_pyiqa_gets_the_distorted_image_first(pretend, capsys):
    metric = load_metric("pyiqa:psnr")
    assert metric.measure(plain(153, 51)) == [pytest.approx(0.4)]
    assert metric.lower_better  # as pyiqa says
    assert metric.identity()["software"] == "pyiqa 9.9"
    assert len(metric.weights_sha256) == 64
    assert capsys.readouterr().out == ""


def test_unavailable_metrics(pretend, command, computed, tmp_path, capsys):
    wanted = ("mae", "lpips", "topiq_fr", "gmsd", "e-deepwsd")
    assert command(metrics=wanted) == 2
    line = error_of(capsys)
    assert "lpips: pyiqa 9.9 cannot load it (<urlopen error Name or service not known>)" in line
    assert "run 'milo-restore assets fetch --metrics lpips topiq_fr'" in line
    assert "gmsd: Upgrade pyiqa" in line
    assert computed == []
    assert command("--skip-unavailable", "--csv", tmp_path / "t.csv", metrics=wanted) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith("lpips      unavailable: pyiqa 9.9 cannot load it")
    assert lines[5] == "gmsd       unavailable: pyiqa 9.9 does not offer it"
    assert lines[6] == "e-deepwsd  unavailable: neither code nor weights are published"
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert rows[-1]["metric"] == "e-deepwsd"
    assert rows[-1]["note"] == "unavailable: neither code nor weights are published"
    assert command("--skip-unavailable", metrics=("lpips",)) == 2
    line = error_of(capsys)
    assert "lpips: pyiqa 9.9 cannot load it" in line
    assert "--skip-unavailable" not in line  # nothing would be left


def test_without_pyiqa(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(MetricUnavailable, match=r"pip install 'milo-restore\[eval\]'"):
        load_metric("pyiqa:psnr")
    with pytest.raises(ConfigError, match="no such metric"):
        load_metric("brandnew")


def test_every_offered_name_is_pyiqas():
    configs = pytest.importorskip("pyiqa.default_model_configs").DEFAULT_CONFIGS
    assert {configs[name]["metric_mode"] for name in from_pyiqa.FULL_REFERENCE} == {"FR"}
    assert {configs[name]["metric_mode"] for name in from_pyiqa.NO_REFERENCE} == {"NR"}
    assert not set(table.NOT_OFFERED) & set(configs)


def test_pyiqas_psnr():
    pytest.importorskip("pyiqa")
    metric = load_metric("pyiqa:psnr")
    assert metric.measure(plain(153, 102))[0] == pytest.approx(10 * math.log10(25), abs=1e-3)
    assert (metric.lower_better, metric.weights_sha256) == (False, None)


# --- real images


@pytest.mark.golden
def test_the_masking_enhanced_metrics(shared, monkeypatch):
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(shared))
    found = {name: load_metric(name) for name in ("e-mae", "e-mse", "e-psnr", "e-ssim")}
    assert {name: metric.lower_better for name, metric in found.items()} == {
        "e-mae": True, "e-mse": True, "e-psnr": False, "e-ssim": True
    }  # fmt: skip
    assert len({metric.identity()["weights_sha256"] for metric in found.values()}) == 4
    assert 0 < found["e-mae"].measure(plain(153, 128, side=32))[0] < 0.1  # a mask in (0, 1) times 0.1


@pytest.mark.golden
def test_ten_images_of_tid2013(shared, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(shared))
    folder = shared / "data" / "iqa"
    table = folder / "meta_pyiqa" / "meta_info_TID2013Dataset.csv"
    place = ["--dataset", "tid2013", "--root", folder / "tid2013_subset", "--table", table, "--only-present"]
    rest = ["--metrics", "milo", "--cache", tmp_path, "--device", "cpu", "--json", tmp_path / "t.json"]
    assert main([str(word) for word in ("correlate", *place, *rest)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tid2013: 10 of 3000 pairs are there, 7 references; opinions: higher is better"
    assert "a1d66a7e0ebe" in "".join(lines)
    found = json.loads((tmp_path / "t.json").read_text())["metrics"][0]["all"]
    assert found["srcc"]["value"] == pytest.approx(-0.7576, abs=1e-4)
    assert found["krcc"]["value"] == pytest.approx(-0.5556, abs=1e-4)
    assert found["plcc"]["value"] == pytest.approx(0.9105, abs=1e-3)
    assert found["srcc"]["high"] is None
    assert found["note"] == "n too small: 7 references, at least 25 are needed"


def test_all_measures_what_it_can_and_lists_the_rest(command, monkeypatch, capsys):
    monkeypatch.setattr(metrics, "FULL_REFERENCE", ("mae", "milo:mini", "hdr-vdp-2"))
    assert command(metrics=("all",)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["mae", "milo:mini", "hdr-vdp-2"]
    assert "unavailable: a MATLAB program" in lines[4]
