"""Examples in docstrings: they run, need no network, and every public name has one."""

from __future__ import annotations

import ast
import doctest
import importlib

import pytest
from conftest import REPOSITORY

import milo_restore

WITHOUT_EXAMPLE = {"LPIPSLoss"}  # its backbones are downloads of 233 MB and more


def modules_with_examples():
    """By their text, so that no other module, nor the extra that it may need, is imported."""
    found = (path for path in sorted((REPOSITORY / "milo_restore").rglob("*.py")) if ">>> " in path.read_text("utf-8"))
    return [".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__") for path in found]


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_run(name, monkeypatch, tmp_path):
    # Where a download is looked for there is nothing, and the place that it would come from does not answer.
    monkeypatch.delenv("MILO_RESTORE_ASSETS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    module = importlib.import_module(name)
    examples = [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]
    assert examples, f"{name} shows examples outside of docstrings"
    runner = doctest.DocTestRunner()
    for example in examples:
        said: list[str] = []
        runner.run(example, out=said.append)
        assert not said, "".join(said)
    assert runner.summarize(verbose=False).attempted > 0


def test_every_public_name_has_an_example():
    bare = {name for name in milo_restore.__all__ if ">>> " not in (getattr(milo_restore, name).__doc__ or "")}
    assert bare == WITHOUT_EXAMPLE


def test_a_wrong_example_fails():
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(verbose=False).run(wrong, out=lambda text: None).failed == 1


def test_docstrings_open_with_a_noun_or_a_verb():
    """A question as a heading makes its reader look for the answer."""
    described = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    asking = []
    for path in (path for room in ("milo_restore", "recipes") for path in (REPOSITORY / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            words = (ast.get_docstring(node) or "").split() if isinstance(node, described) else []
            asking += [f"{path}: {' '.join(words[:6])}"] if words and words[0] in ("What", "How", "As") else []
    assert asking == []
