"""The table of metrics: their names, how each is loaded, and which compare with a reference.

A metric is one row and one loader, in the file of where it comes from: `pixel`, `from_milo`, `from_packages` or
`from_pyiqa`. With these it works wherever a metric may be named: ``evaluate``, ``correlate``, the curves and the best
weights of a training, the paper's tables and the report.

Every other name is pyiqa's, exactly. Where both have a name, ``pyiqa:NAME`` is pyiqa's:

- ``psnr`` is infinite for identical images (null in JSON); pyiqa's stops at 80 dB.
- ``ssim``: ours is of RGB by default, as pyiqa's ``ssimc``; pyiqa's ``ssim`` is of the luma, in YIQ. With
  ``colour="y"`` ours are of BasicSR's Y, the limited-range Y of YCbCr, as tables of super-resolution print them.
  pyiqa rounds Y to integers (up to 2e-3) and counts negative correlations as none (up to 1e-3, under heavy noise).
- ``stlpips`` is pyiqa's own port with pyiqa's weights, ``st-lpips`` the authors' package.
- ``lpips`` has AlexNet inside and ``lpips-vgg`` VGG.

Ours may carry weights after a colon, so that one table can compare them: ``milo`` is ``milo:official``; ``milo:mini``,
``milo:auto`` and ``milo:PATH`` are others; ``e-mae`` to ``e-dists`` take a path.

Ens., the paper's ensemble, cannot be measured: its E-DeepWSD and the common scale of its members are unpublished.
``ens-surrogate`` is another number, the mean of four E-metrics' predicted MOS, and says so.
"""

from __future__ import annotations

from milo_restore.errors import ConfigError, did_you_mean
from milo_restore.measure.metrics import from_milo, from_packages, from_pyiqa, pixel
from milo_restore.measure.metrics.metric import Known, base_name

OURS: dict[str, Known] = {**pixel.METRICS, **from_milo.METRICS, **from_packages.METRICS}
PYIQA: dict[str, Known] = from_pyiqa.METRICS

NOT_OFFERED = {
    "flip": "pyiqa has no FLIP; NVIDIA's package flip-evaluator is not used here",
    "hdr-vdp-2": "a MATLAB program",
    "vgg": "pyiqa has no plain distance of VGG features",
    "deepwsd": "pyiqa has no DeepWSD",
    "e-deepwsd": "neither code nor weights are published",
    "ens": "the paper's E-DeepWSD and the common scale of its members are unpublished",
}
"""Full-reference metrics of the paper that cannot be measured here, and why."""
ABSENT = NOT_OFFERED | dict.fromkeys(
    ("fid", "sfid", "fid_dinov2", "inception_score"), "a number of a whole folder, not of an image"
)

FULL_REFERENCE = (
    *(name for name, row in OURS.items() if row.reference),
    *(f"pyiqa:{name}" if name in OURS else name for name, row in PYIQA.items() if row.reference),
    *NOT_OFFERED,
)
"""All of them, those that cannot be measured last."""


def find_metric(name: str) -> Known:
    """The row of a metric, asking pyiqa about names unknown here; nothing is loaded.

    Raises:
        ConfigError: an unknown name, or weights after a name that takes none.
    """
    base, theirs = base_name(name), name.startswith("pyiqa:")
    _, colon, weights = name.removeprefix("pyiqa:").partition(":")
    row = (PYIQA if theirs or base not in OURS else OURS).get(base)
    if colon and not (row is not None and row.weights and weights and not theirs):
        takers = [known for known, row in OURS.items() if row.weights and known != "milo"]
        mend = f"Write milo:official, milo:mini, milo:auto or milo:PATH; {', '.join(takers)} take a path"
        raise ConfigError("takes no such weights", where=repr(name), mend=mend)
    if row is not None:
        return row
    if base in ABSENT:
        return Known(from_pyiqa.load_pyiqa, base in NOT_OFFERED)
    if theirs and base in OURS:  # which pyiqa knows only from us, see milo_restore.pyiqa
        raise ConfigError("no such metric of pyiqa's own", where=repr(name), mend=f"Write {base}")
    mode = from_pyiqa.pyiqa_mode(base)
    if mode is None:
        known = list(dict.fromkeys((*OURS, *PYIQA)))
        mend = " ".join(filter(None, (did_you_mean(base, known), f"Known: {', '.join(known)}")))
        raise ConfigError("no such metric", where=repr(name), mend=mend)
    return Known(from_pyiqa.load_pyiqa, mode == "FR")


def help_text() -> str:
    """The names that ``--metrics`` takes, for help texts."""
    ours = ", ".join(f"{name}[:WEIGHTS]" if row.weights else name for name, row in OURS.items())
    return (
        f"{ours}, or any metric of pyiqa by its exact name (lpips, dists, topiq_nr, clipiqa, musiq, niqe, ...); "
        "milo is milo:official, milo:mini and milo:PATH are others; pyiqa:psnr and pyiqa:ssim are pyiqa's own"
    )
