"""The files of E-VGG, E-LPIPS and E-DISTS, read in full.

The authors' mask files are not redistributed and state no licence; they come where a user asks for them. VGG16, which
a file may hold beside the masks, is taken from torchvision.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from milo_restore.errors import ConfigError, WeightsError
from milo_restore.files import present_weights
from milo_restore.files.hashes import sha256_of
from milo_restore.files.state import fill, read_state
from milo_restore.metric.e_features import EDISTS, ELPIPS, EVGG, EFeatureMetric
from milo_restore.metric.features import fill_stages
from milo_restore.metric.weights import WeightsInfo

_OTHER_PARTS = ("stage", "model_elpips.", "model_edists.", "scaler_network.")  # which a file may hold beside the masks

_CLASSES: dict[str, type[EFeatureMetric]] = {cls.name: cls for cls in (EVGG, ELPIPS, EDISTS)}
E_FEATURES: tuple[str, ...] = tuple(_CLASSES)
"""The names that `load_e_features` takes."""


def load_e_features(name: str, weights: str | Path = "official") -> EFeatureMetric:
    """A frozen E-VGG, E-LPIPS or E-DISTS with the published weights.

    Needed are the assets of these names (``milo-restore assets fetch e-vgg``), for E-DISTS ``dists``, too. VGG16 is
    downloaded once where there is a network. LPIPS' heads come with the package ``lpips``.

    Args:
        name: one of `E_FEATURES`.
        weights: ``official``: the authors', checked by git's hash of it; or the path of a file in the same format.

    Raises:
        ConfigError: no such metric.
        WeightsError: a file is missing, is another one, or does not hold exactly the masks that the metric has.
    """
    if name not in _CLASSES:
        raise ConfigError("no such metric", where=repr(name), mend=f"Known: {', '.join(E_FEATURES)}")
    metric = _CLASSES[name]()
    path = present_weights(name) if weights == "official" else Path(weights)
    _fill_masks(metric, read_state(path).tensors, path)
    _fill_features(metric)
    metric.weights = WeightsInfo(str(weights), str(path), sha256_of(path))
    return metric.freeze()


def untrained_e_features(name: str) -> EFeatureMetric:
    """One of `E_FEATURES` to be trained: its masks are random parameters, all else is trained, and frozen.

    Raises:
        WeightsError: as `load_e_features`; published masks are not needed.
    """
    metric = _CLASSES[name]()
    _fill_features(metric)
    masks = metric.mask_networks
    metric.mask_networks = nn.ModuleList()
    metric.freeze().mask_networks = masks
    return metric


def published_names(masks: Mapping[str, Tensor], scaler: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in the published format, which `load_e_features` reads.

    Args:
        masks: of a metric's ``mask_networks``, by their own keys.
        scaler: of a `ScoreScaler` to opinions, which these metrics are published without.
    """
    found = {f"scaler_network.model.{key}": value for key, value in scaler.items()}
    for key, value in masks.items():
        number, place, part = key.split(".")
        found[f"mask_finder_{int(number) + 1}.conv{int(place) // 2 + 1}.0.{part}"] = value
    return found


def _fill_features(metric: EFeatureMetric) -> None:
    """All but the masks."""
    fill_stages(metric)
    if isinstance(metric, ELPIPS):
        _fill_heads(metric)
    if isinstance(metric, EDISTS):
        _fill_dists(metric)


def _fill_masks(metric: EFeatureMetric, state: dict[str, Tensor], path: Path) -> None:
    """The mask networks from a file of the published format, all of them."""
    ours: dict[str, Tensor] = {}
    for key, value in state.items():
        number, _, rest = key.removeprefix("mask_finder_").partition(".")
        if not (key.startswith("mask_finder_") and number.isdigit()):
            if not key.startswith(_OTHER_PARTS):
                raise WeightsError(f"holds {key!r}, which is no part of {metric.name}", where=path)
            continue
        layer, _, end = rest.partition(".0.")
        place = {"conv1": 0, "conv2": 2, "conv3": 4}.get(layer)
        ours[f"{int(number) - 1}.{place}.{end}"] = value
    fill(metric.mask_networks, ours, path, name=f"{metric.name}'s masks")


def _fill_heads(metric: ELPIPS) -> None:
    """LPIPS' linear heads, v0.1 for VGG, from the package that ships them.

    Raises:
        WeightsError: it is not installed.
    """
    package = importlib.util.find_spec("lpips")  # its file is wanted, not its torchvision
    if package is None or package.origin is None:
        raise WeightsError("LPIPS' linear heads come with lpips, which is not installed", mend="pip install lpips")
    state = read_state(Path(package.origin).parent / "weights" / "v0.1" / "vgg.pth").tensors
    with torch.no_grad():
        for number, head in enumerate(metric.heads):
            head.copy_(state[f"lin{number}.model.1.weight"])


def _fill_dists(metric: EDISTS) -> None:
    """DISTS' alpha and beta."""
    state = read_state(present_weights("dists")).tensors
    with torch.no_grad():
        metric.alpha.copy_(state["alpha"])
        metric.beta.copy_(state["beta"])
