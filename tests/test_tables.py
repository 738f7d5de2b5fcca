"""Tables 1 to 4: the printed numbers, the commands of every row, and how the comparison is shown."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from conftest import REPOSITORY
from test_recipes import load_recipe

from milo_restore.config import load_config
from milo_restore.errors import ConfigError, DataError
from milo_restore.paper import NUMBERS, SCALES, find_rows, jobs_of, load_table, plan, render
from milo_restore.paper.definition import Column, Group, Milo, Row, Scale, Scales, Table
from milo_restore.paper.plan import slug

RECIPES = REPOSITORY / "recipes"
OUT = Path("out")
SIZES = {1: (8, 3, 4), 2: (2, 3, 3), 3: (2, 3, 3), 4: (2, 2, 3)}


def printed_tables(text):
    """Table number to rows of (method, numbers), as the supplement prints them: tab-separated lines."""
    tables = {}
    for line in text.splitlines():
        if start := re.match(r"Table (\d)\. ", line):
            rows = tables.setdefault(int(start[1]), [])
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) > 1 and all(re.fullmatch(r"\d+\.\d+", cell) for cell in cells[1:]):
            rows.append((re.sub(r"<.*?>", "", cells[0]), [float(cell) for cell in cells[1:]]))
    return tables


@pytest.mark.golden
def test_every_printed_number_is_the_supplements(shared):
    (seed,) = (shared / "seed").glob("*.txt")
    printed = printed_tables(seed.read_text(encoding="utf-8"))
    assert sorted(printed) == list(NUMBERS)
    for number in NUMBERS:
        table = load_table(number, RECIPES)
        ours = [(row.method, [value for group in row.paper for value in group]) for row in table.rows]
        assert ours == printed[number]
        rows, groups, columns = SIZES[number]
        assert [len(values) for _, values in ours] == [groups * columns] * rows


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("scale", SCALES)
def test_every_command_names_a_configuration_that_loads(number, scale, monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    table = load_table(number, RECIPES)
    cells = plan(table, scale, OUT)
    for job in jobs_of(cells):
        words = list(job.command)
        assert shlex.split(job.text) == words
        if words[:2] == ["accelerate", "launch"]:
            assert (REPOSITORY / words[2]).is_file()
            recipe = load_recipe(Path(words[2]).stem)
            overrides = words[words.index("--set") + 1 :] if "--set" in words else []
            load_config(recipe.Config, REPOSITORY / words[words.index("--config") + 1], overrides)
            assert words[words.index("--output") + 1] == str(job.folder)
            assert words[words.index("--resume") + 1] == "latest"
    for cell in cells:
        assert cell.absent or len(cell.jobs) >= 3


def commands(number, scale, method, group=0):
    table = load_table(number, RECIPES)
    (row,) = find_rows(table, [method])
    return [cell for cell in plan(table, scale, OUT) if cell.row == row][group]


def test_a_row_of_the_paper_trains_its_own_milo_first():
    cell = commands(1, "paper", "MILO (10k)", 2)
    milo, train, images, restore, measure = cell.jobs
    assert "recipes/configs/milo_image_10k.yaml" in milo.command
    assert f"loss.weights={OUT}/table1/milo/10k/milo_best.safetensors" in train.command
    assert "recipes/configs/restormer_bsd400_sigma50.yaml" in train.command
    assert train.needs == (milo.folder,)
    assert set(restore.needs) == {milo.folder, train.folder, images.folder}
    assert measure.done == cell.folder / "results.json"


def test_one_training_per_noise_level_only_where_the_command_says_so():
    table = load_table(1, RECIPES)
    trainings = {
        scale: {cell.jobs[0].folder.name for cell in plan(table, scale, OUT) if cell.row.method == "MAE"}
        for scale in SCALES
    }
    assert trainings["smoke"] == trainings["lite"] == {"mae"}
    assert trainings["paper"] == {"mae-sigma-15", "mae-sigma-25", "mae-sigma-50"}


def test_the_published_model_is_not_trained_and_others_give_their_control():
    published, ours = commands(3, "paper", "DiffBIR"), commands(3, "paper", "MILO")
    assert not any("accelerate" in job.command for job in published.jobs)
    assert "--control" not in published.jobs[-2].command
    control = ours.jobs[-2].command[ours.jobs[-2].command.index("--control") + 1]
    assert control == str(OUT / "table3" / "train" / "milo" / "controlnet")


def test_without_references_only_no_reference_metrics_are_asked_for():
    words = commands(4, "paper", "MILO").jobs[-1].command
    assert "--ref" not in words
    assert words[words.index("--metrics") + 1 : words.index("--skip-unavailable")] == (
        "topiq_nr", "clipiqa", "musiq", "niqe",
    )  # fmt: skip
    assert "psnr" in commands(2, "paper", "MILO").jobs[-1].command


def test_what_a_scale_cannot_do_says_why():
    assert "10,000 reference images" in commands(1, "lite", "MILO (10k)").absent


def test_rows_are_found_by_their_names():
    table = load_table(1, RECIPES)
    assert [row.method for row in find_rows(table, ["cosine", "mae"])] == ["MAE", "MILO (curriculum cosine)"]
    with pytest.raises(ConfigError, match=r"6 rows are called so\. Rows: MAE, LPIPS"):
        find_rows(table, ["milo ("])
    with pytest.raises(ConfigError, match="no row is called so"):
        find_rows(table, ["VGG"])
    assert len({slug(row.method) for row in table.rows}) == len(table.rows)


def test_outside_of_a_clone_it_says_so(tmp_path):
    with pytest.raises(DataError, match="Run it in a clone"):
        load_table(1, tmp_path)


def test_a_wrong_table_is_refused(tmp_path):
    (tmp_path / "tables").mkdir()
    text = (RECIPES / "tables" / "table4.yaml").read_text()
    for old, new, what in (
        ("[0.7528, 0.8083, 75.3224]", "[0.7528, 0.8083]", "DiffBIR needs 2 groups of 3 printed numbers"),
        ("$images/input", "$image/input", r"\$image is none of"),
        ("number: 4", "number: 3", "is table 3"),
    ):
        (tmp_path / "tables" / "table4.yaml").write_text(text.replace(old, new))
        with pytest.raises(ConfigError, match=what):
            load_table(4, tmp_path)


COLUMNS = (Column("psnr", "PSNR", "higher", 2), Column("lpips", "LPIPS", "lower", 4), Column("ens", "Ens.", "lower", 4))
SCALE = Scale("a minute", "train", "restore", "images", notice="only a test")
TABLE = Table(
    1, "A title", COLUMNS, (Group("sigma 5"),),
    (Row("A_1", ((30.0, 0.1, 0.2),)), Row("B*", ((31.0, 0.2, 0.3),), note="a choice"), Row("C", ((32.0, 0.3, 0.4),))),
    Scales(SCALE, SCALE, SCALE), (Milo(name="x"),),
)  # fmt: skip


def results(psnr, lpips, count=10, **more):
    spread = [sign * size for size in (0.005, 0.01, 0.015, 0.02, 0.025) for sign in (1, -1)]
    spread = spread[round(psnr) % 10 :] + spread[: round(psnr) % 10]  # of others in another order
    values = [{"psnr": psnr + small, "lpips": lpips, **more} for small in spread]
    return {
        "images": [{"values": row} for row in values],
        "means": {"psnr": psnr, "lpips": lpips, **more},
        "counts": {"psnr": 10, "lpips": count, **dict.fromkeys(more, 10)},
        "metrics": {name: {"better": "higher"} for name in ("psnr", "lpips", *more)},
        "unavailable": {"ens": {"reason": "unpublished", "mend": None}},
    }


FOUND = {
    ("A_1", "sigma 5"): results(31.0, 0.15, count=9, **{"ens-surrogate": 4.25}),
    ("B*", "sigma 5"): results(30.0, 0.15),
    ("C", "sigma 5"): "not at this scale: more data",
}


def test_differences_follow_the_arrow():
    lines = render(TABLE, "lite", FOUND, "text").splitlines()
    assert lines[1] == "NOTE: only a test."
    first, second, third = (next(line for line in lines if line.startswith(name)) for name in ("A_1", "B*", "C "))
    assert re.split(r"  +", first) == [
        "A_1", "30.00", "31.00", "+1.00 ▲", "0.1000", "0.1500†", "+0.0500 ▼", "0.2000", "-", "-", "4.25000",
    ]  # fmt: skip
    assert re.split(r"  +", second)[1:7] == ["31.00", "30.00", "-1.00 ▼", "0.2000", "0.1500", "-0.0500 ▲"]
    assert re.split(r"  +", third)[1:] == ["32.00", "-", "-", "0.3000", "-", "-", "0.4000", "-", "-", "-"]
    assert "C: not at this scale: more data" in lines
    assert "B*: a choice" in lines
    assert "ens is unavailable: unpublished" in lines
    assert "A_1: † lpips: mean of 9 of 10 images" in lines


def test_equal_numbers_are_neither_better_nor_worse():
    found = {("A_1", "sigma 5"): results(29.999, 0.1)}
    line = next(line for line in render(TABLE, "lite", found, "text").splitlines() if line.startswith("A_1"))
    assert re.split(r"  +", line)[3:7] == ["+0.00", "0.1000", "0.1000", "+0.0000"]


def test_a_surrogate_is_never_in_the_papers_column():
    head = next(line for line in render(TABLE, "lite", FOUND, "text").splitlines() if line.startswith("method"))
    assert re.split(r"  +", head)[-4:] == ["Ens. ↓ paper", "ours", "difference", "ens-surrogate ↑ ours"]


def test_markdown_marks_the_best_and_escapes():
    text = render(TABLE, "lite", FOUND, "markdown")
    row = next(line for line in text.splitlines() if line.startswith("| A_1"))
    assert "| **31.00** |" in row
    assert text.count("**") == 4  # and the group's title: the LPIPS are equal
    smoke = render(TABLE, "smoke", FOUND, "markdown")
    assert smoke.count("**") == 2
    assert "▲ " not in smoke
    assert "| 31.00 | - |" in smoke
    near = {**FOUND, ("B*", "sigma 5"): results(30.0, 0.15) | {"means": {"psnr": 30.9999, "lpips": 0.15}}}
    for image in near["B*", "sigma 5"]["images"]:
        image["values"]["psnr"] += 0.9999
    assert "**31.00**" not in render(TABLE, "lite", near, "markdown")  # better by less than the images scatter


def test_latex_escapes_and_has_as_many_cells_as_columns():
    text = render(TABLE, "lite", FOUND, "latex")
    row = next(line for line in text.splitlines() if line.startswith(r"A\_1"))
    assert r"\textbf{31.00}" in row
    assert r"$\blacktriangledown$" in row
    assert row.count("&") == len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1]) - 1
    assert text.count(r"\begin") == text.count(r"\end")
