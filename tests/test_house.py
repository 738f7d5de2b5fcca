"""House rules that can be read off the code: who imports whom, how files are loaded, what lies where."""

from __future__ import annotations

import ast
import graphlib
import importlib.machinery
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import REPOSITORY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = REPOSITORY / "milo_restore"

# Imports run one way: a room may import those it lists and itself.
GROUND = {"errors", "extras", "__init__"}  # __init__: for __version__; what it imports on first use is checked below
LOW = GROUND | {"config", "files", "compat", "processes", "hooks"}
ROOMS = {
    "errors": set(),
    "extras": {"errors"},
    "compat": GROUND,
    "config": GROUND,
    "reference": GROUND | {"config"},
    "processes": GROUND,
    "hooks": GROUND,
    "interrupt": set(),
    "files": GROUND,
    "metric": GROUND | {"files"},
    "data": LOW,
    "models": LOW | {"data"},
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
    "pyiqa": GROUND | {"metric", "loss"},
    "torchmetrics": GROUND | {"metric", "loss"},
    "deepinv": GROUND | {"metric", "loss"},
    "lpips": GROUND | {"metric", "loss"},
    "hub": LOW | {"metric", "models", "measure"},
    "bench": LOW | {"metric", "data", "models", "loss", "train", "teach", "doors", "basicsr", "measure"},
}
TOP = {"cli"}  # may import everything but the recipes
METRIC_MAY_USE = {"torch", "safetensors"}  # beside the standard library
LARGEST_SHARE = 0.15  # of the package's lines, in one room

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


def seen_at_run_time(tree):
    """Every node but what is for type checkers only."""
    hidden = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            hidden.update(id(inner) for statement in node.body for inner in ast.walk(statement))
    return (node for node in ast.walk(tree) if id(node) not in hidden)


def imports(path, tree):
    """Dotted names of all that a module imports, wherever in it, except for type checkers only."""
    for node in seen_at_run_time(tree):
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


def file_of(name, package):
    """The file of the package that a dotted name lies in."""
    parts = name.split(".")[1:]
    for end in range(len(parts), -1, -1):
        place = package.joinpath(*parts[:end])
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                return file
    raise AssertionError(f"{name} is nowhere in {package}")


def names_in_strings(path, tree, package):
    """Dotted names of modules that a module's strings name: tables of lazy imports, import_module, python -m."""
    constants = [node for node in seen_at_run_time(tree) if isinstance(node, ast.Constant)]
    strings = [node for node in constants if isinstance(node.value, str)]
    ours = {id(node): node.value for node in strings if re.fullmatch(rf"{package.name}(\.\w+)+", node.value)}
    yield from ours.values()
    for node in ast.walk(tree):
        if isinstance(node, (ast.List, ast.Tuple)):
            for flag, module in zip(node.elts, node.elts[1:]):
                if isinstance(flag, ast.Constant) and flag.value == "-m" and id(module) in ours:
                    yield f"{ours[id(module)]}.__main__"
    if "import_module(f'{__name__}." in ast.unparse(tree):  # then any string may name a module beside this one
        here = ".".join((package.name, *path.parent.relative_to(package).parts))
        yield from (f"{here}.{node.value}" for node in strings if (path.parent / f"{node.value}.py").is_file())


def import_graph(package):
    """Each file of a package with the files that it imports or names in strings."""
    graph = {}
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        names = [*(name for _, name in imports(path, tree)), *names_in_strings(path, tree, package)]
        graph[path] = {file_of(name, package) for name in names if name.split(".")[0] == package.name} - {path}
    return graph


def room_graph(graph):
    """Each room, and each sub-room of a room, with those beside it that its files need."""
    rooms = {}
    for path, others in graph.items():
        for other in others:
            common = max(set(path.parents) & set(other.parents), key=lambda folder: len(folder.parts))
            here, there = (common / file.relative_to(common).parts[0] for file in (path, other))
            if here.is_dir() and there.is_dir() and here != there:
                rooms.setdefault(here, set()).add(there)
    return rooms


def circle(graph):
    """A circle of a graph, as names; empty where there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [path.name if path.is_dir() else f"{path.parent.name}/{path.name}" for path in error.args[1]]
    return []


def test_no_imports_run_in_a_circle():
    graph = import_graph(PACKAGE)
    assert circle(graph) == []
    assert circle(room_graph(graph)) == []
    assert file_of("milo_restore.bench", PACKAGE) in graph[PACKAGE / "cli" / "__init__.py"]  # in the table of commands
    assert PACKAGE / "models/diffbir/control.py" in graph[PACKAGE / "models" / "diffbir" / "__init__.py"]  # a lazy one


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("import house.b.two", "def f():\n    from house.a.one import g\n"),
        ("import house.b.two", "import importlib\nimportlib.import_module('house.a.one')\n"),
        ("HOMES = {'g': 'house.b.two'}", "from house.a import one\n"),
        ("import house.b.two", "words = [sys.executable, '-m', 'house.a', 'run']\n"),
        ("import house.b.two", "HOMES = {'g': 'three'}\nimportlib.import_module(f'{__name__}.{HOMES[name]}')\n"),
    ],
)
def test_the_circle_rule_sees_violations(tmp_path, one, other):
    files = {
        "a/one.py": one, "a/__main__.py": "from house.a.one import main", "b/two.py": other,
        "b/three.py": "import house.a.one", "__init__.py": "", "a/__init__.py": "", "b/__init__.py": "",
    }  # fmt: skip
    for name, text in files.items():
        path = tmp_path / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    graph = import_graph(tmp_path / "house")
    assert {"a/one.py", "b/two.py"} <= set(circle(graph))
    assert set(circle(room_graph(graph))) == {"a", "b"}
    (tmp_path / "house" / "b" / "two.py").write_text("if TYPE_CHECKING:\n    import house.a.one\n")
    (tmp_path / "house" / "b" / "three.py").write_text("")
    assert circle(import_graph(tmp_path / "house")) == []


def test_rooms_in_one_house_may_need_each_other_one_way_only(tmp_path):
    """Files that run in no circle still make one of their rooms."""
    files = {"a/x/one.py": "import house.a.y.two", "a/y/two.py": "", "a/y/three.py": "import house.a.x.four",
             "a/x/four.py": "", "__init__.py": ""}  # fmt: skip
    for name, text in files.items():
        path = tmp_path / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    graph = import_graph(tmp_path / "house")
    assert circle(graph) == []
    assert set(circle(room_graph(graph))) == {"x", "y"}


def test_the_package_reads_nothing_of_the_tests():
    assert [str(path) for path, tree in modules() if re.search(r"['\"]tests\b", ast.unparse(tree))] == []


def test_no_room_is_most_of_the_house():
    lines = Counter()
    for path, _ in modules():
        lines[room_of(path)] += len(path.read_text(encoding="utf-8").splitlines())
    assert {room: count for room, count in lines.items() if count >= LARGEST_SHARE * lines.total()} == {}


def test_the_metric_needs_only_torch():
    foreign = set()
    for path, tree in modules():
        if room_of(path) == "metric" or path.relative_to(PACKAGE).as_posix() == "files/state.py":
            foreign |= {name.split(".")[0] for _, name in imports(path, tree)}
    assert foreign - set(sys.stdlib_module_names) - {"milo_restore"} == METRIC_MAY_USE


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


BASICSR = "import sys; {first}; import basicsr.data.degradations as d; print(d.rgb_to_grayscale.__module__)"


@pytest.mark.parametrize("first", ["import milo_restore", "import torchvision.transforms, milo_restore"])
def test_basicsr_can_be_imported_after_the_package(first):
    command = [sys.executable, "-c", BASICSR.format(first=first)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.split()[-1].startswith("torchvision.transforms.")


def test_the_stand_in_comes_last_and_knows_one_name():
    from milo_restore import compat

    compat.install()
    finders = [finder for finder in sys.meta_path if isinstance(finder, compat.StandIn)]
    assert len(finders) == 1
    assert sys.meta_path.index(finders[0]) > sys.meta_path.index(importlib.machinery.PathFinder)
    assert finders[0].find_spec("torchvision.transforms.functional_pil", None) is None


def test_the_metric_loads_no_more_than_it_needs():
    command = [sys.executable, "-c", LIST_MODULES.format(module="milo_restore.metric")]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY).stdout.split())
    assert "torch" in loaded
    assert loaded & {"torchvision", "diffusers", "accelerate", "basicsr", "skimage", "lpips"} == set()
