"""The metrics by name: which there are, whose they are, which compare with a reference, and which cannot be measured.

Names are this project's for ``psnr``, ``ssim``, ``mae``, ``milo``, ``e-mae``, ``e-mse``, ``e-psnr``, ``e-ssim``,
``e-vgg``, ``e-lpips``, ``e-dists`` and ``ens-surrogate``; ``niqe-basicsr`` is basicsr's NIQE and ``st-lpips`` the
package stlpips-pytorch; every other name is pyiqa's, exactly. Where both have a name, ``pyiqa:NAME`` is pyiqa's:

- ``psnr``: ours ends nowhere (identical images have none), pyiqa's at 80 dB.
- ``ssim``: ours is of RGB by default, as pyiqa's ``ssimc``; pyiqa's ``ssim`` is of the luma, in YIQ. With
  ``colour="y"`` ours are of BasicSR's Y, the limited-range Y of YCbCr, as tables of super-resolution print them.
  pyiqa rounds Y to integers (up to 2e-3) and counts negative correlations as none (up to 1e-3, under heavy noise).
- ``stlpips`` is pyiqa's own port with pyiqa's weights, ``st-lpips`` the authors' package.
- ``lpips`` has AlexNet inside and ``lpips-vgg`` VGG.

Ours may carry weights after a colon, so that one table can compare them: ``milo`` is ``milo:official``; ``milo:mini``
and ``milo:PATH`` are others; ``e-mae`` to ``e-dists`` take a path.

Ens., the paper's ensemble, cannot be measured: its E-DeepWSD and the common scale of its members are unpublished.
``ens-surrogate`` is another number, the mean of four masking-enhanced metrics' predicted MOS, and says so.
"""

from __future__ import annotations

import difflib

from milo_restore.errors import ConfigError
from milo_restore.measure.metrics.from_pyiqa import pyiqa_mode
from milo_restore.measure.metrics.metric import base_name

PIXEL = ("psnr", "ssim", "mae")
MASKED = ("milo", "e-mae", "e-mse", "e-psnr", "e-ssim", "e-vgg", "e-lpips", "e-dists")
ENSEMBLE = "ens-surrogate"
ST_LPIPS = ("st-lpips", "st-lpips-vgg")
NIQE = "niqe-basicsr"
PYIQA_FR = (
    "psnr", "psnry", "ssim", "ssimc", "ms_ssim", "cw_ssim", "fsim", "vif", "vsi", "gmsd", "nlpd", "mad", "lpips",
    "lpips-vgg", "dists", "topiq_fr", "topiq_fr-pipal", "pieapp", "wadiqam_fr", "stlpips", "stlpips-vgg",
)  # fmt: skip
PYIQA_NR = (
    "topiq_nr", "topiq_nr-flive", "topiq_nr-spaq", "topiq_nr-face", "topiq_nr-face-v1", "topiq_nr_swin-face",
    "topiq_iaa", "topiq_iaa_res50", "clipiqa", "clipiqa+", "clipiqa+_vitL14_512", "clipiqa+_rn50_512", "musiq",
    "musiq-ava", "musiq-paq2piq", "musiq-spaq", "maniqa", "maniqa-pipal", "maniqa-kadid", "niqe", "niqe_matlab",
    "ilniqe", "brisque", "brisque_matlab", "piqe", "nrqm", "pi", "nima", "nima-koniq", "nima-spaq", "nima-vgg16-ava",
    "dbcnn", "cnniqa", "paq2piq", "hyperiqa", "tres", "tres-flive", "liqe", "liqe_mix", "unique", "uranker",
    "entropy", "arniqa", "qualiclip", "qalign", "compare2score", "laion_aes", "wadiqam_nr",
)  # fmt: skip
"""pyiqa's metrics at 0.1.16 that people use; a newer pyiqa's others are asked for by their names, too."""

NOT_OFFERED = {
    "flip": "pyiqa has no FLIP; NVIDIA's package flip-evaluator is not used here",
    "hdr-vdp-2": "a MATLAB program",
    "vgg": "pyiqa has no plain distance of VGG features",
    "deepwsd": "pyiqa has no DeepWSD",
    "e-deepwsd": "neither code nor weights are published",
    "ens": "the paper's E-DeepWSD and the common scale of its members are unpublished",
}
"""Full-reference metrics of the paper that cannot be measured here, and why."""
OF_FOLDERS = dict.fromkeys(
    ("fid", "sfid", "fid_dinov2", "inception_score"), "a number of a whole folder, not of an image"
)
ABSENT = {**NOT_OFFERED, **OF_FOLDERS}

FULL_REFERENCE = (
    *PIXEL, *MASKED, ENSEMBLE, *ST_LPIPS,
    *(f"pyiqa:{name}" if name in PIXEL else name for name in PYIQA_FR), *NOT_OFFERED,
)  # fmt: skip
"""All of them, those that cannot be measured last."""

_OURS = (*PIXEL, *MASKED, ENSEMBLE, *ST_LPIPS, NIQE)


def check_name(name: str) -> None:
    """Refuse what no installation could measure, before anything is loaded. Asks pyiqa about names unknown here.

    Raises:
        ConfigError: an unknown name, or weights after a name that takes none.
    """
    base, theirs = base_name(name), name.startswith("pyiqa:")
    _, colon, weights = name.removeprefix("pyiqa:").partition(":")
    if colon and (theirs or base not in MASKED or not weights):
        mend = "Write milo, milo:official, milo:mini or milo:PATH; e-mae to e-dists take a path too, others nothing"
        raise ConfigError("takes no such weights", where=repr(name), mend=mend)
    if (base in _OURS and not theirs) or base in (*ABSENT, *PYIQA_FR, *PYIQA_NR):
        return
    if pyiqa_mode(base) is None:
        known = list(dict.fromkeys((*_OURS, *PYIQA_FR, *PYIQA_NR)))
        close = difflib.get_close_matches(base, known, n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise ConfigError("no such metric", where=repr(name), mend=f"{hint}Known: {', '.join(known)}")


def needs_reference(name: str) -> bool | None:
    """Whether a metric compares with a reference; None where only pyiqa could say, and it is not here."""
    base = base_name(name)
    if base in (*PIXEL, *MASKED, ENSEMBLE, *ST_LPIPS, *PYIQA_FR, *NOT_OFFERED):
        return True
    if base in (*PYIQA_NR, NIQE):
        return False
    mode = pyiqa_mode(base)
    return None if mode is None else mode == "FR"
