"""Strict configuration: what is read, and how mistakes are reported."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

import pytest

from milo_restore.config import as_dict, dump_config, load_config
from milo_restore.errors import ConfigError


@dataclass(frozen=True)
class Part:
    steps: int = 10
    rate: float = 1e-3


@dataclass(frozen=True)
class Whole:
    kind: Literal["mae", "milo"] = "mae"
    half: Literal["no", "bf16"] = "bf16"
    name: str = "run"
    sigma: float | tuple[float, float] = 25.0
    clip: float | None = None
    fast: bool = False
    parts: tuple[Part, ...] = (Part(),)
    part: Part = field(default_factory=Part)

    def __post_init__(self) -> None:
        if self.clip is not None and self.clip <= 0:
            raise ValueError("clip must be positive")


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_defaults_overrides_and_round_trip(tmp_path):
    path = write(tmp_path, "kind: milo\nsigma: [0, 50]\nparts: [{steps: 3}, {steps: 4, rate: 1e-4}]\n")
    config = load_config(Whole, path, ["part.rate=2e-5", "parts.1.steps=7", "clip=0.5", "fast=true"])
    assert config.sigma == (0.0, 50.0)
    assert config.parts == (Part(3), Part(7, 1e-4))  # 1e-4 is a string to YAML
    assert config.part.rate == 2e-5
    assert config.fast
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(Whole, tmp_path / "again.yaml") == config
    assert as_dict(config)["parts"][1] == {"steps": 7, "rate": 1e-4}
    assert load_config(Whole) == Whole()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kidn: milo", ["kidn", "run.yaml", "Did you mean 'kind'?"]),
        ("part: {step: 3}", ["part.step", "Did you mean 'steps'?"]),
        ("kind: milos", ["'milos'", "'kind'", "Did you mean 'milo'?"]),
        ("part: {steps: 1.5}", ["part.steps", "whole number", "1.5"]),
        ("part: {steps: many}", ["part.steps", "'many'"]),
        ("part: 3", ["part", "steps, rate"]),
        ("fast: 1", ["fast", "true or false"]),
        ("name: 3", ["name", "a text"]),
        ("sigma: [1, 2, 3]", ["sigma", "2 values"]),
        ("parts: 3", ["parts", "a list"]),
        ("clip: -1", ["run.yaml", "clip must be positive"]),
        ("- 1", ["mapping"]),
        ("a: [", ["not valid YAML"]),
        ("zebra: 1", ["zebra", "Known keys: kind, half, name"]),
    ],
)
def test_mistakes_name_the_file_the_key_and_the_remedy(tmp_path, text, words):
    with pytest.raises(ConfigError) as error:
        load_config(Whole, write(tmp_path, text))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("override", ["kind", "=3", "part.steps.x=3", "parts.5.steps=1", "parts.5=1", "a=[", "nope=1"])
def test_bad_overrides(tmp_path, override):
    with pytest.raises(ConfigError):
        load_config(Whole, write(tmp_path, "part: {steps: 3}\nparts: [{steps: 3}]"), [override])


def test_a_plain_no_is_the_choice_of_that_name(tmp_path):
    """YAML reads it as false; where the choice does not exist, false is refused."""
    assert load_config(Whole, write(tmp_path, "half: no")).half == "no"
    assert load_config(Whole, None, ["half=no"]).half == "no"
    with pytest.raises(ConfigError, match="False is not one of 'mae', 'milo'"):
        load_config(Whole, None, ["kind=no"])


def test_missing_file():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load_config(Whole, "nowhere.yaml")


def test_every_mutated_key_is_refused(tmp_path):
    rng = random.Random(0)
    keys = list(as_dict(Whole()))
    for _ in range(200):
        key = rng.choice(keys)
        position = rng.randrange(len(key))
        mutated = key[:position] + rng.choice("abcdefgh_") + key[position + rng.randint(0, 1) :]
        if mutated in keys:
            continue
        with pytest.raises(ConfigError, match=f"'{mutated}'"):
            load_config(Whole, write(tmp_path, f"{mutated}: 3"))
