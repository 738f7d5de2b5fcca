"""DiffBIR's published models and their bases by name: where they lie, and what their files were at first.

``milo-restore assets fetch NAME`` makes them; what they consist of stands in ``third_party/upstream.toml``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from milo_restore.errors import DataError, WeightsError
from milo_restore.files import download, registry
from milo_restore.files.hashes import sha256_of
from milo_restore.files.write import replace_file

BASES: tuple[str, ...] = tuple(registry.upstream()["bases"])
"""Stable Diffusions on the Hugging Face hub, such as ``sd21-base``."""
MODELS: tuple[str, ...] = tuple(registry.upstream()["models"])
"""DiffBIR's versions as a whole, such as ``diffbir-v2``."""


def model_folder(name: str, root: Path | None = None) -> Path:
    """The folder that a model is made in: ``models/NAME`` under ``root`` (default: the cache)."""
    return (root or download.cache_folder()) / "models" / name


def find_model(name: str, root: Path | None = None) -> Path | None:
    """A model's folder where it was made, by default in the folder of ``MILO_RESTORE_ASSETS`` or the cache.

    Raises:
        DataError: ``MILO_RESTORE_ASSETS`` names no folder.
    """
    roots = [root] if root is not None else [download.assets_folder(), download.cache_folder()]
    places = (model_folder(name, place) for place in roots if place is not None)
    return next((place for place in places if (place / "model_index.json").is_file()), None)


def present_model(name: str) -> Path:
    """A model's folder.

    Raises:
        DataError: ``MILO_RESTORE_ASSETS`` names no folder.
        WeightsError: it was not fetched.
    """
    found = find_model(name)
    if found is None:
        raise WeightsError("is not there", where=name, mend=f"Run 'milo-restore assets fetch {name}'")
    return found


def licence_of(name: str) -> str:
    """The licences of a model's parts: its control, and its base."""
    tables = registry.upstream()
    model = tables["models"][name]
    base = {**tables["weights"], **tables["bases"]}[model["base"]]
    return f"{tables['weights'][model['control']]['licence']}; base: {base['licence']}"


def hold_hashes(name: str, address: str, folder: Path, paths: Iterable[Path]) -> Path:
    """Record the sha256 of a base's files at the first fetch, and hold them to it afterwards.

    Args:
        name: of the base.
        address: where it is from; every address has a record of its own.
        folder: what the names in the record are relative to.
        paths: the files.

    Returns:
        The record, in the cache, as sha256sum writes it.

    Raises:
        DataError: the record cannot be read or written.
        WeightsError: a file is another one than at first.
    """
    record = download.cache_folder() / "weights" / name / f"{address.replace('/', '+')}.sha256"
    known: dict[str, str] = {}
    if record.is_file():
        try:
            lines = [line.split("  ", 1) for line in record.read_text(encoding="utf-8").splitlines()]
            known = {path: digest for digest, path in lines}
        except (OSError, ValueError) as error:
            raise DataError("is no record of sha256 sums", where=record, mend="Delete it to record anew") from error
    for path in sorted(paths):
        entry, digest = path.relative_to(folder).as_posix(), sha256_of(path)
        if known.setdefault(entry, digest) != digest:
            what = f"is another file than at its first fetch (sha256 {digest[:16]}..., then {known[entry][:16]}...)"
            raise WeightsError(what, where=path, mend=f"Delete it, and fetch again; {record} holds the first sums")
    replace_file(record, "".join(f"{known[entry]}  {entry}\n" for entry in sorted(known)))
    return record
