"""``milo-restore score``: MILO's scores of pairs of images or latents, as a table, CSV or JSON."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from milo_restore.cli.metric import (
    LATENT_SUFFIXES,
    add_metric_arguments,
    add_modcrop,
    add_pairing,
    load_milo,
    matched_pairs,
    of_pair,
)
from milo_restore.files.write import check_target, replace_file
from milo_restore.show.text import CSVWriter

if TYPE_CHECKING:
    import torch

    from milo_restore.metric import MaskedMetric


@dataclass(frozen=True)
class PairScore:
    """One pair's scores; see `milo_restore.MILO` for what they mean."""

    name: str
    reference: str
    distorted: str
    raw_error: float
    quality: float
    mos: float


_NUMBERS = ("raw_error", "quality", "mos")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``score``."""
    parser.description = (
        "MILO's raw error (lower is better, 0: identical), quality (lower is better, 0 to 0.869) and predicted mean "
        "opinion score (higher is better; 4.346: identical, with the official weights) of distorted images."
    )
    parser.add_argument("reference", metavar="REF", type=Path, help="the undistorted image, or a folder of them")
    parser.add_argument(
        "distorted", metavar="DIST", type=Path, help="the distorted image, or a folder: files are paired by name"
    )
    add_metric_arguments(parser)
    add_pairing(parser)
    add_modcrop(parser)
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write one line per pair")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write pairs, means and the weights' sha256")


def main(arguments: argparse.Namespace) -> int:
    """Score all pairs, print a table, write the files asked for."""
    for file in (arguments.csv, arguments.json):
        if file is not None:
            check_target(file)
    import torch

    from milo_restore.files.datasets import SUFFIXES
    from milo_restore.measure.folders import left_out

    pairs = matched_pairs(arguments)
    metric, device = load_milo(arguments.weights, latent=arguments.latent, device=arguments.device)
    scores = _score(pairs, metric, device, arguments)
    means = {key: sum(getattr(row, key) for row in scores) / len(scores) for key in _NUMBERS}
    taken = {arguments.reference: [pair[1] for pair in pairs], arguments.distorted: [pair[2] for pair in pairs]}
    used = {folder: files for folder, files in taken.items() if folder.is_dir()}
    for line in left_out(used, LATENT_SUFFIXES if arguments.latent else SUFFIXES, recursive=arguments.recursive):
        print(line)
    highest = float(metric.mos_of(torch.zeros(1, device=device)))
    directions = f"raw error and quality: lower is better, 0: identical; MOS: higher, {highest:.3f}: identical"
    cut = f"; images cut to multiples of {arguments.modcrop}" if arguments.modcrop > 1 else ""
    print(f"metric: {type(metric).__name__}, weights: {metric.weights}; {directions}{cut}")
    print(_table(scores, means))
    if arguments.csv is not None:
        replace_file(arguments.csv, _csv(scores))
    if arguments.json is not None:
        replace_file(arguments.json, _json(metric, scores, means, arguments.modcrop))
    return 0


def _score(
    pairs: Sequence[tuple[str, Path, Path]],
    metric: MaskedMetric,
    device: torch.device,
    arguments: argparse.Namespace,
) -> list[PairScore]:
    from tqdm import tqdm

    scores = []
    for name, reference, distorted in tqdm(pairs, unit="pair", leave=False, disable=None if len(pairs) > 1 else True):
        numbers = of_pair(metric.scores, reference, distorted, device, arguments)
        scores.append(PairScore(name, str(reference), str(distorted), *map(float, numbers)))
    return scores


def _table(scores: Sequence[PairScore], means: dict[str, float]) -> str:
    rows = [(row.name, row.raw_error, row.quality, row.mos) for row in scores]
    if len(rows) > 1:
        rows.append((f"mean of {len(rows)}", means["raw_error"], means["quality"], means["mos"]))
    width = max(4, *(len(row[0]) for row in rows))
    lines = [f"{'pair':<{width}}  {'raw error':>10}  {'quality':>9}  {'MOS':>6}"]
    lines += [f"{name:<{width}}  {raw:>10.7f}  {quality:>9.6f}  {mos:>6.4f}" for name, raw, quality, mos in rows]
    return "\n".join(lines)


def _csv(scores: Sequence[PairScore]) -> str:
    text = io.StringIO()
    writer = CSVWriter(text)
    writer.writerow([field.name for field in dataclasses.fields(PairScore)])
    writer.writerows(dataclasses.astuple(row) for row in scores)
    return text.getvalue()


def _json(metric: MaskedMetric, scores: Sequence[PairScore], means: dict[str, float], modcrop: int) -> str:
    weights = dataclasses.asdict(metric.weights) if metric.weights is not None else None
    content = {"metric": type(metric).__name__, "weights": weights, "modcrop": modcrop, "mean": means}
    return json.dumps({**content, "pairs": [dataclasses.asdict(row) for row in scores]}, indent=1) + "\n"
