"""From the original latent-diffusion keys to diffusers networks, without losing a key.

diffusers' own converters rename; the architecture is read off the shapes. What cannot be seen in the weights is the
width of an attention head, 64 in Stable Diffusion 2 and in its text encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from milo_restore.errors import WeightsError
from milo_restore.files.state import Network, State, fill

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    from milo_restore.models.diffbir.control import IRControlNet

_SCALING_FACTOR = 0.18215
_PROJECTION = ("text_projection", "logit_scale")  # after OpenCLIP's last block
_OPENCLIP_BLOCKS = 24  # of the ViT-H that Stable Diffusion 2 has


def build_unet(state: State, where: Path, head_channels: int = 64) -> UNet2DConditionModel:
    """Stable Diffusion 2's UNet from its original keys (``input_blocks.0.0.weight``, ...).

    Raises:
        WeightsError: not such a UNet, or a key is missing, lost or of another shape.
    """
    from accelerate import init_empty_weights
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    config = _read_off(_unet_config, state, where, "a UNet of Stable Diffusion 2", head_channels)
    with init_empty_weights():
        unet = UNet2DConditionModel(**config)

    def rename(keys: State) -> State:
        prefixed = {f"model.diffusion_model.{key}": value for key, value in keys.items()}
        renamed: State = convert_ldm_unet_checkpoint(prefixed, config)
        return renamed

    return _filled(unet, state, rename, where, "the UNet")


def build_control(state: State, where: Path, unet: UNet2DConditionModel) -> IRControlNet:
    """DiffBIR's control network from its original keys.

    Args:
        state: its 324 tensors; the first convolution takes eight channels.
        where: the file, for errors.
        unet: the one that it is to steer; its architecture counts, not its weights.

    Raises:
        WeightsError: it is no DiffBIR control network, or not one for this UNet; the keys concerned are named.
    """
    from accelerate import init_empty_weights
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    from milo_restore.models.diffbir.control import IRControlNet

    channels = unet.config.in_channels
    first = state.get("input_blocks.0.0.weight")
    if first is None or first.ndim != 4 or first.shape[1] != 2 * channels:
        found = "is missing" if first is None else f"has the shape {tuple(first.shape)}"
        what = f"no DiffBIR control network: input_blocks.0.0.weight {found}, expected {2 * channels} input channels"
        raise WeightsError(what, where=where)
    with init_empty_weights():
        control = IRControlNet.from_unet(type(unet).from_config(unet.config))

    def rename(keys: State) -> State:
        renamed: State = convert_controlnet_checkpoint(keys, unet.config)
        stacked = renamed["conv_in.weight"]
        renamed["conv_in.weight"] = stacked[:, :channels].contiguous()
        renamed["controlnet_cond_embedding.weight"] = stacked[:, channels:].contiguous()
        return renamed

    return _filled(control, state, rename, where, "the control network")


def build_vae(state: State, where: Path) -> AutoencoderKL:
    """Stable Diffusion's autoencoder from its original keys (``encoder.conv_in.weight``, ...).

    Raises:
        WeightsError: not such an autoencoder, or a key is missing, lost or of another shape.
    """
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    config = _read_off(_vae_config, state, where, "an autoencoder of Stable Diffusion")
    with init_empty_weights():
        vae = AutoencoderKL(**config)

    def rename(keys: State) -> State:
        prefixed = {f"first_stage_model.{key}": value for key, value in keys.items()}
        renamed: State = convert_ldm_vae_checkpoint(prefixed, config)
        return renamed

    return _filled(vae, state, rename, where, "the VAE")


def build_text_encoder(state: State, where: Path) -> tuple[CLIPTextModel, list[str]]:
    """Stable Diffusion 2's OpenCLIP text encoder from its original keys.

    Stable Diffusion 2 reads what comes out of the block before OpenCLIP's last. A whole OpenCLIP has that block and a
    projection, which are left out; a file made from diffusers' weights, as DiffBIR v2.1's base is, ends before them.

    Returns:
        The encoder, and the keys that Stable Diffusion 2 has no use for.

    Raises:
        WeightsError: not such an encoder, a key is missing, lost or of another shape, or transformers is not installed.
    """
    try:
        from transformers import CLIPTextConfig, CLIPTextModel
    except ImportError as error:
        mend = "pip install 'milo-restore[diffusion]'"
        raise WeightsError("its text encoder needs the package transformers", where=where, mend=mend) from error
    from accelerate import init_empty_weights
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    config = _read_off(_text_config, state, where, "an OpenCLIP text encoder")
    with init_empty_weights():
        encoder = CLIPTextModel(CLIPTextConfig(**config))
    wrapped = hasattr(encoder, "text_model")  # transformers below 5.6

    def rename(keys: State) -> State:
        renamed: State = convert_open_clip_checkpoint(encoder, keys, prefix="")
        return renamed if wrapped else {key.removeprefix("text_model."): value for key, value in renamed.items()}

    last = f"transformer.resblocks.{config['num_hidden_layers']}."
    unused = [key for key in state if key.startswith((last, *_PROJECTION, "attn_mask")) or key.endswith("position_ids")]
    used = {key: value for key, value in state.items() if key not in set(unused)}
    return _filled(encoder, used, rename, where, "the text encoder"), unused


def _filled(network: Network, state: State, rename: Callable[[State], State], where: Path, name: str) -> Network:
    """The network, so far without memory, with the renamed tensors in it; strict in both directions."""
    # The converters drop silently what they do not know. So each key goes through them once with its own number in
    # place of its values (one number in memory, whatever the shape), and those that do not come out again are lost.
    keys = list(state)
    numbered = {
        key: torch.tensor(number, dtype=torch.int16).expand(state[key].shape) for number, key in enumerate(keys)
    }
    source = {key: keys[int(value.reshape(-1)[0])] for key, value in rename(numbered).items() if value is not None}
    renamed = {key: value for key, value in rename(dict(state)).items() if value is not None}
    expected = network.state_dict().keys()
    lost = state.keys() - {source[key] for key in renamed if key in expected}
    placed = {key: value for key, value in renamed.items() if key in expected}
    return fill(network, {**placed, **{key: state[key] for key in lost}}, where, name=name, assign=True).eval()


def _read_off(
    config_of: Callable[..., dict[str, Any]], state: State, where: Path, what: str, *arguments: Any
) -> dict[str, Any]:
    try:
        return config_of(state, *arguments)
    except (KeyError, IndexError, ZeroDivisionError, StopIteration) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else "keys are missing"
        raise WeightsError(f"does not hold {what} ({reason})", where=where) from error


def _count(state: State, head: str) -> int:
    """Count of the numbers that follow ``head`` in the keys."""
    return len({key[len(head) :].split(".")[0] for key in state if key.startswith(head)})


def _unet_config(state: State, head_channels: int) -> dict[str, Any]:
    blocks = _count(state, "input_blocks.")
    halvings = [i for i in range(blocks) if f"input_blocks.{i}.0.op.weight" in state]
    layers = halvings[0] - 1
    starts = range(1, blocks, layers + 1)
    channels = [state[f"input_blocks.{start}.0.out_layers.3.weight"].shape[0] for start in starts]
    attends = [f"input_blocks.{start}.1.proj_in.weight" in state for start in starts]
    first = next(start for start, attention in zip(starts, attends) if attention)
    projection = state[f"input_blocks.{first}.1.proj_in.weight"]
    context = state[f"input_blocks.{first}.1.transformer_blocks.0.attn2.to_k.weight"]
    if projection.ndim != 2:
        raise KeyError("linear projection around its attention, as Stable Diffusion 1")
    return {
        "sample_size": 64,
        "in_channels": state["input_blocks.0.0.weight"].shape[1],
        "out_channels": state["out.2.weight"].shape[0],
        "down_block_types": ["CrossAttnDownBlock2D" if attention else "DownBlock2D" for attention in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)],
        "block_out_channels": channels,
        "layers_per_block": layers,
        "cross_attention_dim": context.shape[1],
        # diffusers' name for the number of heads
        "attention_head_dim": [width // head_channels for width in channels],
        "use_linear_projection": True,
    }


def _vae_config(state: State) -> dict[str, Any]:
    levels = _count(state, "encoder.down.")
    return {
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": state["decoder.conv_out.weight"].shape[0],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": [state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)],
        "layers_per_block": _count(state, "encoder.down.0.block."),
        "latent_channels": state["quant_conv.weight"].shape[0] // 2,
        "sample_size": 512,
        "scaling_factor": _SCALING_FACTOR,
    }


def _text_config(state: State) -> dict[str, Any]:
    positions, width = state["positional_embedding"].shape
    blocks = _count(state, "transformer.resblocks.")
    # By the number where it is Stable Diffusion's; else a whole OpenCLIP is told by what follows its last block.
    whole = blocks == _OPENCLIP_BLOCKS or (blocks != _OPENCLIP_BLOCKS - 1 and any(key in state for key in _PROJECTION))
    return {
        "vocab_size": state["token_embedding.weight"].shape[0],
        "hidden_size": width,
        "intermediate_size": state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": blocks - 1 if whole else blocks,
        "num_attention_heads": width // 64,
        "max_position_embeddings": positions,
        "hidden_act": "gelu",
    }
