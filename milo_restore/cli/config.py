"""``milo-restore config``: every key of a recipe's configuration, with its type, default and meaning."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import milo_restore
from milo_restore.errors import ConfigError, did_you_mean
from milo_restore.files.write import check_target, replace_file
from milo_restore.reference import json_schema, reference_text

_EDITORS = "first line of a YAML file, for editors: # yaml-language-server: $schema="


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``config``."""
    parser.description = (
        "Print every key of a recipe's configuration with type, default and meaning, as its classes have them. A YAML "
        "file or --set KEY=VALUE sets a key. To be run in a clone of the repository. With --schema: a JSON schema, "
        f"by which editors complete and check; {_EDITORS}PATH-TO-IT"
    )
    parser.add_argument("recipe", metavar="RECIPE", nargs="?", help="its name or file; without one, the recipes' names")
    parser.add_argument("--schema", action="store_true", help="a JSON schema (draft 7) instead of text")
    parser.add_argument("--output", "--out", type=Path, metavar="FILE", help="write it there instead of printing it")


def main(arguments: argparse.Namespace) -> int:
    """Print or write the keys of one recipe, or the names of all."""
    recipes = find_recipes()
    if arguments.recipe is None:
        print("\n".join(recipes))
        return 0
    if arguments.output is not None:
        check_target(arguments.output)
    file = Path(arguments.recipe) if arguments.recipe.endswith(".py") else recipes.get(arguments.recipe)
    if file is None or not file.is_file():
        mend = did_you_mean(arguments.recipe, recipes) or f"There are: {', '.join(recipes)}"
        raise ConfigError("no such recipe", where=arguments.recipe, mend=mend)
    schema = config_of(file)
    text = json.dumps(json_schema(schema, file.stem), indent=1) if arguments.schema else reference_text(schema)
    if arguments.output is None:
        print(text)
    else:
        replace_file(arguments.output, f"{text}\n")
        print(f"{arguments.output}" + (f": {_EDITORS}{arguments.output}" if arguments.schema else ""))
    return 0


def find_recipes() -> dict[str, Path]:
    """The recipes that take a configuration, by name: of the folder ``recipes`` here, or of this clone.

    Raises:
        ConfigError: there is neither.
    """
    clone = Path(milo_restore.__file__).parents[1] / "recipes"
    for folder in (Path("recipes"), clone):
        found = {file.stem: file for file in sorted(folder.glob("*.py")) if "run_recipe(" in file.read_text("utf-8")}
        if found:
            return found
    mend = "Run this in a clone of the repository, or name a recipe's file"
    raise ConfigError("no recipes here", where=Path.cwd(), mend=mend)


def config_of(recipe: Path) -> type[Any]:
    """The configuration class of a recipe, which is imported, not run.

    Raises:
        ConfigError: it has none.
    """
    sys.path.insert(0, str(recipe.parent.resolve()))  # recipes import each other by bare name
    spec = importlib.util.spec_from_file_location(recipe.stem, recipe)
    assert spec is not None  # noqa: S101  (its name ends in .py)
    assert spec.loader is not None  # noqa: S101
    module = sys.modules[recipe.stem] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[recipe.stem]  # as Python's own import leaves no half of a module
        raise
    found: Any = getattr(module, "Config", None)
    if not dataclasses.is_dataclass(found):
        raise ConfigError("has no configuration: no dataclass Config", where=recipe)
    return found  # type: ignore[return-value]
