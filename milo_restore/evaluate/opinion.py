"""Images with people's opinion of them: CSIQ, TID2013, KADID-10k and PIPAL, in the folders their authors distribute.

| data set | references | distorted images | opinions |
|---|---|---|---|
| ``csiq`` | ``src_imgs/`` | ``dst_imgs/<type>/`` | ``meta_info_CSIQDataset.csv``, ``CSIQ.txt``; lower is better |
| ``tid2013`` | ``reference_images/`` | ``distorted_images/`` | ``mos_with_names.txt`` |
| ``kadid10k`` | ``images/`` | ``images/`` | ``dmos.csv``; its "dmos" is higher for better images |
| ``pipal`` | ``Train_Ref/`` | ``Train_Dist/`` | ``Train_Label/*.txt``; Elo scores |

Images may lie in subfolders, and the case of their names does not matter (TID2013's own names differ in it).

Other tables can be given instead: lines with a header and separated by commas or tabs, with a column of distorted
names, one of opinions, and perhaps one of references, under the names that pyiqa's meta files, the IQA-Dataset
toolbox's and KADID-10k's own use (`_COLUMNS`). A table is complete or refused: each line must name an image of the data
set once, with a number within the scale, and there must be as many lines as were published.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from milo_restore.data.keys import keyed_rng
from milo_restore.errors import ConfigError, DataError

SPLITS = ("kadid-train", "kadid-test")
SPLIT_SEED = 0
_KADID_REFERENCES = 81
_KADID_TESTED = 16  # of 81: the supplement's 80-20 ratio
_NAMED = 5

_COLUMNS = {
    "distorted": ("dist_name", "dist_img", "dis_img_path", "dist"),
    "reference": ("ref_name", "ref_img", "ref_img_path", "hq_name", "ref"),
    "score": ("mos", "dmos", "elo_score", "score"),
}

_TID_KINDS = (
    "Gaussian noise", "noise in colour", "correlated noise", "masked noise", "high frequency noise", "impulse noise",
    "quantisation noise", "Gaussian blur", "denoising", "JPEG", "JPEG 2000", "JPEG transmission errors",
    "JPEG 2000 transmission errors", "non-eccentricity pattern", "block-wise distortion", "mean shift", "contrast",
    "saturation", "multiplicative noise", "comfort noise", "lossy compression of noise", "colour quantisation",
    "chromatic aberration", "sparse sampling",
)  # fmt: skip
_KADID_KINDS = (
    "Gaussian blur", "lens blur", "motion blur", "colour diffusion", "colour shift", "colour quantisation",
    "saturation HSV", "saturation Lab", "JPEG 2000", "JPEG", "white noise", "white noise YCbCr", "impulse noise",
    "multiplicative noise", "denoising", "brighten", "darken", "mean shift", "jitter", "non-eccentricity patch",
    "pixelate", "quantisation", "colour block", "sharpen", "contrast",
)  # fmt: skip


@dataclass(frozen=True)
class _Layout:
    """A data set as its authors distribute it.

    Attributes:
        name: for messages.
        references: folder of reference images, as is ``distorted``.
        tables: where opinions may stand, the first that is there counts; a pattern for several files.
        rows: how many opinions were published.
        scale: the smallest and the largest possible opinion.
        pattern: names of distorted images; its groups are the reference's stem and the distortion.
        suffix: of its images.
        kinds: names of the distortions 01, 02, ...; empty where their codes must do.
        higher_better: direction of the opinions.
    """

    name: str
    references: str
    distorted: str
    tables: tuple[str, ...]
    rows: int
    scale: tuple[float, float]
    pattern: str
    suffix: str
    kinds: tuple[str, ...] = ()
    higher_better: bool = True


_LAYOUTS = {
    "csiq": _Layout(
        "CSIQ", "src_imgs", "dst_imgs", ("meta_info_CSIQDataset.csv", "CSIQ.txt", "csiq.DMOS.xlsx"), 866, (0, 1),
        r"(\w+)\.(awgn|blur|contrast|fnoise|jpeg|jpeg2000)\.\d\.png", ".png", higher_better=False,
    ),
    "tid2013": _Layout(
        "TID2013", "reference_images", "distorted_images", ("mos_with_names.txt",), 3000, (0, 9),
        r"(i\d\d)_(\d\d)_\d\.bmp", ".bmp", _TID_KINDS,
    ),
    "kadid10k": _Layout(
        "KADID-10k", "images", "images", ("dmos.csv",), 10125, (1, 5), r"(i\d\d)_(\d\d)_\d\d\.png", ".png", _KADID_KINDS
    ),
    "pipal": _Layout(
        "PIPAL", "Train_Ref", "Train_Dist", ("Train_Label/*.txt",), 23200, (0, 3000),
        r"(a\d{4})_(\d\d)_\d\d\.bmp", ".bmp",
    ),
}  # fmt: skip
DATASETS = tuple(_LAYOUTS)


@dataclass(frozen=True)
class _Row:
    """One line of a table; names of files, without folders."""

    reference: str
    distorted: str
    score: float
    kind: str


@dataclass(frozen=True)
class OpinionPair:
    """A distorted image and what people think of it.

    Attributes:
        reference: the undistorted image.
        distorted: the distorted one.
        score: in the data set's own units: DMOS in [0, 1] (CSIQ), MOS in [0, 9] (TID2013), [1, 5] (KADID-10k), Elo
            around 1400 (PIPAL).
        kind: the distortion, such as ``01 Gaussian blur``.
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
    rows = _of_split(_read_rows(layout, Path(root), _path(table), complete=True), layout, split)
    pairs, missing = _found(layout, Path(root), rows)
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        what = f"{len(missing)} of {len(rows)} pairs lack an image: {', '.join(missing[:_NAMED])}{more}"
        raise DataError(what, where=root, mend="Unpack all of the data set; --only-present measures what is there")
    return pairs


def present_pairs(
    dataset: str, root: str | Path, split: str | None = None, *, table: str | Path | None = None
) -> tuple[list[OpinionPair], int]:
    """As `opinion_pairs`, for a part of a data set: pairs without images are left out, and the table may be shorter.

    Returns:
        The pairs whose two images are there, and how many pairs the table (or the split) has.

    Raises:
        ConfigError: as for `opinion_pairs`.
        DataError: as for `opinion_pairs`, and where no image of the data set is there.
    """
    layout = _layout(dataset)
    rows = _of_split(_read_rows(layout, Path(root), _path(table), complete=False), layout, split)
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


def _layout(dataset: str) -> _Layout:
    if dataset not in _LAYOUTS:
        raise ConfigError(f"{dataset!r} is not one of {', '.join(_LAYOUTS)}", where="--dataset")
    return _LAYOUTS[dataset]


def _of_split(rows: list[_Row], layout: _Layout, split: str | None) -> list[_Row]:
    if split is None:
        return rows
    chosen = kadid_references(split)
    if layout.name != "KADID-10k":
        raise ConfigError(f"{split} is a part of KADID-10k, not of {layout.name}", where="--split")
    return [row for row in rows if Path(row.reference).stem.lower() in chosen]


def _found(layout: _Layout, root: Path, rows: Sequence[_Row]) -> tuple[list[OpinionPair], list[str]]:
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


def _index(folder: Path, layout: _Layout) -> dict[str, Path]:
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


def _read_rows(layout: _Layout, root: Path, table: Path | None, *, complete: bool) -> list[_Row]:
    """The lines of the data set's table, or of another one, all checked."""
    files = [table] if table is not None else _own_tables(layout, root)
    seen: dict[str, str] = {}
    rows, where = [], str(files[-1])
    for file in files:
        for line, distorted, reference, score in _lines(file, layout):
            where = f"{file}, line {line}"
            row = _row(layout, distorted, reference, score, where)
            first = seen.setdefault(row.distorted.lower(), where)
            if first is not where:
                raise DataError(f"{row.distorted} appears again, first in {first}", where=where, mend="Keep one line")
            rows.append(row)
    if len(rows) > layout.rows or (complete and len(rows) < layout.rows):
        what = f"the table ends after {len(rows)} of the {layout.rows} opinions of {layout.name}"
        if len(rows) > layout.rows:
            what = f"the table has {len(rows)} opinions, {layout.name} {layout.rows}"
        raise DataError(what, where=where, mend="Get the whole file; --only-present accepts a part of a data set")
    if not rows:
        raise DataError("holds no opinions", where=where)
    return rows


def _own_tables(layout: _Layout, root: Path) -> list[Path]:
    if not root.is_dir():
        raise DataError("no such folder", where=root, mend=f"--root is the folder that {layout.name} was unpacked into")
    for pattern in layout.tables:
        found = sorted(path for path in root.glob(pattern) if path.is_file())
        if found:
            return found
    mend = "Copy the table there, or name one with --table"
    raise DataError(f"holds no {' or '.join(layout.tables)}", where=root, mend=mend)


def _lines(file: Path, layout: _Layout) -> Iterator[tuple[int, str, str | None, str]]:
    """Line number, distorted name, reference's name if there is one, and opinion of each line, as texts."""
    if file.suffix.lower() in (".xlsx", ".xls"):
        mend = (
            "Save its opinions as CSV with the columns dist_name,dmos, or give the same as pyiqa's "
            "meta_info_CSIQDataset.csv or the IQA-Dataset toolbox's CSIQ.txt with --table"
        )
        raise DataError("is an Excel workbook, which is not read", where=file, mend=mend)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no text in UTF-8"
        raise DataError(f"cannot be read ({reason})", where=file, mend="Give a table of opinions") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise DataError("is empty", where=file, mend="Give a table of opinions")
    if re.fullmatch(r"[^\s,]+ +[^\s,]+", numbered[0][1].strip()):  # TID2013's own: opinion, blank, name
        yield from ((line, fields[1], None, fields[0]) for line, fields in _split(file, numbered, None, 2))
    elif re.fullmatch(
        layout.pattern, numbered[0][1].split(",")[0].strip(), re.IGNORECASE
    ):  # PIPAL's own: name, opinion
        yield from ((line, fields[0], None, fields[1]) for line, fields in _split(file, numbered, ",", 2))
    else:
        yield from _with_header(file, numbered)


def _with_header(file: Path, numbered: list[tuple[int, str]]) -> Iterator[tuple[int, str, str | None, str]]:
    separator = "\t" if "\t" in numbered[0][1] else ","
    head = [name.strip().lower() for name in numbered[0][1].split(separator)]
    places = {
        role: next((head.index(name) for name in names if name in head), None) for role, names in _COLUMNS.items()
    }
    distorted, reference, score = places["distorted"], places["reference"], places["score"]
    if distorted is None or score is None:
        lacking = "distorted" if distorted is None else "score"
        mend = f"Expected one of {', '.join(_COLUMNS[lacking])}"
        raise DataError(
            f"no column of {lacking} values in the header", where=f"{file}, line {numbered[0][0]}", mend=mend
        )
    for line, fields in _split(file, numbered[1:], separator, len(head)):
        yield line, fields[distorted], None if reference is None else fields[reference], fields[score]


def _split(
    file: Path, numbered: list[tuple[int, str]], separator: str | None, count: int
) -> Iterator[tuple[int, list[str]]]:
    for line, text in numbered:
        fields = [field.strip() for field in text.split(separator)]
        if len(fields) != count:
            mend = "The file may be cut off or of another kind"
            raise DataError(f"expected {count} values, got {len(fields)}", where=f"{file}, line {line}", mend=mend)
        yield line, fields


def _row(layout: _Layout, distorted: str, reference: str | None, score: str, where: str) -> _Row:
    """One line, checked."""
    name = re.split(r"[/\\]", distorted)[-1]
    match = re.fullmatch(layout.pattern, name, re.IGNORECASE)
    if match is None:
        mend = "Check that the table belongs to --dataset"
        raise DataError(f"{name!r} is not the name of a distorted image of {layout.name}", where=where, mend=mend)
    stem, code = match.groups()
    original = f"{stem}{layout.suffix}"
    if reference is not None and re.split(r"[/\\]", reference)[-1].lower() != original.lower():
        raise DataError(f"{name} is a version of {original}, not of {reference}", where=where)
    try:
        value = float(score)
    except ValueError:
        value = math.nan
    low, high = layout.scale
    if not math.isfinite(value):
        raise DataError(f"{score!r} is not a number", where=where)
    if not low <= value <= high:
        raise DataError(f"{score} is not an opinion of {layout.name}: {low:g} to {high:g}", where=where)
    return _Row(original, name, value, _kind(layout, code, where))


def _kind(layout: _Layout, code: str, where: str) -> str:
    if not layout.kinds:
        return code.lower()
    if not 1 <= int(code) <= len(layout.kinds):
        raise DataError(f"{layout.name} has no distortion {code}", where=where)
    return f"{code} {layout.kinds[int(code) - 1]}"
