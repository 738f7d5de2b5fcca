"""Named data sets: found under a root folder in the usual layouts, counted, and compared with the known files."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from milo_restore.errors import DataError
from milo_restore.files import download, registry
from milo_restore.files.hashes import sha256_of

DATASETS = (
    "BSD400", "CBSD68", "Kodak24", "McMaster", "Urban100", "Set12",
    "Real47", "RealSR", "DIV2K-val", "LFW-Test", "WIDER-Test",
)  # fmt: skip

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")

# Where BSDS500's folders train, val and test may lie under a root: as here, and as the official archive unpacks.
_BSDS = ("bsds500", "data/bsds500", "BSDS500/data/images", "BSR/BSDS500/data/images")
# A layout is the folders that together hold a data set; letter case does not matter.
_LAYOUTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "BSD400": tuple((f"{base}/train", f"{base}/test") for base in _BSDS),
    "CBSD68": (("CBSD68/original_png",), *((f"{base}/val",) for base in _BSDS)),
    "Kodak24": (("Kodak",), ("data/Kodak",)),
    "Urban100": (("CUrban100",),),
    "RealSR": (("RealSR/LR",), ("data/RealSR/LR",), ("StableSR_testsets/RealSRVal_crop128/test_LR",)),
    "DIV2K-val": (("DIV2K_valid_HR",), ("DIV2K/DIV2K_valid_HR",), ("datasets/DIV2K_valid_HR",)),
}


@dataclass(frozen=True)
class FoundDataset:
    """A data set on this machine.

    Attributes:
        name: its name.
        paths: its images, sorted by file name.
        folders: where they lie.
        state: ``found``: every file is the known one. ``unverified``: the right number of files, but another encoding
            or version, of which nothing is known; or a data set whose checksums this project does not know.
        references: what the images should become, in the same order; None where there is nothing of the kind.
    """

    name: str
    paths: list[Path]
    folders: list[Path]
    state: Literal["found", "unverified"]
    references: list[Path] | None = None


def find_dataset(name: str, root: str | Path | None = None) -> list[Path]:
    """The images of a named data set, sorted by file name.

    Args:
        name: one of `DATASETS`.
        root: the folder that holds the data sets; by default the one named by ``MILO_RESTORE_ASSETS``, then the cache.

    Raises:
        DataError: no such data set; it is missing (the expected layout is named); the number of images is wrong; or
            some files are the known ones and others are not, which means damage.
    """
    return locate_dataset(name, root).paths


def locate_dataset(name: str, root: str | Path | None = None) -> FoundDataset:
    """Like `find_dataset`, with the folders and whether every file's sha256 is the known one."""
    name = dataset_name(name)
    roots = _roots(root)
    if root is not None and not roots[0].is_dir():
        raise DataError("no such folder", where=roots[0], mend=expected_layout(name, roots[0]))
    found = search_dataset(name, root)
    if found is None:
        where = " or ".join(str(folder) for folder in roots)
        raise DataError(f"{name} is not there", where=where, mend=expected_layout(name, roots[-1]))
    return found


def search_dataset(name: str, root: str | Path | None = None) -> FoundDataset | None:
    """Like `locate_dataset`, but None where no layout of it holds an image.

    Raises:
        DataError: no such data set, a wrong number of images, or damage.
    """
    name = dataset_name(name)
    for folder in _roots(root):
        for folders in _candidates(name, folder):
            paths = _images(name, folders)
            if paths:
                state = _check(name, paths, folders)
                return FoundDataset(name, paths, folders, state, _references(name, paths, folders))
    return None


def fetch_dataset(name: str, root: str | Path | None = None) -> FoundDataset:
    """Make sure that a data set is there: where it is missing, download it file by file into ``root/<name>``.

    Takes up where it was interrupted. A file that is there and differs is refused by name, not replaced.

    Args:
        name: one of `DATASETS`.
        root: the folder that holds the data sets; by default one that lies in the folder named by
            ``MILO_RESTORE_ASSETS`` will do, and otherwise it goes to the cache.

    Raises:
        DataError: no such data set, a wrong one in that place, or a file cannot be downloaded.
    """
    name = dataset_name(name)
    local = download.assets_folder() if root is None else None
    if local is not None and (found := search_dataset(name, local)) is not None:
        return found
    base = Path(root).expanduser() if root is not None else download.cache_folder()
    try:
        found = search_dataset(name, base)
    except DataError:  # incomplete: the download completes it, or says which file is wrong
        found = None
    if found is not None:
        return found
    if name not in registry.dataset_index():
        raise DataError(f"{name} cannot be downloaded by this program", where=base, mend=expected_layout(name, base))
    mend = f"Run 'milo-restore assets fetch {name}' again to go on. {expected_layout(name, base, fetch=False)}"
    download.download_all(list(registry.dataset_index()[name].values()), base / name, name, mend)
    return locate_dataset(name, base)


def dataset_name(name: str) -> str:
    """The name in its usual spelling.

    Raises:
        DataError: no such data set; the nearest name is given.
    """
    known = {dataset.lower(): dataset for dataset in DATASETS}
    if name.lower() in known:
        return known[name.lower()]
    close = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f"Did you mean {known[close[0]]!r}?" if close else f"Known data sets: {', '.join(DATASETS)}"
    raise DataError("no such data set", where=repr(name), mend=hint)


def expected_layout(name: str, root: Path, *, fetch: bool = True) -> str:
    """Remedy for a missing data set, in one line."""
    about = registry.upstream()["datasets"][name]
    count = about["count"]
    layouts = [" + ".join(f"{part}/" for part in layout) for layout in _layouts(name)]
    head = f"Run 'milo-restore assets fetch {name}', or put" if fetch else "Or put"
    if "source" in about:
        head = f"Get it ({about['source']}) and put"
    return f"{head} its {count} images into {root / name}/ (also looked for under the root: {', '.join(layouts[1:])})"


def _roots(root: str | Path | None) -> list[Path]:
    if root is None:
        return [folder for folder in (download.assets_folder(), download.cache_folder()) if folder is not None]
    return [Path(root).expanduser()]


def _layouts(name: str) -> tuple[tuple[str, ...], ...]:
    return ((name,), (f"data/{name}",), *_LAYOUTS.get(name, ()))


def _candidates(name: str, root: Path) -> Iterator[list[Path]]:
    """The layouts under ``root`` of which at least one folder exists."""
    for layout in _layouts(name):
        folders = [folder for part in layout if (folder := _descend(root, part)) is not None]
        if folders:
            yield folders


def _descend(folder: Path, part: str) -> Path | None:
    for step in part.split("/"):
        if (folder / step).is_dir():
            folder = folder / step
            continue
        try:
            same = sorted(child for child in folder.iterdir() if child.name.lower() == step.lower() and child.is_dir())
        except OSError:
            return None
        if not same:
            return None
        folder = same[0]
    return folder


def _images(name: str, folders: list[Path]) -> list[Path]:
    try:
        found = [
            path
            for folder in folders
            for path in folder.iterdir()
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
        ]
    except OSError as error:
        raise DataError(f"cannot be listed ({error.strerror or error})", where=folders[0]) from error
    if name == "CBSD68" and folders[0].name.lower() == "val":  # 68 of the validation images
        numbers = {Path(known).stem for known in registry.dataset_index()[name]}
        found = [path for path in found if path.stem in numbers]
    return sorted(found, key=lambda path: path.name)


def _check(name: str, paths: list[Path], folders: list[Path]) -> Literal["found", "unverified"]:
    where = " + ".join(str(folder) for folder in folders)
    count = registry.upstream()["datasets"][name]["count"]
    if len(paths) != count:
        fetched = name in registry.dataset_index()
        complete = f"Complete it with 'milo-restore assets fetch {name}'" if fetched else "Complete it"
        mend = f"{complete}, or remove what does not belong there"
        raise DataError(f"{name} has {count} images, found {len(paths)}", where=where, mend=mend)
    if name not in registry.dataset_index():
        return "unverified"
    known = {file.sha256 for file in registry.dataset_index()[name].values()}
    strangers = [path for path in paths if sha256_of(path) not in known]
    if not strangers:
        return "found"
    if len(strangers) == count:
        return "unverified"
    # A copy in another encoding differs in every file. Where only some differ, these are damaged or were exchanged.
    what = f"is damaged or another file: {len(strangers)} of the {count} images of {name} are not the known ones"
    raise DataError(what, where=strangers[0], mend=f"Delete it and run 'milo-restore assets fetch {name}'")


def _references(name: str, paths: list[Path], folders: list[Path]) -> list[Path] | None:
    """The images beside a data set's inputs, paired by name.

    Raises:
        DataError: an input has none.
    """
    beside = registry.upstream()["datasets"][name].get("references", ())
    there = (_descend(folders[0].parent, part) for part in beside)
    folder = next((place for place in there if place is not None), None)
    if folder is None:
        return None
    targets = {path.stem: path for path in _images(name, [folder])}
    lonely = [path for path in paths if path.stem not in targets]
    if lonely:
        what = f"has no reference in {folder}"
        raise DataError(what, where=lonely[0], mend="Complete that folder, or remove it to go on without references")
    return [targets[path.stem] for path in paths]
