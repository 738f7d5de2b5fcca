"""A list of training images that fits into memory fifteen million times: text in one piece, numbers in arrays.

A list of ``pathlib.Path`` takes 216 bytes an image in every process. Here a path takes its characters and 8 bytes, and
of an index that was written to disk a process reads what it asks for.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from milo_restore.errors import DataError
from milo_restore.files.write import publish

_ABOUT = "index.json"


class Row(NamedTuple):
    """An image in an index.

    Attributes:
        path: of the image, from its segment's root on; of a sample in a shard ``SHARD::KEY``.
        degraded: path of its degraded counterpart; "": none.
        texts: captions: none, one, or a short and a long one.
        spans: of a sample in a shard, in bytes: start and length of the image, of its counterpart, and of each caption.
    """

    path: str
    degraded: str = ""
    texts: tuple[str, ...] = ()
    spans: tuple[int, ...] = ()


class Segment(NamedTuple):
    """Rows of one entry of ``data.train``.

    Attributes:
        end: number of the first row after them.
        root: folder that their paths start from.
        degraded: folder that their counterparts' paths start from.
    """

    end: int
    root: str
    degraded: str


class _OnDisk:
    """A one-dimensional array in a .npy file, of which what is asked for is read: mapped, all of it would soon count
    as memory of every process.
    """

    def __init__(self, path: Path) -> None:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        self.dtype, self.length, self.start = array.dtype, len(array), array.offset
        if path.stat().st_size != self.start + array.nbytes:
            raise ValueError(f"{path.name} is cut short")
        self.file = path.open("rb", buffering=0)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, where: Any) -> Any:
        """One number, or a slice of them; negative ones do not count from the end."""
        first, last, _ = where.indices(self.length) if isinstance(where, slice) else (where, where + 1, 1)
        size = self.dtype.itemsize
        # Not seek and read: processes that were forked share the file's place.
        content = os.pread(self.file.fileno(), (last - first) * size, self.start + first * size)
        found = np.frombuffer(content, self.dtype)
        return found if isinstance(where, slice) else found[0]


class Strings:
    """Many strings in two arrays: their UTF-8, and where each ends.

    >>> names = Strings.of(["a.png", "b.png"])
    >>> len(names), names[1]
    (2, 'b.png')
    """

    def __init__(self, text: NDArray[np.uint8] | _OnDisk, ends: NDArray[np.int64] | _OnDisk) -> None:
        self.text, self.ends = text, ends

    @classmethod
    def of(cls, strings: Iterable[str]) -> Strings:
        """Take strings in, one after the other."""
        builder = _Builder()
        for string in strings:
            builder.add(string)
        return builder.done()

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> str:
        first = int(self.ends[number - 1]) if number else 0
        return self.text[first : int(self.ends[number])].tobytes().decode("utf-8", "surrogateescape")


class _Builder:
    """Strings being taken in. Their text goes to a temporary file: in memory it would be there twice as it grows."""

    def __init__(self) -> None:
        self.ends, self.length = array("q"), 0
        self.file: Any = None

    def add(self, string: str) -> None:
        content = string.encode("utf-8", "surrogateescape")
        if self.file is None:
            self.file = tempfile.TemporaryFile()  # noqa: SIM115  closed where it is read
        self.file.write(content)
        self.length += len(content)
        self.ends.append(self.length)

    def fill(self, string: str, number: int) -> None:
        """Take in the string of a number; those before it that never came are empty."""
        if len(self.ends) < number:
            self.ends.extend([self.length] * (number - len(self.ends)))
        self.add(string)

    def done(self) -> Strings:
        ends = np.frombuffer(self.ends, np.int64)
        if not self.length:
            return Strings(np.zeros(0, np.uint8), ends)
        with self.file as file:
            file.seek(0)
            return Strings(np.fromfile(file, np.uint8), ends)


class Index:
    """Where the images of a run lie, by number.

    Args:
        segments: of the rows, in their order.
        columns: ``path`` and, where there are any, ``degraded``, ``text0``, ``text1``: strings by row.
        spans: see `Row`, 8 numbers each, int64; None: there are no shards.
        digest: of all that.
        folder: where it lies; None: it is in memory.
    """

    def __init__(
        self,
        segments: list[Segment],
        columns: Mapping[str, Strings],
        spans: NDArray[np.int64] | _OnDisk | None,
        digest: str,
        folder: Path | None = None,
    ) -> None:
        self.segments, self.columns, self.spans = segments, dict(columns), spans
        self.digest, self.folder = digest, folder
        self._ends = np.array([segment.end for segment in segments])

    def __len__(self) -> int:
        return len(self.columns["path"])

    def __reduce__(self) -> Any:
        """A process that is started anew opens the files instead of getting their bytes."""
        if self.folder is not None:
            return read_index, (self.folder,)
        return Index, (self.segments, self.columns, self.spans, self.digest)

    def segment(self, number: int) -> Segment:
        """The segment that a row is of."""
        return self.segments[int(np.searchsorted(self._ends, number, side="right"))]

    def row(self, number: int) -> Row:
        """A row."""
        columns = self.columns
        texts = tuple(columns[name][number] for name in ("text0", "text1") if name in columns)
        texts = texts[:1] if texts[1:] == ("",) else texts  # of a list that has one caption, beside one that has two
        degraded = columns["degraded"][number] if "degraded" in columns else ""
        spans = () if self.spans is None else self.spans[number * _SPANS : (number + 1) * _SPANS]
        return Row(columns["path"][number], degraded, texts, tuple(map(int, spans)))


def build_index(parts: Iterable[tuple[str, str, Iterable[Row]]]) -> Index:
    """An index in memory.

    Args:
        parts: of each entry its root, its counterparts' root, and its rows.
    """
    builder, segments = _Rows(), []
    for root, degraded, rows in parts:
        for row in rows:
            builder.add(row)
        segments.append(Segment(builder.count, root, degraded))
    columns, spans = builder.done()
    return Index(segments, columns, spans, _digest(segments, columns, spans))


_SPANS = 8  # numbers: start and length of the image, its counterpart and two captions


class _Rows:
    """Columns being filled. What few lists have takes no room in the others."""

    def __init__(self) -> None:
        self.columns = {name: _Builder() for name in ("path", "degraded", "text0", "text1")}
        self.spans: Any = None  # a file, as the text is
        self.count = 0

    def add(self, row: Row) -> None:
        short, long = (row.texts[0], row.texts[1] if len(row.texts) > 1 else "") if row.texts else ("", "")
        for name, string in (("degraded", row.degraded), ("text0", short), ("text1", long)):
            if string or self.columns[name].ends:
                self.columns[name].fill(string, self.count)
        self.columns["path"].fill(row.path, self.count)
        if row.spans and self.spans is None:
            self.spans = tempfile.TemporaryFile()  # noqa: SIM115  it goes with the array that is mapped from it
            self.spans.write(array("q", [-1] * _SPANS).tobytes() * self.count)
        if self.spans is not None:
            self.spans.write(array("q", (*row.spans, *[-1] * (_SPANS - len(row.spans)))).tobytes())
        self.count += 1

    def done(self) -> tuple[dict[str, Strings], NDArray[np.int64] | None]:
        found = {name: builder.done() for name, builder in self.columns.items() if builder.ends}
        if self.spans is None:
            return found, None
        self.spans.flush()
        return found, np.memmap(self.spans, np.int64, "r").reshape(-1)


def write_index(index: Index, folder: Path, about: Mapping[str, Any]) -> None:
    """Write an index, as a published folder.

    Args:
        index: what `build_index` gave.
        folder: the folder; one that is there is replaced.
        about: what it was made from, for readers.

    Raises:
        DataError: it cannot be written.
    """

    def write(place: Path) -> None:
        for name, strings in index.columns.items():
            np.save(place / f"{name}.npy", np.asarray(strings.text[:]))
            np.save(place / f"{name}-ends.npy", np.asarray(strings.ends[:]))
        if index.spans is not None:
            np.save(place / "spans.npy", np.asarray(index.spans[:]))
        described = {"segments": index.segments, "columns": list(index.columns), "digest": index.digest}
        text = json.dumps({**described, "made_from": about}, indent=1)
        (place / _ABOUT).write_text(text + "\n", encoding="utf-8")

    publish(folder, write)


def read_index(folder: Path) -> Index:
    """Open an index that `write_index` wrote.

    Raises:
        DataError: a part is missing or damaged.
    """
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        segments = [Segment(*segment) for segment in about["segments"]]
        columns = {name: Strings(_OnDisk(folder / f"{name}.npy"), _OnDisk(folder / f"{name}-ends.npy"))
                   for name in about["columns"]}  # fmt: skip
        spans = _OnDisk(folder / "spans.npy") if (folder / "spans.npy").is_file() else None
        return Index(segments, columns, spans, about["digest"], folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        mend = "Delete the folder: the images are listed anew"
        raise DataError(f"is no whole index of images ({error})", where=folder, mend=mend) from error


def _digest(segments: list[Segment], columns: Mapping[str, Strings], spans: NDArray[np.int64] | None) -> str:
    """A hash of what there is under each number; not of where it lies."""
    digest = hashlib.sha256(repr([segment.end for segment in segments]).encode())
    for name, strings in columns.items():
        digest.update(name.encode())
        for part in (strings.text, strings.ends):
            digest.update(np.ascontiguousarray(part[:]).data)
    if spans is not None:
        digest.update(np.ascontiguousarray(spans).data)
    return digest.hexdigest()
