"""Images that an entry of ``data.train`` names, told by what it is: a folder, a list, a table, shards; row by row."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from milo_restore.data.index import Row
from milo_restore.data.shards import expand_shards, shard_rows
from milo_restore.errors import DataError, listed, printable
from milo_restore.files.datasets import SUFFIXES
from milo_restore.files.manifest import check_sealed_listing

LISTS, TABLES = (".txt", ".list"), (".jsonl", ".parquet")
CHECKED = 10_000
"""Lists up to this long are looked up at the start: more would take a request each to a file server."""


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns; of a sample's parts in shards, where the image is any part that ends like one."""

    image: str = "image"  # of its path, from the table's folder on
    degraded: str = "degraded"  # in shards KEY.degraded.png
    text: str = "text"  # in shards always KEY.txt
    long_text: str | None = None  # a second, longer caption; in shards KEY.NAME.txt


Part = tuple[str, str, Iterable[Row]]
"""An entry's root, its counterparts' root, and its rows."""


def list_entry(entry: str, degraded: str | None, columns: Columns, captions: bool) -> Part:
    """The rows of an entry.

    Args:
        entry: a folder, searched with those below it; a text file with a path in each line; JSON lines or parquet; a
            .tar, several in braces (``{000..123}.tar``) or a folder of them.
        degraded: the folder or list of the counterparts, paired by name without suffix or line by line; None: none,
            but for those that a table or shards have.
        columns: of tables and shards.
        captions: take the captions of tables and shards.

    Raises:
        DataError: nothing is there, or it is no such thing; from the rows, too.
    """
    path = Path(entry)
    if path.suffix.lower() == ".tar" or (path.is_dir() and _holds_shards(path)):
        shards = expand_shards(entry) if not path.is_dir() else sorted(str(shard) for shard in path.glob("*.tar"))
        root = os.path.commonpath([os.path.dirname(shard) for shard in shards])
        return root, "", shard_rows(root, shards, columns.degraded, columns.long_text, captions)
    if path.suffix.lower() in TABLES:
        root = str(path.parent)
        return root, root, _table_rows(path, columns, captions)
    if path.suffix.lower() in LISTS:
        rows = _listed_rows(path) if degraded is None else _paired_lists(path, Path(degraded))
        return str(path.parent), str(Path(degraded).parent) if degraded else "", rows
    if not path.is_dir():
        kinds = ", ".join((*LISTS, *TABLES, ".tar"))
        raise DataError("no such folder", where=entry, mend=f"Name a folder of images, or a list ({kinds})")
    if degraded is None:
        return entry, "", _folder_rows(path)
    return entry, degraded, _paired_folders(path, Path(degraded))


def with_captions(parts: Iterable[Part], captions: Path) -> Iterator[Part]:
    """Rows with the captions of a text file: a line for each image of all entries, in their order.

    Raises:
        DataError: it cannot be read, or has too few or too many lines.
    """
    lines = iter(_lines(captions))
    taken = 0

    def captioned(rows: Iterable[Row]) -> Iterator[Row]:
        nonlocal taken
        for row in rows:
            line = next(lines, None)
            if line is None:
                what = f"ends after {taken:,} captions; {row.path} has none"
                raise DataError(what, where=captions, mend="Give one line for each image, an empty one for none")
            taken += 1
            yield row._replace(texts=(line.strip(),))

    for root, degraded, rows in parts:
        yield root, degraded, captioned(rows)
    left = sum(1 for line in lines if line.strip())
    if left:
        what = f"has {left:,} captions more than the {taken:,} images"
        raise DataError(what, where=captions, mend="Give one line for each image, in their order")


def walk(folder: Path) -> Iterator[str]:
    """Image files of a folder and of those below it, relative to it, sorted by path; hidden ones are left out.

    One folder's names are in memory at a time.

    Raises:
        DataError: a folder cannot be listed, or a name could not be shown.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries
                           if not entry.name.startswith("."))  # fmt: skip
    except OSError as error:
        raise DataError(f"cannot be listed ({error.strerror or error})", where=folder) from error
    for name, is_folder in found:
        if is_folder:
            yield from (f"{name}/{below}" for below in walk(folder / name))
        elif name.lower().endswith(SUFFIXES):
            if not name.isprintable() and printable(name) != name:
                what = "its name is not UTF-8 or holds control characters"
                raise DataError(what, where=folder / name, mend="Rename it, or leave it out")
            yield name


def _folder_rows(folder: Path) -> Iterator[Row]:
    check_sealed_listing(folder, (folder / path for path in walk(folder)), below=True)  # walked for a seal only
    count = 0
    for path in walk(folder):
        count += 1
        yield Row(path)
    if not count:
        raise DataError("holds 0 images", where=folder, mend=f"Expected files ending in {', '.join(SUFFIXES)}")


def _paired_folders(folder: Path, degraded: Path) -> Iterator[Row]:
    if not degraded.is_dir():
        raise DataError("no such folder", where=degraded, mend="Name the folder of the degraded images")
    others = {os.path.splitext(path)[0]: path for path in walk(degraded)}
    lacking = []
    for row in _folder_rows(folder):
        other = others.get(os.path.splitext(row.path)[0])
        if other is None:
            lacking.append(row.path)
        else:
            yield row._replace(degraded=other)
    if lacking:
        what = f"lacks the counterparts of {len(lacking):,} images: {listed(lacking, 3)}"
        raise DataError(what, where=degraded, mend=f"Give them the names they have in {folder}, without suffix")


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                yield line.rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise DataError(f"cannot be read ({reason})", where=path) from error


def _listed_rows(path: Path) -> Iterator[Row]:
    yield from _looked_up(path, (Row(line.strip()) for line in _lines(path) if line.strip()))


def _paired_lists(path: Path, degraded: Path) -> Iterator[Row]:
    if degraded.suffix.lower() not in LISTS:
        raise DataError("is no list as the images' is", where=degraded, mend="Give a path in each line, in their order")
    for number, (row, other) in enumerate(zip_longest(_listed_rows(path), _listed_rows(degraded))):
        if row is None or other is None:
            what, where = f"ends after {number:,} files, the other list does not", path if row is None else degraded
            raise DataError(what, where=where, mend="Lists of pairs have a line for each pair")
        yield row._replace(degraded=other.path)


def _looked_up(path: Path, rows: Iterable[Row]) -> Iterator[Row]:
    """The rows of a list; where it is short, all files that are missing at once."""
    first: list[Row] = []
    rest = iter(rows)
    for row in rest:
        first.append(row)
        if len(first) > CHECKED:
            break
    if not first:
        raise DataError("names no images", where=path)
    if len(first) <= CHECKED:
        missing = [row.path for row in first if not (path.parent / row.path).is_file()]
        if missing:
            what = f"names {len(missing):,} of {len(first):,} files that are not there: {listed(missing, 3)}"
            raise DataError(what, where=path, mend="Paths start from the folder of the list; take these out")
    yield from first
    yield from rest


def _table_rows(path: Path, columns: Columns, captions: bool) -> Iterator[Row]:
    records = _parquet(path, columns, captions) if path.suffix.lower() == ".parquet" else _json_lines(path)
    wanted = [columns.text, *([columns.long_text] if columns.long_text else [])] if captions else []

    def rows() -> Iterator[Row]:
        for number, record in enumerate(records, 1):
            lacking = [name for name in (columns.image, *wanted) if name not in record]
            if lacking or not isinstance(record[columns.image], str):
                what = f"row {number:,} has no {' and no '.join(lacking or [columns.image])}"
                known = ", ".join(map(str, record))
                raise DataError(what, where=path, mend=f"It has {known}: set data.columns")
            texts = tuple(str(record[name] or "") for name in wanted)
            yield Row(record[columns.image], record.get(columns.degraded) or "", texts)

    return _looked_up(path, rows())


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"line {number:,} is no JSON ({error})", where=path) from error
        if not isinstance(record, dict):
            raise DataError(f"line {number:,} is no JSON object", where=path, mend='Expected {"image": "a.png"}')
        yield record


def _parquet(path: Path, columns: Columns, captions: bool) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            texts: Sequence[str | None] = (columns.text, columns.long_text) if captions else ()
            there = file.schema_arrow.names
            wanted = [name for name in (columns.image, columns.degraded, *texts) if name in there]
            if columns.image not in there:
                mend = f"It has {', '.join(there)}: set data.columns"
                raise DataError(f"has no column {columns.image!r}", where=path, mend=mend)
            for batch in file.iter_batches(columns=wanted):
                yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot be read as parquet ({' '.join(str(error).split())[:160]})", where=path) from error


def _holds_shards(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.endswith(".tar") for entry in entries)
