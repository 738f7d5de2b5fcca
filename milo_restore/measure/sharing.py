"""What evaluations of restored images share: the work over the processes, MILO of two arrays, JSON."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from milo_restore.data import to_tensor
from milo_restore.errors import MiloRestoreError
from milo_restore.metric import MILO
from milo_restore.processes import gather, rank_and_size

T = TypeVar("T")


def over_processes(count: int, score: Callable[[int], T], *, title: str, progress: bool | None = None) -> list[T]:
    """Score images, each of N processes every N-th one; all return all scores, in order.

    Args:
        count: how many images there are.
        score: the scores of the image of that number, from 0; they must be picklable.
        title: of the progress bar.
        progress: show it on the main process; None: where standard error is a terminal.

    Raises:
        MiloRestoreError: ``score``'s, on all processes.
    """
    rank, processes = rank_and_size()
    hidden = rank > 0 or (None if progress is None else not progress)  # None: on terminals only
    mine = range(rank, count, processes)
    rows: list[tuple[int, T]] = []
    failure: MiloRestoreError | None = None
    try:
        for number in tqdm(mine, desc=title, unit="image", leave=False, disable=hidden):
            rows.append((number, score(number)))
    except MiloRestoreError as error:  # raised below, on all processes: the others would wait for this one for ever
        failure = error
    gathered = gather((rows, failure))
    for failure in [problem for _, problem in gathered if problem is not None]:
        raise failure
    ordered = sorted((row for part, _ in gathered for row in part), key=lambda row: row[0])
    return [row for _, row in ordered]


def metric_pair(milo: MILO, image: NDArray[np.uint8], target: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Two (H, W, 3) uint8 arrays as the metric takes them: (1, 3, H, W) each, in [0, 1], where the metric is."""
    device = next((tensor.device for tensor in (*milo.buffers(), *milo.parameters())), torch.device("cpu"))
    return to_tensor(image)[None].to(device), to_tensor(target)[None].to(device)


def milo_error(milo: MILO | None, image: NDArray[np.uint8], target: NDArray[np.uint8]) -> float | None:
    """MILO's raw error of an (H, W, 3) uint8 array; None without a metric."""
    if milo is None:
        return None
    distorted, reference = metric_pair(milo, image, target)
    with torch.no_grad():
        return float(milo(distorted, reference=reference))


def named_weights(milo: MILO | None) -> str | None:
    """Which MILO weights measured; None where none did."""
    return str(milo.weights) if milo is not None and milo.weights is not None else None


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """The values for JSON, which has no infinity: the PSNR of identical images becomes None."""
    return {key: None if isinstance(value, float) and math.isinf(value) else value for key, value in values.items()}
