"""Images in memory, measured: one batch of a folder, or what a training's evaluation restored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from milo_restore.errors import DataError, MiloRestoreError
from milo_restore.measure.metrics import REFUSALS, Batch, Metric


@dataclass(frozen=True)
class Values:
    """One image's values.

    Attributes:
        values: by metric; None where there is none, for which `failures` has the reason.
        failures: by metric.
    """

    values: dict[str, float | None]
    failures: dict[str, str]

    @classmethod
    def of(cls, found: dict[str, float | str]) -> Values:
        """Split what `measure_batch` found: only finite numbers are values."""
        values: dict[str, float | None] = {}
        failures = {}
        for name, value in found.items():
            values[name] = value if isinstance(value, float) and math.isfinite(value) else None
            if isinstance(value, str):
                failures[name] = value
            elif values[name] is None:
                equal = name == "psnr" and value > 0
                failures[name] = "infinite: equal to its reference" if equal else f"the metric gave {value}"
        return cls(values, failures)


def measure_batch(metric: Metric, batch: Batch) -> list[float | str]:
    """One value per image, or the reason why there is none."""
    if len(batch) > 1 and not metric.batched:
        return [value for row in range(len(batch)) for value in measure_batch(metric, batch.select([row]))]
    try:
        values: list[float | str] = [*metric.measure(batch)]
        return values
    except REFUSALS as error:
        if len(batch) > 1:  # one image's refusal is not the others'
            return [value for row in range(len(batch)) for value in measure_batch(metric, batch.select([row]))]
        what = error.what if isinstance(error, MiloRestoreError) else str(error)
        return [" ".join(what.split())[:200] or type(error).__name__]


def measure_image(
    image: NDArray[np.uint8], reference: NDArray[np.uint8], metrics: Sequence[Metric], device: torch.device
) -> Values:
    """One image in memory, as `milo_restore.measure.run.measure` measures it on disk.

    Args:
        image: (H, W, 3) uint8 RGB.
        reference: the same.
        metrics: on ``device``.
        device: where the metrics compute.
    """
    batch = Batch([image], [reference], device)
    return Values.of({metric.name: measure_batch(metric, batch)[0] for metric in metrics})


def means(rows: Sequence[Values], names: Sequence[str]) -> dict[str, float]:
    """The mean of each metric over the images that have a value.

    Args:
        rows: of every image.
        names: of the images, for the error.

    Raises:
        DataError: a metric has a value of no image, for another reason than that all are equal to their references.
    """
    found = {}
    for metric in rows[0].values:
        values = [row.values[metric] for row in rows if row.values[metric] is not None]
        if values:
            found[metric] = float(np.mean(values))  # type: ignore[arg-type]
        elif not rows[0].failures[metric].startswith("infinite"):
            raise DataError(f"{metric}: {rows[0].failures[metric]}", where=names[0])
    return found
