"""--dry-run refuses what the run refuses, all of it at once, in every recipe; and what the start of a run says."""

from __future__ import annotations

import pytest
from test_recipes import RECIPES, TINY, load_recipe

from milo_restore.train.command import run_recipe

CONFIGS = {"restormer_denoise": "restormer_tiny", "train_milo": "milo_tiny", "train_tiny_world": "tiny_world"}
SMALL = {
    "restormer_denoise": TINY,
    "train_milo": ["--set", "teacher=mini", "training.stages=[{steps: 1, patch: 32, batch: 2}]"],
    "train_tiny_world": ["--set", "data.train=photographs", "data.validation=held-out-photographs"],
}


@pytest.fixture(scope="module", params=CONFIGS)
def recipe(request):
    return load_recipe(request.param)


def run(recipe, *words):
    name = recipe.__name__
    default = RECIPES / "configs" / f"{CONFIGS[name]}.yaml"
    return run_recipe(recipe.main, recipe.Config, default, name, [*SMALL[name], *map(str, words)])


def dry(recipe, capsys, *words):
    """Exit code of a dry run, its findings by name, and its error."""
    capsys.readouterr()
    code = run(recipe, "--dry-run", *words)
    said = capsys.readouterr()
    findings = dict(line.split(": ", 1) for line in said.out.splitlines() if ": " in line and line[0] != " ")
    return code, findings, said.err


def test_a_dry_run_finds_everything_and_writes_nothing(recipe, tmp_path, capsys):
    code, findings, error = dry(recipe, capsys, "--output", tmp_path / "run", "--resume", "latest")
    assert code == 0, (findings, error)
    assert findings["device"].startswith("c")
    assert findings["training.optimizer"] == "adamw"
    assert findings["run folder"] == f"no checkpoint in {tmp_path / 'run'}: starting fresh"
    assert not any(text.startswith("MISSING") for text in findings.values())
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_lists_all_that_the_run_refuses(recipe, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("mine")
    code, findings, error = dry(
        recipe, capsys, "--output", tmp_path / "run", "--set", "data.train=nowhere",
        "training.trackers=[carrier-pigeon]", "training.optimizer=adamw8bit", "training.mixed_precision=fp16",
    )  # fmt: skip
    assert code == 2
    missing = {name for name, text in findings.items() if text.startswith("MISSING")}
    expected = {"data.train", "training.trackers", "training.optimizer", "device", "run folder"}
    assert missing - {"samples"} == expected
    assert all(name in error for name in expected)
    assert error.count("\n") == 1


def test_a_checkpoint_that_is_none_and_a_best_that_nothing_gives(tmp_path, capsys):
    recipe = load_recipe("restormer_denoise")
    wrong = ["--resume", tmp_path / "checkpoint-000001", "--set", "training.keep_best=psrn"]
    code, findings, error = dry(recipe, capsys, "--output", tmp_path / "run", *wrong)
    assert code == 2
    assert "no such checkpoint folder" in findings["run folder"]
    assert "Known: psnr, milo:mini" in findings["training.keep_best"]
    assert "2 of 10 checks failed" in error


@pytest.mark.parametrize(
    ("name", "setting", "words"),
    [
        (
            "restormer_denoise",
            "training.stages=[{steps: 1, patch: 1000, batch: 1}]",
            "a patch of 1000 pixels does not fit into",
        ),
        ("train_milo", "training.stages=[{steps: 1, patch: 1000, batch: 1}]", "does not fit into squares of"),
        ("train_tiny_world", "training.stages=[{steps: 1, patch: 1000, batch: 1}]", "does not fit into 600x400"),
        ("restormer_denoise", "data.sigma=0.1", "is noise in 8-bit units: for 0.1 of 1 write 25.5"),
        ("restormer_denoise", "data.test_sigmas=[0.2]", "is noise in 8-bit units: for 0.2 of 1 write 51"),
    ],
)
def test_what_does_not_fit_is_refused_by_dry_run_and_run(name, setting, words, tmp_path, capsys):
    for dry_run in (["--dry-run"], []):
        capsys.readouterr()
        assert run(load_recipe(name), "--output", tmp_path / "run", "--set", setting, *dry_run) == 2
        said = capsys.readouterr()
        assert words in said.out + said.err
    assert not (tmp_path / "run" / "final").exists()


def test_the_start_says_what_trains_where_and_how_to_watch(tmp_path, capsys):
    recipe = load_recipe("restormer_denoise")
    short = "training.stages=[{steps: 2, patch: 32, batch: 2}]"
    assert run(recipe, "--output", tmp_path / "run", "--set", short, "data.quick_images=1") == 0
    said = capsys.readouterr().err
    for words in (
        "device: c", "parameters: ", "data: 3 images of photographs, sigma 25.0; tested on held-out-photographs",
        "loss: milo-cosine, mini (milo_mini.safetensors", "steps: 1 to 2 of 2; 2 of 2 x 32 px",
        " for weights, gradients",
        f"run folder: {tmp_path / 'run'}; to watch: tensorboard --logdir {tmp_path / 'run' / 'logs'}",
        "memory after the first step: ", " left\n",
    ):  # fmt: skip
        assert words in said, words
