"""``milo-restore tables``: what runs, in which order, what never runs twice, and what happens where something fails."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

from milo_restore.cli import main
from milo_restore.data import held_out_photographs, write_png
from milo_restore.paper import reproduce

TRAIN = """
import json, pathlib, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
kind = sys.argv[sys.argv.index("--set") + 1]
with open("order.txt", "a") as stream:
    print("train", kind, file=stream)
if kind == "loss=missing":
    print("train.py: error: no such weights. Get them", file=sys.stderr)
    sys.exit(2)
if kind == "loss=broken":
    raise ValueError("boom")
out.mkdir(parents=True, exist_ok=True)
if kind == "loss=slow" and not (out / "checkpoint").exists():
    import signal
    def stop(*_):
        (out / "checkpoint").write_text("saved")
        sys.exit(143)
    signal.signal(signal.SIGTERM, stop)
    (out / "started").write_text("")
    time.sleep(60)
(out / "config.yaml").write_text("training: {seed: 7}")
(out / "run.json").write_text(json.dumps({"loss_weights": "mini (sha256 abc)"}))
"""
IMAGES = """
import pathlib, shutil, sys
out = pathlib.Path(sys.argv[sys.argv.index("--output") + 1])
with open("order.txt", "a") as stream:
    print("images", out.name, file=stream)
for name in ("input", "ref"):
    shutil.copytree("photographs", out / name)
(out / "images.json").write_text("{}")
"""
RESTORE = """
import pathlib, shutil, sys
out, source = (pathlib.Path(sys.argv[sys.argv.index(name) + 1]) for name in ("--output", "--input"))
with open("order.txt", "a") as stream:
    print("restore", out.parent.parent.name, out.parent.name, file=stream)
shutil.copytree(source, out, dirs_exist_ok=True)
"""


def definition(*losses, metrics=("psnr", "ens")):
    """A table of two groups, with one row per loss."""
    scale = {
        "budget": "nothing",
        "train": "accelerate launch recipes/train.py --output $out --config recipes/a.yaml --set $set",
        "images": "python recipes/images.py --output $out --sigma $sigma",
        "restore": "python recipes/restore.py --model $run --input $images/ref --output $out",
    }
    return {
        "number": 2,
        "title": "a test",
        "columns": [{"metric": name, "title": name, "better": "higher", "digits": 2} for name in metrics],
        "groups": [{"name": "sigma 5", "sigma": 5}, {"name": "sigma 6", "sigma": 6}],
        "rows": [
            {"method": loss, "set": f"loss={loss}", "paper": [[1.0] * len(metrics)] * 2} for loss in losses
        ],
        "scales": {"smoke": scale, "lite": scale, "paper": scale},
    }  # fmt: skip


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A small clone with recipes that take no time; the working folder."""
    (tmp_path / "recipes" / "tables").mkdir(parents=True)
    for name, text in (("train", TRAIN), ("images", IMAGES), ("restore", RESTORE)):
        (tmp_path / "recipes" / f"{name}.py").write_text(text)
    (tmp_path / "recipes" / "a.yaml").write_text("a: 1\n")
    photograph = held_out_photographs()[0][1]
    for number in range(2):
        write_png(tmp_path / "photographs" / f"{number}.png", photograph[40 * number :][:32, :32])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def write(clone, *losses, **options):
    (clone / "recipes" / "tables" / "table2.yaml").write_text(yaml.safe_dump(definition(*losses, **options)))


def run(*arguments):
    return main(["tables", "2", "--no-report", "--launch", sys.executable, *arguments])


def order(clone):
    file = clone / "order.txt"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return lines


def test_rows_are_made_in_order_and_never_twice(clone, capsys):
    write(clone, "one", "two")
    assert run() == 0
    assert order(clone) == [
        "train loss=one", "images sigma-5", "restore one sigma-5", "images sigma-6", "restore one sigma-6",
        "train loss=two", "restore two sigma-5", "restore two sigma-6",
    ]  # fmt: skip
    out = clone / "runs" / "tables" / "smoke"
    text = capsys.readouterr().out
    assert text.count("ens is unavailable: the paper's E-DeepWSD") == 1
    assert (out / "table2.txt").read_text() == text[: text.index("tables: ") - 1]
    assert "| one |" in (out / "table2.md").read_text()
    assert r"\toprule" in (out / "table2.tex").read_text()
    assert run() == 0
    assert order(clone) == []
    assert capsys.readouterr().out == text


def test_a_cell_knows_where_it_comes_from(clone):
    write(clone, "one")
    assert run() == 0
    folder = clone / "runs" / "tables" / "smoke" / "table2" / "rows" / "one" / "sigma-6"
    record = json.loads((folder / "provenance.json").read_text())
    assert (record["group"], record["method"], record["scale"]) == ("Table 2, sigma 6", "one", "smoke")
    assert record["configs"] == {"recipes/a.yaml": "a: 1\n"}
    assert record["overrides"] == ["loss=one"]
    assert record["seed"] == {"train one": 7}
    assert record["weights"] == {"train one": "mini (sha256 abc)"}
    assert record["paper"] == {"psnr": 1.0, "ens": 1.0}
    assert [shlex.split(text)[0] for text in record["commands"]] == ["accelerate", "python", "python", "milo-restore"]
    assert json.loads((folder / "results.json").read_text())["counts"] == {"psnr": 0}  # identical images have none


def test_one_row_only(clone, capsys):
    write(clone, "one", "two")
    assert run("--only", "two") == 0
    assert "train loss=one" not in order(clone)
    assert "one: not run yet" in capsys.readouterr().out
    assert run() == 0
    assert [line for line in order(clone) if "two" in line or "images" in line] == []


def test_other_commands_than_before_are_refused(clone, capsys):
    write(clone, "one")
    assert run() == 0
    file = clone / "recipes" / "tables" / "table2.yaml"
    file.write_text(file.read_text().replace("--set $set", "--set $set more=1"))
    assert run() == 2
    assert "was made by other commands than today's" in capsys.readouterr().err


def test_what_cannot_be_had_is_a_reason_and_no_number(clone, capsys):
    write(clone, "missing", "one")
    assert run() == 0  # smoke goes on
    printed = capsys.readouterr().out
    assert "missing: not run: no such weights. Get them" in printed
    assert "restore missing sigma-5" not in order(clone)
    assert main(["tables", "2", "--scale", "lite", "--launch", sys.executable]) == 2
    error = capsys.readouterr().err
    assert "ens: the paper's E-DeepWSD" in error
    assert order(clone) == []
    write(clone, "missing", "one", metrics=("psnr",))
    assert main(["tables", "2", "--scale", "lite", "--launch", sys.executable]) == 2
    assert "no such weights. Get them" in capsys.readouterr().err
    assert order(clone) == ["train loss=missing"]


def test_a_crash_does_not_stop_other_rows_but_is_told(clone, capsys):
    write(clone, "broken", "one")
    assert run() == 1
    assert "restore one sigma-6" in order(clone)
    captured = capsys.readouterr()
    assert "1 commands failed: train broken" in captured.err
    assert "ended with exit code 1" in captured.err
    (log,) = (clone / "runs" / "tables" / "smoke" / "logs").glob("*train-broken.log")
    assert "ValueError: boom" in log.read_text()


def test_the_plain_commands_make_the_same_folders(clone, capsys):
    write(clone, "one")
    assert run("--list") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert len(lines) == 7
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    for line in lines:
        words = shlex.split(line)
        start = {"accelerate": [sys.executable], "python": [sys.executable]}.get(words[0])
        words = [*start, *words[2 if words[0] == "accelerate" else 1 :]] if start else words
        if words[0] == "milo-restore":
            assert main(words[1:]) == 0
        else:
            subprocess.run(words, check=True, env=environment)
    order(clone)
    assert run("--dry-run") == 0
    assert run() == 0
    assert "train loss=one" not in order(clone)  # found finished


def test_a_dry_run_runs_nothing(clone, capsys):
    write(clone, "one")
    assert run("--dry-run") == 0
    assert "one, sigma 6: to do: train one, images of sigma 6" in capsys.readouterr().out
    assert order(clone) == []
    assert not Path("runs").exists()


def test_an_interrupted_table_lets_the_training_save_and_goes_on(clone):
    write(clone, "slow")
    command = [sys.executable, "-m", "milo_restore.cli", "tables", "2", "--no-report", "--launch", sys.executable]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run_folder = clone / "runs" / "tables" / "smoke" / "table2" / "train" / "slow"
    end = time.monotonic() + 60
    while not (run_folder / "started").exists():
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert (run_folder / "checkpoint").read_text() == "saved"
    assert run() == 0
    assert order(clone)[:2] == ["train loss=slow", "train loss=slow"]


def test_a_signal_stops_commands_within_the_process_too(clone, monkeypatch):
    write(clone, "one")
    from milo_restore.measure import run as measuring

    def measure(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(measuring, "measure", measure)
    assert run() == 143
    assert "restore one sigma-6" not in order(clone)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_only_needs_one_table(capsys):
    assert main(["tables", "all", "--only", "MAE"]) == 2
    assert "names a row of one table" in capsys.readouterr().err


def test_available_metrics_are_tried_before_anything_runs():
    assert reproduce.available_metrics(["psnr", "ens"], skip=True) == {"psnr"}


@pytest.mark.slow
def test_a_real_row_from_training_to_report(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    for name in ("http_proxy", "https_proxy"):  # whatever is not here stays unavailable
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("MILO_RESTORE_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    words = ["tables", "2", "--only", "MILO", "--out", str(out), "--launch", sys.executable]
    assert main(words) == 0
    table = (out / "table2.txt").read_text()
    assert "NOTE: smoke numbers" in table
    results = {}
    for sigma in (15, 25, 50):
        folder = out / "table2" / "rows" / "milo" / f"sigma-{sigma}"
        results[sigma] = json.loads((folder / "results.json").read_text())
        assert results[sigma]["counts"]["psnr"] == 2
        assert f"{results[sigma]['means']['psnr']:.5f}" in table
        record = json.loads((folder / "provenance.json").read_text())
        assert record["weights"]["train MILO"].startswith("mini")
        assert "loss.kind=milo" in record["overrides"]
    psnr = {sigma: found["means"]["psnr"] for sigma, found in results.items()}
    assert 24 < psnr[50] < psnr[25] < psnr[15] < 32  # the tiny VAE alone ends at 28.5 dB on these
    assert "DiffBIR: not run yet" in table
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count('<section id="group') == 3
    assert "smoke numbers" in page
