"""Images with people's opinion of them: CSIQ, TID2013, KADID-10k and PIPAL, in the folders their authors distribute.

| data set | references | distorted images | opinions |
|---|---|---|---|
| ``csiq`` | ``src_imgs/`` | ``dst_imgs/<type>/`` | ``meta_info_CSIQDataset.csv``, ``CSIQ.txt``; lower is better |
| ``tid2013`` | ``reference_images/`` | ``distorted_images/`` | ``mos_with_names.txt`` |
| ``kadid10k`` | ``images/`` | ``images/`` | ``dmos.csv``; its "dmos" is higher for better images |
| ``pipal`` | ``Train_Ref/`` | ``Train_Dist/`` | ``Train_Label/*.txt``; Elo scores |

Images may lie in subfolders, and the case of their names does not matter (TID2013's own names differ in it).

Other tables can be given instead, see `milo_restore.opinions.score_files`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from milo_restore.data.keys import keyed_rng
from milo_restore.errors import ConfigError, DataError, listed
from milo_restore.opinions.layouts import LAYOUTS, Layout
from milo_restore.opinions.score_files import Row, read_rows

SPLITS = ("kadid-train", "kadid-test")
SPLIT_SEED = 0
_KADID_REFERENCES = 81
_KADID_TESTED = 16  # of 81: the supplement's 80-20 ratio

DATASETS = tuple(LAYOUTS)


@dataclass(frozen=True)
class OpinionPair:
    """A distorted image and what people think of it.

    Attributes:
        reference: the undistorted image.
        distorted: the distorted one.
        score: in the data set's own units: DMOS in [0, 1] (CSIQ), MOS in [0, 9] (TID2013), [1, 5] (KADID-10k), Elo
            around 1400 (PIPAL).
        kind: the distortion, such as ``01 gaussian blur``.
        higher_better: False for CSIQ's DMOS only.
    """

    reference: Path
    distorted: Path
    score: float
    kind: str
    higher_better: bool


def opinion_pairs(
    dataset: str, root: str | Path, split: str | None = None, *, table: str | Path | None = None
) -> list[OpinionPair]:
    """All pairs of a data set, in the order of its table.

    Args:
        dataset: ``csiq``, ``tid2013``, ``kadid10k`` or ``pipal``.
        root: the folder that holds the data set's own folders.
        split: ``kadid-train`` or ``kadid-test``, with ``kadid10k`` only: the pairs of `kadid_references`.
        table: another table of opinions than the data set's own.

    Raises:
        ConfigError: no such data set or split.
        DataError: a folder or the table is missing, a line of the table is wrong or missing (file and line are
            named), or images are missing (they are named and counted).
    """
    layout = _layout(dataset)
    rows = _of_split(read_rows(layout, Path(root), _path(table), complete=True), layout, split)
    pairs, missing = _found(layout, Path(root), rows)
    if missing:
        what = f"{len(missing)} of {len(rows)} pairs lack an image: {listed(missing, 5)}"
        raise DataError(what, where=root, mend="Unpack all of the data set; --only-present measures what is there")
    return pairs


def present_pairs(
    dataset: str, root: str | Path, split: str | None = None, *, table: str | Path | None = None
) -> tuple[list[OpinionPair], int]:
    """Read `opinion_pairs` of a part of a data set: pairs without images are left out, and the table may be shorter.

    Returns:
        The pairs whose two images are there, and how many pairs the table (or the split) has.

    Raises:
        ConfigError: as for `opinion_pairs`.
        DataError: as for `opinion_pairs`, and where no image of the data set is there.
    """
    layout = _layout(dataset)
    rows = _of_split(read_rows(layout, Path(root), _path(table), complete=False), layout, split)
    pairs, _ = _found(layout, Path(root), rows)
    if not pairs:
        raise DataError(f"holds none of the images of {len(rows)} pairs", where=root)
    return pairs, len(rows)


def kadid_references(split: str) -> frozenset[str]:
    """The references of one side of the 80-20 split of KADID-10k: 65 to train, 16 to test.

    The supplement splits at random by reference image and does not print its choice. This one is the first 16 of a
    permutation of I01 to I81 drawn from ``keyed_rng(SPLIT_SEED, "kadid-split")``: the same everywhere, for ever.

    Args:
        split: ``kadid-train`` or ``kadid-test``.

    Returns:
        Stems in lower case, such as ``i01``.

    Raises:
        ConfigError: no such split.
    """
    if split not in SPLITS:
        raise ConfigError(f"{split!r} is not one of {', '.join(SPLITS)}", where="--split")
    order = keyed_rng(SPLIT_SEED, "kadid-split").permutation(_KADID_REFERENCES) + 1
    chosen = order[:_KADID_TESTED] if split == "kadid-test" else order[_KADID_TESTED:]
    return frozenset(f"i{number:02d}" for number in chosen)


def _path(table: str | Path | None) -> Path | None:
    return None if table is None else Path(table)


def _layout(dataset: str) -> Layout:
    if dataset not in LAYOUTS:
        raise ConfigError(f"{dataset!r} is not one of {', '.join(LAYOUTS)}", where="--dataset")
    return LAYOUTS[dataset]


def _of_split(rows: list[Row], layout: Layout, split: str | None) -> list[Row]:
    if split is None:
        return rows
    chosen = kadid_references(split)
    if layout.name != "KADID-10k":
        raise ConfigError(f"{split} is a part of KADID-10k, not of {layout.name}", where="--split")
    return [row for row in rows if Path(row.reference).stem.lower() in chosen]


def _found(layout: Layout, root: Path, rows: Sequence[Row]) -> tuple[list[OpinionPair], list[str]]:
    """The pairs whose images are there, and the names of those images that are not."""
    references, distortions = (_index(root / name, layout) for name in (layout.references, layout.distorted))
    pairs, missing = [], []
    for row in rows:
        reference, distorted = references.get(row.reference.lower()), distortions.get(row.distorted.lower())
        if reference is None or distorted is None:
            folder, name = (
                (layout.distorted, row.distorted) if distorted is None else (layout.references, row.reference)
            )
            missing.append(f"{folder}/{name}")
        else:
            pairs.append(OpinionPair(reference, distorted, row.score, row.kind, layout.higher_better))
    return pairs, missing


def _index(folder: Path, layout: Layout) -> dict[str, Path]:
    """All files below a folder by their name in lower case."""
    if not folder.is_dir():
        mend = (
            f"{layout.name} has the folders {layout.references}/ and {layout.distorted}/: give their parent as --root"
        )
        raise DataError("no such folder", where=folder, mend=mend)
    found: dict[str, Path] = {}
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(parent) / name
            other = found.setdefault(name.lower(), path)
            if other != path and name.lower().endswith(layout.suffix):
                raise DataError(f"{other} and {path} have one name but for case", where=folder, mend="Keep one of them")
    return found
