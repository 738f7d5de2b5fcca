"""A micro world of random networks in which the DiffBIR recipes run in seconds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from conftest import REPOSITORY
from PIL import Image
from safetensors.torch import save_file

from milo_restore import LatentMILO
from milo_restore.train.command import run_recipe

RECIPES = REPOSITORY / "recipes"
CONFIGS = RECIPES / "configs"
PATCH = 128  # sixteen latent cells, the least that LatentMILO takes

sys.path.append(str(RECIPES))  # the three recipes import what they share by name

import diffbir  # noqa: E402


def make_world(folder: Path) -> Path:
    """A diffusers folder of random networks, a random LatentMILO, and two small photographs."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from milo_restore.models import tiny
    from milo_restore.models.diffbir import noise_scheduler

    torch.manual_seed(7)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=2,
        mid_block_add_attention=False, scaling_factor=0.5,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), layers_per_block=1,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), block_out_channels=(8, 16), norm_num_groups=4,
        cross_attention_dim=tiny.PROMPT_WIDTH, attention_head_dim=2,
    )  # fmt: skip
    vae.save_pretrained(folder / "vae")
    unet.save_pretrained(folder / "unet")
    noise_scheduler("v2").save_pretrained(folder / "scheduler")
    texts = {str(number): text for number, text in enumerate(tiny.PROMPTS)}
    save_file(tiny.tiny_prompts(), folder / "prompt_embeds.safetensors", texts)
    save_file(LatentMILO.untrained().state_dict(), folder / "latent_milo.safetensors")
    rng = np.random.default_rng(1)
    (folder / "images").mkdir()
    for number in range(2):
        smooth = Image.fromarray(rng.integers(0, 256, (9, 10, 3), dtype=np.uint8)).resize((160, 136), Image.BICUBIC)
        smooth.save(folder / "images" / f"{number}.png")
    return folder


def micro_settings(world: Path) -> dict[str, Any]:
    """A configuration in that world: six steps of batch 4."""
    return {
        "base": str(world), "control": "unet", "cleaner": "none",
        "data": {"train": [str(world / "images")], "test": [str(world / "images")], "degradation": "noise",
                 "test_sigmas": [25], "quick_images": 1},
        "loss": {"kind": "milo", "weights": str(world / "latent_milo.safetensors"), "curriculum": "linear"},
        "training": {"stages": [{"steps": 6, "patch": PATCH, "batch": 4}], "learning_rate": 1e-3, "seed": 3,
                     "clip_norm": 1.0, "workers": 0, "ema_decay": 0.5, "log_every": 1, "checkpoint_every": 3,
                     "keep_checkpoints": None, "evaluate_every": 3, "sample_every": 6, "trackers": []},
        "sampling": {"steps": 2, "guidance_scale": 2.0}, "metrics": ["psnr", "milo:mini"], "licences": ["our own"],
    }  # fmt: skip


def write(folder: Path, settings: dict[str, Any]) -> Path:
    """The configuration as a file in ``folder``."""
    path = folder / "micro.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def run(folder: Path, settings: dict[str, Any], *arguments: str) -> int:
    """Run the recipe into ``folder``/run; its exit code."""
    path = write(folder, settings)
    return run_recipe(diffbir.main, diffbir.Config, path, "", ["--output", str(folder / "run"), *arguments])
