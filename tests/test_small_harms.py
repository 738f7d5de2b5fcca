"""Names, configurations, terminals and interruptions that nobody means, and that must cost nothing."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from PIL import Image
from safetensors.torch import save_file
from skimage.data import astronaut
from test_recipes import TINY, load_recipe
from test_recipes import run as run_recipe_of
from train_tiny import Patches, Tiny, l1, settings

from milo_restore.cli import main
from milo_restore.config import load_config, read_yaml
from milo_restore.data import list_images
from milo_restore.errors import ConfigError, DataError, WeightsError, run_program
from milo_restore.files.write import publish, replace_file, settle
from milo_restore.loss import DiffusionLossSettings, LossSettings
from milo_restore.show.text import CSVWriter
from milo_restore.train import TrainSettings, fit

PHOTOGRAPH = Image.fromarray(astronaut()[:40, 200:240])


@pytest.fixture
def folders(tmp_path):
    for name in ("pred", "ref"):
        (tmp_path / name).mkdir()
        PHOTOGRAPH.save(tmp_path / name / "a.png")
    return tmp_path


def evaluate(folder, *more):
    words = ["--pred", folder / "pred", "--ref", folder / "ref", "--metrics", "psnr", "--cache", folder / "cache"]
    return main(["evaluate", *map(str, (*words, *more))])


def test_evaluate_writes_over_no_other_file(folders, capsys):
    """D11."""
    mine = folders / "notes.json"
    mine.write_text('{"thesis": "all of it"}')
    assert evaluate(folders, "--output", mine) == 2
    assert "notes.json: is there already and holds no results of this command" in capsys.readouterr().err
    assert mine.read_text() == '{"thesis": "all of it"}'
    for _ in range(2):
        assert evaluate(folders, "--output", folders / "results.json") == 0
    assert "results.json are replaced" in capsys.readouterr().err


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"red\x1b[31m.png", b"two\nlines.png"])
def test_names_that_cannot_be_shown_are_refused_before_the_work(folders, capsys, name):
    """D13, D14."""
    for folder in ("pred", "ref"):
        PHOTOGRAPH.save(folders / folder / "b.png")
        os.rename(folders / folder / "b.png", os.path.join(os.fsencode(folders / folder), name))
    assert evaluate(folders, "--output", folders / "r.json", "--csv", folders / "r.csv") == 2
    assert main(["score", str(folders / "ref"), str(folders / "pred"), "--weights", "mini"]) == 2
    said = capsys.readouterr().err
    assert said.count("its name is not UTF-8 or holds control characters. Rename it") == 2
    assert "\x1b" not in said
    with pytest.raises(DataError, match="Rename the file"):
        replace_file(folders / "x.json", os.fsdecode(b"caf\xe9"))


def test_spaces_of_other_kinds_are_no_harm(tmp_path):
    name = "Screenshot 2026-11-26 at 3.04\u202fPM\u00a0\N{WOMAN}\N{ZERO WIDTH JOINER}.png"
    PHOTOGRAPH.save(tmp_path / name)
    assert [path.name for path in list_images(tmp_path)] == [name]


def test_longest_names_can_be_written(tmp_path):
    for name in ("a" * 251 + ".txt", "\u00fc" * 125 + ".txt"):
        replace_file(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("loss: {a: 1}\nseed: 2\nloss: {a: 3}\n", "the key 'loss' is there twice"),
        ("loss: {a: 1, a: 2}", "the key 'a' is there twice"),
        ("a: " + "[" * 5000 + "]" * 5000, "is not valid YAML"),
        ("a: " + "9" * 5000, "is not valid YAML"),
    ],
)
def test_yaml_that_hides_or_breaks_something(tmp_path, text, words):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_yaml(path)
    assert read_yaml(REPOSITORY / "recipes/configs/restormer_tiny.yaml")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(TrainSettings, None, [f"seed={'9' * 5000}"])


def test_a_spreadsheet_takes_no_name_for_a_formula():
    text = io.StringIO()
    CSVWriter(text).writerows([["=HYPERLINK(1)", "@a", "+b", "-c", "plain", -1.5, None, "-"]])
    read = next(csv.reader(io.StringIO(text.getvalue())))
    assert read == ["'=HYPERLINK(1)", "'@a", "'+b", "'-c", "plain", "-1.5", "", "-"]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_loss_that_cannot_train_is_refused(weight):
    for kind in (LossSettings, DiffusionLossSettings):
        with pytest.raises(ValueError, match="loss_weight must be a number above 0"):
            kind(loss_weight=weight)


def test_equal_content_has_equal_bytes(tmp_path):
    """safetensors writes two metadata keys in random order, so that a sha256 would be no identity."""
    written = set()
    for _ in range(12):
        path = tmp_path / "a.safetensors"
        about = {"step": "4", "format": "pt", "teacher": '\u00fc "quoted"'}
        save_file({"b": torch.ones(3), "a": torch.zeros(2)}, path, about)
        settle(path)
        written.add(path.read_bytes())
    assert len(written) == 1
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        assert file.metadata() == about
        assert torch.equal(file.get_tensor("b"), torch.ones(3))
    for name in ("one", "two"):
        fit(Tiny(), l1, Patches(), settings(), tmp_path / name)
    first, second = ((tmp_path / name / "final/model.safetensors").read_bytes() for name in ("one", "two"))
    assert first == second


class Evil:
    def __reduce__(self):
        return (os.system, ("touch evil",))


def test_a_resealed_checkpoint_with_objects_in_it_is_refused(tmp_path):
    """D13: never executed, and one line."""
    fit(Tiny(), l1, Patches(), settings(), tmp_path, until=2)
    folder = tmp_path / "checkpoint-000002"
    kept = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}

    def write(place):
        for name, content in kept.items():
            (place / name).write_bytes(content)
        torch.save({"optimizer": Evil(), "scaler": None}, place / "optimizer.pt")

    publish(folder, write)
    with pytest.raises(WeightsError, match="does not fit this model") as caught:
        fit(Tiny(), l1, Patches(), settings(), tmp_path, resume="latest")
    assert "\n" not in str(caught.value)
    assert not os.path.exists("evil")


# Terminals and interruptions


@pytest.mark.parametrize("buffered", [True, False])
def test_a_standard_output_that_takes_nothing_is_one_line(tmp_path, buffered):
    """D13: a full disk behind it, or closed before the start."""
    PHOTOGRAPH.save(tmp_path / "a.png")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    environment["PYTHONUNBUFFERED"] = "" if buffered else "1"
    command = f"{sys.executable} -m milo_restore.cli score a.png a.png --weights mini --device cpu"
    for to, code in ((">/dev/full", 2), (">&-", 0)):
        done = subprocess.run(
            ["/bin/sh", "-c", f"{command} {to}"], cwd=tmp_path, env=environment, text=True, stderr=subprocess.PIPE,
            check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert ("standard output cannot be written (No space left on device)" in done.stderr) == (code == 2)


def test_ctrl_c_of_a_recipe_is_one_line(monkeypatch, tmp_path, capsys):
    """D13: in its final evaluation, and while it starts."""
    recipe = load_recipe("restormer_denoise")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "evaluate_restorers", interrupted)
    short = [*TINY, "training.stages=[{steps: 1, patch: 32, batch: 1}]", "data.test_side=48", "training.trackers=[]"]
    assert run_recipe_of(recipe, monkeypatch, "--output", tmp_path / "run", *short) == 130
    assert capsys.readouterr().err.splitlines()[-1].endswith(": interrupted")
    assert json.loads((tmp_path / "run/final/metadata.json").read_text())["step"] == 1
    assert run_program("recipe", interrupted) == 130


@pytest.mark.parametrize("name", ["restormer_denoise", "diffbir_sr"])
def test_ctrl_c_while_a_recipe_imports_is_one_line(name):
    code = f"""
import runpy, signal, sys, threading, time
sys.path.insert(0, "recipes")
def interrupt():
    while "torch" not in sys.modules:
        time.sleep(0.001)
    signal.raise_signal(signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Thread(target=interrupt, daemon=True).start()
runpy.run_path("recipes/{name}.py", run_name="__main__")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, text=True,
                          capture_output=True, check=False)  # fmt: skip
    assert done.returncode in (130, -signal.SIGINT), done.stderr
    assert "Traceback" not in done.stderr
    assert "interrupted" in done.stderr
