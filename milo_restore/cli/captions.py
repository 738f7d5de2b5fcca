"""Captions of images: a line or an entry for each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from milo_restore.errors import DataError, listed


def read_captions(path: Path, names: Sequence[str]) -> dict[str, str]:
    """The caption of each image.

    Args:
        path: a .json file, names to captions; or a text file with one line for each image, sorted by name.
        names: of all images, sorted, relative to their folder, with slashes.

    Raises:
        DataError: the file cannot be read, or has too few or too many captions.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise DataError(f"cannot be read ({reason})", where=path) from error
    if path.suffix.lower() != ".json":
        lines = [line.strip() for line in text.splitlines()]
        while lines and not lines[-1] and len(lines) > len(names):
            lines.pop()
        if len(lines) != len(names):
            mend = "Give one line for each image, in the order of their names (an empty one for none), or a .json"
            raise DataError(f"has {len(lines)} captions for {len(names)} images", where=path, mend=mend)
        return dict(zip(names, lines))
    try:
        table = json.loads(text)
    except ValueError as error:
        raise DataError(f"is no JSON ({error})", where=path) from error
    if not isinstance(table, dict) or not all(isinstance(caption, str) for caption in table.values()):
        raise DataError("is no table of captions", where=path, mend='Expected {"name.jpg": "caption", ...}')
    missing = [name for name in names if name not in table]
    if missing:
        what = f"lacks captions of {len(missing)} of {len(names)} images: {listed(missing, between='; ')}"
        raise DataError(what, where=path, mend="Add them, empty ones too")
    return {name: table[name] for name in names}
