"""Files that are read once as long as they do not change."""

from __future__ import annotations

import os
import shutil

import pytest
from PIL import Image

from milo_restore.errors import DataError
from milo_restore.files import known
from milo_restore.files.known import KnownFiles
from milo_restore.measure import cache
from milo_restore.measure.cache import KnownImages
from milo_restore.measure.folders import find_images
from milo_restore.measure.metrics import load_metric
from milo_restore.measure.run import measure


@pytest.fixture
def settled(monkeypatch):
    """Files count as changed long ago."""
    monkeypatch.setattr(known, "RACY_NS", -(10**18))


def seen(facts, path):
    """The file's content as remembered, and whether it was read for that."""
    read = []
    fact = facts.fact(path, lambda path: read.append(path) or path.read_text())
    return fact, bool(read)


def test_a_file_is_read_once_over_all_runs(tmp_path, settled, monkeypatch):
    path, memory = tmp_path / "a", tmp_path / "deep" / "facts.json"
    path.write_text("one")
    facts = KnownFiles(memory)
    assert seen(facts, path) == ("one", True)
    assert seen(facts, path) == ("one", False)
    facts.save()
    assert seen(KnownFiles(memory), path) == ("one", False)
    monkeypatch.chdir(tmp_path)
    assert seen(KnownFiles(memory), type(path)("a")) == ("one", False)


@pytest.mark.parametrize("how", ["longer", "same size", "same size and time", "another file", "gone"])
def test_a_file_that_changed_is_read_again(tmp_path, settled, how):
    path, facts = tmp_path / "a", KnownFiles(tmp_path / "facts.json")
    path.write_text("one")
    seen(facts, path)
    before = path.stat()
    if how == "another file":
        (tmp_path / "b").write_text("two")
        shutil.move(tmp_path / "b", path)
    elif how == "gone":
        path.unlink()
        with pytest.raises(FileNotFoundError):
            seen(facts, path)
        return
    else:
        path.write_text("longer" if how == "longer" else "two")
    if how != "same size":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync -t and touch -r do
    assert seen(facts, path) == ("longer" if how == "longer" else "two", True)


def test_a_file_that_has_just_changed_is_not_trusted(tmp_path, monkeypatch):
    path, facts = tmp_path / "a", KnownFiles(tmp_path / "facts.json")
    path.write_text("one")
    assert seen(facts, path) == seen(facts, path) == ("one", True)
    facts.save()
    assert not facts.path.exists()
    now = known.time.time_ns()
    monkeypatch.setattr(known.time, "time_ns", lambda: now + known.RACY_NS + 10**9)
    assert [seen(facts, path)[1] for _ in range(2)] == [True, False]


def test_a_file_that_changes_while_it_is_read_is_not_remembered(tmp_path, settled):
    path, facts = tmp_path / "a", KnownFiles(tmp_path / "facts.json")
    path.write_text("one")
    facts.fact(path, lambda path: path.write_text("changed"))
    assert seen(facts, path) == ("changed", True)


@pytest.mark.parametrize("content", ["{", "[]", '{"/a": 3}', '{"/a": [[1]]}', "\xff"])
def test_what_is_damaged_is_unknown(tmp_path, settled, content):
    path, memory = tmp_path / "a", tmp_path / "facts.json"
    path.write_text("one")
    memory.write_text(content, encoding="latin-1")
    assert seen(KnownFiles(memory), path) == ("one", True)


def test_a_changed_digit_is_found(tmp_path, settled):
    path, memory = tmp_path / "a", tmp_path / "facts.json"
    path.write_text("one")
    facts = KnownFiles(memory)
    seen(facts, path)
    facts.save()
    assert seen(KnownFiles(memory), path) == ("one", False)
    memory.write_text(memory.read_text().replace('"one"', '"ono"'))
    assert seen(KnownFiles(memory), path) == ("one", True)


def test_a_second_run_reads_no_file(tmp_path, settled, monkeypatch):
    folders = tmp_path / "pred", tmp_path / "ref"
    for folder, level in zip(folders, (100, 110)):
        folder.mkdir()
        for name in "ab":
            Image.new("RGB", (20, 16), (level, ord(name), 0)).save(folder / f"{name}.png")
    metrics, scores = [load_metric("psnr")], tmp_path / "scores"

    def run():
        files = KnownImages(scores)
        return measure(find_images(*folders, size_of=files.size), metrics, scores, known_images=files)

    first = run()
    assert first.computed == {"psnr": 2}
    for name in ("sha256_of", "image_size"):
        monkeypatch.setattr(cache, name, None)
    second = run()
    assert (second.hashes, second.values, second.computed) == (first.hashes, first.values, {"psnr": 0})
    monkeypatch.undo()
    Image.new("RGB", (20, 16), (90, 97, 0)).save(folders[0] / "a.png")
    third = run()
    assert third.computed == {"psnr": 1}
    assert third.hashes[0].pred != first.hashes[0].pred
    (folders[0] / "b.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"b.png: cannot be read as an image"):
        run()
