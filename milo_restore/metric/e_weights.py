"""The files of E-VGG, E-LPIPS and E-DISTS: found, known by their hashes, and read in full.

The authors' mask files are not redistributed and state no licence; a user brings them. Of the published ones only the
hashes are known that git has for them. VGG16, which a file may hold beside the masks, is taken from torchvision.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn

from milo_restore.errors import ConfigError, WeightsError
from milo_restore.files import assets_folder, cache_folder
from milo_restore.files.state import read_state_file
from milo_restore.metric.e_features import CONVOLUTIONS, EDISTS, ELPIPS, EVGG, EFeatureMetric
from milo_restore.metric.weights import WeightsInfo

BLOBS = {
    "e-vgg": "9c2cd40cb95a39dae792bb7cc6079d7bbbbd7041",
    "e-lpips": "081775fb3a7f4c9ce27103d7b7332924a348bd23",
    "e-dists": "ff9630fac4c044cb1b7bf2342bc8a1ad94c2e926",
}
"""What ``git hash-object`` says of the published E_VGG.pth, E_LPIPS.pth and E_DISTS.pth."""
DISTS_SHA256 = "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218"
BACKBONE = "https://download.pytorch.org/models/vgg16-397923af.pth"
BACKBONE_SHA256 = "397923af"  # how the hash of torchvision's file begins, which its name says
SOURCE = "https://github.com/ugurcogalan06/Enhanced-IQM/tree/0d36d665392913c49ea62aafdf6a63ecb7a2e0c8/weights"

_FOLDER = "weights/enhanced_iqm"
_OTHER_PARTS = ("stage", "model_elpips.", "model_edists.", "scaler_network.")  # which a file may hold beside the masks

_CLASSES: dict[str, type[EFeatureMetric]] = {cls.name: cls for cls in (EVGG, ELPIPS, EDISTS)}
E_FEATURES: tuple[str, ...] = tuple(_CLASSES)
"""The names that `load_e_features` takes."""


def load_e_features(name: str, weights: str | Path = "official") -> EFeatureMetric:
    """A frozen E-VGG, E-LPIPS or E-DISTS with the published weights, which a user has put into place.

    Needed are the mask file (E_VGG.pth, ...) from `SOURCE`; torchvision's vgg16-397923af.pth, downloaded once where
    there is a network; for E-DISTS DISTS.pth from `SOURCE`, too. LPIPS' heads come with the package ``lpips``.

    Args:
        name: one of `E_FEATURES`.
        weights: ``official``: the file under ``weights/enhanced_iqm`` in the folder that MILO_RESTORE_ASSETS names, or
            in the cache, known by its hash; or the path of a file in the same format, of which no hash is known.

    Raises:
        ConfigError: no such metric.
        WeightsError: a file is missing, is another one, or does not hold exactly the masks that the metric has.
    """
    if name not in _CLASSES:
        raise ConfigError("no such metric", where=repr(name), mend=f"Known: {', '.join(E_FEATURES)}")
    metric = _CLASSES[name]()
    path = _find(metric.file) if weights == "official" else Path(weights)
    if weights == "official" and (found := git_blob(path)) != BLOBS[name]:
        what = f"is not the published file (git blob {found[:12]}, expected {BLOBS[name][:12]})"
        raise WeightsError(what, where=path, mend=f"Get it again from {SOURCE}, or name your own as {name}:{path}")
    _fill_masks(metric, read_state_file(path), path)
    _fill_stages(metric)
    if isinstance(metric, ELPIPS):
        _fill_heads(metric)
    if isinstance(metric, EDISTS):
        _fill_dists(metric, _find("DISTS.pth"))
    metric.weights = WeightsInfo(str(weights), str(path), hashlib.sha256(path.read_bytes()).hexdigest())
    return metric.freeze()


def git_blob(path: Path) -> str:
    """Git's hash of a file, as ``git hash-object`` prints it: SHA-1 of its length and its content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _find(file: str) -> Path:
    """A file that a user has put into place."""
    roots = [root for root in (assets_folder(), cache_folder()) if root is not None]
    for root in roots:
        for path in (root / file, root / _FOLDER / file):
            if path.is_file():
                return path
    mend = f"Get it from {SOURCE} (no licence is stated there) and put it into {roots[0] / _FOLDER}"
    raise WeightsError("is not there", where=file, mend=mend)


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
    try:
        metric.mask_networks.load_state_dict(ours)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:240]
        raise WeightsError(f"does not hold {metric.name}'s masks ({reason})", where=path) from error


def _fill_stages(metric: EFeatureMetric) -> None:
    """VGG16's convolutions from torchvision's file."""
    state = _vgg16()
    for stage, numbers in zip(metric.stages, CONVOLUTIONS):
        convolutions = [layer for layer in stage.children() if isinstance(layer, nn.Conv2d)]
        for number, layer in zip(numbers, convolutions, strict=True):
            layer.load_state_dict({part: state[f"features.{number}.{part}"] for part in ("weight", "bias")})


def _vgg16() -> dict[str, Tensor]:
    """VGG16's weights for ImageNet as torchvision has them, checked by the hash in their name.

    Raises:
        WeightsError: they cannot be had, or are damaged.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE.rsplit("/", 1)[1]
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(BACKBONE, str(path), BACKBONE_SHA256)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (URLError, OSError, RuntimeError) as error:
        mend = f"Run it once with a network, or put {BACKBONE} there (528 MB)"
        raise WeightsError(f"VGG16 cannot be had ({error})", where=path, mend=mend) from error
    if not digest.startswith(BACKBONE_SHA256):
        raise WeightsError("is damaged: its hash is not the one in its name", where=path, mend="Delete it")
    return read_state_file(path)


def _fill_heads(metric: ELPIPS) -> None:
    """LPIPS' linear heads, v0.1 for VGG, from the package that ships them.

    Raises:
        WeightsError: it is not installed.
    """
    package = importlib.util.find_spec("lpips")  # its file is wanted, not its torchvision
    if package is None or package.origin is None:
        raise WeightsError("LPIPS' linear heads come with lpips, which is not installed", mend="pip install lpips")
    state = read_state_file(Path(package.origin).parent / "weights" / "v0.1" / "vgg.pth")
    with torch.no_grad():
        for number, head in enumerate(metric.heads):
            head.copy_(state[f"lin{number}.model.1.weight"])


def _fill_dists(metric: EDISTS, path: Path) -> None:
    """DISTS' alpha and beta.

    Raises:
        WeightsError: the file is another one.
    """
    if hashlib.sha256(path.read_bytes()).hexdigest() != DISTS_SHA256:
        raise WeightsError("is not the published file", where=path, mend=f"Get it again from {SOURCE}")
    state = read_state_file(path)
    with torch.no_grad():
        metric.alpha.copy_(state["alpha"])
        metric.beta.copy_(state["beta"])
