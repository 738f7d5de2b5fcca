"""Data sets by name. How they are found, checked and fetched is told in `milo_restore.assets.datasets`."""

from __future__ import annotations

from milo_restore.assets.datasets import DATASETS, FoundDataset, find_dataset, locate_dataset

__all__ = ["DATASETS", "FoundDataset", "find_dataset", "locate_dataset"]
