"""The doctor finds what is wrong, says what to do, and fails only where the basics do."""

from __future__ import annotations

import types

import pytest
from safetensors.torch import save_file

from milo_restore import MILO
from milo_restore.cli import doctor, main
from milo_restore.files.manifest import MANIFEST, manifest_of


def texts(findings, state=None):
    return [f"{finding.text} {finding.mend or ''}" for finding in findings if state in (None, finding.state)]


@pytest.fixture
def nothing_here(tmp_path, monkeypatch):
    """A machine without any weights or data sets."""
    monkeypatch.delenv("MILO_RESTORE_ASSETS", raising=False)
    monkeypatch.setenv("MILO_RESTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("milo_restore.metric.weights.SHIPPED", tmp_path)
    return tmp_path


def test_versions():
    findings = doctor.check_versions()
    assert texts(findings, "bad") == []
    import torch

    assert any(text.startswith("torch ") and torch.__version__.split("+")[0] in text for text in texts(findings))


def test_a_missing_dependency_is_bad(monkeypatch):
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "pooch" else version(name))
    (bad,) = texts(doctor.check_versions(), "bad")
    assert bad.startswith("pooch is not installed Run 'pip install pooch'")


def test_extras_are_told():
    findings = texts(doctor.check_extras())
    assert texts(doctor.check_extras(), "bad") == []
    (recipes,) = [text for text in findings if text.startswith("recipes")]
    assert "einops " in recipes
    (evaluation,) = [text for text in findings if text.startswith("eval")]
    assert "Noncommercial" in evaluation


def test_missing_extras_are_named_with_one_command(monkeypatch):
    version = doctor._version
    gone = ("lpips", "pyiqa", "basicsr")
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in gone else version(name))
    monkeypatch.setattr(doctor.sys, "version_info", (3, 12, 1))
    notes = texts(doctor.check_extras(), "note")
    assert [note.split(" ")[0] for note in notes] == ["recipes", "basicsr", "eval", "for"]
    assert notes[0].strip().endswith("; without lpips")
    assert notes[-1].endswith('Run pip install "milo-restore[recipes,basicsr,eval]"')
    monkeypatch.setattr(doctor.sys, "version_info", (3, 13, 0))
    notes = texts(doctor.check_extras(), "note")
    assert notes[-1].endswith('Run pip install "milo-restore[recipes,eval]"')
    assert "cannot be installed on Python 3.13" in notes[-2]


def test_two_versions_of_opencv_are_told(monkeypatch):
    version = doctor._version
    known = {"opencv-python": "4.10.0.84", "opencv-python-headless": "5.0.0.93"}
    monkeypatch.setattr(doctor, "_version", lambda name: known.get(name) or version(name))
    note = texts(doctor.check_extras(), "note")[-1]
    assert note.endswith("opencv-python-headless==4.10.0.84")


@pytest.mark.parametrize(("found", "state"), [((3, 13, 0), "ok"), ((3, 15, 0), "note"), ((3, 9, 1), "bad")])
def test_pythons(monkeypatch, found, state):
    monkeypatch.setattr(doctor.sys, "version_info", found)
    assert doctor.check_versions()[1].state == state


def test_basicsr_and_the_stand_in():
    (finding,) = doctor.check_basicsr()
    assert finding.state == "ok"
    assert "basicsr 1.4.2" in finding.text
    assert "milo_restore.compat's stand-in" in finding.text


def make_fork(folder):
    (folder / "basicsr" / "models" / "losses").mkdir(parents=True)
    return folder / "basicsr"


def test_a_hidden_restormer_fork_is_told(tmp_path, monkeypatch):
    fork = make_fork(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    note, fine = doctor.check_basicsr()
    assert (note.state, fine.state) == ("note", "ok")
    assert str(fork) in note.text
    assert "milo-restore run takes its script's own" in note.mend


def test_a_restormer_fork_in_use_is_told_its_door(tmp_path, monkeypatch):
    fork = make_fork(tmp_path)
    found = types.SimpleNamespace(submodule_search_locations=[str(fork)])
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: found)
    (note,) = doctor.check_basicsr()
    assert note.state == "note"
    assert f"{fork} is of Restormer's kind" in note.text
    assert f"milo-restore run --loss milo-cosine -- {fork / 'train.py'}" in note.mend


def test_no_basicsr_is_told(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    (note,) = doctor.check_basicsr()
    assert (note.state, note.mend) == ("note", 'To train by it: Run pip install "milo-restore[basicsr]"')


def test_devices():
    findings = doctor.check_devices()
    assert texts(findings, "bad") == []
    assert "CPU cores" in findings[0].text
    assert "bfloat16" in findings[1].text


def test_no_weights_at_all_is_bad(nothing_here):
    findings = doctor.check_metric()
    assert [finding.state for finding in findings] == ["note", "note", "bad"]
    assert findings[0].mend == "Run 'milo-restore assets fetch milo'"
    assert "install milo-restore again" in findings[1].mend


def test_the_shipped_weights_are_enough(nothing_here):
    save_file(MILO.untrained().state_dict(), nothing_here / "milo_mini.safetensors")
    (nothing_here / MANIFEST).write_text(manifest_of(nothing_here, ["milo_mini.safetensors"]))
    findings = doctor.check_metric()
    assert [finding.state for finding in findings] == ["note", "ok"]
    assert "mini (milo_mini.safetensors" in findings[1].text


def test_damaged_official_weights_are_named(nothing_here, monkeypatch):
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(nothing_here))
    (nothing_here / "MILO.pth").write_bytes(b"not these")
    official = doctor.check_metric()[0]
    assert official.state == "note"
    assert "MILO.pth is damaged" in official.text
    missing = [text for text in texts(doctor.check_assets(), "note") if text.startswith("milo is damaged")]
    assert len(missing) == 1


def test_missing_assets_are_no_failure(nothing_here):
    findings = doctor.check_assets()
    assert texts(findings, "bad") == []
    (missing,) = (text for text in texts(findings) if text.startswith("missing: "))
    assert "BSD400" in missing.partition("milo-restore assets fetch ")[2].split()  # one command for all
    assert "not set" in findings[0].text


def test_cleaners_and_feature_metrics_are_told(nothing_here, monkeypatch):
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(nothing_here))
    (nothing_here / "BSRNet.pth").write_bytes(b"brought")
    (nothing_here / "E_VGG.pth").write_bytes(b"brought")
    findings = [text.strip() for text in texts(doctor.check_assets())]
    assert f"bsrnet in {nothing_here}/BSRNet.pth (not checked: no hash of it is known)" in findings
    assert any(text.startswith("e-vgg is damaged") for text in findings)
    (missing,) = (text for text in findings if text.startswith("missing: "))
    assert {"scunet", "BSD400"} <= set(missing.partition("milo-restore assets fetch ")[2].rstrip("'").split())


def test_an_assets_folder_that_is_none_is_bad(nothing_here, monkeypatch):
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(nothing_here / "none"))
    (bad,) = doctor.check_assets()
    assert bad.state == "bad"
    assert "MILO_RESTORE_ASSETS" in bad.text


def test_the_report_fails_where_a_basic_does(nothing_here, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "check_basicsr", lambda: 1 / 0)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "BAD   this check failed: ZeroDivisionError" in printed
    assert "BAD   MILO runs with no weights at all" in printed
    assert printed.splitlines()[-1].startswith("2 of the basics do not work")


@pytest.mark.golden
def test_the_report_where_all_is_well(shared, capsys, monkeypatch):
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(shared))
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "MILO scores with official (MILO.pth, sha256 a1d66a7e0ebe)" in printed
    assert f"BSD400 in {shared}/data/bsds500/train + {shared}/data/bsds500/test" in printed
    assert printed.splitlines()[-1] == "The basics work."
