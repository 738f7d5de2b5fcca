"""MILO in pyiqa: ``import milo_restore.pyiqa``, then ``pyiqa.create_metric("milo")``.

pyiqa finds this module by the entry point ``pyiqa.archs``, but 0.1.16 looks there only when it makes another metric:
``pyiqa psnr milo`` works by itself, ``create_metric("milo")`` alone needs the import, and on the command line
``python -m milo_restore.pyiqa milo -t restored/ -r clean/`` is pyiqa's own command with MILO in it.

``as_loss=True`` gives the same value; its gradient takes the mask as a constant, as `MILOLoss` does.

pyiqa passes metrics images of one or three channels only, so latent MILO is no metric there: it is the network
``LatentMILO``, for ``pyiqa.archs.build_network({"type": "LatentMILO"})``.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from pyiqa.default_model_configs import DEFAULT_CONFIGS
from pyiqa.utils.registry import ARCH_REGISTRY

from milo_restore import metric
from milo_restore.errors import ConfigError
from milo_restore.loss.per_image import PerImage

__all__ = ["MILO", "LatentMILO", "main", "register"]

CONFIG = {"metric_opts": {"type": "MILO"}, "metric_mode": "FR", "lower_better": True, "score_range": "0, 4"}


class MILO(PerImage):
    """MILO as ``pyiqa.create_metric("milo", **options)`` makes it; called with the image first, (N, 3, H, W) in [0, 1].

    Args:
        weights: as in `milo_restore.MILO`.
        mask_gradient: as a loss, let gradients flow through the mask too.
        compute_dtype: as in `milo_restore.MILO`.

    Raises:
        WeightsError: the weights can neither be found nor downloaded, or are damaged.
    """

    kind: ClassVar[type[metric.MaskedMetric]] = metric.MILO

    def __init__(
        self,
        weights: str | Path = "official",
        *,
        mask_gradient: bool = False,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(self.kind(weights, compute_dtype=compute_dtype), mask_gradient=mask_gradient)


class LatentMILO(MILO):
    """The same on latents (N, C, h, w), shifted and scaled; weights as in `milo_restore.LatentMILO`."""

    kind = metric.LatentMILO


def register() -> None:
    """Enter MILO into pyiqa's tables; done by the import, and again without effect by pyiqa's entry point.

    Raises:
        ConfigError: this pyiqa has a metric or a network of such a name of its own.
    """
    if DEFAULT_CONFIGS.get("milo") == CONFIG:
        return
    taken = [name for name in ("MILO", "LatentMILO") if name in ARCH_REGISTRY]
    if DEFAULT_CONFIGS.get("milo") == CONFIG:  # asking the registry has called this function by its entry point
        return
    if taken or "milo" in DEFAULT_CONFIGS:
        mend = "Use milo_restore.MILO itself, or a pyiqa without it"
        raise ConfigError("this pyiqa has a 'milo' of its own, which is not replaced", where="pyiqa", mend=mend)
    for network in (MILO, LatentMILO):
        ARCH_REGISTRY.register(network)
    DEFAULT_CONFIGS["milo"] = CONFIG


def main() -> None:
    """The command line of pyiqa."""
    from pyiqa.pyiqa_cmd import main as command

    command()


register()

if __name__ == "__main__":
    main()
