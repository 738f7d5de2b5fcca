"""Restoration in one step: a LoRA on Stable Diffusion's UNet takes the cleaned image's latent to the clean one.

Source: Wu et al.: "One-Step Effective Diffusion Network for Real-World Image Super-Resolution" (OSEDiff), NeurIPS 2024,
arXiv 2406.08177; and the test settings of HYPIR (XPixelGroup/HYPIR at 402ec14), whose timestep, layers and rank are the
defaults. Both also train a LoRA of the VAE or a discriminator; here the UNet's alone is trained, and no VAE is
needed for it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from milo_restore.errors import ConfigError, WeightsError
from milo_restore.files.hashes import tensors_sha256
from milo_restore.files.manifest import verify
from milo_restore.files.state import fill, read_state
from milo_restore.models.diffbir import condition as stage
from milo_restore.models.diffbir.condition import Padding
from milo_restore.models.diffbir.images import Images, OutputType, check_output_type, to_batch
from milo_restore.models.diffbir.pipeline import DiffBIROutput, DiffBIRPipeline
from milo_restore.models.diffbir.schedules import Version, noise_scheduler
from milo_restore.models.diffbir.tiling import in_tiles

__all__ = ["LoRA", "OneStep", "OneStepPipeline", "load_one_step"]

WEIGHTS, RECORD, KEY = "model.safetensors", "metadata.json", "one_step"
_MEND = "Name the final/ of a run of recipes/diffbir_one_step.py"


@dataclass(frozen=True)
class LoRA:
    """Low-rank changes of a UNet's layers; their factor is 1, as in diffusers' training programs."""

    rank: int = 256  # of each change: 259 M parameters on Stable Diffusion 2.1's UNet, 65 M at 64
    targets: tuple[str, ...] = (  # ends of the layers' names
        "to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_shortcut", "conv_out", "proj_in",
        "proj_out", "ff.net.2", "ff.net.0.proj",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.targets:
            raise ValueError("rank must be at least 1, and targets name a layer")


class OneStep(nn.Module):
    """The LoRA of a UNet, which itself stays frozen, and the one pass through it.

    The UNet gets the LoRA's layers, and changes nothing before they are trained. It is no part of this module: what
    is trained, saved and sent between processes is the LoRA alone, under the names of diffusers'
    ``load_lora_weights``, in float32 whatever the UNet's precision.

    Args:
        unet: Stable Diffusion's ``UNet2DConditionModel``, frozen, without LoRA.
        version: the noise schedule, and what the UNet predicts.
        timestep: at which the UNet is asked, 0 to 999: how much of the condition it takes for noise.
        lora: which layers, and how much of them.

    Raises:
        ConfigError: the UNet has no such layers, or there is no such timestep.

    Attributes:
        about: what a file of its weights belongs to, of JSON's types.
    """

    def __init__(self, unet: Any, version: Version, timestep: int, lora: LoRA) -> None:
        from peft import LoraConfig

        super().__init__()
        self.scheduler = one_step_scheduler(version, timestep)
        self.about = {"version": version, "timestep": timestep, "rank": lora.rank, "targets": list(lora.targets),
                      "unet": unet_sha256(unet)}  # fmt: skip
        settings = LoraConfig(
            r=lora.rank, lora_alpha=lora.rank, target_modules=list(lora.targets), init_lora_weights="gaussian"
        )
        try:
            unet.add_adapter(settings)
        except ValueError as error:
            raise ConfigError(" ".join(str(error).split())[:200], where="lora.targets") from error
        self.unet = nn.Module()
        for name, layer in list(unet.named_modules()):
            for half in ("lora_A", "lora_B"):
                if half in dict(layer.named_children()):
                    _put(self.unet, f"{name}.{half}", getattr(layer, half)["default"])
        self.float()
        self._frozen = (unet,)  # in a tuple, where torch does not look for modules

    def forward(self, condition: Tensor, context: Tensor) -> Tensor:
        """One pass.

        Args:
            condition: the cleaned image's latent (N, 4, h, w), times the VAE's scaling factor.
            context: text embedding, (N, L, D), or (1, L, D) for all.

        Returns:
            The clean latent, (N, 4, h, w) float32.
        """
        return restore_latent(self._frozen[0], self.scheduler, condition, context)


def _put(root: nn.Module, name: str, module: nn.Module) -> None:
    """Register a module under a dotted name."""
    *path, last = name.split(".")
    for part in path:
        if part not in dict(root.named_children()):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    root.add_module(last, module)


def one_step_scheduler(version: Version, timestep: int) -> DDIMScheduler:
    """The scheduler whose only step goes from ``timestep`` to the clean latent; it draws nothing.

    Raises:
        ConfigError: no such timestep.
    """
    scheduler = DDIMScheduler.from_config(noise_scheduler(version).config)
    if not 0 <= timestep < scheduler.config.num_train_timesteps:
        mend = f"Take 0 to {scheduler.config.num_train_timesteps - 1}"
        raise ConfigError(f"is {timestep}", where="timestep", mend=mend)
    scheduler.set_timesteps(1)
    scheduler.timesteps = torch.tensor([timestep])
    return scheduler


def restore_latent(unet: Any, scheduler: DDIMScheduler, condition: Tensor, context: Tensor) -> Tensor:
    """z0_hat of one pass: the condition as the noisy latent of the scheduler's timestep; shapes as `OneStep.forward`.

    Args:
        unet: with its LoRA; computes in its own precision.
        scheduler: `one_step_scheduler`'s.
        condition: the latent.
        context: the text embedding.
    """
    timestep = int(scheduler.timesteps[0])
    words = context.expand(len(condition), -1, -1).to(unet.dtype)
    prediction = unet(condition.to(unet.dtype), timestep, encoder_hidden_states=words, return_dict=False)[0]
    clean: Tensor = scheduler.step(prediction.float(), timestep, condition.float()).pred_original_sample
    return clean


def unet_sha256(unet: Any) -> str:
    """A hash of a UNet's weights, rounded to bfloat16: in this precision or a higher one it is the same."""
    return tensors_sha256({name: value.to(torch.bfloat16) for name, value in unet.state_dict().items()})


def load_one_step(folder: str | Path, unet: Any) -> tuple[OneStep, dict[str, Any]]:
    """Put a trained LoRA onto its UNet.

    Args:
        folder: final/ of a run of ``recipes/diffbir_one_step.py``.
        unet: the base's, in float32, without LoRA.

    Returns:
        The module, frozen; and what the run recorded of it: ``about``, ``prompt`` and ``cleaner``.

    Raises:
        WeightsError: it is missing or damaged, is none of these, or was trained on another UNet.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise WeightsError("no such folder", where=folder, mend=_MEND)
    verify(folder, "Take it from where it was made once more")
    try:
        about = json.loads((folder / RECORD).read_text(encoding="utf-8"))["fixed"][KEY]
        lora = LoRA(about["rank"], tuple(about["targets"]))
        version, timestep, digest = about["version"], about["timestep"], about["unet"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError("holds no LoRA for one step", where=folder, mend=_MEND) from error
    if (found := unet_sha256(unet)) != digest:
        what = f"was trained on another UNet (sha256 {digest[:12]}) than this base's ({found[:12]})"
        raise WeightsError(what, where=folder, mend="Name the base that it was trained on")
    model = OneStep(unet, version, timestep, lora)
    fill(model, read_state(folder / WEIGHTS).tensors, folder / WEIGHTS, name="the UNet")
    return model.eval().requires_grad_(False), about


class OneStepPipeline(DiffBIRPipeline):
    """`DiffBIRPipeline` with one pass in place of control and sampling; nothing is drawn.

    Its arguments, with ``controlnet`` None, the UNet that has the LoRA, and `one_step_scheduler`'s scheduler.
    """

    @torch.no_grad()
    def __call__(  # type: ignore[override]  # no sampling, no settings of it
        self,
        images: Images,
        *,
        prompt: str | Sequence[str] = "",
        upscale: float | None = None,
        minimum_side: int = 0,
        padding: Padding = "mirror",
        tile: int | None = None,
        output_type: OutputType = "pil",
    ) -> DiffBIROutput:
        """Restore images of one size; arguments, result and errors as `DiffBIRPipeline`'s."""
        check_output_type(output_type)
        stage.check_tiles(self.multiple, all=tile)
        device = self._execution_device
        batch = to_batch(images).to(device)
        context = self._contexts(prompt, len(batch), device)
        large = self.clean(batch, upscale, tile, minimum_side)

        def apply(condition: Tensor) -> Tensor:
            return restore_latent(self.unet, self.scheduler, condition, context)

        condition, unit = self.encode(large, tile, padding), self.multiple // self.cell
        latent = in_tiles(apply, condition, tile=tile and tile // self.cell, unit=unit)
        return self._finished(latent, large, stage.result_size(self.cleaner, batch, upscale), tile, output_type)
