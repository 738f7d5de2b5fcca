"""The examples that --help ends with: all parse, and what is cheap runs."""

from __future__ import annotations

import shlex
import shutil

import pytest
from report_runs import measured_runs

from milo_restore.cli import COMMANDS, _parser, main


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_parses(command):
    words = shlex.split(COMMANDS[command].example)[1:]
    assert words[0] == command
    assert callable(_parser(words).parse_args(words).run)


@pytest.fixture(scope="module")
def for_examples(tmp_path_factory):
    """A folder in which the examples find their files."""
    folder = tmp_path_factory.mktemp("examples")
    measured_runs(folder / "runs", methods=(("mae", 6), ("milo", 12), ("milo-cosine", 18)))
    places = {"references": "ref", "clean": "ref", "restored": "mae/restored", "noisy": "milo/restored"}
    for name, source in places.items():
        shutil.copytree(folder / "runs" / source, folder / name)
    shutil.copy(folder / "references" / "0.png", folder / "reference.png")
    shutil.copy(folder / "restored" / "0.png", folder / "distorted.png")
    return folder


def run_example(command, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    assert main(shlex.split(COMMANDS[command].example)[1:]) == 0


@pytest.mark.parametrize("command", ["compare", "report", "denoise", "levels", "config"])
def test_examples_run_offline(command, for_examples, monkeypatch):
    run_example(command, for_examples, monkeypatch)


@pytest.mark.golden
@pytest.mark.parametrize("command", ["score", "map", "evaluate"])
def test_examples_run_with_the_official_weights(command, for_examples, monkeypatch, shared):
    run_example(command, for_examples, monkeypatch)
