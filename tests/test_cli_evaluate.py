"""``milo-restore evaluate`` end to end: the table, results.json, the CSV, and what is refused."""

from __future__ import annotations

import argparse
import csv
import json
import os

import numpy as np
import pytest
from offline_pyiqa import offline

from milo_restore.cli import evaluate, main
from milo_restore.data import held_out_photographs, write_png
from milo_restore.errors import ConfigError, DataError
from milo_restore.measure.metrics import PROTOCOLS, MetricUnavailable, fetch_metrics, weight_folders
from milo_restore.measure.results import read_results, results_table


@pytest.fixture
def folders(tmp_path):
    """Three pairs under ``pred`` and ``ref``, and their inputs at half size under ``lq``."""
    photograph = held_out_photographs()[0][1]
    for number in range(3):
        clean = photograph[30 * number : 30 * number + 40, :50]
        noisy = np.clip(clean + np.random.default_rng(number).normal(0, 20, clean.shape), 0, 255).astype(np.uint8)
        write_png(tmp_path / "ref" / f"{number}.png", clean)
        write_png(tmp_path / "pred" / f"{number}_restored.png", noisy)
        write_png(tmp_path / "lq" / f"{number}_lq.png", noisy[::2, ::2])
    return tmp_path


@pytest.fixture
def command(folders):
    """Runs the command on these folders with a cache of its own."""

    def run_command(*arguments, metrics=("psnr", "milo:mini"), ref=True):
        parser = argparse.ArgumentParser()
        evaluate.add_arguments(parser)
        place = ["--pred", folders / "pred", *(["--ref", folders / "ref"] if ref else []), "--out", folders / "r.json"]
        words = [*place, "--cache", folders / "cache", "--device", "cpu", "--metrics", *metrics, *arguments]
        return evaluate.main(parser.parse_args([str(word) for word in words]))

    return run_command


def test_the_table_and_the_files(command, folders, capsys):
    assert command("--input", folders / "lq", "--csv", folders / "r.csv") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"3 images of {folders / 'pred'}"
    assert lines[1].startswith("protocol: psnr and ssim of RGB, border 0, peak 255; 8-bit files, nothing resized")
    assert lines[2].split() == ["metric", "better", "mean", "95%", "interval", "images"]
    results = read_results(folders / "r.json")
    assert lines[4].split() == ["psnr", "higher", f"{results['means']['psnr']:.5g}", "n", "too", "small", "3"]
    assert lines[5].split()[:2] == ["milo:mini", "lower"]
    assert "milo_mini.safetensors, sha256" in lines[7]
    assert lines[7].endswith("3 computed, 0 from the cache")

    assert (results["format"], results["ref"]) == (1, (folders / "ref").as_posix())
    protocol = {key: results["protocol"][key] for key in ("colour", "border", "peak", "quantisation", "resize")}
    assert protocol == {"colour": "rgb", "border": 0, "peak": 255, "quantisation": "8-bit", "resize": "none"}
    psnr = results["metrics"]["psnr"]
    assert (psnr["better"], psnr["reference"], psnr["name"], psnr["weights"]) == (
        "higher",
        True,
        "as pyiqa's psnr",
        None,
    )
    assert psnr["source"].startswith("milo-restore ")
    image = results["images"][1]
    assert (image["name"], image["pred"], image["ref"], image["input"]) == (
        "1.png", "1_restored.png", "1.png", "1_lq.png",
    )  # fmt: skip
    assert image["size"] == [50, 40]
    assert [len(digest) for digest in image["sha256"].values()] == [64, 64, 64]
    values = [image["values"]["psnr"] for image in results["images"]]
    assert results["means"]["psnr"] == pytest.approx(np.mean(values))
    assert results["intervals"] == {"psnr": None, "milo:mini": None}
    assert results["interval"]["none"]["psnr"] == "n too small: 3, at least 10 are needed"
    assert results["counts"] == {"psnr": 3, "milo:mini": 3}
    assert {"python", "torch", "numpy"} <= results["environment"]["versions"].keys()

    rows = list(csv.DictReader((folders / "r.csv").open()))
    assert [float(row["psnr"]) for row in rows] == values
    assert (rows[2]["name"], rows[2]["width"], rows[2]["failures"]) == ("2.png", "50", "")


def test_a_second_run_says_that_it_computed_nothing(command, folders, capsys):
    command()
    first = json.loads((folders / "r.json").read_text())
    capsys.readouterr()
    command()
    assert capsys.readouterr().out.count("0 computed, 3 from the cache") == 2
    second = json.loads((folders / "r.json").read_text())
    assert {**second, "environment": None} == {**first, "environment": None}


def test_failures_and_partial_means_are_said(command, folders, capsys):
    write_png(
        folders / "pred" / "1_restored.png", np.asarray(held_out_photographs()[0][1][30:70, :50])
    )  # its reference
    command(metrics=("psnr", "niqe-basicsr"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[4].split()[-3:] == ["2", "of", "3"]
    assert lines[5].split() == ["niqe-basicsr", "lower", "-", "-", "0", "of", "3"]
    assert "psnr: no value of 1 image, which its mean leaves out: 1.png (infinite: equal to its reference)" in lines
    results = read_results(folders / "r.json")
    assert (results["means"]["niqe-basicsr"], results["intervals"]["niqe-basicsr"]) == (None, None)
    assert results["images"][0]["failures"]["niqe-basicsr"].startswith("NIQE needs two blocks of 96x96 pixels")


def test_the_protocol_can_be_chosen(command, folders, capsys):
    command("--protocol", "super-resolution-y", "--border", 2, metrics=("psnr",))
    assert "psnr and ssim of Y of BasicSR's YCbCr (16 to 235), border 2" in capsys.readouterr().out
    luma = read_results(folders / "r.json")
    assert luma["metrics"]["psnr"]["name"] == "as pyiqa's psnry, color_space='ycbcr', crop_border=2"
    command(metrics=("psnr",))
    assert read_results(folders / "r.json")["means"]["psnr"] < luma["means"]["psnr"] - 1
    assert tuple(PROTOCOLS) == evaluate._PROTOCOLS


def test_unavailable_metrics(command, folders, capsys, monkeypatch):
    offline(monkeypatch, "musiq")
    with pytest.raises(MetricUnavailable, match="no network here.*--skip-unavailable"):
        command(metrics=("psnr", "musiq"))
    assert not (folders / "r.json").exists()
    assert command("--skip-unavailable", metrics=("psnr", "musiq")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[5].startswith("musiq   unavailable: pyiqa 9.9 cannot load it (<urlopen error no network here>)")
    results = read_results(folders / "r.json")
    assert list(results["means"]) == list(results["metrics"]) == ["psnr"]
    assert results["unavailable"]["musiq"]["mend"].startswith("Where there is network")
    assert results_table(results).splitlines()[-1] == lines[5]


def test_fetching_metrics_goes_on_after_a_failure(monkeypatch, tmp_path):
    offline(monkeypatch, "musiq")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    found = dict(fetch_metrics(["musiq", "milo:mini"]))
    assert "no network here" in str(found["musiq"])
    assert found["milo:mini"].startswith("milo-restore ")
    assert "milo_mini.safetensors" in found["milo:mini"]
    assert tmp_path / "hub" in weight_folders()
    with pytest.raises(ConfigError, match="no such metric"):
        list(fetch_metrics(["milo:mini", "nonsense"]))


def test_refusals_come_before_any_work(command, folders, monkeypatch):
    with pytest.raises(ConfigError, match="psnr: compares with a reference. Give --ref"):
        command(ref=False)
    with pytest.raises(ConfigError, match="'psrn': no such metric"):
        command(metrics=("psrn",))
    with pytest.raises(ConfigError, match="border: -1 is less than 0"):
        command("--border", -1)
    with pytest.raises(DataError, match="is a file"):
        command("--csv", folders / "pred" / "1_restored.png" / "r.csv")
    (folders / "pred" / "1_restored.png").unlink()
    with pytest.raises(DataError, match=r"pred has no counterpart of 1.png"):
        command()
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="cannot share one device"):
        command("--device", "cuda:0")
    assert not (folders / "cache").exists()


def test_other_files_are_no_results(tmp_path):
    for text in ("{", "[]", '{"format": 2, "images": []}'):
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(DataError, match=r"r\.json: (cannot be read|is no results file)"):
            read_results(tmp_path / "r.json")


def test_fetching_metrics_from_the_command_line(monkeypatch, capsys):
    offline(monkeypatch, "musiq")
    assert main(["assets", "fetch", "--metrics", "musiq", "milo:mini"]) == 2
    found = capsys.readouterr()
    assert "milo:mini: ready: milo-restore" in found.out
    assert "for a machine without network, copy what lies in" in found.out
    assert "milo-restore: error: musiq: pyiqa 9.9 cannot load it" in found.err
    assert main(["assets", "fetch", "--metrics", "milo:mini"]) == 0
