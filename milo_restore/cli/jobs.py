"""Jobs of the commands that turn one folder of images into another: the images, those done already, the record."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milo_restore.errors import ConfigError, DataError, listed
from milo_restore.files.write import replace_file


@dataclass(frozen=True)
class Job:
    """One image: where it is read, and where the result goes."""

    source: Path
    target: Path


def add_existing(parser: argparse.ArgumentParser) -> None:
    """The arguments about results that are there already, and about images that cannot be used."""
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace results that are there already")
    existing.add_argument("--resume", action="store_true", help="keep results that are there already, make the others")
    parser.add_argument(
        "--skip-bad", action="store_true", help="name images that cannot be used, and go on without them"
    )


def find_jobs(source: Path, output: Path) -> list[Job]:
    """The images of a file or folder, and the names of their results.

    Raises:
        DataError: there are none, two would get one name, or results would lie among the images.
    """
    from milo_restore.files.datasets import SUFFIXES

    if not source.exists():
        raise DataError("no such file or folder", where=source)
    if output.exists() and not output.is_dir():
        raise DataError("is a file, not a folder", where=output, mend="Name the folder that the results go to")
    root = source if source.is_dir() else source.parent
    if root.resolve() == output.resolve():
        raise DataError("holds the images themselves", where=output, mend="Name another folder for the results")
    if source.is_dir():
        found = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        hidden = [path for path in found if any(part.startswith(".") for part in path.relative_to(root).parts)]
        own = [path for path in found if path.resolve().is_relative_to(output.resolve())]
        paths = [path for path in found if path not in {*hidden, *own}]
    else:
        paths = [source]
    if not paths:
        raise DataError("holds no images", where=source, mend=f"Expected files ending in {', '.join(SUFFIXES)}")
    targets: dict[Path, Path] = {}
    for path in paths:
        target = output / path.relative_to(root).with_suffix(".png")
        if target in targets:
            what = f"{targets[target].name} and {path.name} would both become {target.name}"
            raise DataError(what, where=path.parent, mend="Rename one of them")
        targets[target] = path
    return [Job(path, target) for target, path in targets.items()]


def to_do(jobs: list[Job], arguments: argparse.Namespace) -> list[Job]:
    """The images whose results are wanted, by ``--resume``, ``--overwrite`` and ``--output``.

    Raises:
        DataError: some are there, and neither was given.
    """
    present = [job for job in jobs if job.target.exists()]
    if arguments.resume:
        return [job for job in jobs if job not in present]
    if present and not arguments.overwrite:
        names = listed([job.target.name for job in present], between="; ")
        what = f"{len(present)} of {len(jobs)} results are there already: {names}"
        raise DataError(what, where=arguments.output, mend="Give --resume to keep them, --overwrite to replace them")
    return jobs


def usable(jobs: list[Job], minimum: int, *, skip: bool) -> list[Job]:
    """The images that can be read, after a look at all of them.

    Args:
        jobs: the images.
        minimum: pixels that each side must have.
        skip: name the others on standard error and go on.

    Raises:
        DataError: an image cannot be used, or none can.
    """
    from tqdm import tqdm

    from milo_restore.data.images import read_image

    bad: dict[Job, str] = {}
    for job in tqdm(jobs, desc="checking", unit="image", leave=False, disable=None):
        try:
            height, width = read_image(job.source).shape[:2]
            if min(height, width) < minimum:
                what = f"is {width}x{height} pixels"
                raise DataError(what, where=job.source, mend=f"{minimum} along each side are the least")
        except DataError as error:
            bad[job] = str(error)
    if bad and not skip:
        mend = "Nothing was restored. Mend or remove them, or give --skip-bad"
        if len(bad) == 1:
            raise DataError(f"{next(iter(bad.values()))}. {mend}")
        reasons = listed(list(bad.values()), between="; ")
        raise DataError(f"{len(bad)} of {len(jobs)} images cannot be used: {reasons}", mend=mend)
    for reason in bad.values():
        say(f"left out: {reason}")
    if bad and len(bad) == len(jobs):
        raise DataError("none of the images can be used", mend="The lines above say why")
    return [job for job in jobs if job not in bad]


def write_record(record: Path, settings: dict[str, Any], *, resume: bool) -> None:
    """Write the settings beside the results; a run that goes on must go on with the same.

    Raises:
        ConfigError: under --resume, something differs.
        DataError: the folder cannot be written to.
    """
    if resume and record.is_file():
        try:
            before = json.loads(record.read_text(encoding="utf-8"))
            different = [name for name, value in settings.items() if before.get(name) != value]
        except (OSError, ValueError, AttributeError) as error:
            raise DataError("cannot be read", where=record, mend="Give --overwrite in place of --resume") from error
        if different:
            what = ", ".join(f"{name} was {before.get(name)}, is {settings[name]}" for name in different)
            raise ConfigError(f"the results are of another run: {what}", where="--resume", mend="Use another folder")
    replace_file(record, json.dumps(settings, indent=1) + "\n")


def say(line: str) -> None:
    """A line on standard error, where the program speaks of itself."""
    print(f"milo-restore: {line}", file=sys.stderr, flush=True)
