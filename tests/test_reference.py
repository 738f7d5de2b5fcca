"""The reference of the recipes' keys: every key has a meaning, and the schema takes what the recipes take."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest
from conftest import REPOSITORY

from milo_restore.cli import main
from milo_restore.cli.config import config_of
from milo_restore.config import load_config, read_yaml
from milo_restore.reference import Key, json_schema, keys_of

RECIPES = REPOSITORY / "recipes"
CONFIGS = {
    "restormer": "restormer_denoise", "milo": "train_milo", "diffbir": "diffbir_config",
    "diffbir_one_step": "diffbir_one_step", "latent": "latent_restore", "tiny": "train_tiny_world",
}  # fmt: skip


def files_of(prefix):
    """Its files; a longer prefix has its own."""
    longer = [f"{other}_" for other in CONFIGS if other.startswith(f"{prefix}_")]
    found = sorted((RECIPES / "configs").glob(f"{prefix}_*.yaml"))
    return [file for file in found if not file.name.startswith(tuple(longer))]


@dataclass(frozen=True)
class Part:
    """A part.

    Attributes:
        steps: so many,
            of whatever kind.
    """

    steps: int
    other: float = 1.5  # behind it


@dataclass(frozen=True)
class More(Part):
    other: float = 2.5


@dataclass(frozen=True)
class Whole:
    # above it
    kind: Literal["a", "b"] = "a"  # and behind
    pair: tuple[float, float] | None = None

    parts: tuple[Part, ...] = (Part(3),)  # many of them
    one: More = field(default_factory=lambda: More(7))
    names: tuple[str, ...] = ("x",)  # of something


def test_a_key_has_what_stands_beside_it():
    assert keys_of(Whole) == [
        Key("kind", "a | b", '"a"', "above it; and behind"),
        Key("pair", "list of 2: number or null", "null", ""),
        Key("parts", "list of {steps, other}", '[{"steps": 3, "other": 1.5}]', "many of them"),
        Key("parts.N.steps", "whole number", None, "so many, of whatever kind"),
        Key("parts.N.other", "number", "1.5", "behind it"),
        Key("one.steps", "whole number", "7", "so many, of whatever kind"),
        Key("one.other", "number", "2.5", "behind it"),
        Key("names", "list of text", '["x"]', "of something"),
    ]


@pytest.mark.parametrize(
    ("text", "takes"),
    [
        ("names: x", True), ("names: [x, y]", True), ("names: [1]", False), ("kind: c", False), ("pair: [1, 2]", True),
        ("pair: null", True), ("pair: [1]", False), ("parts: [{steps: 1}]", True), ("parts: [{other: 1}]", False),
        ("parts: {steps: 1}", False), ("one: {steps: 1, far: 2}", False), ("one: {steps: 1.5}", False),
        ("far: 1", False),
    ],
)  # fmt: skip
def test_the_schema_takes_what_the_loader_takes(tmp_path, text, takes):
    jsonschema = pytest.importorskip("jsonschema")
    file = tmp_path / "x.yaml"
    file.write_text(text)
    checker = jsonschema.Draft7Validator(json_schema(Whole, "x"))
    assert checker.is_valid(read_yaml(file)) is takes
    if takes:
        load_config(Whole, file)
    else:
        with pytest.raises(Exception, match=r"x\.yaml"):
            load_config(Whole, file)


@pytest.mark.parametrize("prefix", CONFIGS)
def test_shipped_files_follow_the_schema_and_every_key_says_its_meaning(prefix):
    jsonschema = pytest.importorskip("jsonschema")
    schema = config_of(RECIPES / f"{CONFIGS[prefix]}.py")
    assert [key.name for key in keys_of(schema) if not key.meaning] == []
    checker = jsonschema.Draft7Validator(json_schema(schema, prefix))
    files = files_of(prefix)
    assert files
    for file in files:
        values = read_yaml(file)
        assert [error.message for error in checker.iter_errors(values)] == [], file
        section = next(key for key, value in values.items() if isinstance(value, dict))
        values[section]["x_unknown"] = 1
        assert not checker.is_valid(values)


def test_no_shipped_file_is_without_a_schema():
    described = {file for prefix in CONFIGS for file in files_of(prefix)}
    assert described == set((RECIPES / "configs").glob("*.yaml"))


def test_the_command_prints_keys_and_writes_a_schema(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # finds the clone's recipes from anywhere
    assert main(["config"]) == 0
    assert "restormer_denoise" in capsys.readouterr().out.split()
    assert main(["config", "restormer_denoise"]) == 0
    assert "data.sigma: number or list of 2: number; default 25.0\n    noise in 8-bit units" in capsys.readouterr().out
    target = tmp_path / "deep" / "denoise.json"
    assert main(["config", "restormer_denoise", "--schema", "--output", str(target)]) == 0
    assert f"# yaml-language-server: $schema={target}" in capsys.readouterr().out
    assert json.loads(target.read_text())["properties"]["data"]["properties"]["sigma"]["default"] == 25.0
    assert main(["config", "restormer_denose"]) == 2
    assert "Did you mean 'restormer_denoise'?" in capsys.readouterr().err
    assert main(["config", str(RECIPES / "compare_picture.py")]) == 2
    assert "has no configuration" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["restormer_denoise", "train_tiny_world"])
def test_a_recipes_help_ends_with_an_example_that_names_its_options(name):
    command = [sys.executable, str(RECIPES / f"{name}.py")]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    example = shown.strip().splitlines()[-1]
    assert re.match(rf"  python recipes/{name}\.py --set ", example), example
    assert f"milo-restore config {name}" in shown
