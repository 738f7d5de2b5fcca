"""The table of metrics: their names, how each is loaded, and which compare with a reference.

A metric is one row and one loader, in the file of where it comes from: `pixel`, `from_milo`, `from_features`,
`from_packages` or `from_pyiqa`. With these it works wherever a metric may be named: ``evaluate``, ``correlate``, the
curves and the best weights of a training, the paper's tables and the report.

Every other name is pyiqa's, exactly. Where both have a name, ``pyiqa:NAME`` is pyiqa's:

- ``psnr`` is infinite for identical images (null in JSON); pyiqa's stops at 80 dB.
- ``ssim``: ours is of RGB by default, as pyiqa's ``ssimc``; pyiqa's ``ssim`` is of the luma, in YIQ. With
  ``colour="y"`` ours are of BasicSR's Y, the limited-range Y of YCbCr, as tables of super-resolution print them.
  pyiqa rounds Y to integers (up to 2e-3) and counts negative correlations as none (up to 1e-3, under heavy noise).
- ``stlpips`` is pyiqa's own port with pyiqa's weights, ``st-lpips`` the authors' package.
- ``lpips`` has AlexNet inside and ``lpips-vgg`` VGG.

Ours may carry weights after a colon, so that one table can compare them: ``milo`` is ``milo:official``; ``milo:mini``,
``milo:auto`` and ``milo:PATH`` are others; ``e-mae`` to ``e-dists`` take a path.

``fid`` and ``kid`` are numbers of a whole folder, see `of_sets`; ``evaluate`` alone measures them. Which full-reference
metrics the paper names, and what each lacks here, is in `states`.

Ens., the paper's ensemble, cannot be measured: its E-DeepWSD and the common scale of its members are unpublished.
``ens-surrogate`` is another number, the mean of four E-metrics' predicted MOS, and says so.
"""

from __future__ import annotations

from milo_restore.errors import ConfigError, did_you_mean
from milo_restore.measure.metrics import from_features, from_milo, from_packages, from_pyiqa, of_sets, pixel
from milo_restore.measure.metrics.metric import Known, base_name

OURS: dict[str, Known] = {
    **pixel.METRICS, **from_milo.METRICS, **from_features.METRICS, **from_packages.METRICS
}  # fmt: skip
PYIQA: dict[str, Known] = from_pyiqa.METRICS

OF_SETS: dict[str, Known] = of_sets.METRICS

NOT_OFFERED: dict[str, tuple[str, str | None]] = {
    "hdr-vdp-2": ("a MATLAB program", "Use cvvdp, ColorVideoVDP, its authors' successor to it: another number"),
    "e-deepwsd": ("neither code nor weights are published", None),
    "ens": (
        "the paper's E-DeepWSD and the common scale of its members are unpublished",
        "Use ens-surrogate, which names its members and is not comparable with the paper's column",
    ),
}
"""Full-reference metrics of the paper that cannot be measured here, why, and what can in their place."""
ABSENT = NOT_OFFERED | dict.fromkeys(
    ("sfid", "fid_dinov2", "inception_score"),
    ("a number of a whole folder, not of an image", "Of these, fid and kid are measured here"),
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
    if base in OF_SETS:
        return OF_SETS[base]
    if base in ABSENT:
        return Known(from_pyiqa.load_pyiqa, base in NOT_OFFERED)
    if theirs and base in OURS:  # which pyiqa knows only from us, see milo_restore.pyiqa
        raise ConfigError("no such metric of pyiqa's own", where=repr(name), mend=f"Write {base}")
    mode = from_pyiqa.pyiqa_mode(base)
    if mode is None:
        known = list(dict.fromkeys((*OURS, *OF_SETS, *PYIQA)))
        mend = did_you_mean(base, known) or f"Known: {', '.join(known)}"
        raise ConfigError("no such metric", where=repr(name), mend=mend)
    return Known(from_pyiqa.load_pyiqa, mode == "FR")


def help_text() -> str:
    """The names that ``--metrics`` takes, for help texts."""
    ours = ", ".join(f"{name}[:WEIGHTS]" if row.weights else name for name, row in OURS.items())
    return (
        f"{ours}; of a whole folder {', '.join(OF_SETS)}; or any metric of pyiqa by its exact name (lpips, dists, "
        "topiq_nr, clipiqa, musiq, niqe, ...); "
        "milo is milo:official, milo:mini and milo:PATH are others; pyiqa:psnr and pyiqa:ssim are pyiqa's own"
    )
