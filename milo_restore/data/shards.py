"""WebDataset's shards, read at random: which bytes of which .tar a sample is, so that a run goes on at the very sample.

The package webdataset says which files of a shard are one sample, and what braces in names mean. Its own readers stream
and shuffle in a buffer, so that what comes next depends on what was read before; here a sample's place decides alone.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from milo_restore.data.index import Row
from milo_restore.errors import DataError
from milo_restore.files.datasets import SUFFIXES

_END = 512  # bytes of a tar's last block, all zero
_MEND = "Copy or pack it once more, or leave it out of data.train"


def expand_shards(pattern: str) -> list[str]:
    """The shards that a name with braces means, such as ``laion/{00000..01499}.tar``.

    Raises:
        DataError: one of them is not there.
    """
    from webdataset.shardlists import expand_urls

    shards = list(expand_urls(pattern))
    missing = [shard for shard in shards if not Path(shard).is_file()]
    if missing:
        what = f"{len(missing):,} of {len(shards):,} shards are not there"
        raise DataError(what, where=missing[0], mend="Shards are files here: download them first")
    return shards


def shard_rows(root: str, shards: Sequence[str], degraded: str, long_text: str | None, captions: bool) -> Iterator[Row]:
    """The samples of shards: where in the shard their parts lie.

    Args:
        root: folder that the rows' paths start from.
        shards: paths of .tar files, not compressed.
        degraded: KEY.``degraded``.png is the counterpart of KEY.png.
        long_text: KEY.``long_text``.txt is the long caption beside KEY.txt.
        captions: take captions.

    Raises:
        DataError: a shard is no tar, ends early, or holds no images.
    """
    from webdataset.tariterators import group_by_keys

    for shard in tqdm(shards, desc="listing shards", unit="shard", disable=None if len(shards) > 1 else True):
        found = False
        try:
            for sample in group_by_keys(_members(shard)):
                row = _row(os.path.relpath(shard, root or "."), sample, degraded, long_text, captions)
                found = found or row is not None
                if row is not None:
                    yield row
        except ValueError as error:  # webdataset's, of a name that is there twice
            raise DataError(f"is no shard ({error.args[0]})", where=shard, mend=_MEND) from error
        if not found:
            raise DataError("holds no images", where=shard, mend=f"Expected members ending in {', '.join(SUFFIXES)}")


def read_span(shard: str, start: int, length: int) -> bytes:
    """Bytes of a shard.

    Raises:
        DataError: it is gone, or shorter.
    """
    try:
        with Path(shard).open("rb") as file:
            file.seek(start)
            content = file.read(length)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", where=shard) from error
    if len(content) < length:
        raise DataError(f"the shard ends early, before byte {start + length:,}", where=shard, mend=_MEND)
    return content


def _row(shard: str, sample: dict[str, Any], degraded: str, long_text: str | None, captions: bool) -> Row | None:
    images = {name: span for name, span in sample.items() if f".{name}".endswith(SUFFIXES)}
    first = next((span for name, span in images.items() if "." not in name), None)
    if first is None:
        return None
    other = next((span for name, span in images.items() if name.startswith(f"{degraded}.")), (-1, 0))
    names = ["txt", *([f"{long_text}.txt"] if long_text else [])] if captions else []
    lacking = [name for name in names if name not in sample]
    if lacking:
        raise DataError(f"{sample['__key__']} has no .{lacking[0]}", where=shard, mend="Set captions.source: null")
    return Row(f"{shard}::{sample['__key__']}", "", (), (*first, *other, *(v for name in names for v in sample[name])))


def _members(shard: str) -> Iterator[dict[str, Any]]:
    """Name and place of each file in a shard."""
    count, size = 0, Path(shard).stat().st_size
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                end = member.offset_data + member.size
                if end > size:
                    raise tarfile.ReadError("unexpected end of data")
                count += 1
                tar.members = []  # type: ignore[attr-defined]  # or it would keep them all
                if member.isreg():
                    span = (member.offset_data, member.size)
                    yield {"fname": member.name, "data": span, "__url__": shard}
            past = tar.offset
    except (tarfile.TarError, OSError) as error:
        what = f"ends early or is no tar, after {count:,} whole files ({error})"
        raise DataError(what, where=shard, mend=_MEND) from error
    if past + _END > size:
        raise DataError(f"ends early, after {count:,} whole files: its last block is missing", where=shard, mend=_MEND)
