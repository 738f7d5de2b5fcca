"""Training images that stay on disk, read each time they are needed: files and samples of shards."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from milo_restore.data.images import decode_image, read_image
from milo_restore.data.index import Index, Row, build_index, read_index, write_index
from milo_restore.data.listing import Part
from milo_restore.data.shards import read_span
from milo_restore.data.sources import Item, Source
from milo_restore.errors import DataError
from milo_restore.files.hashes import text_sha256
from milo_restore.processes import on_main, rank_and_size

HOME = "images.index"
"""Folder of a run folder in which lists of images are."""


class Listed(Source):
    """The images of an index."""

    def __init__(self, index: Index) -> None:
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def path(self, number: int) -> str:
        """Path of a file, or ``SHARD::KEY``."""
        return os.path.join(self.index.segment(number).root, self.index.columns["path"][number])

    def read(self, number: int) -> Item:
        """Read and decode an image, its counterpart and its captions; see `Source.read`."""
        row, path = self.index.row(number), self.path(number)
        if row.spans and row.spans[0] >= 0:
            return _from_shard(row, path)
        image = read_image(path)
        degraded = None
        if row.degraded:
            degraded = read_image(os.path.join(self.index.segment(number).degraded, row.degraded))
        return Item(Path(path).name, image, degraded, row.texts)

    def identity(self) -> str:
        """A hash of the list: of names and captions, not of what the files hold.

        Files are not looked at for it: a million of them would take hours. ``milo-restore assets seal`` watches their
        bytes.
        """
        return self.index.digest

    def stamps(self, numbers: list[int]) -> str:
        """Size and time of change of each of some files, to see that they are the same as before."""
        found = []
        for number in numbers:
            try:
                about = os.stat(self.path(number).partition("::")[0])
                found.append(f"{about.st_size} {about.st_mtime_ns}")
            except OSError:
                found.append("missing")
        return " ".join(found)


def _from_shard(row: Row, path: str) -> Item:
    shard = path.partition("::")[0]
    spans = list(zip(row.spans[::2], row.spans[1::2]))
    image = decode_image(read_span(shard, *spans[0]), path)
    degraded = decode_image(read_span(shard, *spans[1]), f"{path}, degraded") if spans[1][0] >= 0 else None
    texts = tuple(read_span(shard, *span).decode(errors="replace").strip() for span in spans[2:] if span[0] >= 0)
    return Item(path.partition("::")[2], image, degraded, texts)


def list_once(parts: Iterable[Part], run: Path | None, about: Mapping[str, Any], *, again: bool) -> Listed:
    """List the images, once for all processes, in a place that all of them read.

    Args:
        parts: see `milo_restore.data.listing`; listed here, and only where need be.
        run: the run folder, in which the index gets a folder named by what it was made from; None: each process has one
            in its memory.
        about: what the list depends on, JSON values.
        again: take the index that is there: a run that goes on has the images that it began with, whatever has become
            of the files.

    Raises:
        DataError: nothing to list, it cannot be written, or a fresh run would replace another's.
    """
    if run is None:
        return Listed(_built(parts))
    home = run / HOME / text_sha256(json.dumps(about, sort_keys=True))[:12]
    # Launched on CPUs, processes do not know of each other until training starts: the first one writes, alone.
    apart = rank_and_size()[1] == 1 and os.environ.get("RANK", "0") != "0"
    if apart and not (again and home.is_dir()):
        return Listed(_built(parts))

    def prepare() -> None:
        if again and home.is_dir():
            return
        if not again and any(run.glob("checkpoint-*")):
            mend = "Continue it with --resume latest or name another --output"
            raise DataError("already holds a training run", where=run, mend=mend)
        write_index(_built(parts), home, about)

    on_main(prepare)
    return Listed(read_index(home))


def _built(parts: Iterable[Part]) -> Index:
    index = build_index(parts)
    if not len(index):
        raise DataError("no images to train on", where="data.train")
    return index
