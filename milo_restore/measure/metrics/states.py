"""State of each full-reference metric of the paper here: a look at packages and files, without loading any."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from milo_restore.errors import MiloRestoreError
from milo_restore.files import find_weights
from milo_restore.measure.metrics.from_pyiqa import missing_files
from milo_restore.measure.metrics.table import NOT_OFFERED, PYIQA, find_metric
from milo_restore.show.text import text_table

PAPER: tuple[tuple[str, str], ...] = (
    ("MILO", "milo"), ("MAE", "mae"), ("PSNR", "psnr"), ("SSIM", "ssim"), ("FSIM", "fsim"), ("FLIP", "flip"),
    ("HDR-VDP-2", "cvvdp"), ("VGG", "vgg"), ("LPIPS", "lpips"), ("DISTS", "dists"),
    ("DeepWSD", "deepwsd"), ("TOPIQ", "topiq_fr"), ("PieAPP", "pieapp"), ("WaDIQaM", "wadiqam_fr"),
    ("E-MAE", "e-mae"), ("E-MSE", "e-mse"), ("E-PSNR", "e-psnr"), ("E-SSIM", "e-ssim"), ("E-VGG", "e-vgg"),
    ("E-LPIPS", "e-lpips"), ("E-DISTS", "e-dists"), ("E-DeepWSD", "e-deepwsd"), ("Ens.", "ens"),
)  # fmt: skip
"""The metrics that the supplement's section 2.1 names, MILO and the ensemble, with their names here.

Which metrics have an "enhanced version" there it does not say: these are the published ones, and E-DeepWSD, which the
ensemble contains."""

_REMARKS = {"cvvdp": "ColorVideoVDP in its place, another number"}

_PACKAGES = {"flip": ("flip_evaluator", "flip-evaluator"), "cvvdp": ("pycvvdp", "cvvdp")}
_WEIGHTS = {
    "vgg": ("vgg16",), "deepwsd": ("vgg16",), "e-vgg": ("e-vgg", "vgg16"), "e-lpips": ("e-lpips", "vgg16"),
    "e-dists": ("e-dists", "dists", "vgg16"), "ens-surrogate": ("e-mae", "e-mse", "e-psnr", "e-ssim"),
    **{name: (name,) for name in ("milo", "e-mae", "e-mse", "e-psnr", "e-ssim")},
}  # fmt: skip


def metric_state(name: str) -> tuple[str, str]:
    """Whether a metric can be measured here.

    Args:
        name: of `PAPER`, or of another full-reference metric here, without weights.

    Returns:
        ``works``, ``needs a package``, ``needs a file`` or ``unpublished``, and what to do or why.

    Raises:
        ConfigError: no such metric.
    """
    if name in NOT_OFFERED:
        return "unpublished", NOT_OFFERED[name][0]
    find_metric(name)
    if (package := _missing_package(name)) is not None:
        return "needs a package", f"pip install {package}"
    if name in PYIQA:
        if not (files := missing_files(name)):
            return "works", ""
        named = ", ".join(Path(address).name for address, _ in files)
        return "needs a file", f"{named}: milo-restore assets fetch --metrics {name}"
    lacking = [weights for weights in _WEIGHTS.get(name, ()) if not _is_there(weights)]
    return ("needs a file", f"milo-restore assets fetch {' '.join(lacking)}") if lacking else ("works", "")


def states_table() -> str:
    """All of `PAPER`, for the terminal."""
    rows = [("in the paper", "here", "state", "")]
    for paper, name in PAPER:
        state, what = metric_state(name)
        rows.append((paper, name, state, "; ".join(filter(None, (_REMARKS.get(name), what)))))
    return text_table(rows)


def _missing_package(name: str) -> str | None:
    module, package = _PACKAGES.get(name, ("", ""))
    if name in PYIQA:
        module, package = "pyiqa", "'milo-restore[eval]'"
    return package if module and importlib.util.find_spec(module) is None else None


def _is_there(weights: str) -> bool:
    try:
        return find_weights(weights) is not None
    except MiloRestoreError:  # a damaged one, which is as good as none
        return False
