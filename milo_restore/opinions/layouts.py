"""CSIQ, TID2013, KADID-10k and PIPAL as their authors distribute them: folders, names of files, scales of opinions."""

from __future__ import annotations

from dataclasses import dataclass

from milo_restore.data.kadid import DISTORTIONS

_TID_KINDS = (
    "Gaussian noise", "noise in colour", "correlated noise", "masked noise", "high frequency noise", "impulse noise",
    "quantisation noise", "Gaussian blur", "denoising", "JPEG", "JPEG 2000", "JPEG transmission errors",
    "JPEG 2000 transmission errors", "non-eccentricity pattern", "block-wise distortion", "mean shift", "contrast",
    "saturation", "multiplicative noise", "comfort noise", "lossy compression of noise", "colour quantisation",
    "chromatic aberration", "sparse sampling",
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """A data set as its authors distribute it.

    Attributes:
        name: for messages.
        references: folder of reference images, as is ``distorted``.
        tables: where opinions may stand, the first that is there counts; a pattern for several files.
        rows: how many opinions were published.
        scale: the smallest and the largest possible opinion.
        pattern: names of distorted images; its groups are the reference's stem and the distortion.
        suffix: of its images.
        kinds: names of the distortions 01, 02, ...; empty where their codes must do.
        higher_better: direction of the opinions.
    """

    name: str
    references: str
    distorted: str
    tables: tuple[str, ...]
    rows: int
    scale: tuple[float, float]
    pattern: str
    suffix: str
    kinds: tuple[str, ...] = ()
    higher_better: bool = True


LAYOUTS = {
    "csiq": Layout(
        "CSIQ", "src_imgs", "dst_imgs", ("meta_info_CSIQDataset.csv", "CSIQ.txt", "csiq.DMOS.xlsx"), 866, (0, 1),
        r"(\w+)\.(awgn|blur|contrast|fnoise|jpeg|jpeg2000)\.\d\.png", ".png", higher_better=False,
    ),
    "tid2013": Layout(
        "TID2013", "reference_images", "distorted_images", ("mos_with_names.txt",), 3000, (0, 9),
        r"(i\d\d)_(\d\d)_\d\.bmp", ".bmp", _TID_KINDS,
    ),
    "kadid10k": Layout(
        "KADID-10k", "images", "images", ("dmos.csv",), 10125, (1, 5), r"(i\d\d)_(\d\d)_\d\d\.png", ".png",
        tuple(kind.name for kind in DISTORTIONS),
    ),
    "pipal": Layout(
        "PIPAL", "Train_Ref", "Train_Dist", ("Train_Label/*.txt",), 23200, (0, 3000),
        r"(a\d{4})_(\d\d)_\d\d\.bmp", ".bmp",
    ),
}  # fmt: skip
