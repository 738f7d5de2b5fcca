"""The images themselves, read once."""

from __future__ import annotations

import contextlib
import io
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from milo_restore.basicsr.checks.data import make, reads_files, roots, tried
from milo_restore.data.images import check_jpeg
from milo_restore.errors import DataError
from milo_restore.files import cache_folder
from milo_restore.files.datasets import SUFFIXES
from milo_restore.files.known import KnownFiles
from milo_restore.files.manifest import check_sealed

__all__ = ["check_images"]

_PAIRS = "PairedImageDataset"


def check_images(options: dict[str, Any]) -> None:
    """Read every image of the folders once, and one sample of each data set as BasicSR will.

    PNG files are held against their checksums, others decoded, JPEGs strictly; all against a seal, where there is one.
    What was found sound is remembered by path, size, times and inode in ``images.json`` of the cache folder, and not
    read again. Of a folder with a list (``meta_info``) only the images on it are read. Archives (lmdb), and data sets
    with ``check_images: false``, are left to BasicSR.

    Args:
        options: a configuration that passed `milo_restore.basicsr.checks.check_options`.

    Raises:
        ConfigError: a data set lacks a key that it needs to read a sample.
        DataError: a folder without images; an image that is damaged, or that does not fit the crops or its pair.
    """
    phases = [
        phase
        for phase, data in options["datasets"].items()
        if reads_files(data) and data.get("check_images", True) is not False
    ]
    paths: dict[Path, None] = {}
    for phase in phases:
        listed = _listed(options, phase)
        for key, root in roots(options["datasets"][phase]):
            found = _images(root, f"datasets.{phase}.{key}")
            paths.update(dict.fromkeys(path for path in found if listed is None or path.resolve() in listed))
    sizes = _read_once(list(paths))
    for phase in phases:
        data = options["datasets"][phase]
        dataset = make(options, phase, f"datasets.{phase}")
        if phase == "train" and data["type"] == _PAIRS:
            _check_pairs(dataset, options, sizes)
        if not data.get("cache_data"):  # those cannot be read without
            tried(partial(dataset.__getitem__, 0), "the first image cannot be read", f"datasets.{phase}")


def _read_once(paths: list[Path]) -> dict[Path, tuple[int, int]]:
    """Width and height of each image, those read from the file that were not read before."""
    memory = KnownFiles(cache_folder() / "images.json")
    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter's lock
        found = pool.map(lambda path: memory.fact(path, _size), paths)
        shown = tqdm(found, total=len(paths), desc="reading images once", unit="image", disable=None)
        sizes = {path: (width, height) for path, (width, height) in zip(paths, shown, strict=True)}
    with contextlib.suppress(DataError):  # a place that cannot be written to costs another reading, and no more
        memory.save()
    return sizes


def _listed(options: dict[str, Any], phase: str) -> set[Path] | None:
    """The images that a data set's list names, as the data set itself reads it; None where it has no list."""
    if not any(key.startswith("meta_info") and value for key, value in options["datasets"][phase].items()):
        return None
    entries = getattr(make(options, phase, f"datasets.{phase}"), "paths", None)
    if not isinstance(entries, list):
        return None
    names = [name for entry in entries for name in (entry.values() if isinstance(entry, dict) else [entry])]
    return {Path(name).resolve() for name in names if isinstance(name, str)}


def _images(root: Path, where: str) -> list[Path]:
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise DataError(f"holds no images: {root}", where=where, mend=f"Expected files ending in {', '.join(SUFFIXES)}")
    return paths


def _size(path: Path) -> tuple[int, int]:
    """Width and height of an image, of which every byte was looked at."""
    try:
        content = path.read_bytes()
        check_sealed(path, content)
        with Image.open(io.BytesIO(content)) as image:
            size = image.size
            if image.format == "PNG":
                image.verify()  # the checksums of all its chunks
            else:
                image.load()
            if image.format in ("JPEG", "MPO"):
                check_jpeg(content)
    except DataError:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise DataError(f"is damaged or no image ({error})", where=path, mend="Replace or remove it") from error
    return size


def _check_pairs(dataset: Any, options: dict[str, Any], sizes: dict[Path, tuple[int, int]]) -> None:
    """BasicSR crops both alike, and stops in a worker at the first pair that does not fit."""
    crop, scale = options["datasets"]["train"].get("gt_size", 0), options.get("scale")
    for pair in dataset.paths:
        paths = Path(pair["gt_path"]), Path(pair["lq_path"])
        for path in paths:
            if not path.is_file():
                mend = "A list (meta_info_file) names it, or its partner calls for it by filename_tmpl"
                raise DataError("no such image", where=path, mend=mend)
        (width, height), small = (sizes.get(path) or _size(path) for path in paths)
        if min(width, height) < crop:
            mend = "Remove it, or lower gt_size"
            raise DataError(f"is {width}x{height}, smaller than gt_size {crop}", where=paths[0], mend=mend)
        if scale is not None and (width, height) != (small[0] * scale, small[1] * scale):
            what = f"is {width}x{height}, not {scale} times {paths[1]}, {small[0]}x{small[1]}"
            raise DataError(what, where=paths[0], mend="Check scale, or make the pair anew")
