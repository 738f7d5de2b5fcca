"""FID and KID: one number of two sets of images, from Inception's features of each image.

Features are clean-fid's (Parmar et al., "On aliased resizing and surprising subtleties in GAN evaluation", CVPR 2022):
8-bit RGB, each channel resized to 299x299 by Pillow's bicubic in float and cut to [0, 255], brought to [-1, 1], through
the Inception V3 of the original FID with the 2,048 values of its last pooling; network and weights are pyiqa's. Older
programs resize otherwise, and their FIDs are other numbers.

FID (Heusel et al. 2017) falls as sets grow: two halves of one set are not at 0, and below 2,048 images a covariance of
2,048 features has not even full rank. Compare only what has the same n. KID (Binkowski et al. 2018) is unbiased, and
may be negative. Neither has a value per image, so neither an interval over images nor a paired test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from milo_restore.files.hashes import tensors_sha256
from milo_restore.measure.metrics.from_pyiqa import create_pyiqa, quiet
from milo_restore.measure.metrics.metric import Known, Metric, MetricUnavailable, base_name, random_state_kept
from milo_restore.measure.metrics.protocol import Protocol

FEWEST_IMAGES = 50
"""Below so many on a side there is no FID and no KID; a convention of this project, no theorem."""
ENOUGH_IMAGES = 2048
"""Features that Inception gives: below so many images on a side it is warned."""

_SIDE = 299
_BLOCK = 2048  # rows of a kernel matrix at once: 34 MB

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SetMetric:
    """A metric of two sets of images, ready to measure.

    Attributes:
        name: ``fid`` or ``kid``; lower is better.
        source: the software of the features, with its version.
        formal: what is computed.
        weights: which, for people.
        weights_sha256: of all tensors.
        features: an (H, W, 3) uint8 RGB image's features, (D,).
        distance: of (N, D) features of images and (M, D) of references.
    """

    name: str
    source: str
    formal: str
    weights: str
    weights_sha256: str
    features: Callable[[NDArray[np.uint8]], Floats]
    distance: Callable[[Floats, Floats], float]

    def as_dict(self) -> dict[str, Any]:
        """The part of its entry in results.json that does not depend on the images."""
        return {
            "better": "lower", "source": self.source, "name": self.formal,
            "weights": self.weights, "weights_sha256": self.weights_sha256,
        }  # fmt: skip


def frechet_distance(images: Floats, references: Floats) -> float:
    """FID of features: the squared Frechet distance of two normal distributions with their means and covariances.

    The trace of the root of the covariances' product is the sum of the singular values of A B', where A and B are the
    centred features over the roots of n - 1: exact for any n, without a root of a matrix that may be singular.

    Args:
        images: (N, D), N >= 2.
        references: (M, D), M >= 2.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> features = rng.normal(size=(100, 4))
        >>> round(frechet_distance(features, features + 1), 6)  # the means are 1 apart in each of four directions
        4.0
    """
    away = images.mean(0) - references.mean(0)
    roots = [_root_of_covariance(features) for features in (images, references)]
    shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return max(0.0, float(away @ away + sum((root**2).sum() for root in roots) - 2 * shared))


def kernel_distance(images: Floats, references: Floats) -> float:
    """KID of features: the unbiased squared maximum mean discrepancy under the kernel (x'y / D + 1)^3.

    Of all images at once. Where both sides have as many, and 1,000 at most, clean-fid's mean over 100 random subsets of
    1,000 is the same number; above, it is this one plus chance.

    Args:
        images: (N, D), N >= 2.
        references: (M, D), M >= 2.
    """
    n, m = len(images), len(references)
    within = [
        (_kernel_sum(features, features) - ((features**2).sum(1) / features.shape[1] + 1) ** 3 @ np.ones(count))
        / (count * (count - 1))
        for features, count in ((images, n), (references, m))
    ]
    return float(sum(within) - 2 * _kernel_sum(images, references) / (n * m))


def refuse_image(name: str, protocol: Protocol, device: torch.device) -> Metric:
    """Refusal to load such a metric as one of images.

    Raises:
        MetricUnavailable: always.
    """
    mend = "'milo-restore evaluate' measures it"
    raise MetricUnavailable("is one number of a whole folder, not of an image", where=name, mend=mend)


def load_set_metrics(names: Sequence[str], device: torch.device | str) -> list[SetMetric]:
    """FID and KID, which share one network.

    Args:
        names: ``fid``, ``kid``, or both.
        device: where the network computes.

    Raises:
        MetricUnavailable: pyiqa or the network's weights cannot be had.
    """
    try:
        with random_state_kept(torch.device(device)):
            metric, version = create_pyiqa("fid", device)
    except MetricUnavailable as error:
        raise MetricUnavailable(error.what, where=" and ".join(names), mend=error.mend, fetch=error.fetch) from error
    network = metric.net.model.eval()
    digest = tensors_sha256(network.state_dict())

    def features(image: NDArray[np.uint8]) -> Floats:
        with torch.no_grad(), quiet():
            found: Tensor = network(prepare(image)[None].to(device), False, False)[0]
        return found.reshape(-1).double().cpu().numpy()

    def made(name: str) -> SetMetric:
        distance, formal = SETS[base_name(name)]
        described = f"Inception V3 of FID, tensors' sha256 {digest[:12]}"
        return SetMetric(name, f"pyiqa {version}", formal, described, digest, features, distance)

    return [made(name) for name in names]


def prepare(image: NDArray[np.uint8]) -> Tensor:
    """An (H, W, 3) uint8 RGB image as clean-fid shows it to the network, (3, 299, 299) in [-1, 1]."""
    channels = [Image.fromarray(image[..., channel].astype(np.float32)) for channel in range(3)]
    resized = [np.asarray(channel.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)) for channel in channels]
    return (torch.from_numpy(np.stack(resized).clip(0, 255)) - 128) / 128


SETS: dict[str, tuple[Callable[[Floats, Floats], float], str]] = {
    "fid": (frechet_distance, "clean FID, Frechet distance of 2,048 features"),
    "kid": (kernel_distance, "clean KID, unbiased, cubic kernel, of all images"),
}
"""Metrics of sets by name: the distance of features, and what it is called."""
METRICS = {name: Known(refuse_image, whole=True) for name in SETS}


def _root_of_covariance(features: Floats) -> Floats:
    """A with A'A the covariance, of D rows at most."""
    root = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    return np.asarray(np.linalg.qr(root, mode="r")) if len(root) > root.shape[1] else root


def _kernel_sum(x: Floats, y: Floats) -> float:
    blocks = (x[start : start + _BLOCK] @ y.T for start in range(0, len(x), _BLOCK))
    return float(sum(((block / x.shape[1] + 1) ** 3).sum() for block in blocks))
