"""The configuration of the DiffBIR recipes, their memory plan, and their start."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from milo_restore.data.degraded_sets import DegradedData
from milo_restore.loss import DiffusionLossSettings
from milo_restore.models.diffbir.prompts import NEGATIVE_PROMPT
from milo_restore.models.diffbir.restorers import Sampling
from milo_restore.models.diffbir.schedules import Version
from milo_restore.train import TrainSettings
from milo_restore.train.command import RunArguments

WORDS = {"input": "degraded input", "cleaner": "cleaner alone", "start": "control before training",
         "mse": "control after training, mse", "autoencoder": "autoencoder's limit"}  # fmt: skip
"""The stages, as tables and the report call them."""
MICRO_BATCH = 8  # 512-pixel samples that go through a 24 GB card at a time


@dataclass(frozen=True)
class Cache:
    """Latents on disk: a pool of fixed crops, flips and degradations in place of new ones at every step."""

    folder: str | None = None  # null: everything is encoded on the fly
    samples: int = 20000  # size of the pool; a sample of 512 pixels takes 200 kB


@dataclass(frozen=True)
class Config:
    """The whole experiment."""

    base: str = "tiny"  # frozen Stable Diffusion: tiny (shipped), a diffusers folder, or a hub id
    version: Version = "v2"  # v1, v2: the UNet predicts the noise; v2.1: the velocity, with zero terminal SNR
    control: str = "unet"  # start: unet (DiffBIR's own: copied, zero convolutions), base (its controlnet/) or a folder
    cleaner: str = "tiny:denoise"  # stage 1; none, a name of milo_restore.models.diffbir.cleaner, or a file
    prompt: str = ""  # text that the UNet sees with every image
    condition_noise: int = 0  # noise the condition to a timestep below this; DiffBIR v2.1: 200
    memory: Literal["default", "24gb"] = "default"  # 24gb: see `planned`
    gradient_checkpointing: bool = False  # of control and UNet
    data: DegradedData = field(default_factory=DegradedData)
    cache: Cache = field(default_factory=Cache)
    loss: DiffusionLossSettings = field(default_factory=DiffusionLossSettings)
    training: TrainSettings = field(default_factory=TrainSettings)
    sampling: Sampling = field(default_factory=Sampling)
    metrics: tuple[str, ...] = ("psnr", "ssim", "milo")  # of the final evaluation: any of milo-restore evaluate
    curves: tuple[str, ...] = ()  # of data.quick_images at every evaluation, too, each of which is sampled for it
    beside: Literal["mse"] | None = None  # mse: first trains that from the same start, into OUTPUT/mse; twice the time
    licences: tuple[str, ...] = ()  # of what the paths above name; needed where the base is not the shipped one

    def __post_init__(self) -> None:
        if self.condition_noise < 0 or self.cache.samples < 1:
            raise ValueError("condition_noise is at least 0, and cache.samples at least 1")
        if self.cache.folder is not None and (self.data.on_device or len({s.patch for s in self.training.stages}) > 1):
            raise ValueError("a cache needs one patch size in all stages, and data.on_device: false")

    @property
    def measured(self) -> list[str]:
        """The metrics, each once."""
        return list(dict.fromkeys((*self.metrics, *self.curves)))

    def with_mse(self) -> Config:
        """The same experiment with MSE as its loss."""
        loss = DiffusionLossSettings("mse", snr_gamma=self.loss.snr_gamma, loss_weight=self.loss.loss_weight)
        return replace(self, loss=loss, beside=None)

    @property
    def patch(self) -> int:
        """Side of the last stage's crops, in pixels."""
        return self.training.stages[-1].patch

    @property
    def texts(self) -> list[str]:
        """The prompts that training and sampling need."""
        return [self.prompt] if self.sampling.guidance_scale == 1 else [self.prompt, NEGATIVE_PROMPT]


def planned(config: Config, output: Path, processes: int) -> Config:
    """The configuration under its memory plan.

    ``24gb`` is one GPU of that size for Stable Diffusion 2.1 at 512 pixels: bfloat16 for control and frozen UNet,
    gradient checkpointing of both, 8-bit Adam, latents from disk (so that VAE and cleaner work before training only),
    and as many accumulated micro-batches as it takes to let no more than 8 samples through at a time. Accumulation
    does not change the result; the others do, within rounding and the size of the pool.
    """
    if config.memory == "default":
        return config
    largest = max(stage.batch for stage in config.training.stages)
    parts = max(config.training.accumulation, -(-largest // (processes * MICRO_BATCH)))
    training = replace(config.training, mixed_precision="bf16", optimizer="adamw8bit", accumulation=parts)
    cache = replace(config.cache, folder=config.cache.folder or str(output / "latents"))
    return replace(config, training=training, cache=cache, gradient_checkpointing=True)


def main(config: Config, run: RunArguments) -> int:
    """Run `diffbir.main`, for which --help and a mistyped key need not wait: diffusers takes seconds to import."""
    from diffbir import main as train

    return train(config, run)
