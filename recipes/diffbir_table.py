"""What a DiffBIR recipe measures and prints at its end: what training changed, and what bounds it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from milo_restore import MILO
from milo_restore.errors import DataError
from milo_restore.measure.restoration import METRICS, RestorationPair, Restore, evaluate_restorer
from milo_restore.models.diffbir import DiffBIRPipeline
from milo_restore.show.text import text_table

STAGES = {"input": "degraded input", "cleaner": "cleaner alone", "start": "control before training",
          "output": "control after training", "autoencoder": "autoencoder's limit"}  # fmt: skip
"""The rows of the table; the last is decode(encode(target)): nothing that is decoded can be expected above it."""


def autoencoded(pipeline: DiffBIRPipeline, pairs: Sequence[RestorationPair]) -> Restore:
    """Each target through the autoencoder, in place of a restored image."""

    @torch.no_grad()
    def restore(image: Tensor, number: int) -> tuple[Tensor, Tensor]:
        target = torch.from_numpy(pairs[number].target).permute(2, 0, 1)[None].to(pipeline.device) / 255
        decoded = pipeline.decode(pipeline.encode(target))[..., : target.shape[-2], : target.shape[-1]]
        return decoded, target

    return restore


def measure(
    after: DiffBIRPipeline, restore: Restore, start: Restore, tests: Mapping[str, list[RestorationPair]], milo: MILO
) -> list[dict[str, Any]]:
    """Full sampling with the trained control and the one that training began with, and the autoencoder alone.

    Returns:
        One for each set, for JSON: ``data``, the trained control's scores, and ``table``: the means of each of
        `STAGES`, by metric.
    """
    results = []
    for name, pairs in tests.items():
        found = evaluate_restorer(restore, pairs, milo)
        others = {"start": start, "autoencoder": autoencoded(after, pairs)}
        means = {stage: evaluate_restorer(other, pairs, milo).means() for stage, other in others.items()}
        table = {
            stage: {metric: (means[stage] if stage in means else found.means())[
                f"{'output' if stage in means else stage}_{metric}"] for metric in METRICS}
            for stage in STAGES
        }  # fmt: skip
        results.append({"data": name, **found.as_dict(), "table": table})
    return results


def table(results: Sequence[Mapping[str, Any]], label: str, beside: Mapping[str, Any] | None = None) -> str:
    """For the terminal: each set's stages, one below the other.

    Args:
        results: of `measure`.
        label: of the loss.
        beside: the metrics.json of the run with MSE, whose row comes along.
    """
    lines = [("data", "", "PSNR (dB)", "SSIM", "MILO (lower is better)")]
    for number, result in enumerate(results):
        rows = []
        for stage, words in STAGES.items():
            if stage == "output" and beside is not None:
                rows.append((f"{words}, {beside['loss']}", beside["results"][number]["table"][stage]))
            rows.append((f"{words}, {label}" if stage == "output" else words, result["table"][stage]))
        first = f"{result['data']} ({len(result['rows'])})"
        for place, (words, means) in enumerate(rows):
            numbers = (f"{means['psnr']:.2f}", f"{means['ssim']:.4f}", f"{means['milo']:.5f}")
            lines.append(("" if place else first, words, *numbers))
    return text_table(lines)


def read_beside(folder: Path) -> dict[str, Any] | None:
    """The metrics.json of a finished run; None where there is none.

    Raises:
        DataError: it cannot be read.
    """
    file = folder / "metrics.json"
    if not file.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error})", where=file, mend="Remove that run and start it anew") from error
    return found
