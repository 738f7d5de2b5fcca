"""Loading metrics by their names, and getting their weights ready for machines without network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from milo_restore.errors import MiloRestoreError
from milo_restore.measure.metrics.metric import Batch, Metric, MetricUnavailable, base_name, random_state_kept
from milo_restore.measure.metrics.of_sets import load_set_metrics
from milo_restore.measure.metrics.protocol import Protocol
from milo_restore.measure.metrics.table import ABSENT, find_metric
from milo_restore.processes import gather


def load_metric(name: str, protocol: Protocol | None = None, device: torch.device | str = "cpu") -> Metric:
    """A metric on its device; random states stay as they were. Downloads come here, or are refused within seconds.

    Args:
        name: see `milo_restore.measure.metrics.table`.
        protocol: what is cut off before, and the colour of ``psnr`` and ``ssim``; by default whole RGB images. The name
            is taken as it is, whatever the protocol's checkpoints.
        device: where it computes.

    Raises:
        ConfigError: as `find_metric`.
        MetricUnavailable: weights or a package cannot be had; the error says which, and what to do.
    """
    row, base = find_metric(name), base_name(name)
    if base in ABSENT:
        why, instead = ABSENT[base]
        raise MetricUnavailable(why, where=name, mend=instead or "Leave it out, or use --skip-unavailable")
    place = torch.device(device)
    with random_state_kept(place):  # some packages draw weights before they load them
        protocol = protocol or Protocol()
        return _cut_before(row.load(name, replace(protocol, border=0, modcrop=1), place), protocol)


def _cut_before(metric: Metric, protocol: Protocol) -> Metric:
    """The metric of what a protocol leaves of the images; its name and its key in the cache say what it does."""
    cap = protocol.psnr_cap if metric.name == "psnr" else None
    said = [f"crop_border={protocol.border}"] if protocol.border else []
    said += [f"at most {cap:g} dB"] if cap is not None else []
    key = [*said, f"modcrop={protocol.modcrop}"] if protocol.modcrop > 1 else said
    if not key:
        return metric

    def measure(batch: Batch) -> list[float]:
        values = metric.measure(batch.cut(protocol))
        return values if cap is None else [min(value, cap) for value in values]

    settings = ", ".join(filter(None, (metric.settings, *key)))
    return replace(metric, measure=measure, formal=", ".join((metric.formal, *said)), settings=settings)


def load_metrics(
    names: Sequence[str], protocol: Protocol, device: torch.device, *, skip_unavailable: bool
) -> tuple[list[Metric], dict[str, MetricUnavailable]]:
    """All metrics, before the first is computed, and those that cannot be had; the same on all processes.

    A short name means what the protocol's checkpoints say, and is then listed under the full one; ``pyiqa:NAME`` is
    pyiqa's own, always.

    Raises:
        MetricUnavailable: some cannot be had and are not to be skipped, or all; every one is named.
        ConfigError: an unknown name.
    """
    metrics, unavailable = [], {}
    failure: MiloRestoreError | None = None
    names = list(dict.fromkeys(protocol.checkpoints.get(name, name) for name in names))
    for name in names:
        try:
            metrics.append(load_metric(name, protocol, device))
        except MetricUnavailable as error:
            unavailable[name] = error
        except MiloRestoreError as error:
            failure = failure or error
    for others, problem in gather((unavailable, failure)):
        if problem is not None:
            raise problem
        unavailable = {**others, **unavailable}
    metrics = [metric for metric in metrics if metric.name not in unavailable]
    if unavailable and not (skip_unavailable and metrics):
        first, *more = unavailable.values()
        if not more:
            skip = "--skip-unavailable goes on without it" if metrics else None
            mend = ". ".join(part for part in (first.mend, skip) if part)
            raise MetricUnavailable(first.what, where=first.where, mend=mend or None)
        raise _several(unavailable, goes_on=bool(metrics))
    return metrics, {name: unavailable[name] for name in names if name in unavailable}


def _several(unavailable: Mapping[str, MetricUnavailable], *, goes_on: bool) -> MetricUnavailable:
    reasons = "; ".join(f"{name}: {error.what}" for name, error in unavailable.items())
    help_ = [f"{name}: {error.mend}" for name, error in unavailable.items() if error.mend and not error.fetch]
    if fetched := [name for name, error in unavailable.items() if error.fetch]:
        help_.append(f"Where there is network, run 'milo-restore assets fetch --metrics {' '.join(fetched)}'")
    if goes_on:
        help_.append("--skip-unavailable goes on without them")
    what = f"{len(unavailable)} metrics are unavailable: {reasons}"
    return MetricUnavailable(what, where="--metrics", mend=". ".join(help_) or None)


def fetch_metrics(names: Sequence[str]) -> Iterator[tuple[str, str | MiloRestoreError]]:
    """Load each metric once, on the CPU, which downloads what it lacks.

    Args:
        names: as for `load_metric`. All are checked before the first is loaded.

    Yields:
        Name, and what is ready (software and weights) or why it is not.

    Raises:
        ConfigError: an unknown name.
    """
    for name in names:
        find_metric(name)
    for name in names:
        try:
            metric = load_set_metrics([name], "cpu")[0] if find_metric(name).whole else load_metric(name)
            yield name, f"{metric.source}, weights: {metric.weights or 'none'}"
        except MiloRestoreError as error:
            yield name, error


def weight_folders() -> list[Path]:
    """The folders that metrics' weights are downloaded to: copy them to the same places of a machine without network.

    Our own cache first; then torch's hub (``$TORCH_HOME/hub``: pyiqa, torchvision, CLIP), and Hugging Face's
    (``$HF_HOME/hub``: some backbones), each of which may not exist.
    """
    from milo_restore.files import cache_folder

    hub = Path(torch.hub.get_dir())
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return [cache_folder(), hub]
    return [cache_folder(), hub, Path(HF_HUB_CACHE)]
