"""Named weights and data sets: found in a local folder or in the cache, or downloaded, and always checked.

Two environment variables say where to look:

- ``MILO_RESTORE_ASSETS``: a folder that holds weights and data sets; never written to unless it is named as ``root``.
- ``MILO_RESTORE_CACHE``: where downloads go; by default the user's cache folder (``~/.cache/milo-restore`` on Linux).

What there is, from which commit, under which licence and with which sha256 stands in ``third_party/upstream.toml``.
"""

from __future__ import annotations

from milo_restore.files.catalogue import (
    NAMES,
    AssetStatus,
    asset_status,
    can_fetch,
    fetch_asset,
    list_assets,
    verify_asset,
)
from milo_restore.files.datasets import DATASETS, FoundDataset, find_dataset, locate_dataset
from milo_restore.files.download import assets_folder, cache_folder
from milo_restore.files.weights import (
    CLEANERS,
    WEIGHTS,
    fetch_weights,
    find_weights,
    present_weights,
    weights_named,
    weights_path,
    weights_sha256,
)

__all__ = [
    "CLEANERS",
    "DATASETS",
    "NAMES",
    "WEIGHTS",
    "AssetStatus",
    "FoundDataset",
    "asset_status",
    "assets_folder",
    "cache_folder",
    "can_fetch",
    "fetch_asset",
    "fetch_weights",
    "find_dataset",
    "find_weights",
    "list_assets",
    "locate_dataset",
    "present_weights",
    "verify_asset",
    "weights_named",
    "weights_path",
    "weights_sha256",
]
