"""All weights, converted models and data sets in one list, for ``milo-restore assets list | fetch | verify``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from milo_restore.errors import DataError, MiloRestoreError, WeightsError
from milo_restore.files import datasets, download, manifest, published, registry, weights

State = Literal["found", "not checked", "unverified", "damaged", "missing"]


NAMES: tuple[str, ...] = (*weights.WEIGHTS, *published.MODELS, *datasets.DATASETS)
"""Of all assets."""


@dataclass(frozen=True)
class AssetStatus:
    """State of one asset on this machine.

    Attributes:
        name: as `fetch_asset` takes it.
        kind: ``weights``, ``model`` (DiffBIR's, converted to one folder) or ``dataset``.
        licence: its licence, or what is known about it.
        bytes: size of the download; 0 where it is not known, or this program cannot download it.
        state: ``found`` (checked by its hash), ``not checked`` (a weight file whose hash nobody published, brought
            by the user), ``unverified`` (a data set of the right count in another encoding), ``damaged`` (there, but
            wrong) or ``missing``.
        where: the file or the folders; where it is missing, None.
        note: where it is missing or damaged, what to do about it.
    """

    name: str
    kind: Literal["weights", "model", "dataset"]
    licence: str
    bytes: int
    state: State
    where: str | None
    note: str | None


def list_assets(root: str | Path | None = None) -> list[AssetStatus]:
    """The status of every asset; hashes everything that it finds, downloads nothing.

    Args:
        root: look in this folder only; by default in the one named by ``MILO_RESTORE_ASSETS``, then in the cache.

    Raises:
        DataError: ``MILO_RESTORE_ASSETS`` names no folder.
    """
    return [asset_status(name, root) for name in NAMES]


def asset_status(name: str, root: str | Path | None = None) -> AssetStatus:
    """The status of one asset: damage and absence are reported, not raised.

    Raises:
        DataError: no asset has this name, or ``MILO_RESTORE_ASSETS`` names no folder.
    """
    name = _asset_name(name)
    if root is None:
        download.assets_folder()  # a misnamed folder is no property of one asset
    state: State
    try:
        state, where = _look(name, root)
        note = None if where else _advice(name)
    except MiloRestoreError as error:
        state, where, note = "damaged", str(error.where), str(error)
    return _status(name, state, where, note)


def verify_asset(name: str, root: str | Path | None = None) -> AssetStatus:
    """The status of an asset that is there and whole.

    Raises:
        DataError: no asset has this name, or the data set is missing, incomplete or damaged.
        WeightsError: the weights are missing or damaged.
    """
    name = _asset_name(name)
    if name not in datasets.DATASETS:
        state, where = _look(name, root)
        if where is None:
            mend = weights.where_to_get(name) if name in weights.WEIGHTS else _advice(name)
            raise WeightsError("is not there", where=name, mend=mend)
        return _status(name, state, where)
    return _of_dataset(datasets.locate_dataset(name, root))


def fetch_asset(name: str, root: str | Path | None = None) -> AssetStatus:
    """Make sure that an asset is there: found where it is, and downloaded where it is missing or incomplete.

    A damaged file is refused by name, not replaced. Models are made by `milo_restore.models.diffbir.published`.

    Args:
        name: of weights, such as ``milo``, or of a data set.
        root: where to look and to download to; by default it is looked for everywhere and downloaded to the cache.

    Raises:
        DataError: no such name, a damaged data set, or one that cannot be downloaded.
        WeightsError: the same for weights.
    """
    name = _asset_name(name)
    if name in datasets.DATASETS:
        return _of_dataset(datasets.fetch_dataset(name, root))
    if name in published.MODELS:  # is converted by networks, which this room does not know
        return verify_asset(name, root)
    folder = Path(root).expanduser() if root is not None else None
    path = weights.find_weights(name, folder) or weights.fetch_weights(name, folder)
    return _status(name, _state(name, path), str(path))


def can_fetch(name: str) -> bool:
    """True if an asset can be downloaded by this program and held against a hash known beforehand."""
    if name in weights.WEIGHTS:
        file = registry.weight_file(name)
        return bool(file.sha256 or file.git_blob)
    return name in datasets.DATASETS and "source" not in registry.upstream()["datasets"][name]


def _state(name: str, path: Path) -> State:
    """State of a weight file that is there and passed `download.check_file`."""
    return "found" if download.can_check(path, registry.weight_file(name)) else "not checked"


def _look(name: str, root: str | Path | None) -> tuple[State, str | None]:
    if name in weights.WEIGHTS:
        path = weights.find_weights(name, Path(root).expanduser() if root is not None else None)
        return ("missing", None) if path is None else (_state(name, path), str(path))
    if name in published.MODELS:
        model = published.find_model(name, Path(root).expanduser() if root is not None else None)
        if model is None:
            return "missing", None
        manifest.verify(model, f"Delete the folder, then run 'milo-restore assets fetch {name}'")
        return "found", str(model)
    found = datasets.search_dataset(name, root)
    return ("missing", None) if found is None else (found.state, _where(found))


def _of_dataset(found: datasets.FoundDataset) -> AssetStatus:
    return _status(found.name, found.state, _where(found))


def _where(found: datasets.FoundDataset) -> str:
    return " + ".join(str(folder) for folder in found.folders)


def _status(name: str, state: State, where: str | None, note: str | None = None) -> AssetStatus:
    if name in weights.WEIGHTS:
        table, size = registry.upstream()["weights"][name], registry.weight_file(name).bytes
        return AssetStatus(name, "weights", table["licence"], size, state, where, note)
    if name in published.MODELS:
        return AssetStatus(name, "model", published.licence_of(name), 0, state, where, note)
    table, size = (
        registry.upstream()["datasets"][name],
        sum(f.bytes for f in registry.dataset_index().get(name, {}).values()),
    )
    return AssetStatus(name, "dataset", table["licence"], size, state, where, note)


def _advice(name: str) -> str:
    """Remedy for a missing asset."""
    table = registry.upstream()["datasets"].get(name, {})
    if "source" not in table:
        return f"Run 'milo-restore assets fetch {name}'"
    return f"{table['count']} images; to be had from {table['source']}; checksums unknown"


def _asset_name(name: str) -> str:
    if name not in datasets.DATASETS and name in NAMES:
        return name
    try:
        return datasets.dataset_name(name)
    except DataError as error:
        raise DataError("no such asset", where=repr(name), mend=f"Known: {', '.join(NAMES)}") from error
