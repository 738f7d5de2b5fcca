"""Getting metrics' weights ready for machines without network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from milo_restore.errors import MiloRestoreError
from milo_restore.evaluate.suite import check_name, load_suite_metric


def fetch_metrics(names: Sequence[str]) -> Iterator[tuple[str, str | MiloRestoreError]]:
    """Load each metric once, on the CPU, which downloads what it lacks.

    Args:
        names: as in `milo_restore.evaluate.suite`. All are checked before the first is loaded.

    Yields:
        Name, and what is ready (software and weights) or why it is not.

    Raises:
        ConfigError: an unknown name.
    """
    for name in names:
        check_name(name)
    for name in names:
        try:
            metric = load_suite_metric(name)
            yield name, f"{metric.source}, weights: {metric.weights or 'none'}"
        except MiloRestoreError as error:
            yield name, error


def weight_folders() -> list[Path]:
    """The folders that metrics' weights are downloaded to: copy them to the same places of a machine without network.

    Our own cache first; then torch's hub (``$TORCH_HOME/hub``: pyiqa, torchvision, CLIP), and Hugging Face's
    (``$HF_HOME/hub``: some backbones), each of which may not exist.
    """
    import torch

    from milo_restore.assets import cache_folder

    hub = Path(torch.hub.get_dir())
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return [cache_folder(), hub]
    return [cache_folder(), hub, Path(HF_HUB_CACHE)]
