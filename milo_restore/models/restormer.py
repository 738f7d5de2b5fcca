"""Restormer, written from the paper: a U-shaped transformer whose attention runs over channels instead of pixels.

Source: Zamir, Arora, Khan, Hayat, Khan, Yang: "Restormer: Efficient Transformer for High-Resolution Image
Restoration", CVPR 2022. Parameter names and shapes are those of the official checkpoints, which load strictly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from milo_restore.errors import ConfigError, DataError, WeightsError
from milo_restore.files.hub import WEIGHTS_FILE, at_revision, weights_folder
from milo_restore.files.state import fill, read_state
from milo_restore.models.restormer_blocks import LAYER_NORMS, Block, Embed, PlainStrideConv2d, Resample, layout_of

__all__ = ["Restormer", "infer_arguments"]

_MULTIPLE = 8  # three halvings of the resolution
_LEVELS = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")


class Restormer(nn.Module):
    """Restormer; the arguments are those of the published YAML files, the defaults the Gaussian colour denoiser's.

    Args:
        inp_channels: channels of the input (6 for the two views of a dual-pixel camera).
        out_channels: channels of the output; equal to ``inp_channels`` unless ``dual_pixel_task``.
        dim: channels at full resolution, even; the levels below have 2, 4 and 8 times as many.
        num_blocks: transformer blocks at levels 1 to 4; the decoder mirrors levels 1 to 3.
        num_refinement_blocks: blocks after the decoder, at full resolution with ``2 * dim`` channels.
        heads: attention heads at levels 1 to 4; each divides its level's channels.
        ffn_expansion_factor: hidden width of the feed-forward part, relative to the channels, rounded down.
        bias: whether the convolutions inside blocks, the channel reductions and the output have a bias.
        LayerNorm_type: ``BiasFree`` (Gaussian denoising) or ``WithBias`` (deraining, deblurring, real noise).
        dual_pixel_task: add the embedded input to the last features, instead of the input to the output.
        gradient_checkpointing: recompute every block in the backward pass: less memory, the same numbers.

    Attributes:
        config: the architecture's arguments (all but ``gradient_checkpointing``), to be stored beside the weights.

    Raises:
        ConfigError: an argument is out of range.

    On a CPU the inside runs in channels-last layout, which is faster there; elsewhere it keeps the input's layout.

    Example:
        >>> import torch
        >>> from milo_restore import Restormer
        >>> network = Restormer(dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1)  # the paper's: Restormer()
        >>> network(torch.rand(1, 3, 32, 48)).shape
        torch.Size([1, 3, 32, 48])
    """

    def __init__(
        self,
        inp_channels: int = 3,
        out_channels: int = 3,
        dim: int = 48,
        num_blocks: Sequence[int] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        ffn_expansion_factor: float = 2.66,
        bias: bool = False,
        LayerNorm_type: str = "BiasFree",
        dual_pixel_task: bool = False,
        *,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "inp_channels": inp_channels,
            "out_channels": out_channels,
            "dim": dim,
            "num_blocks": list(num_blocks) if isinstance(num_blocks, Sequence) else num_blocks,
            "num_refinement_blocks": num_refinement_blocks,
            "heads": list(heads) if isinstance(heads, Sequence) else heads,
            "ffn_expansion_factor": ffn_expansion_factor,
            "bias": bias,
            "LayerNorm_type": LayerNorm_type,
            "dual_pixel_task": dual_pixel_task,
        }
        _check_arguments(self.config)
        self.inp_channels = inp_channels
        self.gradient_checkpointing = gradient_checkpointing

        def level(times: int, index: int, count: int) -> nn.Sequential:
            args = (dim * times, heads[index], ffn_expansion_factor, bias, LayerNorm_type)
            return nn.Sequential(*[Block(*args) for _ in range(count)])

        self.patch_embed = Embed(inp_channels, dim)
        self.encoder_level1 = level(1, 0, num_blocks[0])
        self.down1_2 = Resample(dim, down=True)
        self.encoder_level2 = level(2, 1, num_blocks[1])
        self.down2_3 = Resample(2 * dim, down=True)
        self.encoder_level3 = level(4, 2, num_blocks[2])
        self.down3_4 = Resample(4 * dim, down=True)
        self.latent = level(8, 3, num_blocks[3])
        self.up4_3 = Resample(8 * dim, down=False)
        self.reduce_chan_level3 = PlainStrideConv2d(8 * dim, 4 * dim, 1, bias=bias)
        self.decoder_level3 = level(4, 2, num_blocks[2])
        self.up3_2 = Resample(4 * dim, down=False)
        self.reduce_chan_level2 = PlainStrideConv2d(4 * dim, 2 * dim, 1, bias=bias)
        self.decoder_level2 = level(2, 1, num_blocks[1])
        self.up2_1 = Resample(2 * dim, down=False)
        self.decoder_level1 = level(2, 0, num_blocks[0])  # no reduction at full resolution: 2 * dim channels
        self.refinement = level(2, 0, num_refinement_blocks)
        self.skip_conv = PlainStrideConv2d(dim, 2 * dim, 1, bias=bias) if dual_pixel_task else None
        self.output = nn.Conv2d(2 * dim, out_channels, 3, padding=1, bias=bias)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute every block in the backward pass instead of storing its activations."""
        self.gradient_checkpointing = True

    def disable_gradient_checkpointing(self) -> None:
        """Store every block's activations again."""
        self.gradient_checkpointing = False

    @classmethod
    def from_checkpoint(cls, path: str | Path, *, entry: str | None = None, **arguments: Any) -> Restormer:
        """Build the network of a weight file and load it strictly.

        Args:
            path: a weight file, see `milo_restore.files.state.read_state`.
            entry: the entry that holds the weights, such as ``params``; by default averaged weights (``params_ema``)
                where the file has them, see `milo_restore.files.state.ENTRIES`.
            **arguments: constructor arguments the file is held to; those left out are read off the weights.

        Returns:
            The network on the CPU, in training mode.

        Raises:
            WeightsError: the file is missing or damaged, or its keys or shapes are not those of the architecture.
            ConfigError: an argument is unknown or out of range.
        """
        path = Path(path)
        state = read_state(path, entry=entry).tensors
        found = infer_arguments(state, where=path)
        if unknown := set(arguments) - {*found, "gradient_checkpointing"}:
            raise ConfigError(
                "not an argument of Restormer", where=sorted(unknown)[0], mend="See Restormer's docstring."
            )
        return fill(cls(**{**found, **arguments}), state, path)

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None) -> Restormer:
        """Read what `milo_restore.hub.push_to_hub` or ``save_pretrained`` wrote.

        Args:
            name: a folder, or OWNER/NAME or OWNER/NAME@REVISION on the Hugging Face hub.
            revision: of the latter, a branch, a tag or a commit.

        Returns:
            The network on the CPU, in evaluation mode.

        Raises:
            WeightsError: it is nowhere, or damaged, or no Restormer.
            ConfigError: a revision of a folder.
        """
        folder = weights_folder(at_revision(name, revision))
        if folder is None:
            mend = "Name a folder, or a repository of the Hugging Face hub as OWNER/NAME"
            raise WeightsError("no such folder", where=name, mend=mend)
        return cls.from_checkpoint(folder / WEIGHTS_FILE).eval()

    def forward(self, image: Tensor) -> Tensor:
        """Restore a batch of images.

        Args:
            image: (N, inp_channels, H, W), floating point, any H and W >= 1; RGB in [0, 1] for published weights.

        Returns:
            (N, out_channels, H, W), not clamped. Inside, the image is padded at the right and the bottom to
            multiples of 8: by reflection, or by repeating the edge where it is too small to reflect.

        Raises:
            DataError: the input has another rank, number of channels or type, or no pixels.
        """
        self._check_input(image)
        height, width = image.shape[-2:]
        x = _pad(image)
        if x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)
        out = self._features_to_image(x)[..., :height, :width]
        if self.skip_conv is None:
            out = out + image
        return out.contiguous(memory_format=layout_of(image))

    def _features_to_image(self, x: Tensor) -> Tensor:
        embedded = self.patch_embed(x)
        level1 = self._run(self.encoder_level1, embedded)
        level2 = self._run(self.encoder_level2, self.down1_2(level1))
        level3 = self._run(self.encoder_level3, self.down2_3(level2))
        x = self._run(self.latent, self.down3_4(level3))
        x = self._run(self.decoder_level3, self.reduce_chan_level3(torch.cat([self.up4_3(x), level3], 1)))
        x = self._run(self.decoder_level2, self.reduce_chan_level2(torch.cat([self.up3_2(x), level2], 1)))
        x = self._run(self.decoder_level1, torch.cat([self.up2_1(x), level1], 1))
        x = self._run(self.refinement, x)
        if self.skip_conv is not None:
            x = x + self.skip_conv(embedded)
        out: Tensor = self.output(x)
        return out

    def _run(self, blocks: nn.Sequential, x: Tensor) -> Tensor:
        for block in blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)  # a block draws nothing
            else:
                x = block(x)
        return x

    def _check_input(self, image: Tensor) -> None:
        shape = tuple(image.shape)
        if len(shape) != 4 or shape[1] != self.inp_channels:
            raise DataError(f"input of shape {shape}, expected (N, {self.inp_channels}, H, W)", where="Restormer")
        if min(shape) < 1:
            raise DataError(f"input of shape {shape} has no pixels", where="Restormer")
        if not image.is_floating_point():
            raise DataError(f"input of type {image.dtype}", where="Restormer", mend="Give floats in [0, 1].")


def _pad(image: Tensor) -> Tensor:
    """Pad right and bottom to multiples of 8."""
    for axis in (2, 3):
        missing = -image.shape[axis] % _MULTIPLE
        if missing:
            mode = "reflect" if missing < image.shape[axis] else "replicate"
            image = F.pad(image, (0, 0, 0, missing) if axis == 2 else (0, missing, 0, 0), mode=mode)
    return image


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_heads(dim: int, heads: Sequence[int]) -> None:
    for level, count in enumerate(heads, start=1):
        channels = dim * 2 ** (level - 1)
        if channels % count:
            raise ConfigError(f"{count} does not divide the {channels} channels of level {level}", where="heads")


def _check_arguments(config: Mapping[str, Any]) -> None:
    for name, least in (("inp_channels", 1), ("out_channels", 1), ("dim", 2), ("num_refinement_blocks", 0)):
        if not _is_count(config[name], least):
            raise ConfigError(f"{config[name]!r} is not a whole number of at least {least}", where=name)
    for name in ("num_blocks", "heads"):
        value = config[name]
        if not isinstance(value, list) or len(value) != 4 or not all(_is_count(v) for v in value):
            raise ConfigError(f"{value!r} is not four positive whole numbers, one a level", where=name)
    dim, norm, factor = config["dim"], config["LayerNorm_type"], config["ffn_expansion_factor"]
    if dim % 2:
        raise ConfigError(f"{dim} is odd", where="dim", mend="Downsampling halves it: give an even number.")
    _check_heads(dim, config["heads"])
    if norm not in LAYER_NORMS:
        raise ConfigError(f"{norm!r} is unknown", where="LayerNorm_type", mend=f"Give one of {', '.join(LAYER_NORMS)}.")
    if not isinstance(factor, (int, float)) or not 1 <= dim * factor < float("inf"):
        raise ConfigError(f"{factor!r} is not a number of at least 1/dim", where="ffn_expansion_factor")
    if not config["dual_pixel_task"] and config["inp_channels"] != config["out_channels"]:
        raise ConfigError("differs from inp_channels, but the input is added to the output", where="out_channels")


def infer_arguments(state: Mapping[str, Tensor], where: str | Path | None = None) -> dict[str, Any]:
    """Read Restormer's constructor arguments off its weights.

    ``ffn_expansion_factor`` is the roundest number that gives the widths found; any such number gives the same network.

    Args:
        state: a Restormer's state dict.
        where: the file it came from, for the message.

    Raises:
        WeightsError: the weights are not a Restormer's.
    """

    def count(level: str) -> int:
        return len({key.split(".")[1] for key in state if key.startswith(f"{level}.")})

    try:
        dim, inp_channels = state["patch_embed.proj.weight"].shape[:2]
        widths = [state[f"{level}.0.ffn.project_out.weight"].shape[1] for level in _LEVELS]
        return {
            "inp_channels": inp_channels,
            "out_channels": state["output.weight"].shape[0],
            "dim": dim,
            "num_blocks": [count(level) for level in _LEVELS],
            "num_refinement_blocks": count("refinement"),
            "heads": [state[f"{level}.0.attn.temperature"].shape[0] for level in _LEVELS],
            "ffn_expansion_factor": _expansion(dim, widths),
            "bias": "output.bias" in state,
            "LayerNorm_type": "WithBias" if "encoder_level1.0.norm1.body.bias" in state else "BiasFree",
            "dual_pixel_task": "skip_conv.weight" in state,
        }
    except (KeyError, IndexError, ValueError) as error:
        raise WeightsError(f"not a Restormer's weights: {error} is missing or misshapen", where=where) from error


def _expansion(dim: int, widths: Sequence[int]) -> float:
    channels = [dim * 2**i for i in range(len(widths))]
    low, high = max(w / c for w, c in zip(widths, channels)), min((w + 1) / c for w, c in zip(widths, channels))
    middle = (low + high) / 2
    for digits in range(1, 8):
        if [int(c * round(middle, digits)) for c in channels] == list(widths):
            return round(middle, digits)
    return middle
