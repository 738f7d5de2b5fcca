"""What latent_ablation.py trains and measures: the tiny world's latents, and its two kinds of restorers.

One-step: a small network maps the latent of the degraded (cleaned) image to a clean latent in one pass. Its output is
z0_hat: to the loss it is a model that says z_0, whatever the timestep, and LatentMILO's mask is exact. Control:
IRControlNet, as the DiffBIR recipes train and sample it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffbir_config import Config
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from train_tiny_world import LatentCrops

from milo_restore.config import load_config
from milo_restore.data import SampleKey, to_tensor, to_uint8
from milo_restore.data.degraded_sets import held_out, training_pairs
from milo_restore.data.restoration_pairs import RestorationPair
from milo_restore.files.hashes import images_sha256, text_sha256
from milo_restore.files.write import replacing
from milo_restore.loss import DiffusionLoss, DiffusionLossSettings
from milo_restore.models import tiny
from milo_restore.models.diffbir import noise_scheduler, predict
from milo_restore.models.diffbir.frozen import Draws, Frozen, load_frozen
from milo_restore.models.diffbir.restorers import stage_restorers

CROP = 256  # pixels along a side of the training images' crops, of which windows are trained on
DATA_SEED = 5  # of crops and degradations; a cell's own seed draws windows, noise and the network's start
STEP = Callable[[nn.Module, dict[str, Any], int], "tuple[Tensor, dict[str, Tensor]]"]


class Residual(nn.Sequential):
    """Two convolutions, each after SiLU, added to what goes in."""

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C, h, w) to the same shape."""
        one, other = self
        return features + other(F.silu(one(F.silu(features))))


class OneStep(nn.Module):
    """Residual 3x3 convolutions at the latent's size, their output added to the condition; 0.25 M parameters.

    The last layer starts at zero: an untrained network gives the condition back.
    """

    def __init__(self, width: int = 48, blocks: int = 6) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, width, 3, padding=1)
        pairs = [[nn.Conv2d(width, width, 3, padding=1) for _ in range(2)] for _ in range(blocks)]
        self.blocks = nn.Sequential(*(Residual(*pair) for pair in pairs))
        self.last = nn.Conv2d(width, 4, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, condition: Tensor) -> Tensor:
        """Latents (N, 4, h, w), times the scaling factor, to the same."""
        return condition + self.last(self.blocks(self.first(condition)))


@dataclass(frozen=True)
class World:
    """Frozen networks, the latents to train on, and the crops to measure on; the same for every cell."""

    config: Config  # of diffbir_sr.py in the tiny world
    frozen: Frozen
    train: dict[str, Tensor]  # mean and condition, (N, 4, 32, 32)
    pairs: list[RestorationPair]
    latents: dict[str, Tensor]  # of the pairs: mean and condition, (M, 4, h, w)
    images: str  # sha256 of what was trained and measured on

    @classmethod
    @torch.no_grad()
    def load(cls, images: Path, crops: int, side: int, held: int, cache: Path) -> World:
        """Degrade, clean and encode everything; the training latents once only.

        Args:
            images: BSDS500's folder, with train and test below it.
            crops: of the training images.
            side: of the held-out crops, in pixels.
            held: how many of those.
            cache: folder of the training latents.

        Raises:
            DataError: a folder holds no images, or too small ones.
        """
        base = Path(__file__).parent / "configs" / "diffbir_sr_tiny.yaml"
        words = [f"data.train=['{images / 'train'}']", f"data.test=['{images / 'test'}']", f"data.test_side={side}"]
        config = load_config(Config, base, words)
        frozen = load_frozen(config.base, config.cleaner, config.texts)
        source = training_pairs(config.data, DATA_SEED)
        (pairs,) = held_out(config.data).values()
        pairs = pairs[:held]
        targets = torch.stack([to_tensor(pair.target) for pair in pairs])
        latents = frozen.encode_in_parts(torch.stack([pair.degraded for pair in pairs]), targets)
        digest = images_sha256([*source.images, *((pair.name, pair.target) for pair in pairs)])
        identity = f"{digest} {crops} {CROP} {DATA_SEED} {config.data.chosen} {frozen.sha256()}"
        file = cache / f"latents-{text_sha256(identity)[:16]}.safetensors"
        if not file.is_file():
            samples = [source[SampleKey(1, number, number, CROP)] for number in range(crops)]
            degraded, target = (torch.stack([sample[key] for sample in samples]) for key in ("input", "target"))
            made = frozen.encode_in_parts(degraded, target)
            with replacing(file) as temporary:
                save_file({key: value.contiguous() for key, value in made.items()}, temporary)
        return cls(config, frozen, load_file(file), pairs, latents, digest)

    def windows(self, seed: int) -> LatentCrops:
        """The training latents, of which a key draws windows of its patch."""
        return LatentCrops(self.train["mean"], self.train["condition"], None, seed)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Any]:
        """Scaled latents to (H, W, 3) uint8."""
        parts = (self.frozen.vae.decode(part / self.frozen.scale).sample / 2 + 0.5 for part in latents.split(4))
        return [to_uint8(image) for part in parts for image in part.clamp(0, 1)]


class Setting(NamedTuple):
    """One way to train and restore."""

    build: Callable[[World], nn.Module]  # the network, before it is trained
    loss: Callable[[DiffusionLossSettings, int], DiffusionLoss]
    step: Callable[[World, DiffusionLoss, int, int], STEP]  # of the loss, how often it is compared, and the seed
    restore: Callable[[World, nn.Module], list[Any]]  # the held-out crops, restored: (H, W, 3) uint8 each
    steps: int


def sample_loss(settings: DiffusionLossSettings, steps: int) -> DiffusionLoss:
    """A loss for a model that says z_0: its z0_hat is its output, at every timestep."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_config({**tiny.tiny_scheduler().config, "prediction_type": "sample"})
    return DiffusionLoss(settings, scheduler, steps)


def one_step(world: World, loss: DiffusionLoss, every: int, seed: int) -> STEP:
    """One pass from the condition to z_0."""

    def step(model: nn.Module, batch: dict[str, Any], number: int) -> tuple[Tensor, dict[str, Tensor]]:
        z0, condition = batch["latent"], batch["condition"]
        no_time = torch.zeros(len(z0), dtype=torch.int64, device=z0.device)
        said = model(condition)
        return loss.terms(
            said, z0, z0, torch.zeros_like(z0), no_time, step=number, condition=condition, compare=number % every == 0
        )

    return step


def control_step(world: World, loss: DiffusionLoss, every: int, seed: int) -> STEP:
    """The noise prediction under control, at a timestep and with a noise of each sample's own."""
    frozen, scheduler = world.frozen, loss.scheduler

    def step(model: nn.Module, batch: dict[str, Any], number: int) -> tuple[Tensor, dict[str, Tensor]]:
        z0, condition = batch["latent"], batch["condition"]
        draws = Draws.of(seed, number, batch["position"].tolist(), z0)
        timesteps = (draws.time * len(scheduler)).long()
        z_t = scheduler.add_noise(z0, draws.noise, timesteps)
        said = predict(frozen.unet, model, z_t, timesteps, frozen.context, condition)
        return loss.terms(
            said, z_t, z0, draws.noise, timesteps, step=number, condition=condition, compare=number % every == 0
        )

    return step


def restore_control(world: World, control: nn.Module) -> list[Any]:
    """Full sampling, as the recipe does."""
    config = world.config
    restore = stage_restorers(world.frozen, config.version, config.sampling, control.eval())["restored"]
    return [restore(pair, number) for number, pair in enumerate(world.pairs)]


@torch.no_grad()
def restore_one_step(world: World, model: nn.Module) -> list[Any]:
    """One pass, decoded."""
    return world.decode(model.eval()(world.latents["condition"]))


def _control(start: str, steps: int) -> Setting:
    def build(world: World) -> nn.Module:
        return world.frozen.start_control(start)

    def loss(settings: DiffusionLossSettings, steps: int) -> DiffusionLoss:
        return DiffusionLoss(settings, noise_scheduler("v2"), steps)

    return Setting(build, loss, control_step, restore_control, steps)


SETTINGS = {
    "one-step": Setting(lambda world: OneStep(), sample_loss, one_step, restore_one_step, 400),
    "control-unet": _control("unet", 300),
    "control-base": _control("base", 200),
}
