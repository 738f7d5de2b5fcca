"""Scores that are kept: one line each, written as soon as they are known, so that an interrupted run goes on.

A score belongs to the contents of the two images and to the metric's identity (name, weights, software and version);
where the files lie does not matter. A line has a checksum of its own: one changed digit would be another score.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from milo_restore.errors import DataError
from milo_restore.files.hashes import sha256_of, text_sha256
from milo_restore.files.known import KnownFiles
from milo_restore.measure.folders import image_size
from milo_restore.measure.metrics import Metric

_NAMED = 8


class KnownImages:
    """Hashes and sizes of image files: a file is read for them once, as long as it does not change.

    Args:
        folder: the one of the scores.
    """

    def __init__(self, folder: Path) -> None:
        self._files = KnownFiles(folder / "files.json")
        self.save = self._files.save

    def sha256(self, path: Path) -> str:
        """The sha256 of the file's content.

        Raises:
            DataError: the file cannot be read, or is no image.
        """
        return str(self._files.fact(path, _read)[0])

    def size(self, path: Path) -> tuple[int, int]:
        """`milo_restore.measure.folders.image_size`, and its errors."""
        _, width, height = self._files.fact(path, _read)
        return width, height


def _read(path: Path) -> list[str | int]:
    return [sha256_of(path), *image_size(path)]


@dataclass
class ScoreCache:
    """The scores of one metric, in a file of JSON lines that only grows.

    Attributes:
        path: the file; made with the first score.
        damaged: numbers of the lines that could not be read or whose checksum is wrong or missing, from 1. Their pairs
            are computed again.
    """

    path: Path
    damaged: list[int] = field(default_factory=list)
    _scores: dict[tuple[str, str], float] = field(default_factory=dict)
    _ended: bool = True  # the file ends with a line's end

    @classmethod
    def open(cls, folder: Path, metric: Metric) -> ScoreCache:
        """The cache of a metric in a folder, which is made.

        Raises:
            DataError: the folder cannot be made, or the file cannot be read.
        """
        identity = json.dumps(metric.identity(), sort_keys=True)
        name = f"{metric.identity()['metric']}-{text_sha256(identity)[:16]}.jsonl"
        cache = cls(folder / name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            content = cache.path.read_bytes() if cache.path.exists() else b""
        except OSError as error:
            raise DataError(
                f"cannot be used ({error.strerror or error})", where=cache.path, mend="See --cache"
            ) from error
        cache._ended = content.endswith(b"\n") or not content
        for number, line in enumerate(content.splitlines(), 1):
            try:
                entry = json.loads(line)
                reference, distorted, score = entry["reference"], entry["distorted"], entry["score"]
                if entry["sum"] != _checksum(reference, distorted, score):
                    raise ValueError(score)
                cache._scores[reference, distorted] = float(score)
            except (ValueError, KeyError, TypeError):  # cut off in the middle of a write, or changed since
                cache.damaged.append(number)
        return cache

    def damage(self) -> str | None:
        """A sentence that names the damaged lines; None where there are none."""
        if not self.damaged:
            return None
        more = ", ..." if len(self.damaged) > _NAMED else ""
        lines = f"line{'s' if len(self.damaged) > 1 else ''} {', '.join(map(str, self.damaged[:_NAMED]))}{more}"
        return f"{self.path}: {lines} cannot be read, or not as written (an interrupted write?); computed again"

    def get(self, reference: str, distorted: str) -> float | None:
        """The score of two images, given their files' sha256; None where it is not known."""
        return self._scores.get((reference, distorted))

    def add(self, reference: str, distorted: str, score: float) -> None:
        """Append a score, in one write: several processes may share the file.

        Raises:
            DataError: the file cannot be written.
        """
        entry = {"reference": reference, "distorted": distorted, "score": str(score)}
        line = json.dumps({**entry, "sum": _checksum(*entry.values())}) + "\n"
        try:
            with self.path.open("ab", buffering=0) as file:
                file.write(("" if self._ended else "\n").encode() + line.encode())
        except OSError as error:
            raise DataError(f"cannot be written ({error.strerror or error})", where=self.path) from error
        self._ended = True
        self._scores[reference, distorted] = score


def _checksum(*fields: str) -> str:
    return f"{zlib.crc32(' '.join(fields).encode()):08x}"
