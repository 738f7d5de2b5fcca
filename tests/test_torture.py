"""``doctor --torture``: it finds the harm where there is some, and none in an exact recipe."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY

RECIPE = """
import argparse, os, sys
sys.path.insert(0, {tests!r})
import torch
from train_tiny import *
from milo_restore.errors import run_program
from milo_restore.train import fit
{more}
parser = argparse.ArgumentParser()
parser.add_argument("--output")
parser.add_argument("--resume")
if __name__ == "__main__":
    a = parser.parse_args()
    torch.set_num_threads(1)
    run = settings(stages=(Stage(3, 8, 2),), checkpoint_every=1, evaluate_every=3, ema_decay=None)
    def act():
        fit(Tiny(), l1, Patches(), run, a.output, resume=a.resume, evaluate=lambda model: dict(psnr=1.0))
    sys.exit(run_program("recipe", act))
"""
# Checkpoints that are written in place, as most programs write them.
HARM = """
from milo_restore.train import checkpoint
def publish(target, write, then=""):
    target.mkdir(parents=True, exist_ok=True)
    write(target)
    from milo_restore.files.manifest import manifest_of, names_of
    (target / "manifest.json").write_text(manifest_of(target, names_of(target) - {"manifest.json"}))
    if target.name == "final":
        os.unlink(target / "metadata.json")
        os.mkdir(target / "x")
checkpoint.publish = publish
"""


def torture(tmp_path, more, *words):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE.format(tests=str(REPOSITORY / "tests"), more=more))
    paths = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "milo_restore.cli", "doctor", "--torture", str(recipe), *words],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, cwd=tmp_path, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_an_exact_recipe_survives_every_kill_and_every_full_disk(tmp_path):
    done = torture(tmp_path, "")
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) kills .*, (\d+) full disks, .*: (\d+) ended as .*; (\d+) did not", done.stdout)
    kills, full, equal, wrong = map(int, found.groups())
    assert wrong == 0
    assert equal == kills + full
    assert kills >= 60
    assert full >= 5


def test_some_kills_of_an_exact_recipe(tmp_path):
    done = torture(tmp_path, "", "--points", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills before and after operations on files, 3 full disks" in done.stdout


def test_harm_is_found_and_told(tmp_path):
    done = torture(tmp_path, HARM, "--points", "24")
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"killed at \d+ of \d+: (another result|--resume latest ends with)", done.stdout)


def test_what_cannot_be_tortured_is_named(tmp_path):
    done = torture(tmp_path, "raise SystemExit('no such data')")
    assert done.returncode == 2 or "no such data" in done.stderr
    done = torture(tmp_path, "", "--", "--nonsense")
    assert done.returncode == 2
    assert "recipe.py: ends with 2 (recipe.py: error: unrecognized arguments: --nonsense)" in done.stderr
