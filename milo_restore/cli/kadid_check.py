"""``milo-restore levels --check``: the generator against a user's copy of KADID-10k."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from milo_restore.files.write import replace_file

if TYPE_CHECKING:
    from milo_restore.data.kadid import Distortion, GeneratorName
    from milo_restore.data.kadid.check import Compared

_NAMED = 5


def check(
    root: Path, kinds: Sequence[Distortion], *, seed: int, generator: GeneratorName, table: Path | None = None
) -> None:
    """Compare, print a line per type and level, and name the images that are farthest off.

    Args:
        root: the copy.
        kinds: which distortions.
        seed: of what we draw at random.
        generator: whose images are compared with the copy's.
        table: where to write a line per image, as CSV.

    Raises:
        DataError: see `milo_restore.data.kadid.check.compare`.
    """
    from milo_restore.data.kadid.check import compare, tolerance

    found, missing = compare(root, kinds, seed=seed, generator=generator)
    print(f"{root}: {len(found)} distorted images against generator {generator}, {len(missing)} not there")
    if missing:
        print("not there: " + _some(missing))
    print(_table(found, kinds))
    print(
        "dB: PSNR of the two images, and of each to its reference. Of what is drawn at random only the latter compare."
    )
    limits = {kind.number: tolerance(kind) for kind in kinds}
    held = [(row, limit) for row in found if (limit := limits[row.number]) is not None]
    off = sorted((row for row, limit in held if row.psnr < limit), key=lambda row: row.psnr)
    print(f"of {len(held)} that can be made the same, {len(held) - len(off)} are")
    if off:
        print("farthest off: " + _some([f"{row.name} ({row.psnr:.1f} dB)" for row in off]))
    if table is not None:
        replace_file(table, _csv(found))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _table(found: Sequence[Compared], kinds: Sequence[Distortion]) -> str:
    from milo_restore.data.kadid import LEVELS
    from milo_restore.show.text import text_table

    lines = [
        ("distortion", "level", "images", "largest", "mean", "dB, least", "median",
         "theirs to reference", "ours", "expected")
    ]  # fmt: skip
    for kind in kinds:
        for level in range(1, LEVELS + 1):
            rows = [row for row in found if (row.number, row.level) == (kind.number, level)]
            if rows:
                lines.append((f"{kind.number:02d} {kind.name}", str(level), str(len(rows)), *_cells(rows, kind)))
    return text_table(lines)


def _cells(rows: Sequence[Compared], kind: Distortion) -> tuple[str, str, str, str, str, str, str]:
    from milo_restore.data.kadid.check import UNKNOWN, tolerance

    limit = tolerance(kind)
    why = [word for word in ("random" if kind.random else "", UNKNOWN.get(kind.number, "")) if word]
    medians = [statistics.median(getattr(row, name) for row in rows) for name in ("psnr", "theirs", "ours")]
    return (
        str(max(row.largest for row in rows)),
        f"{statistics.fmean(row.mean for row in rows):.3f}",
        f"{min(row.psnr for row in rows):.1f}",
        *(f"{value:.1f}" for value in medians),
        f"{limit:g} dB" if limit is not None else "; ".join(why),
    )  # type: ignore[return-value]  # three medians


def _csv(found: Sequence[Compared]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["image", "distortion", "level", "largest", "mean", "psnr", "psnr_theirs_reference", "psnr_ours_reference"]
    )
    writer.writerows(found)
    return text.getvalue()
