"""The metrics of ``milo-restore evaluate``, by name: full- and no-reference, this project's and others'.

Names are this project's for ``psnr``, ``ssim``, ``mae``, ``milo``, ``e-mae``, ``e-mse``, ``e-psnr``, ``e-ssim``,
``e-vgg``, ``e-lpips``, ``e-dists`` and ``ens-surrogate``; ``niqe-basicsr`` is basicsr's NIQE and ``st-lpips`` the
package stlpips-pytorch; every other name is pyiqa's, exactly. Where both have a name, ``pyiqa:NAME`` is pyiqa's:

- ``psnr``: ours ends nowhere (identical images have none), pyiqa's at 80 dB.
- ``ssim``: ours is of RGB by default, as pyiqa's ``ssimc``; pyiqa's ``ssim`` is of the luma, in YIQ. With
  ``colour="y"`` ours are of BasicSR's Y, the limited-range Y of YCbCr, as tables of super-resolution print them.
  pyiqa rounds Y to integers (up to 2e-3) and counts negative correlations as none (up to 1e-3, under heavy noise).
- ``stlpips`` is pyiqa's own port with pyiqa's weights, ``st-lpips`` the authors' package.

Ens., the paper's ensemble, cannot be measured: its E-DeepWSD and the common scale of its members are unpublished.
``ens-surrogate`` is another number, the mean of four masking-enhanced metrics' predicted MOS, and says so.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import milo_restore
from milo_restore.errors import ConfigError, DataError, MiloRestoreError
from milo_restore.evaluate.fr_metrics import NOT_OFFERED, OURS, PYIQA, check_metric_name, load_masked
from milo_restore.evaluate.metrics import SMALLEST_SIDE, psnr, ssim
from milo_restore.evaluate.outside_metrics import load_outside
from milo_restore.evaluate.pyiqa_metrics import MetricUnavailable, pyiqa_mode
from milo_restore.evaluate.suite_metric import Batch, Protocol, SuiteMetric, base_name

PIXEL = ("psnr", "ssim", "mae")
ENSEMBLE = "ens-surrogate"
OTHERS = ("niqe-basicsr", "st-lpips", "st-lpips-vgg")
PYIQA_NR = (
    "topiq_nr", "topiq_nr-flive", "topiq_nr-spaq", "topiq_nr-face", "topiq_nr-face-v1", "topiq_nr_swin-face",
    "topiq_iaa", "topiq_iaa_res50", "clipiqa", "clipiqa+", "clipiqa+_vitL14_512", "clipiqa+_rn50_512", "musiq",
    "musiq-ava", "musiq-paq2piq", "musiq-spaq", "maniqa", "maniqa-pipal", "maniqa-kadid", "niqe", "niqe_matlab",
    "ilniqe", "brisque", "brisque_matlab", "piqe", "nrqm", "pi", "nima", "nima-koniq", "nima-spaq", "nima-vgg16-ava",
    "dbcnn", "cnniqa", "paq2piq", "hyperiqa", "tres", "tres-flive", "liqe", "liqe_mix", "unique", "uranker",
    "entropy", "arniqa", "qualiclip", "qalign", "compare2score", "laion_aes", "wadiqam_nr",
)  # fmt: skip
"""pyiqa's no-reference metrics at 0.1.16 that people use; a newer pyiqa's others are asked for by their names, too."""

_ENS = "the paper's E-DeepWSD and the common scale of its members are unpublished"
ABSENT = {**NOT_OFFERED, "ens": _ENS} | dict.fromkeys(
    ("fid", "sfid", "fid_dinov2", "inception_score"), "a number of a whole folder, not of an image"
)
_MEND_ABSENT = {"ens": f"Use {ENSEMBLE}, which names its members and is not comparable with the paper's column"}


def check_name(name: str) -> None:
    """Refuse what no installation could measure, before anything is loaded. Asks pyiqa about names unknown here.

    Raises:
        ConfigError: an unknown name, or weights after a name that takes none.
    """
    base = base_name(name)
    if base in OURS and not name.startswith("pyiqa:"):
        check_metric_name(name)
        return
    if ":" in name.removeprefix("pyiqa:"):
        raise ConfigError("takes no weights", where=repr(name), mend="milo:mini and e-mae:PATH do, others do not")
    ours = {*PIXEL, ENSEMBLE, *OTHERS, *ABSENT} if not name.startswith("pyiqa:") else {*ABSENT}
    if base in ours or base in PYIQA or base in PYIQA_NR:
        return
    if pyiqa_mode(base) is None:
        known = [*OURS, *PIXEL, ENSEMBLE, *OTHERS, *PYIQA, *PYIQA_NR]
        close = difflib.get_close_matches(base, known, n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise ConfigError("no such metric", where=repr(name), mend=f"{hint}Known: {', '.join(dict.fromkeys(known))}")


def load_suite_metric(name: str, protocol: Protocol | None = None, device: torch.device | str = "cpu") -> SuiteMetric:
    """A metric on its device. What must be downloaded is downloaded here, or refused within seconds.

    Args:
        name: see the module; ``milo`` and ``e-*`` take weights after a colon.
        protocol: of ``psnr`` and ``ssim``; by default RGB without a border.
        device: where it computes.

    Raises:
        ConfigError: as `check_name`.
        MetricUnavailable: weights or a package cannot be had; the error says which, and what to do.
    """
    check_name(name)
    base, device = base_name(name), torch.device(device)
    if base in ABSENT:
        mend = _MEND_ABSENT.get(base, "Leave it out, or use --skip-unavailable")
        raise MetricUnavailable(ABSENT[base], where=name, mend=mend)
    if not name.startswith("pyiqa:"):
        if base in PIXEL:
            return _pixel(name, protocol or Protocol())
        if base == ENSEMBLE:
            return _surrogate(device)
        if base in OURS:
            return _masked(name, device)
    return load_outside(name, base, device)


def needs_reference(name: str) -> bool | None:
    """Whether a metric compares with a reference; None where only pyiqa could say, and it is not here."""
    base = base_name(name)
    if base in (*PIXEL, *OURS, *PYIQA, ENSEMBLE, "st-lpips", "st-lpips-vgg", *NOT_OFFERED, "ens"):
        return True
    if base in (*PYIQA_NR, "niqe-basicsr"):
        return False
    mode = pyiqa_mode(base)
    return None if mode is None else mode == "FR"


def _ours() -> str:
    return f"milo-restore {milo_restore.__version__}"


def _pixel(name: str, protocol: Protocol) -> SuiteMetric:
    if name == "mae":
        return SuiteMetric(name, True, True, _ours(), "mae", None, None, _mae)
    function = {"psnr": psnr, "ssim": ssim}[name]

    def measure(batch: Batch) -> list[float]:
        return [
            _by_protocol(function, protocol, image, reference)
            for image, reference in zip(batch.images, batch.references)
        ]

    equal = {"psnr": "psnr", "ssim": "ssimc"}[name]
    if protocol.colour == "y":
        equal = f"{'psnry' if name == 'psnr' else 'ssim'}, color_space='ycbcr'"
    if protocol.border:
        equal += f", crop_border={protocol.border}"
    settings = f"{protocol.colour}, border {protocol.border}"
    return SuiteMetric(name, False, True, _ours(), equal, None, None, measure, settings=settings)


def _by_protocol(
    function: Callable[[Any, Any], float],
    protocol: Protocol,
    image: NDArray[np.uint8],
    reference: NDArray[np.uint8],
) -> float:
    border, colour = protocol.border, protocol.colour
    height, width = image.shape[:2]
    smallest = SMALLEST_SIDE if function is ssim else 1
    if min(height, width) < 2 * border + smallest:
        raise DataError(f"{width}x{height} leaves sides of less than {smallest} pixels within a border of {border}")
    if colour == "rgb":
        cut = slice(border, -border) if border else slice(None)
        return function(image[cut, cut], reference[cut, cut])
    from milo_restore import compat

    compat.make_basicsr_importable()
    from basicsr.metrics import psnr_ssim

    name = "calculate_psnr" if function is psnr else "calculate_ssim"
    pair = (array[..., ::-1] for array in (image, reference))  # basicsr's Y is of BGR
    return float(getattr(psnr_ssim, name)(*pair, crop_border=border, input_order="HWC", test_y_channel=True))


def _mae(batch: Batch) -> list[float]:
    return [float(value) for value in (batch.image_tensor - batch.reference_tensor).abs().mean((1, 2, 3))]


def _masked(name: str, device: torch.device) -> SuiteMetric:
    """MILO or a masking-enhanced metric: its raw value."""
    base, _, weights = name.partition(":")
    try:
        metric = load_masked(base, weights or "official")
    except MiloRestoreError as error:
        where = f"{name}: {error.where}" if error.where else name
        raise MetricUnavailable(error.what, where=where, mend=error.mend) from error
    metric = metric.to(device)

    def measure(batch: Batch) -> list[float]:
        with torch.no_grad():
            return [float(v) for v in metric(batch.image_tensor, reference=batch.reference_tensor)]

    lower = bool(getattr(metric, "lower_better", True))
    described, digest = str(metric.weights), metric.weights.sha256
    return SuiteMetric(name, lower, True, _ours(), base, described, digest, measure)


def _surrogate(device: torch.device) -> SuiteMetric:
    """The mean of all four public masking-enhanced metrics' MOS: all four, or it would be another one elsewhere."""
    from milo_restore.evaluate.pseudo_mos import PseudoMOS
    from milo_restore.metric import ENHANCED

    try:
        teacher = PseudoMOS.from_names(ENHANCED).to(device)
    except MiloRestoreError as error:
        where = f"{ENSEMBLE}: {error.where}" if error.where else ENSEMBLE
        raise MetricUnavailable(error.what, where=where, mend=error.mend) from error
    content = json.dumps(teacher.to_json()["members"], sort_keys=True)
    note = f"not the paper's Ens. and not comparable with it (higher is better here); {teacher.describe()}"

    def measure(batch: Batch) -> list[float]:
        return [float(value) for value in teacher(batch.image_tensor, batch.reference_tensor)]

    names = ", ".join(f"{member.name} {member.sha256[:12]}" for member in teacher.members)
    digest = hashlib.sha256(content.encode()).hexdigest()
    return SuiteMetric(ENSEMBLE, False, True, _ours(), ENSEMBLE, names, digest, measure, note=note)
