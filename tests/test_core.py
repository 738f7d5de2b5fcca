"""The core alone: what it can do without any extra, and what it says of the rest."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from core_alone import CORE

from milo_restore import extras
from milo_restore.errors import MissingPackage

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTIONS = {
    "PIL": "pillow",
    "skimage": "scikit-image",
    "cv2": "opencv-python-headless",
    "stlpips_pytorch": "stlpips-pytorch",
    "flip_evaluator": "flip-evaluator",
}
WORK = ["assets", "doctor"]
NEED = {
    "recipes": ["score", "map", "levels", "correlate", "evaluate", "compare", "tables", "report", "denoise", "config",
                "bench"],
    "diffusion": ["restore", "convert"],
    "basicsr": ["basicsr"],
}  # fmt: skip
OF_THE_CORE = [
    "metric", "loss", "files", "doors.diffusers", "doors.lpips", "doors.neosr", "doors.trainner", "basicsr",
    "basicsr.losses", "run", "lpips", "config", "train.schedule", "train.watch", "bench",
]  # fmt: skip


@pytest.fixture(scope="module")
def alone():
    """What came of everything in a process without the packages of any extra."""
    script = Path(__file__).with_name("core_alone.py")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def said_in_one_line(text, extra=None):
    command = rf'pip install "milo-restore\[{extra}\]"' if extra else "pip install "
    return text.count("\n") == 1 and re.search(rf"(is not installed|can be imported)\. .*{command}", text) is not None


def test_metric_and_losses_run(alone):
    assert set(alone["library"]) == {"MILO", "MILOLoss", "LatentMILOLoss", "L1Loss", "LPIPS", "DiffusionLoss"}
    assert all(math.isfinite(value) and value > 0 for value in alone["library"].values())


def test_every_command_works_or_names_its_extra(alone):
    commands = alone["commands"]
    for name in WORK:
        assert commands[name] == [0, ""], name
    for extra, names in NEED.items():
        for name in names:
            code, text = commands[name]
            assert (code, said_in_one_line(text, extra)) == (2, True), (name, text)
    code, text = commands["run"]
    assert code == 2
    assert "imported none of the libraries that the doors know" in text
    assert set(commands) == {
        word for name in (*WORK, *sum(NEED.values(), []), "run") for word in (name, f"{name} --help")
    }


def test_every_command_has_help(alone):
    for name, (code, text) in alone["commands"].items():
        if name.endswith("--help"):
            assert [code, text] == [0, ""] or (name == "tables --help" and said_in_one_line(text, "recipes")), name


def test_every_module_imports_or_names_its_command(alone):
    assert [name for name in OF_THE_CORE if alone["modules"][f"milo_restore.{name}"] != "ok"] == []
    missing = {name: text for name, text in alone["modules"].items() if text != "ok"}
    assert [
        text for text in missing.values() if not re.fullmatch(r"MissingPackage: .* Run pip install \S+", text)
    ] == []
    assert missing["milo_restore.torchmetrics"].endswith("Run pip install torchmetrics")
    assert missing["milo_restore.pyiqa"].endswith('Run pip install "milo-restore[eval]"')


def test_every_recipe_names_its_command(alone):
    assert len(alone["recipes"]) > 8
    for name, text in alone["recipes"].items():
        assert re.fullmatch(r"MissingPackage: .* Run pip install \"milo-restore\[\w+\]\"", text), (name, text)


def names_of(requirements):
    return [re.match(r"[\w.-]+", line)[0] for line in requirements]


def test_the_table_of_extras_is_pyprojects():
    assert set(names_of(PROJECT["dependencies"])) == CORE
    for extra, packages in extras.BROUGHT_BY.items():
        brought = {DISTRIBUTIONS.get(name, name) for name in packages}
        listed = set(names_of(PROJECT["optional-dependencies"][extra])) - {"milo-restore"}
        assert brought <= listed, extra
        assert listed - brought <= ({"setuptools", "einops"} if extra == "basicsr" else set()), extra
    (everything,) = PROJECT["optional-dependencies"]["all"]
    assert everything == f"milo-restore[{','.join(extras.BROUGHT_BY)}]"


def executed_as(name, code):
    exec(code, {"__name__": name, "__builtins__": __builtins__})  # noqa: S102  (an import statement of that module)


@pytest.fixture
def without_lpips(monkeypatch):
    search = importlib.machinery.PathFinder.find_spec
    nothing = staticmethod(lambda name, *rest: None if name == "lpips" else search(name, *rest))
    monkeypatch.setattr(importlib.machinery.PathFinder, "find_spec", nothing)
    monkeypatch.delitem(sys.modules, "lpips", raising=False)


def test_only_this_projects_imports_are_answered(without_lpips):
    for code in ("import lpips", "from lpips import LPIPS", "import lpips.pretrained_networks"):
        with pytest.raises(
            MissingPackage, match=r'^milo_restore\.x: lpips is not .* "milo-restore\[recipes\]"$'
        ) as caught:
            executed_as("milo_restore.x", code)
        assert (caught.value.name, isinstance(caught.value, ImportError)) == ("lpips", True)
        with pytest.raises(ModuleNotFoundError) as other:
            executed_as("somebody.else", code)
        assert type(other.value) is ModuleNotFoundError
    executed_as("milo_restore.x", "import importlib.util\nassert importlib.util.find_spec('lpips') is None")
    with pytest.raises(ModuleNotFoundError) as other:
        executed_as("milo_restore.x", "import no_such_package_anywhere")
    assert type(other.value) is ModuleNotFoundError


def test_one_command_brings_all_that_is_missing(monkeypatch):
    asked = ["cv2", "tqdm", "diffusers", "basicsr", "torchmetrics"]
    monkeypatch.setattr(extras.sys, "version_info", (3, 12, 1))
    assert extras.how_to_install(asked) == 'Run pip install "milo-restore[recipes,basicsr,diffusion]" torchmetrics'
    monkeypatch.setattr(extras.sys, "version_info", (3, 13, 0))
    assert "cannot be installed on Python 3.13" in extras.how_to_install(["basicsr"])
