"""The files that greet people who come to work on this: CONTRIBUTING, the workflow, the hooks, the forms, `.ci/run`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import REPOSITORY
from test_house import ROOMS, TOP

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if not (REPOSITORY / ".git").exists():
    pytest.skip("not a git checkout: a source distribution has none of these files", allow_module_level=True)

CONTRIBUTING = (REPOSITORY / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
SETTINGS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
FORMS = sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def read_yaml(*parts):
    return yaml.safe_load(REPOSITORY.joinpath(*parts).read_text(encoding="utf-8"))


def named_paths(text):
    """What stands in backticks and is a path: it has a slash or a file's suffix, and no placeholder or blank."""
    words = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [word for word in words if re.fullmatch(r"[\w./-]+", word) and re.search(r"/|\.(py|md|toml|yml)$", word)]


def test_paths_are_told_from_other_words():
    text = "`a/b.py` `c.toml` `milo` `<x>/y.py` `--set a/b` `d/`\n```\n`e/f.py`\n```"
    assert named_paths(text) == ["a/b.py", "c.toml", "d/"]


def test_every_path_that_contributing_names_exists():
    paths = named_paths(CONTRIBUTING)
    assert len(paths) > 40
    here = [REPOSITORY, REPOSITORY / "milo_restore"]  # rooms are named without the package
    assert [path for path in paths if not any((folder / path).exists() for folder in here)] == []


def test_the_picture_shows_every_room_and_no_other():
    picture = re.search(r"```text\n(.*?)```", CONTRIBUTING, flags=re.DOTALL)[1]
    drawn = set(re.findall(r"(?<![\w/])(\w+)(?:/|\.py)(?!\w)", picture))
    assert drawn - {"recipes"} == (set(ROOMS) | TOP)


def test_the_workflow_runs_what_decides_on_every_python():
    job = read_yaml(".github", "workflows", "test.yml")["jobs"]["test"]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"]
    assert (REPOSITORY / ".ci" / "run").stat().st_mode & 0o111
    (low,) = re.fullmatch(r">=3\.(\d+)", SETTINGS["project"]["requires-python"]).groups()
    (high,) = {
        re.search(r"python_version < '3\.(\d+)'", line)[1]
        for line in SETTINGS["project"]["optional-dependencies"]["basicsr"]
        if "basicsr=" in line
    }
    assert job["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in range(int(low), int(high))]
    assert job["timeout-minutes"] > 0


def test_the_hooks_are_the_checks_of_ci():
    repositories = read_yaml(".pre-commit-config.yaml")["repos"]
    hooks = {hook["id"]: (repository, hook) for repository in repositories for hook in repository["hooks"]}
    assert set(hooks) == {"ruff-check", "ruff-format", "mypy"}
    pinned = hooks["ruff-format"][0]["rev"].removeprefix("v")
    assert f"ruff=={pinned}" in SETTINGS["project"]["optional-dependencies"]["dev"]
    assert hooks["mypy"][1]["entry"] in (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")


def test_forms_ask_what_github_understands():
    asked = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in FORMS}
    assert set(asked) == {"bug", "config", "feature"}
    assert asked.pop("config") == {"blank_issues_enabled": False}
    for form in asked.values():
        assert all(isinstance(form[key], str) and form[key] for key in ("name", "description"))
        names = [field["id"] for field in form["body"]]
        assert len(set(names)) == len(names)
        assert {field["type"] for field in form["body"]} == {"textarea"}
        assert all(field["attributes"]["label"] for field in form["body"])
    doctor = {field["id"]: field for field in asked["bug"]["body"]}["doctor"]
    assert "`milo-restore doctor`" in doctor["attributes"]["label"]
    assert doctor["validations"]["required"] is True


def test_eleven_tests_are_slow():
    marks = [
        path.read_text(encoding="utf-8").count("@pytest.mark." + "slow\n") for path in REPOSITORY.glob("tests/*.py")
    ]
    assert sum(marks) == 11
    said = [CONTRIBUTING, *SETTINGS["tool"]["pytest"]["ini_options"]["markers"]]
    assert sum("eleven tests that train longest" in text for text in said) == 2


TOLD = 'mkdir -p .venv/bin && printf "#!/bin/sh\\n" | tee .venv/bin/ruff .venv/bin/mypy && chmod +x .venv/bin/*'


@pytest.fixture
def clone(tmp_path):
    """A stand-in for a clone: `.ci/run`, and a README whose test line only says how it was called."""
    folder = tmp_path / "clone"
    (folder / ".ci").mkdir(parents=True)
    shutil.copy2(REPOSITORY / ".ci" / "run", folder / ".ci" / "run")
    line = f'{TOLD} && echo "asked: $MILO_RESTORE_ASSETS $PYTEST_ADDOPTS"'
    (folder / "README.md").write_text(f"## Tests\n\n```bash\n{line}\n```\n", encoding="utf-8")
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "npm").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")  # no download of a browser
    (programs / "npm").chmod(0o755)
    return folder


def run_ci(clone, assets=""):
    environment = {"PATH": f"{clone.parent / 'programs'}:/usr/bin:/bin", "MILO_RESTORE_ASSETS": str(assets)}
    return subprocess.run([clone / ".ci" / "run"], capture_output=True, text=True, env=environment, check=False)


def test_ci_refuses_to_skip_golden_tests_where_they_are(clone, tmp_path):
    (tmp_path / "shared" / "golden").mkdir(parents=True)
    done = run_ci(clone)
    assert done.returncode == 0, done.stderr
    assert f"asked: {tmp_path / 'shared'} --no-golden-skips\n" in done.stdout
    assert "skipped" not in done.stdout
    (tmp_path / "shared").rename(tmp_path / "elsewhere")
    assert f"asked: {tmp_path / 'elsewhere'} --no-golden-skips\n" in run_ci(clone, tmp_path / "elsewhere").stdout


def test_ci_skips_golden_tests_elsewhere_and_says_so(clone, tmp_path):
    for assets in ("", tmp_path):  # a folder of weights and data sets alone is no folder of outputs
        done = run_ci(clone, assets)
        assert done.returncode == 0, done.stderr
        assert "\nasked: " in done.stdout
        assert "--no-golden-skips" not in done.stdout
        assert [line for line in done.stdout.splitlines() if line.endswith("upstream's outputs are skipped")] != []


def test_ci_refuses_a_shared_folder_without_outputs(clone, tmp_path):
    (tmp_path / "shared").mkdir()
    done = run_ci(clone)
    assert done.returncode == 1
    assert "../shared holds no golden/" in done.stderr
    assert "asked" not in done.stdout


def test_ci_runs_the_line_of_this_readme():
    program = re.search(r"command=\$\(awk '(.*?)' README\.md\)", (REPOSITORY / ".ci" / "run").read_text("utf-8"))[1]
    command = subprocess.run(["awk", program], input=README, capture_output=True, text=True, check=True).stdout
    assert command.count("\n") == 1
    assert command.strip().endswith(".venv/bin/python -m pytest -q")
    assert '".[all,dev]"' in command
