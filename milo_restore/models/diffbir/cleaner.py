"""Cleaners: DiffBIR's first stage, a restoration network trained for fidelity that takes away noise and blocks.

The frozen diffusion model then works on the cleaned image. Networks come from libraries: BSRNet and the tiny world's
from basicsr, SwinIR and SCUNet from spandrel.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from milo_restore import files
from milo_restore.errors import ConfigError, DataError, WeightsError
from milo_restore.files.state import State, fill, read_state

__all__ = ["CLEANERS", "TASKS", "Cleaner", "load_cleaner", "published_cleaner"]

TASKS = ("sr", "denoise", "face")

# What DiffBIR itself takes, by version and task: names in `files.CLEANERS`.
CLEANERS: Mapping[str, Mapping[str, str]] = {
    "v1": {"sr": "swinir-general", "denoise": "swinir-general", "face": "swinir-face"},
    "v2": {"sr": "bsrnet", "denoise": "scunet", "face": "swinir-face"},
    "v2.1": {"sr": "swinir-realesrgan", "denoise": "swinir-realesrgan", "face": "swinir-face"},
}

_COARSEST = 64  # SwinIR and SCUNet attend in windows of 8 at up to an eighth of the size; DiffBIR pads alike
_PREFIXES = ("module.", "netG.", "preprocess_model.")
# KAIR's names, which BSRNet's file has, and basicsr's for the same layers.
_RRDB_NAMES = (
    (r"^RRDB_trunk\.(\d+)\.RDB(\d)\.", r"body.\1.rdb\2."),
    (r"^trunk_conv\.", "conv_body."),
    (r"^upconv(\d)\.", r"conv_up\1."),
    (r"^HRconv\.", "conv_hr."),
)
_RRDB_SCALES = {3: 4, 12: 2, 48: 1}  # by input channels: RRDBNet folds pixels into channels below its own scale


class Cleaner(nn.Module):
    """A network that restores images of any size.

    Args:
        network: images (N, 3, H, W) to (N, 3, H * scale, W * scale), or None, which changes nothing.
        scale: how much larger its output is.
        multiple: what H and W must be multiples of; others are padded by repeating the last row and column.
        name: what it is called.
        enlarge_first: the pipeline enlarges images that are too small for its diffusion model before it sees them,
            not what it makes of them.
    """

    def __init__(
        self,
        network: nn.Module | None,
        *,
        scale: int = 1,
        multiple: int = 1,
        name: str = "none",
        enlarge_first: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.scale, self.multiple, self.name = network, scale, multiple, name
        self.enlarge_first = enlarge_first

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Clean images.

        Args:
            images: (N, 3, H, W), RGB in [0, 1], of any size; noise may leave that range.

        Returns:
            (N, 3, H * scale, W * scale), clamped to [0, 1], in the precision of ``images``; without gradient.

        Raises:
            DataError: another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise DataError(f"a cleaner takes images (N, 3, H, W), this is {tuple(images.shape)}")
        if self.network is None:
            return images
        height, width = images.shape[-2:]
        dtype = next(self.network.parameters()).dtype
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        # Not reflected: that asks for more rows than a small image has.
        padded = F.pad(images.to(dtype), padding, mode="replicate") if any(padding) else images.to(dtype)
        cleaned: Tensor = self.network(padded)[..., : height * self.scale, : width * self.scale]
        return cleaned.clamp(0, 1).to(images.dtype)

    def extra_repr(self) -> str:
        """Name, scale and padding."""
        return f"{self.name}, scale={self.scale}, multiple={self.multiple}"


def published_cleaner(version: str, task: str) -> str:
    """The name of the cleaner that DiffBIR's ``version`` takes for ``task``; `load_cleaner` takes it.

    Raises:
        ConfigError: no such version or task.
    """
    if version not in CLEANERS:
        raise ConfigError(f"no DiffBIR version {version!r}", mend=f"Known versions: {', '.join(CLEANERS)}")
    if task not in CLEANERS[version]:
        raise ConfigError(f"no task {task!r}", mend=f"Known tasks: {', '.join(CLEANERS[version])}")
    return CLEANERS[version][task]


def load_cleaner(name: str | Path, *, entry: str | None = None, device: torch.device | str = "cpu") -> Cleaner:
    """A cleaner, frozen, in float32 and evaluation mode.

    Args:
        name: ``none``: images stay as they are. ``tiny:denoise``, ``tiny:sr``, ``tiny:face``: the shipped ones.
            A name in `milo_restore.files.CLEANERS`, such as ``bsrnet``: that asset, once it is fetched. Anything else
            is the path of a file: an RRDBNet (BSRNet), a SwinIR or a SCUNet, as .pth, .ckpt or .safetensors, or a
            safetensors whose metadata names a network of basicsr.
        entry: the entry of that file that holds the weights; by default the first there is of
            `milo_restore.files.state.ENTRIES`.
        device: where it goes.

    Raises:
        ConfigError: the file needs the package spandrel, which is not installed.
        DataError: ``MILO_RESTORE_ASSETS`` names no folder.
        WeightsError: the file is missing, damaged, of another architecture, or its keys do not fit.
    """
    if name == "none":
        return Cleaner(None).eval()
    path = _path(name)
    file = read_state(path, entry=entry, strip=_PREFIXES)
    state = file.tensors
    if "architecture" in file.metadata:
        cleaner = _described(state, file.metadata, path)
    else:
        is_rrdb = any(key.startswith(("RRDB_trunk.", "body.0.rdb1.")) for key in state)
        cleaner = _rrdb(state, path) if is_rrdb else _through_spandrel(state, path)
    cleaner.name = str(name)
    return cleaner.to(device, torch.float32).eval().requires_grad_(False)


def _path(name: str | Path) -> Path:
    if str(name).startswith("tiny:"):
        from milo_restore.models.tiny import tiny_world

        task = str(name).removeprefix("tiny:")
        if task not in TASKS:
            known = ", ".join(f"tiny:{task}" for task in TASKS)
            raise WeightsError("no such cleaner", where=repr(name), mend=f"The tiny world's are {known}")
        return tiny_world() / f"cleaner_{task}.safetensors"
    if str(name) not in files.CLEANERS:
        path = Path(name).expanduser()
        if not path.is_file():
            known = ", ".join(("none", *(f"tiny:{task}" for task in TASKS), *files.CLEANERS))
            raise WeightsError("no such cleaner", where=name, mend=f"Give a file, or one of {known}")
        return path
    return files.present_weights(str(name))


def _described(state: State, metadata: Mapping[str, str], path: Path) -> Cleaner:
    """A network of basicsr that the file's metadata name, with its options."""
    from basicsr.archs.rrdbnet_arch import RRDBNet
    from basicsr.archs.srvgg_arch import SRVGGNetCompact

    kinds = {kind.__name__: (kind, scale) for kind, scale in ((SRVGGNetCompact, "upscale"), (RRDBNet, "scale"))}
    name = metadata["architecture"]
    if name not in kinds:
        raise WeightsError(f"unknown architecture {name!r}", where=path, mend=f"Known: {', '.join(kinds)}")
    kind, option = kinds[name]
    try:
        options = json.loads(metadata["options"])
        network, scale = kind(**options), int(options.get(option, 4))
        if kind is RRDBNet and scale not in _RRDB_SCALES.values():
            raise ValueError(f"scale {scale}")
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"its metadata are no options of {name} ({error})", where=path) from error
    multiple = 4 // scale if kind is RRDBNet else 1
    return Cleaner(fill(network, state, path), scale=scale, multiple=multiple)


def _rrdb(state: State, path: Path) -> Cleaner:
    """BSRNet, or another RRDBNet, in KAIR's or in basicsr's names; its options are read off the shapes."""
    from basicsr.archs.rrdbnet_arch import RRDBNet

    for pattern, name in _RRDB_NAMES:
        state = {re.sub(pattern, name, key): value for key, value in state.items()}
    try:
        width, channels = state["conv_first.weight"].shape[:2]
        growth = state["body.0.rdb1.conv1.weight"].shape[0]
        scale = _RRDB_SCALES[channels]
    except (KeyError, ValueError) as error:
        raise WeightsError(f"is no RRDBNet for RGB images (no {error})", where=path) from error
    blocks = len({key.split(".")[1] for key in state if key.startswith("body.")})
    network = RRDBNet(3, 3, scale=scale, num_feat=width, num_block=blocks, num_grow_ch=growth)
    return Cleaner(fill(network, state, path), scale=scale, multiple=4 // scale)


def _through_spandrel(state: State, path: Path) -> Cleaner:
    """SwinIR and SCUNet, whose options spandrel reads off the shapes."""
    try:
        from spandrel import ImageModelDescriptor, ModelLoader
    except ImportError as error:
        mend = "pip install 'milo-restore[diffusion]'"
        raise ConfigError("this cleaner needs the package spandrel", where=path, mend=mend) from error
    known = "Expected BSRNet (or another RRDBNet), SwinIR or SCUNet"
    try:
        found = ModelLoader("cpu").load_from_state_dict(dict(state))
    except Exception as error:  # spandrel raises about anything for what it takes for its own
        reason = " ".join(str(error).split())[:240] or type(error).__name__
        raise WeightsError(f"is no cleaner ({reason})", where=path, mend=known) from error
    if not isinstance(found, ImageModelDescriptor) or found.architecture.id not in ("SwinIR", "SCUNet"):
        raise WeightsError(f"is a {found.architecture.id}", where=path, mend=known)
    if (found.input_channels, found.output_channels) != (3, 3):
        what = f"takes {found.input_channels} and gives {found.output_channels} channels, not 3 and 3"
        raise WeightsError(what, where=path)
    # The network alone: the descriptor's call is in inference mode, whose tensors no training can use.
    # DiffBIR enlarges small images to 512 pixels before SwinIR, which it trained on that size, and after SCUNet.
    first = found.architecture.id == "SwinIR" and found.scale == 1
    return Cleaner(found.model, scale=found.scale, multiple=_COARSEST, enlarge_first=first)
