"""What ``data.train`` takes: folders, lists, tables, pairs, shards; the same keyed samples, or one clear line."""

from __future__ import annotations

import json
import tarfile
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from milo_restore.config import load_config
from milo_restore.data.crops import crop
from milo_restore.data.degraded_sets import DegradedData, held_out, training_pairs
from milo_restore.data.index import Row, build_index, read_index, write_index
from milo_restore.data.listed import Listed
from milo_restore.data.sources import Item
from milo_restore.data.texts import TextSettings, text_of
from milo_restore.errors import ConfigError, DataError
from milo_restore.files.quarantine import Quarantine

COUNT = 6
KEYS = [(1, 0, 0, 16), (1, 1, 1, 24), (3, 0, 8, 16), (4, 2, 17, 20)]


@pytest.fixture
def folder(tmp_path):
    """Pictures in two folders, with half-size counterparts beside them."""
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        place = f"{'ab'[number % 2]}/{number}"
        image = Image.fromarray(rng.integers(0, 256, (32, 36, 3), dtype=np.uint8))
        for kind, picture in (("images", image), ("small", image.resize((18, 16), Image.BOX))):
            path = tmp_path / kind / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    return tmp_path


def names(folder):
    return sorted(path.relative_to(folder / "images").as_posix() for path in (folder / "images").rglob("*.png"))


def pairs(*entries, home=None, resume=False, **changes):
    options = {"degradation": "noise", "in_memory": False, **changes}
    data = load_config(DegradedData, None, [f"train={json.dumps(list(map(str, entries)))}"])
    data = DegradedData(**{**vars(data), **options})
    return training_pairs(data, 5, home=home, resume=resume)


def written(path, text):
    path.write_text(text)
    return path


def shards(folder, count=2, parts=("png", "txt")):
    """The pictures packed as shards."""
    rows = names(folder)
    for shard in range(count):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for name in rows[shard * len(rows) // count : (shard + 1) * len(rows) // count]:
                key = name.removesuffix(".png").replace("/", "-")
                files = {"png": folder / "images" / name, "txt": written(folder / "t.txt", f"caption of {key}")}
                files["degraded.png"] = folder / "small" / name
                for part in parts:
                    tar.add(files[part], f"{key}.{part}")
    return folder / f"{{00000..{count - 1:05d}}}.tar"


def same(one, other):
    return all(torch.equal(one[key][side], other[key][side]) for key in KEYS for side in ("input", "target"))


def test_every_kind_of_entry_gives_the_same_samples(folder):
    listed = written(folder / "list.txt", "".join(f"images/{name}\n" for name in names(folder)))
    rows = [{"image": f"images/{name}", "text": f"of {name}", "other": 1} for name in names(folder)]
    lines = written(folder / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    whole = pairs(folder / "images")
    assert len(whole) == COUNT
    for entry in (listed, lines):
        assert same(pairs(entry), whole)
    assert same(pairs(folder / "images" / "a", folder / "images" / "b"), whole)


def test_parquet_and_its_captions(folder):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = {"image_path": [f"images/{n}" for n in names(folder)], "short": ["s"] * COUNT, "long": ["l"] * COUNT}
    parquet.write_table(pyarrow.table(table), folder / "rows.parquet")
    columns = {"image": "image_path", "text": "short", "long_text": "long"}
    options = {"columns": columns, "captions": {"source": "columns", "empty": 0.2, "long": 0.25}}
    data = load_config(DegradedData, None, [f"{key}={json.dumps(value)}" for key, value in options.items()])
    found = pairs(folder / "rows.parquet", columns=data.columns, captions=data.captions)
    texts = [found[(step, 0, step, 16)]["text"] for step in range(600)]
    shares = [texts.count(text) / 600 for text in ("", "l", "s")]
    assert shares == pytest.approx([0.2, 0.8 * 0.25, 0.8 * 0.75], abs=0.05)
    assert same(found, pairs(folder / "images"))
    with pytest.raises(DataError, match="rows.parquet: has no column 'image'. It has image_path, short, long"):
        pairs(folder / "rows.parquet")


def test_shards_are_read_at_random_and_give_the_same_samples(folder):
    pytest.importorskip("webdataset")
    entry = shards(folder)
    captions = load_config(DegradedData, None, ["captions.source=columns"]).captions
    found = pairs(entry, captions=captions)
    assert len(found) == COUNT
    assert same(found, pairs(folder / "images"))
    assert found[KEYS[0]]["text"] == f"caption of {found[KEYS[0]]['name']}"
    assert same(pairs(folder, captions=captions), found)  # the folder of shards
    with pytest.raises(DataError, match="1 of 3 shards are not there"):
        pairs(folder / "{00000..00002}.tar")


@pytest.mark.parametrize(("keep", "reason"), [(0.8, "after 4 whole files"), (-10_000, "its last block is missing")])
def test_a_shard_that_ends_early_is_refused_by_name(folder, keep, reason):
    pytest.importorskip("webdataset")
    entry, shard = shards(folder), folder / "00001.tar"
    content = shard.read_bytes()
    if keep < 0:  # exactly between two members: only the missing end tells
        content = content.rstrip(b"\0")
        content += b"\0" * (-len(content) % 512)
    else:
        content = content[: int(len(content.rstrip(b"\0")) * keep)]
    shard.write_bytes(content)
    with pytest.raises(DataError, match=f"00001.tar: ends early.*{reason}"):
        pairs(entry)


def test_a_shard_cut_short_later_is_quarantined_by_sample(folder):
    pytest.importorskip("webdataset")
    entry = shards(folder, count=1)
    found = pairs(entry, home=folder / "run")
    quarantine = Quarantine()
    again = training_pairs(DegradedData(train=(str(entry),), degradation="noise"), 5, quarantine=quarantine,
                           home=folder / "run", resume=True)  # fmt: skip
    shard = folder / "00000.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 4])
    for position in range(COUNT):
        assert again[(1, position, position, 16)]["name"] in {"a-0", "a-2"}
    bad = dict(quarantine.drain())
    assert str(shard) + "::b-5" in bad
    assert "the shard ends early" in bad[str(shard) + "::b-5"]
    with pytest.raises(DataError, match="ends early"):
        [found[(1, 0, position, 16)] for position in range(COUNT)]


def test_pairs_draw_no_degradation(folder):
    rows = [{"image": f"images/{name}", "degraded": f"small/{name}"} for name in names(folder)]
    lines = written(folder / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    test = {"degradation": "paired", "test": (str(folder / "images"),), "test_degraded": (str(folder / "small"),)}
    found = pairs(folder / "images", degraded=(str(folder / "small"),), flip=False, **test)
    assert same(found, pairs(lines, flip=False, **test))
    sample = found[(1, 0, 0, 16)]
    target = sample["target"].unfold(1, 2, 2).unfold(2, 2, 2).mean((3, 4))
    shrunk = sample["input"].unfold(1, 2, 2).unfold(2, 2, 2).mean((3, 4))
    assert (target - shrunk).abs().mean() < 0.08  # one place, enlarged
    assert sample["input"].shape == sample["target"].shape == (3, 16, 16)
    (tests,) = held_out(
        DegradedData(train=(str(folder / "images"),), degraded=(str(folder / "small"),), **test)
    ).values()
    assert len(tests) == COUNT
    assert tests[0].degraded.shape == (3, 32, 36)
    (folder / "small" / "b" / "5.png").unlink()
    with pytest.raises(DataError, match="lacks the counterparts of 1 images: b/5.png"):
        pairs(folder / "images", degraded=(str(folder / "small"),), **test)


def test_a_pair_of_other_sizes_is_named(folder):
    Image.new("RGB", (17, 16)).save(folder / "small" / "a" / "0.png")
    test = {"degradation": "paired", "test": (str(folder / "images"),), "test_degraded": (str(folder / "small"),)}
    found = pairs(folder / "images", degraded=(str(folder / "small"),), **test)
    with pytest.raises(DataError, match=r"0.png: its degraded image has 17x16, no whole fraction of 36x32"):
        [found[(1, 0, position, 16)] for position in range(COUNT)]


def test_what_is_wrong_with_a_list_is_one_line(folder):
    listed = written(folder / "list.txt", "images/a/0.png\nimages/gone.png\nimages/lost.png\n")
    with pytest.raises(DataError, match="list.txt: names 2 of 3 files that are not there: images/gone.png, images/lo"):
        pairs(listed)
    with pytest.raises(DataError, match="list.txt: names no images"):
        pairs(written(folder / "list.txt", "\n"))
    for text, what in (("{}\n", "row 1 has no image"), ("{\n", "line 1 is no JSON"), ("[]\n", "is no JSON object")):
        with pytest.raises(DataError, match=what):
            pairs(written(folder / "rows.jsonl", text))
    with pytest.raises(DataError, match=r"nowhere: no such folder. Name a folder of images, or a list"):
        pairs("nowhere")
    with pytest.raises(DataError, match="photographs: are in memory"):
        pairs("photographs")


@pytest.mark.parametrize(
    ("lines", "what"), [(4, "ends after 4 captions; b/3.png has none"), (9, "has 3 captions more")]
)
def test_a_caption_file_has_a_line_for_each_image(folder, lines, what):
    texts = written(folder / "captions.txt", "".join(f"text {n}\n" for n in range(lines)))
    captions = load_config(DegradedData, None, [f"captions.source={texts}"]).captions
    with pytest.raises(DataError, match=what):
        pairs(folder / "images", captions=captions)
    texts.write_text("".join(f"text {n}\n" for n in range(COUNT)))
    found = pairs(folder / "images", captions=captions)
    sample = found[KEYS[0]]
    assert (
        sample["text"]
        == f"text {names(folder).index(sample['name'].join(['ab'[int(sample['name'][0]) % 2] + '/', '']))}"
    )


def test_a_run_that_goes_on_keeps_its_list(folder):
    first = pairs(folder / "images", home=folder / "run")
    (folder / "images" / "a" / "0.png").unlink()
    Image.new("RGB", (40, 40)).save(folder / "images" / "new.png")
    other = pairs(folder / "images", home=folder / "run", resume=True, leave_out=("new.png",))
    assert len(other) == COUNT - 1  # listed by other settings, it is another list; the first one stays
    again = pairs(folder / "images", home=folder / "run", resume=True)
    assert again.source.identity() == first.source.identity()
    assert pairs(folder / "images", home=folder / "run").source.identity() != first.source.identity()
    (folder / "run" / "checkpoint-000001").mkdir()
    with pytest.raises(DataError, match="already holds a training run"):
        pairs(folder / "images", home=folder / "run")


def test_an_index_is_small_and_read_as_written(tmp_path):
    rows = [Row(f"{n // 100:05d}/{n:09d}.jpg", texts=(f"text {n}",) if n % 2 else ()) for n in range(20_000)]
    tracemalloc.start()
    index = build_index([("root", "", rows[:10]), ("other", "", rows[10:])])
    assert tracemalloc.get_traced_memory()[0] < 20_000 * 70
    tracemalloc.stop()
    write_index(index, tmp_path / "index", {"of": 1})
    again = read_index(tmp_path / "index")
    assert len(again) == len(index) == 20_000
    for number in (0, 1, 9, 10, 777, 19_999):
        assert again.row(number) == index.row(number)
        assert again.row(number).texts == (rows[number].texts or ("",))
    assert Listed(again).path(9) == "root/00000/000000009.jpg"
    assert Listed(again).path(10) == "other/00000/000000010.jpg"
    (tmp_path / "index" / "path.npy").write_bytes((tmp_path / "index" / "path.npy").read_bytes()[:-3])
    with pytest.raises(DataError, match="is no whole index of images"):
        read_index(tmp_path / "index")


def test_adm_crops_show_the_shorter_side():
    rows, columns = np.mgrid[:256, :384].astype(np.uint8)
    item = Item("a.png", np.dstack([rows, columns // 2, rows]))
    (centre,) = crop(item, 64, "adm-center", np.random.default_rng(0))
    assert centre.shape == (64, 64, 3)
    assert centre[0, 0, 0] < 4  # all rows, and the middle of the columns
    assert centre[-1, 0, 0] > 251
    assert 30 < centre[0, 0, 1] < 35
    tops = [int(crop(item, 64, "adm-random", np.random.default_rng(n))[0][0, 0, 0]) for n in range(20)]
    assert len(set(tops)) > 5
    assert max(tops) < 256 * 0.31
    (small,) = crop(Item("b.png", np.zeros((40, 50, 3), np.uint8)), 64, "adm-center", np.random.default_rng(0))
    assert small.shape == (64, 64, 3)


def test_captions_are_keyed_and_their_shares_checked():
    settings = TextSettings(empty=0.5, long=0.2)
    drawn = [text_of(("short", "long"), settings, 1, step, 0) for step in range(400)]
    assert drawn == [text_of(("short", "long"), settings, 1, step, 0) for step in range(400)]
    assert drawn.count("") / 400 == pytest.approx(0.5, abs=0.08)
    assert text_of((), TextSettings(), 1, 2, 3) == ""
    with pytest.raises(ConfigError, match="shares from 0 to 1"):
        load_config(DegradedData, None, ["captions.empty=2"])
    with pytest.raises(ConfigError, match="need degradation: paired"):
        load_config(DegradedData, None, ["degraded=[x]"])
    with pytest.raises(ConfigError, match="test_degraded has 0 entries for 1 of test"):
        load_config(DegradedData, None, ["degradation=paired"])
