"""``milo-restore bench --evaluation``: both commands run, on the same images, with cold caches."""

from __future__ import annotations

import argparse
import json
import sys

import pytest

from milo_restore import bench
from milo_restore.bench import evaluation
from milo_restore.errors import ConfigError, MiloRestoreError


def options(*words):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    parser.set_defaults(program=(sys.executable, "-m", "milo_restore.cli"))  # as the command line has it
    return parser.parse_args(["--evaluation", "--quick", "--threads", "1", *words])


def test_both_commands_measure_the_same_images(tmp_path, capsys, monkeypatch):
    pytest.importorskip("pyiqa")
    calls, run = [], evaluation._run

    def counted(words, settings):
        calls.append(words)
        run(words, settings)

    monkeypatch.setattr(evaluation, "_run", counted)
    once = lambda contenders, *_: {name: [run_one() or 1.0] for name, run_one in contenders.items()}  # noqa: E731
    monkeypatch.setattr(evaluation, "interleaved", once)
    assert bench.main(options("--json", str(tmp_path / "bench.json"))) == 0
    report, printed = json.loads((tmp_path / "bench.json").read_text()), capsys.readouterr().out
    assert [row["name"] for row in report["commands"]] == [evaluation.PYIQA, *evaluation.OURS]
    assert "2 of photographs of scikit-image" in printed
    assert [row["megapixels"] for row in report["sizes"]] == list(evaluation._QUICK_MEGAPIXELS)
    assert all(row[name] > 0 for row in report["sizes"] for name in ("psnr", "ssim", "milo"))
    assert "milo, ns/pixel" in printed
    theirs, ours, with_milo = calls
    assert theirs[1:3] == ["psnr", "ssimc"]
    assert theirs[theirs.index("-t") + 1] == ours[ours.index("--pred") + 1]
    assert theirs[theirs.index("-r") + 1] == with_milo[with_milo.index("--ref") + 1]
    assert with_milo[with_milo.index("--metrics") + 1 : with_milo.index("--cache")] == ["psnr", "ssim", "milo:mini"]


def test_a_command_that_fails_is_told():
    with pytest.raises(MiloRestoreError, match="exit code 3 and said: oh no"):
        evaluation._run(["sh", "-c", "echo oh no >&2; exit 3"], bench.BenchSettings(threads=1))


def test_without_pyiqa_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(evaluation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'milo-restore\[eval\]'"):
        bench.main(options())
