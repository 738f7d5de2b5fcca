"""Small networks of Stable Diffusion 2's kind, and their weights under the original latent-diffusion keys.

The renaming here goes the other way than the converters under test, and shares nothing with them.
"""

from __future__ import annotations

import re

import torch

HEAD_CHANNELS = 16
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
OUTER = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "controlnet_mid_block": "middle_block_out.0", "mid_block.attentions.0": "middle_block.1",
}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
TEXT = {
    "self_attn": "attn", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
TEXT_OUTER = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias",
}  # fmt: skip


def small_unet(channels=(32, 64), layers=1, context=24, head_channels=HEAD_CHANNELS):
    from diffusers import UNet2DConditionModel

    levels = len(channels)
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=channels,
        layers_per_block=layers,
        down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        cross_attention_dim=context,
        attention_head_dim=tuple(width // head_channels for width in channels),
        use_linear_projection=True,
    ).eval()


def small_vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64),
        layers_per_block=1,
        latent_channels=4,
        sample_size=16,
    ).eval()


def disturb(network, scale=0.05):
    """Give every parameter a value of its own: norms and zero convolutions start out constant."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return network


def _resnet(rest):
    name, _, kind = rest.partition(".")
    return f"{RESNET[name]}.{kind}"


def unet_keys(state, layers=1):
    """The state of a UNet or a control network under its original keys."""
    step, renamed = layers + 1, {}
    attends = {key.split(".")[1] for key in state if re.match(r"up_blocks\.\d+\.attentions", key)}
    for key, value in state.items():
        block = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", key)
        if block:
            side, level, part, place, rest = block.groups()
            number = int(level) * step + int(place) + (side == "down")
            if part == "resnets":
                new = f"{number}.0.{_resnet(rest)}"
            elif part == "attentions":
                new = f"{number}.1.{rest}"
            elif part == "downsamplers":
                new = f"{(int(level) + 1) * step}.0.op.{rest.removeprefix('conv.')}"
            else:
                new = f"{int(level) * step + layers}.{2 if level in attends else 1}.{rest}"
            renamed[f"{'input' if side == 'down' else 'output'}_blocks.{new}"] = value
        elif key.startswith("mid_block.resnets."):
            renamed[f"middle_block.{2 * int(key.split('.')[2])}.{_resnet(key.split('.', 3)[3])}"] = value
        elif key.startswith("controlnet_down_blocks."):
            renamed[f"zero_convs.{key.split('.')[1]}.0.{key.split('.')[2]}"] = value
        else:
            old = next(old for old in OUTER if key.startswith(old + "."))
            renamed[OUTER[old] + key[len(old) :]] = value
    return renamed


def control_keys(state, layers=1):
    """The state of an IRControlNet under DiffBIR's keys: one first convolution for both latents."""
    state = dict(state)
    condition = state.pop("controlnet_cond_embedding.weight")
    state["conv_in.weight"] = torch.cat([state["conv_in.weight"], condition], 1)
    return unet_keys(state, layers)


def vae_keys(state):
    renamed = {}
    levels = len({key.split(".")[2] for key in state if key.startswith("decoder.up_blocks.")})
    for key, value in state.items():
        new = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", new)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d)\.", lambda found: f"up.{levels - 1 - int(found[1])}.", new)
        new = new.replace(".upsamplers.0.", ".upsample.")
        new = re.sub(r"(up\.\d)\.resnets\.", r"\1.block.", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", new)
        if "mid_block.attentions.0." in new:
            head, _, rest = new.partition("mid_block.attentions.0.")
            old = next(old for old in ATTENTION if rest.startswith(old + "."))
            new = f"{head}mid.attn_1.{ATTENTION[old]}{rest[len(old) :]}"
            value = value[:, :, None, None] if value.ndim == 2 else value
        renamed[new] = value
    return renamed


def text_keys(state, whole=True):
    """A CLIP text encoder's state under OpenCLIP's keys; whole: with the last block and projection that SD 2 skips."""
    renamed, parts = {}, {}
    for key, value in state.items():
        key = key.removeprefix("text_model.")
        if key in TEXT_OUTER:
            renamed[TEXT_OUTER[key]] = value
            continue
        new = key.replace("encoder.layers.", "transformer.resblocks.")
        for old, name in TEXT.items():
            new = new.replace(old, name)
        split = re.match(r"(.*attn)\.([qkv])_proj\.(weight|bias)", new)
        if split:
            parts.setdefault(f"{split[1]}.in_proj_{split[3]}", {})[split[2]] = value
        else:
            renamed[new] = value
    renamed |= {key: torch.cat([found[letter] for letter in "qkv"]) for key, found in parts.items()}
    if not whole:
        return renamed
    last = 1 + max(int(key.split(".")[2]) for key in renamed if key.startswith("transformer."))
    extra = {
        key.replace("resblocks.0.", f"resblocks.{last}."): value.clone()
        for key, value in renamed.items()
        if "resblocks.0." in key
    }
    width = renamed["ln_final.weight"].shape[0]
    return renamed | extra | {"text_projection": torch.eye(width), "logit_scale": torch.tensor(1.0)}
