"""``milo-restore levels``: the list, one image, the sheet, the figure and its numbers, and what is refused."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from milo_restore import MILO
from milo_restore.cli import main
from milo_restore.data import held_out_photographs, read_image, to_tensor, training_photographs, write_png
from milo_restore.data.kadid import DISTORTIONS, distort
from milo_restore.show.levels import Prediction, draw_all, draw_figure, draw_sheet, predictions


@pytest.fixture
def images(tmp_path):
    """Two small crops of photographs, as files."""
    paths = []
    for name, image in held_out_photographs():
        paths.append(tmp_path / f"{name.split('.')[0]}.png")
        Image.fromarray(image[100:164, 100:180]).save(paths[-1])
    return paths


def run(*arguments):
    return main(["levels", *map(str, arguments)])


def fails(capsys, *arguments):
    assert run(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("milo-restore: error: ")
    return lines[0]


def test_the_list(capsys):
    assert run() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 26
    assert [line[:2] for line in lines] == ["no", *(f"{number:02d}" for number in range(1, 26))]
    assert lines[1].split() == ["01", "gaussian", "blur", "blurs", "sigma", "(pixels)", "0.1", "0.5", "1", "2", "5"]
    assert lines[3].endswith("10  random")
    assert lines[18].endswith("-0.15  not ordered by level")
    assert lines[25].endswith("-0.6  not ordered by level")
    assert run("--generator", "clipped") == 0
    assert capsys.readouterr().out.splitlines()[25].endswith("-0.6  level 3 is the image itself")


def test_one_distorted_image(images, tmp_path, capsys):
    out = tmp_path / "x.png"
    assert run(images[0], "--distortion", "jpeg", "--level", 3, "--out", out) == 0
    np.testing.assert_array_equal(read_image(out), distort(read_image(images[0]), 10, 3))
    assert capsys.readouterr().out == f"{out}: chelsea.png, 10 jpeg, quality = 24\n"
    assert run(images[0], "--distortion", 11, "--level", 5, "--out", out, "--seed", 7) == 0
    np.testing.assert_array_equal(read_image(out), distort(read_image(images[0]), 11, 5, seed=7))
    assert run(images[0], "--distortion", 18, "--level", 5, "--out", out, "--generator", "clipped") == 0
    clipped = distort(read_image(images[0]), 18, 5, generator="clipped")
    np.testing.assert_array_equal(read_image(out), clipped)
    assert (clipped != distort(read_image(images[0]), 18, 5)).any()
    assert run("--distortion", 21, "--level", 1, "--out", out) == 0
    np.testing.assert_array_equal(read_image(out), distort(training_photographs()[0][1], 21, 1))


def test_the_numbers_and_the_figure(images, tmp_path, capsys):
    table, plot = tmp_path / "f.csv", tmp_path / "figure.png"
    assert run(*images, "--distortion", 11, "--plot", plot, "--csv", table, "--weights", "mini", "--device", "cpu") == 0
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 12
    assert [row["image"] for row in rows] == ["chelsea.png"] * 6 + ["rocket.png"] * 6
    assert [row["level"] for row in rows[:6]] == list("012345")
    assert [row["variance"] for row in rows[:6]] == ["", "0.001", "0.002", "0.003", "0.005", "0.01"]
    milo, reference = MILO.from_pretrained("mini"), read_image(images[1])
    for level, row in enumerate(rows[6:]):
        step = distort(reference, 11, level) if level else reference
        pair = (to_tensor(image)[None] for image in (step, reference))
        assert float(row["mos"]) == pytest.approx(milo.mos(next(pair), reference=next(pair)).item(), abs=1e-5)
    assert float(rows[0]["mos"]) == pytest.approx(float(rows[6]["mos"]), abs=1e-5)
    assert float(rows[0]["mos"]) > float(rows[3]["mos"]) > float(rows[5]["mos"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("metric: MILO, weights: mini (")
    assert printed[-2].split() == ["chelsea.png", *(f"{float(row['mos']):.4f}" for row in rows[:6])]
    assert printed[-3].split() == ["variance", "-", "0.001", "0.002", "0.003", "0.005", "0.01"]
    assert read_image(plot).shape[1] == 864
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chelsea.png", "f.csv", "figure.png", "rocket.png"]


def test_all_distortions_at_once(images, tmp_path, capsys):
    table, plot = tmp_path / "f.csv", tmp_path / "figure.png"
    small = [tmp_path / f"small{number}.png" for number in range(2)]
    for path, image in zip(small, images):
        write_png(path, read_image(image)[:48, :64])
    assert (
        run(*small, "--distortion", "all", "--plot", plot, "--csv", table, "--weights", "mini", "--device", "cpu") == 0
    )
    rows = list(csv.DictReader(table.open()))
    assert [(row["distortion"], row["image"], row["level"]) for row in rows] == [
        (str(kind), path.name, str(level)) for kind in range(1, 26) for path in small for level in range(6)
    ]
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 + 2 + 50
    assert printed[-1].split()[-6:] == [f"{float(row['mos']):.4f}" for row in rows[-6:]]
    assert run(small[1], "--distortion", 25, "--csv", table, "--weights", "mini", "--device", "cpu") == 0
    again = [float(row["mos"]) for row in csv.DictReader(table.open())]
    assert again == pytest.approx([float(row["mos"]) for row in rows[-6:]], abs=1e-5)
    assert read_image(plot).shape == (1010, 1200, 3)


def test_all_charts_have_their_lines():
    """Each falls to its own end on a scale that all share: the lower the line ends, the further down its last point."""
    found = [(DISTORTIONS[place], [[Prediction("a", level, None, 4 - level * place / 10) for level in range(6)]])
             for place in range(4)]  # fmt: skip
    picture = draw_all(found).astype(int)
    blue = np.abs(picture - (31, 119, 180)).max(2) < 10
    blue[:45] = False  # the legend
    ends = []
    for part in np.array_split(np.arange(picture.shape[1]), 4):
        rows, columns = np.nonzero(blue[:, part])
        ends.append(rows[columns > columns.max() - 4].mean())
    assert ends == sorted(ends)
    assert min(np.diff(ends)) > 10


def test_the_figure_shows_the_numbers(images):
    """A line through given values: its colour is where the axes say, and the pictures stand under their levels."""
    kind = DISTORTIONS[22]
    reference = np.zeros((64, 64, 3), np.uint8)
    steps = [reference, *(np.full((64, 64, 3), 40 * level, np.uint8) for level in range(1, 6))]
    found = predictions(_Falling(), "cpu", "grey", steps, kind)
    assert [(row.level, row.value) for row in found] == list(enumerate([None, 2, 4, 6, 8, 10]))
    picture = draw_figure([found], [steps], kind).astype(int)
    blue = np.argwhere(np.abs(picture - (31, 119, 180)).max(2) < 10)
    legend = blue[:, 1] > 0.85 * picture.shape[1]
    line = blue[~legend]
    left, right = line[line[:, 1] < line[:, 1].min() + 8], line[line[:, 1] > line[:, 1].max() - 8]
    assert left[:, 0].mean() < right[:, 0].mean() - 100  # falls
    strip = picture[-40]
    for level in range(1, 6):
        places = np.flatnonzero((strip == 40 * level).all(1))
        share = (places.mean() - line[:, 1].min()) / (0.9 * picture.shape[1])
        assert abs(share - level / 6) < 0.06
        assert len(places) > 80


class _Falling:
    """Stands for MILO: the brighter the image, the worse."""

    def mos(self, image, *, reference):
        return 4 - 3 * image.mean((1, 2, 3))


def test_the_figure_leaves_matplotlib_alone(images):
    import matplotlib
    from matplotlib import _pylab_helpers

    before = dict(matplotlib.rcParams)
    steps = [read_image(images[0])] * 6
    draw_figure([predictions(_Falling(), "cpu", "a", steps, DISTORTIONS[0])], [steps], DISTORTIONS[0])
    assert dict(matplotlib.rcParams) == before
    assert not _pylab_helpers.Gcf.figs


def test_the_sheet(tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert run("--sheet", out) == 0
    assert capsys.readouterr().out == f"{out}: chelsea.png, 25 distortions x 5 levels\n"
    sheet = read_image(out)
    assert out.stat().st_size < 1.5e6
    np.testing.assert_array_equal(sheet, draw_sheet(held_out_photographs()[0][1]))
    # Cells that show the stretched scene itself: type 18 at level 3, and the first level of types 1, 3 and 8.
    cells = {(row, level): _cell(sheet, row, level) for row in range(1, 26) for level in range(1, 6)}
    same = {key for key, cell in cells.items() if (cell == cells[1, 1]).all()}
    assert same >= {(1, 1), (3, 1), (8, 1), (18, 3)}
    assert (25, 3) not in same
    assert len(same) < 12  # a cell may lie beside the few blocks of level 1
    assert not (sheet[:, :200] == 255).all(1).all()  # names on the left
    assert len({cell.tobytes() for cell in cells.values()}) > 110


def _cell(sheet, row, level):
    top = 23 + (row - 1) * 83
    left = 224 + (level - 1) * 98
    return sheet[top : top + 64, left : left + 94]


@pytest.fixture
def copy(tmp_path, images):
    """A small made-up copy of KADID-10k: two references, types 1, 18, 22 and 23, two files spoilt and one missing."""
    root = tmp_path / "kadid10k"
    for number, path in enumerate(images, 1):
        reference = read_image(path)
        write_png(root / f"images/I{number:02d}.png", reference)
        for kind in (1, 18, 22, 23):
            for level in range(1, 6):
                name = root / f"images/I{number:02d}_{kind:02d}_{level:02d}.png"
                write_png(name, distort(reference, kind, level, seed=5))
    (root / "images/I02_01_05.png").unlink()
    write_png(root / "images/I01_18_02.png", distort(read_image(images[0]), 18, 2, generator="clipped"))
    almost = distort(read_image(images[1]), 1, 3)
    almost[:8, :8] ^= 4
    write_png(root / "images/I02_01_03.png", almost)
    return root


def test_a_copy_of_the_data_set_is_compared_image_by_image(copy, tmp_path, capsys):
    table = tmp_path / "check.csv"
    assert run("--check", copy, "--csv", table) == 0
    printed = capsys.readouterr().out
    assert f"{copy}: 39 distorted images against generator published, 211 not there" in printed
    lines = [line.split() for line in printed.splitlines() if line[:2].isdecimal()]
    assert [line[0] for line in lines] == [kind for kind in ("01", "18", "22", "23") for _ in range(5)]
    assert lines[1][3:] == ["2", "2", "0", "0.000", "inf", "inf", *lines[1][9:11], "59", "dB"]
    assert lines[1][9] == lines[1][10] != "inf"
    assert lines[10][-2:] == ["35", "dB"]
    assert all(line[-1] == "random" for line in lines[15:])
    assert "of 29 that can be made the same, 27 are" in printed
    rows = {row["image"]: row for row in csv.DictReader(table.open())}
    assert len(rows) == 39
    assert rows["I02_18_02.png"]["psnr"] == "inf"
    spoilt = rows["I02_01_03.png"]
    assert (spoilt["distortion"], spoilt["level"], spoilt["largest"]) == ("1", "3", "4")
    assert float(spoilt["mean"]) == pytest.approx(4 * 64 / (64 * 80))
    assert float(spoilt["psnr"]) == pytest.approx(10 * np.log10(255**2 / (16 * 64 / (64 * 80))))
    worst = min(("I01_18_02.png", "I02_01_03.png"), key=lambda name: float(rows[name]["psnr"]))
    assert f"farthest off: {worst} (" in printed


def test_a_copy_can_be_compared_by_type_and_with_the_same_draws(copy, capsys):
    assert run("--check", copy, "--distortion", "color block", "--seed", 5) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("23")]
    assert [line[5:7] for line in lines] == [["0", "0.000"]] * 5
    assert run("--check", copy, "--distortion", 18, "--generator", "clipped") == 0
    assert "of 10 that can be made the same, " in capsys.readouterr().out
    Image.fromarray(np.zeros((64, 79, 3), np.uint8)).save(copy / "images/I01_18_04.png")
    assert "I01_18_04.png: is 79x64, its reference 80x64 (width x height)" in fails(
        capsys, "--check", copy, "--distortion", 18
    )
    for path in (copy / "images").glob("I??_*.png"):
        path.unlink()
    assert "holds references, but none of 10 distorted images, such as I01_18_01.png" in fails(
        capsys, "--check", copy, "--distortion", 18
    )


def test_what_is_refused(images, tmp_path, capsys):
    image, out = images[0], tmp_path / "o.png"
    assert "nothing to do with these images" in fails(capsys, image)
    assert "belong together" in fails(capsys, image, "--distortion", 1, "--out", out)
    assert "belong together" in fails(capsys, image, "--distortion", 1, "--level", 2)
    assert "--plot: needs a distortion" in fails(capsys, image, "--plot", out)
    assert "Did you mean 'jpeg'" in fails(capsys, image, "--distortion", "jpg", "--plot", out)
    assert "from 1 to 5, got 6" in fails(capsys, image, "--distortion", 1, "--level", 6, "--out", out)
    assert "--sheet: takes one image, got 2" in fails(capsys, *images, "--sheet", out)
    assert "written as PNG" in fails(capsys, image, "--sheet", tmp_path / "o.jpg")
    assert "is a file" in fails(capsys, image, "--sheet", f"{image}/o.png")
    assert "--latent: distorts images" in fails(capsys, image, "--distortion", 1, "--latent")
    assert "scores nothing" in fails(capsys, "--distortion", 1, "--level", 2, "--out", out, "--csv", tmp_path / "c")
    assert "of one distortion" in fails(capsys, image, "--distortion", "all", "--level", 2, "--out", out)
    assert "no such image" in fails(capsys, tmp_path / "none.png", "--sheet", out)
    assert "no generator 'faithful'. There are published and clipped" in fails(capsys, "--generator", "faithful")
    assert "--check: draws, writes and scores no image" in fails(capsys, "--check", tmp_path, "--sheet", out)
    assert "--check: draws, writes and scores no image" in fails(capsys, image, "--check", tmp_path)
    assert "is no copy of KADID-10k: there is no images/I01.png" in fails(capsys, "--check", tmp_path)
    Image.fromarray(np.zeros((15, 40, 3), np.uint8)).save(tmp_path / "small.png")
    assert "small.png: images must be at least" in fails(
        capsys, tmp_path / "small.png", "--distortion", 1, "--level", 2, "--out", out
    )
    assert not out.exists()


@pytest.mark.golden
def test_the_official_scores_fall_with_noise(shared, images, capsys, monkeypatch):
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(shared))
    torch.set_num_threads(1)
    assert run(*images, "--distortion", "white noise") == 0
    for line in capsys.readouterr().out.splitlines()[-2:]:
        scores = [float(word) for word in line.split()[1:]]
        assert scores[0] == pytest.approx(4.34625, abs=1e-4)  # printed with four digits
        assert scores == sorted(scores, reverse=True)
        assert scores[5] < 3.2
