"""One writer for files and one for folders: whole or not there, and a manifest that shows every change."""

from __future__ import annotations

import os

import pytest

from milo_restore.errors import DataError, WeightsError
from milo_restore.files.manifest import verify
from milo_restore.files.write import publish, replace_file


def fill(folder):
    (folder / "part").mkdir()
    (folder / "part" / "a.bin").write_bytes(b"a")
    (folder / "b.txt").write_text("b")


def test_a_file_is_bytes_or_text_as_given(tmp_path):
    replace_file(tmp_path / "new" / "a.txt", "ä\r\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"\xc3\xa4\r\n"
    replace_file(tmp_path / "new" / "a.txt", b"\0")
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"\0"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_a_failed_write_leaves_the_old_file_and_says_where_to_make_room(tmp_path, monkeypatch):
    replace_file(tmp_path / "a", "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        DataError, match=r"a: cannot be written \(No space left on device\)\. Free space in .*, then go$"
    ):
        replace_file(tmp_path / "a", "new", then=", then go")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_a_folder_with_folders_is_published_and_verified(tmp_path):
    target = tmp_path / "made" / "world"
    publish(target, fill)
    verify(target)
    assert sorted(path.relative_to(target).as_posix() for path in target.rglob("*")) == [
        "b.txt", "manifest.json", "part", "part/a.bin",
    ]  # fmt: skip
    publish(target, lambda folder: (folder / "c.txt").write_text("c"))
    verify(target)
    assert sorted(path.name for path in target.iterdir()) == ["c.txt", "manifest.json"]
    assert [path.name for path in target.parent.iterdir()] == ["world"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "part" / "a.bin").write_bytes(b"b"), r"a\.bin: is damaged: its sha256"),
        (lambda folder: (folder / "part" / "a.bin").write_bytes(b"bb"), r"a\.bin: has 2 bytes, not 1"),
        (lambda folder: (folder / "part" / "a.bin").unlink(), r"a\.bin: cannot be read"),
        (lambda folder: (folder / "part" / "more").write_bytes(b""), "more: does not belong there"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), r"manifest\.json: is damaged"),
        (lambda folder: (folder / "manifest.json").unlink(), r"manifest\.json: is missing"),
    ],
)
def test_every_change_shows(tmp_path, spoil, message):
    publish(tmp_path / "world", fill)
    spoil(tmp_path / "world")
    with pytest.raises(WeightsError, match=message + r".*\. Make it again$"):
        verify(tmp_path / "world", mend="Make it again")


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    publish(tmp_path / "world", fill)

    def fail(folder):
        fill(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match="world: cannot be written .No space left"):
        publish(tmp_path / "world", fail)
    verify(tmp_path / "world")
    assert [path.name for path in tmp_path.iterdir()] == ["world"]
