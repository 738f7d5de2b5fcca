"""Metrics that people's opinions train: MILO and the E-metrics, each with its map from raw value to opinion.

What is learned is the masks and the scalers. VGG16, LPIPS' heads and DISTS' weights stay as they are. E-VGG, E-LPIPS
and E-DISTS are published without a scaler; here they get one with the layers of the others'.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from milo_restore.data.keys import SampleKey
from milo_restore.errors import ConfigError, DataError, did_you_mean
from milo_restore.files.state import read_state
from milo_restore.metric import E_FEATURES, E_PIXEL, MILO, EFeatureMetric, EPixelMetric, load_e_features, load_e_pixel
from milo_restore.metric.e_pixel import untrained_e_pixel
from milo_restore.metric.e_weights import published_names, untrained_e_features
from milo_restore.metric.network import ScoreScaler
from milo_restore.teach.student import initialise, initialise_masks, initialise_scaler

STUDENTS = ("milo", *E_PIXEL, *E_FEATURES)
CALIBRATED_ON = 64
"""Samples over whose raw values a new scaler is laid."""
_SCALER = "scaler_network.model."


class Student(nn.Module):
    """A learnable metric that predicts opinions. Make it with `load_student`.

    Args:
        name: one of `STUDENTS`.
        metric: with parameters to learn.
        scaler: of a metric without one of its own, or None.

    Attributes:
        weights: what it starts from, in words; None: from random weights.
    """

    def __init__(
        self, name: str, metric: MILO | EPixelMetric | EFeatureMetric, scaler: ScoreScaler | None = None
    ) -> None:
        super().__init__()
        self.name, self.metric, self.scaler = name, metric, scaler
        self.weights: str | None = None

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """Predicted mean opinion scores, (N,), in (0, 5), of images (N, 3, H, W) against references."""
        if not isinstance(self.metric, EFeatureMetric):
            return self.metric.mos(image, reference=reference)
        assert self.scaler is not None  # noqa: S101  (load_student sees to it)
        raw = self.metric(image, reference=reference)
        return 5 * (1 - self.scaler(raw.reshape(-1, 1, 1, 1)).reshape(-1))

    def mos(self, image: Tensor, *, reference: Tensor) -> Tensor:
        """`forward`, under the name that metrics have for it."""
        return self(image, reference)

    def file_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights for a file that the metric's own loader reads, from this module's state dict."""
        own = {key.removeprefix("metric."): value for key, value in state.items() if key.startswith("metric.")}
        if self.scaler is None:
            return own
        scaler = {key.removeprefix("scaler."): value for key, value in state.items() if key.startswith("scaler.")}
        return published_names({key.removeprefix("mask_networks."): value for key, value in own.items()}, scaler)


def load_student(
    name: str, start: str | None, samples: Dataset[dict[str, Any]], patch: int, device: torch.device | str = "cpu"
) -> Student:
    """The metric to train, on its device; random weights are drawn from torch's global generator.

    Args:
        name: one of `STUDENTS`.
        start: weights to go on from, as the metric's loader takes them: ``official``, ``mini`` (MILO's), or a path;
            None: random ones.
        samples: what it is to be trained on. The scalers of E-metrics that start anew are laid over the raw values of
            the first `CALIBRATED_ON`.
        patch: side of the crops, in pixels.
        device: where it computes.

    Raises:
        ConfigError: no such student.
        WeightsError: a file is missing, damaged or another metric's.
        DataError: a sample cannot be read, or the metric says the same of all.
    """
    if name not in STUDENTS:
        mend = did_you_mean(name, STUDENTS) or f"Known: {', '.join(STUDENTS)}"
        raise ConfigError(f"{name!r} is no metric to train", where="student", mend=mend)
    student = _untrained(name).to(device)
    scaled = start is not None and _go_on(student, start)
    if not scaled and not isinstance(student.metric, MILO):
        _calibrate(student, samples, patch, device)
    return student


def _untrained(name: str) -> Student:
    """A student with random weights; of E-metrics, all but the scaler's place."""
    if name == "milo":
        milo = MILO.untrained()
        initialise(milo)
        return Student(name, milo)
    if name in E_PIXEL:
        pixel = untrained_e_pixel(name)
        initialise_masks(pixel.mask_network, 3, contrast=8, visible=0.0)
        return Student(name, pixel)
    features = untrained_e_features(name)
    for network, channels in zip(features.mask_networks, features.channels, strict=True):
        assert isinstance(network, nn.Sequential)  # noqa: S101
        initialise_masks(network, channels, contrast=1, visible=0.0)  # features are large as they are
    return Student(name, features, ScoreScaler())


def _go_on(student: Student, start: str) -> bool:
    """Take over trained weights; whether a scaler was among them."""
    name, metric = student.name, student.metric
    loaded: MILO | EPixelMetric | EFeatureMetric
    if isinstance(metric, EFeatureMetric):
        loaded = load_e_features(name, start)
    else:
        loaded = MILO(start) if name == "milo" else load_e_pixel(name, start)
    buffers, info = dict(loaded.named_buffers()), loaded.weights
    metric.load_state_dict({key: buffers[key] for key in metric.state_dict()})
    student.weights = str(info)
    if student.scaler is None or info is None:
        return True
    content = read_state(Path(info.path)).tensors
    scaler = {key.removeprefix(_SCALER): value for key, value in content.items() if key.startswith(_SCALER)}
    if scaler:
        student.scaler.load_state_dict(scaler)
    return bool(scaler)


@torch.no_grad()
def _calibrate(student: Student, samples: Dataset[dict[str, Any]], patch: int, device: torch.device | str) -> None:
    """Lay a new scaler over the raw values: from 0.12 where they are best to near 1 where they are worst."""
    metric, raw = student.metric, []
    for position in range(CALIBRATED_ON):
        sample = samples[SampleKey(0, position, position, patch)]
        pair = (sample[key][None].to(device) for key in ("image", "reference"))
        raw.append(float(metric(next(pair), reference=next(pair))))
    gain = metric.scaler_gain if isinstance(metric, EPixelMetric) else 1.0
    low, high = (gain * torch.tensor(raw).quantile(share).item() for share in (0.05, 0.95))
    if not low < high:
        raise DataError(f"{student.name} says the same of {CALIBRATED_ON} samples", where="data.kadid")
    scaler = student.scaler if isinstance(metric, EFeatureMetric) else metric.scaler
    assert scaler is not None  # noqa: S101  (load_student sees to it)
    best, worst = (high, low) if metric.higher_is_better else (low, high)
    initialise_scaler(scaler, best=best, worst=worst)
