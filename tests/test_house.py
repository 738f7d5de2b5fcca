"""House rules that can be read off the code: who imports whom, how files are loaded, what lies where."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = REPOSITORY / "milo_restore"

# Imports run one way: a room may import those it lists and itself.
GROUND = {"errors", "__init__"}  # __init__: for __version__; what it imports on first use is checked below
LOW = GROUND | {"config", "files", "compat", "processes", "hooks"}
ROOMS = {
    "errors": set(),
    "compat": GROUND,
    "config": GROUND,
    "processes": GROUND,
    "hooks": GROUND,
    "files": GROUND,
    "metric": GROUND | {"files"},
    "data": LOW,
    "models": LOW,
    "loss": LOW | {"metric"},
    "train": LOW,  # the metric, the loss, the data and the model arrive as arguments
    "show": LOW | {"metric", "data"},
    "measure": LOW | {"metric", "data", "models", "loss", "show"},
    "opinions": LOW | {"data", "measure"},
    "paper": LOW | {"measure", "show"},
    "report": LOW | {"metric", "data", "measure", "show"},
    "teach": LOW | {"metric", "data", "opinions"},
    "doors": LOW | {"metric", "loss"},
    "basicsr": LOW | {"metric", "data", "models", "loss", "train", "doors"},
    "run": LOW | {"doors", "basicsr"},
    "bench": LOW | {"metric", "data", "models", "loss", "train", "teach", "basicsr"},
}
TOP = {"cli"}  # may import everything but the recipes
METRIC_MAY_USE = {"torch", "safetensors"}  # beside the standard library

TOP_LEVEL = {
    "pyproject.toml", "milo_restore", "recipes", "third_party", "tests",
    "README.md", "LICENSE", "CITATION.cff", "CHANGELOG.md",
}  # fmt: skip


def modules():
    """Path and syntax tree of every module of the package."""
    return [(path, ast.parse(path.read_text(encoding="utf-8"), str(path))) for path in sorted(PACKAGE.rglob("*.py"))]


def room_of(path):
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path, tree):
    """Dotted names of all that a module imports, wherever in it, except for type checkers only."""
    hidden = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            hidden.update(id(inner) for statement in node.body for inner in ast.walk(statement))
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def our_rooms(names):
    """Which of our rooms these dotted names reach into."""
    known = set(ROOMS) | TOP
    homes = {
        "MILO": "metric", "LatentMILO": "metric",
        "Restormer": "models", "IRControlNet": "models", "DiffBIRPipeline": "models",
    }  # fmt: skip
    for line, name in names:
        parts = name.split(".")
        if parts[0] != "milo_restore":
            continue
        second = parts[1] if len(parts) > 1 else "__init__"
        second = homes.get(second, "loss" if second.endswith("Loss") or second == "Curriculum" else second)
        yield line, second if second in known else "__init__"


def test_imports_run_one_way():
    wrong = []
    for path, tree in modules():
        room = room_of(path)
        if room == "__init__":
            continue  # lazy, see test_importing_the_package_is_cheap
        assert room in set(ROOMS) | TOP, f"{path} is in a room that this test does not know"
        allowed = (ROOMS[room] | {room}) if room in ROOMS else set(ROOMS) | TOP | GROUND
        wrong += [
            f"{path.relative_to(REPOSITORY)}:{line} imports {other}"
            for line, other in our_rooms(imports(path, tree))
            if other not in allowed
        ]
    assert wrong == []


def test_the_import_rule_sees_violations():
    tree = ast.parse("def f():\n    from milo_restore import MILOLoss\nimport milo_restore.train.loop\nimport torch\n")
    assert list(our_rooms(imports(Path("x.py"), tree))) == [(3, "train"), (2, "loss")]


def test_the_metric_needs_only_torch():
    foreign = set()
    for path, tree in modules():
        if room_of(path) == "metric" or path.relative_to(PACKAGE).as_posix() == "files/state.py":
            foreign |= {name.split(".")[0] for _, name in imports(path, tree)}
    assert foreign - set(sys.stdlib_module_names) - {"milo_restore"} == METRIC_MAY_USE


def test_whoever_imports_basicsr_makes_it_importable_first():
    wrong = []
    for path, tree in modules():
        if path.relative_to(PACKAGE).as_posix() in ("compat.py", "cli/doctor.py"):
            continue
        names = [name for _, name in imports(path, tree)]
        if any(name.split(".")[0] == "basicsr" for name in names):
            wrong += [str(path)] * (not any(name.startswith("milo_restore.compat") for name in names))
    assert wrong == []


def test_nothing_is_unpickled():
    wrong, seen = [], 0
    files = [path for folder in ("milo_restore", "recipes", "tests") for path in (REPOSITORY / folder).rglob("*.py")]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name == "torch.load":
                seen += 1
                wrong += [f"{path}:{node.lineno}"] * (given.get("weights_only") != "True")
            wrong += [f"{path}:{node.lineno}"] * (name in ("pickle.load", "pickle.loads", "torch.hub.load"))
            wrong += [f"{path}:{node.lineno}"] * (name == "np.load" and given.get("allow_pickle") == "True")
    assert wrong == []
    assert seen > 0


def test_the_top_level_is_fixed():
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout: what lies here need not be what is committed")
    # Of what is committed or about to be, never of a user's own results that lie beside it.
    command = ["git", "-C", str(REPOSITORY), "ls-files", "--cached"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {name for name in (Path(line).parts[0] for line in listed) if not name.startswith(".")} == TOP_LEVEL


def test_a_source_distribution_holds_the_top_level():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    included = settings["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {*included, "pyproject.toml"} == TOP_LEVEL  # the build backend always adds pyproject.toml
    assert {name for name in TOP_LEVEL if not (REPOSITORY / name).exists()} == set()


LIST_MODULES = "import sys; import {module}; print(' '.join(sorted(name.split('.')[0] for name in sys.modules)))"


@pytest.mark.parametrize("module", ["milo_restore", "milo_restore.cli", "milo_restore.cli.doctor"])
def test_importing_the_package_is_cheap(module):
    command = [sys.executable, "-c", LIST_MODULES.format(module=module)]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout.split())
    assert "milo_restore" in loaded
    heavy = {"torch", "torchvision", "numpy", "diffusers", "accelerate", "basicsr", "skimage", "PIL", "yaml", "lpips"}
    assert loaded & heavy == set()


def test_the_metric_loads_no_more_than_it_needs():
    command = [sys.executable, "-c", LIST_MODULES.format(module="milo_restore.metric")]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout.split())
    assert "torch" in loaded
    assert loaded & {"torchvision", "diffusers", "accelerate", "basicsr", "skimage", "lpips"} == set()
