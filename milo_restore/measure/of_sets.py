"""Measuring FID and KID of two sets of images, and what runs have of them: the part ``sets`` of results.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from milo_restore.data.images import list_images, read_image
from milo_restore.errors import ConfigError, DataError
from milo_restore.files.hashes import sha256_of, text_sha256
from milo_restore.measure.folders import ImageFiles
from milo_restore.measure.metrics import MetricUnavailable, SetMetric, find_metric, load_set_metrics
from milo_restore.measure.metrics.of_sets import ENOUGH_IMAGES, FEWEST_IMAGES, Floats
from milo_restore.processes import gather, over_processes
from milo_restore.show.text import ARROWS

NOTE = "one number of a whole folder: no values per image, so no interval and no paired test"


@dataclass(frozen=True)
class SetPlan:
    """Measurements of whole folders; ready, or refused, before the first image is measured.

    Attributes:
        metrics: FID, KID, or none.
        images: files of restored images.
        references: files to compare them with.
        against: their folder.
        unavailable: metrics whose network cannot be had.
    """

    metrics: Sequence[SetMetric]
    images: Sequence[Path]
    references: Sequence[Path]
    against: Path
    unavailable: dict[str, MetricUnavailable]

    def measure(self) -> dict[str, dict[str, Any]]:
        """The entries of results.json, see `measure_sets`; the same on all processes."""
        return measure_sets(self.images, self.references, self.metrics, against=self.against)


def split_names(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Metrics that have a value per image, and those that have one number of a folder; each once.

    Raises:
        ConfigError: an unknown name.
    """
    whole = {name: find_metric(name).whole for name in names}
    return [name for name in whole if not whole[name]], [name for name in whole if whole[name]]


def plan_sets(
    names: Sequence[str],
    images: Sequence[ImageFiles],
    device: torch.device,
    *,
    ref: Path | None,
    against: Path | None,
    skip: bool,
) -> SetPlan:
    """Check the sets and load the network.

    Args:
        names: of `split_names`' second list.
        images: those of the folder, with their references.
        device: where the network computes.
        ref: folder of the images' references.
        against: a folder of other references, of any number and names; None: ``ref``.
        skip: go on without what cannot be had.

    Raises:
        ConfigError: there are no references.
        DataError: fewer than `FEWEST_IMAGES` images on a side, or no such folder.
        MetricUnavailable: the network cannot be had.
    """
    folder = against or ref
    if not names:
        if against is not None:
            raise ConfigError("is for fid and kid", where="--set-ref", mend="Leave it out, or measure one of them")
        return SetPlan([], [], [], Path(), {})
    if folder is None:
        raise ConfigError("compares with references", where=" and ".join(names), mend="Give --ref, or --set-ref")
    files = [image.pred for image in images]
    others = list_images(against) if against else [image.ref for image in images if image.ref is not None]
    check_sets(names, files, others)
    metrics: list[SetMetric] = []
    problem: MetricUnavailable | None = None
    try:
        metrics = load_set_metrics(names, device)
    except MetricUnavailable as error:
        problem = error
    for other in gather(problem):  # the same on all processes
        problem = problem or other
    if problem is not None and not skip:
        raise problem
    lacking = {} if problem is None else dict.fromkeys(names, problem)
    return SetPlan([] if lacking else metrics, files, others, folder, lacking)


def check_sets(names: Sequence[str], images: Sequence[Path], references: Sequence[Path]) -> None:
    """Refuse sets that are too small, before anything is measured.

    Raises:
        DataError: fewer than `FEWEST_IMAGES` on a side.
    """
    if names and min(len(images), len(references)) < FEWEST_IMAGES:
        what = f"needs at least {FEWEST_IMAGES} images on each side, got {len(images)} against {len(references)}"
        mend = "Leave it out, or give more images; --set-ref DIR may name other references, of any number and names"
        raise DataError(what, where=" and ".join(names), mend=mend)


def measure_sets(
    images: Sequence[Path],
    references: Sequence[Path],
    metrics: Sequence[SetMetric],
    *,
    against: Path,
    progress: bool | None = None,
) -> dict[str, dict[str, Any]]:
    """Measure two sets of images, once for all metrics; each process computes its part of the features.

    Nothing is cached: an interrupted run begins this part anew.

    Args:
        images: files of restored images.
        references: files to compare them with; neither numbers nor names nor sizes need be the same.
        metrics: of one network, from `milo_restore.measure.metrics.load_set_metrics`.
        against: the folder of the references, for the record.
        progress: show a bar; by default on terminals.

    Returns:
        By name: ``value``, ``n``, ``references`` (how many), ``against``, ``references_sha256`` (of their files' sorted
        hashes), ``warning`` (or None), ``better``, ``source``, ``name``, ``weights`` and ``weights_sha256``.

    Raises:
        DataError: as `check_sets`, or an image cannot be read; the file is named.
    """
    if not metrics:
        return {}
    check_sets([metric.name for metric in metrics], images, references)

    def features(files: Sequence[Path], title: str) -> tuple[Floats, str]:
        def work(number: int) -> tuple[Floats, str]:
            return metrics[0].features(read_image(files[number])), sha256_of(files[number])

        rows, hashes = zip(*over_processes(len(files), work, title=title, progress=progress))
        return np.stack(rows), text_sha256("".join(sorted(hashes)))

    mine, _ = features(images, "features of images")
    theirs, digest = features(references, "features of references")
    about = {"n": len(images), "references": len(references), "against": against.resolve().as_posix(),
             "references_sha256": digest}  # fmt: skip
    fewest = min(len(images), len(references))
    return {
        metric.name: {
            "value": metric.distance(mine, theirs), **about, "warning": _warning(metric.name, fewest),
            **metric.as_dict(),
        }
        for metric in metrics
    }  # fmt: skip


def _warning(name: str, fewest: int) -> str | None:
    if fewest >= ENOUGH_IMAGES:
        return None
    few = f"{fewest} images are fewer than {ENOUGH_IMAGES:,}"
    if name == "fid":
        return f"{few}: FID is too high by an amount that depends on n; compare only numbers of the same n"
    return f"{few}: KID is unbiased, but chance is large"


def describe_sets(results: Mapping[str, Any]) -> list[str]:
    """A run's FID and KID as lines for the terminal: value, counts, software, warning."""
    lines = []
    for name, about in results["sets"].items():
        counts = f"{about['n']} images against {about['references']} of {about['against']}"
        lines.append(f"{name} {ARROWS[about['better']]} {about['value']:.5g}: {counts}; {NOTE}")
        lines.append(f"{name}: {about['source']}, {about['name']}; weights: {about['weights']}")
        if about["warning"] is not None:
            lines.append(f"{name}: {about['warning']}")
    return lines


def shared_sets(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """FID and KID that all runs have measured alike, by name and run: with one network, of as many images, against the
    same references.
    """
    first, *others = runs.values()
    keys = ("name", "weights_sha256", "n", "references_sha256")
    return {
        name: {label: results["sets"][name] for label, results in runs.items()}
        for name, about in first.get("sets", {}).items()
        if all(all(other.get("sets", {}).get(name, {}).get(key) == about[key] for key in keys) for other in others)
    }
