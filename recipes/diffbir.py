r"""Blind restoration with Stable Diffusion: DiffBIR's second stage, trained with MSE, MAE or MILO's latent mask.

Shared by diffbir_denoise.py, diffbir_sr.py and diffbir_face.py, which name the task's configuration. What is trained is
IRControlNet, a copy of the UNet's encoder that also sees the latent of a roughly cleaned image. UNet, VAE, cleaner and
metric are frozen: `fit` never sees them, so they reach neither DDP nor the optimiser.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from diffbir_check import check
from diffbir_data import Data, contents, fingerprint, held_out, pieces, training_pairs
from diffbir_setup import Frozen, fixed, load_frozen, planned, start_control
from diffbir_table import measure, read_beside, table
from numpy.typing import NDArray
from torch import Tensor, nn

from milo_restore import MILO
from milo_restore.config import dump_config
from milo_restore.data import keyed_rng, write_png
from milo_restore.data.degrade.batch import degrade_batch
from milo_restore.data.degraded_patches import DegradedPairs
from milo_restore.data.latent_cache import CachedLatents, cache_latents
from milo_restore.files.write import replace_file
from milo_restore.loss import DiffusionLoss, DiffusionLossSettings
from milo_restore.measure.restoration import (
    RestorationPair,
    held_out_loss,
    pipeline_restorer,
    restoration_samples,
)
from milo_restore.models.diffbir import DiffBIRPipeline, noise_scheduler, predict
from milo_restore.models.diffbir.schedules import Version
from milo_restore.train import TrainSettings, checkpoint, fit
from milo_restore.train.command import RunArguments


@dataclass(frozen=True)
class Cache:
    """Latents on disk: a pool of fixed crops, flips and degradations in place of new ones at every step."""

    folder: str | None = None  # null: everything is encoded on the fly
    samples: int = 20000  # size of the pool; a sample of 512 pixels takes 200 kB


@dataclass(frozen=True)
class Sampling:
    """How images are restored for the samples and the final evaluation."""

    steps: int = 50  # DiffBIR v2's
    guidance_scale: float = 4.0  # classifier-free guidance against the negative prompt; 1: none
    start: Literal["noise", "condition"] = "noise"  # condition: from the cleaned image's latent, noised to the end
    minimum_side: int = 0  # smaller images are denoised enlarged to it, in pixels; Stable Diffusion knows 512
    seed: int = 231


@dataclass(frozen=True)
class Config:
    """The whole experiment."""

    base: str = "tiny"  # frozen Stable Diffusion: tiny (shipped), a diffusers folder, or a hub id
    version: Version = "v2"  # v1, v2: the UNet predicts the noise; v2.1: the velocity, with zero terminal SNR
    control: str = "unet"  # start: unet (DiffBIR's own: copied, zero convolutions), base (its controlnet/) or a folder
    cleaner: str = "tiny:denoise"  # stage 1; none, a name of milo_restore.models.diffbir.cleaner, or a file
    prompt: str = ""
    condition_noise: int = 0  # noise the condition to a timestep below this; DiffBIR v2.1: 200
    memory: Literal["default", "24gb"] = "default"  # 24gb: see `diffbir_setup.planned`
    gradient_checkpointing: bool = False  # of control and UNet
    data: Data = field(default_factory=Data)
    cache: Cache = field(default_factory=Cache)
    loss: DiffusionLossSettings = field(default_factory=DiffusionLossSettings)
    training: TrainSettings = field(default_factory=TrainSettings)
    sampling: Sampling = field(default_factory=Sampling)
    beside: Literal["mse"] | None = None  # mse: first trains that from the same start, into OUTPUT/mse; twice the time
    metric_weights: str = "official"  # of the MILO that measures the results: official, mini or a path
    licences: tuple[str, ...] = ()  # of what the paths above name; needed where the base is not the shipped one

    def __post_init__(self) -> None:
        if self.condition_noise < 0 or self.cache.samples < 1:
            raise ValueError("condition_noise is at least 0, and cache.samples at least 1")
        if self.cache.folder is not None and (self.data.on_device or len({s.patch for s in self.training.stages}) > 1):
            raise ValueError("a cache needs one patch size in all stages, and data.on_device: false")

    @property
    def patch(self) -> int:
        """Side of the last stage's crops, in pixels."""
        return self.training.stages[-1].patch


class Draws(NamedTuple):
    """What a step draws. Each sample has a generator of its own: however a batch is split, it is the same."""

    posterior: Tensor  # (N, 4, h, w): the VAE's sample
    noise: Tensor  # (N, 4, h, w): the diffusion's
    augmentation: Tensor  # (N, 4, h, w): the condition's, where it gets some
    time: Tensor  # (N,), uniform in [0, 1)
    level: Tensor  # (N,), uniform in [0, 1): of the condition's noise

    @classmethod
    def of(cls, seed: int, step: int, positions: Sequence[int], like: Tensor) -> Draws:
        """Keyed by (seed, step, position in the run); shaped as ``like``, and on its device."""
        rngs = [keyed_rng(seed, "diffusion", step, position) for position in positions]
        normal = np.stack([rng.standard_normal((3, *like.shape[1:]), dtype=np.float32) for rng in rngs])
        uniform = np.stack([rng.random(2, dtype=np.float32) for rng in rngs])
        first, second = (torch.from_numpy(values).to(like.device) for values in (normal, uniform))
        return cls(*first.unbind(1), *second.unbind(1))


def with_cosine(
    loss: DiffusionLoss, number: int, log: bool, *arguments: Tensor, condition: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and, for the log, the cosine of its gradient with MSE's: how far it is another loss at all."""
    value = loss(*arguments, step=number, condition=condition)
    if not log:
        return value, {}
    return value, {"cosine_mse": loss.cosine_with_mse(*arguments, step=number, condition=condition)}


def main(config: Config, run: RunArguments) -> int:
    """One run, or the one with MSE and then this one."""
    config = planned(config, run.output, PartialState().num_processes)
    if run.dry_run:
        return check(config)
    folder = run.output / "mse"
    if config.beside is not None and read_beside(folder) is None:
        mse = DiffusionLossSettings("mse", snr_gamma=config.loss.snr_gamma, loss_weight=config.loss.loss_weight)
        code = train(replace(config, loss=mse, beside=None), replace(run, output=folder))
        if code:
            return code
    return train(config, run)


def train(config: Config, run: RunArguments) -> int:
    """Data, frozen networks, control, loss, training, final evaluation by sampling."""
    state = PartialState()
    seed, device = config.training.seed, state.device
    pairs: Any = training_pairs(config.data, seed)
    tests = held_out(config.data)
    quick = [pair for pairs_of_one in zip(*tests.values()) for pair in pairs_of_one][: config.data.quick_images]

    torch.manual_seed(seed)
    frozen = load_frozen(config, device)
    control = start_control(config, frozen)
    start = copy.deepcopy(control)
    scheduler = noise_scheduler(config.version)
    loss = DiffusionLoss(config.loss, scheduler, config.training.steps).to(device)
    milo = MILO.from_pretrained(config.metric_weights).to(device)

    def step(control: nn.Module, batch: dict[str, Any], number: int) -> tuple[Tensor, dict[str, Tensor]]:
        if "key" in batch:  # clean patches, to be degraded here
            degraded, target = degrade_batch(batch["target"], batch["key"], config.data.realesrgan, seed)
            batch = {**batch, "input": degraded, "target": target}
        latents = batch if "condition" in batch else frozen.encode(batch["input"], batch["target"])
        draws = Draws.of(seed, number, batch["position"].tolist(), latents["mean"])
        z0 = latents["mean"] + latents["deviation"] * draws.posterior
        timesteps = (draws.time * len(scheduler)).long()
        z_t = scheduler.add_noise(z0, draws.noise, timesteps)
        condition = latents["condition"]
        if config.condition_noise:
            level = (draws.level * config.condition_noise).long()
            condition = scheduler.add_noise(condition, draws.augmentation, level)
        prediction = predict(frozen.unet, control, z_t, timesteps, frozen.context, condition)
        log = number % config.training.log_every == 0 or number == config.training.steps
        arguments = (prediction, z_t, z0, draws.noise, timesteps)
        return with_cosine(loss, number, log, *arguments, condition=latents["condition"])

    source = fingerprint(pairs, config.data)
    if config.cache.folder is not None:
        pairs = cached(config, frozen, pairs, source)
    unseen = in_parts(frozen, *pieces(quick, config.patch))
    before = held_out_loss(control.to(device), frozen.unet, loss, unseen, frozen.context)
    used = {"loss": loss.label, "loss_weights": str(loss.weights), **frozen.sha256()}
    result = fit(
        control, step, pairs, config.training, run.output,
        resume=run.resume,
        evaluate=lambda control: held_out_loss(control, frozen.unet, loss, unseen, frozen.context),
        sample=lambda control: picture(config, frozen, loss, milo, control, quick),
        curriculum=None if config.loss.curriculum == "constant" else loss.position,
        record={"config": dump_config(config), "fixed": {**used, **source, **fixed(config, frozen)},
                "metric_weights": str(milo.weights)},
    )  # fmt: skip
    if result.stopped:
        return result.exit_code
    after = held_out_loss(control.to(device).eval(), frozen.unet, loss, unseen, frozen.context)
    if state.is_main_process:
        checkpoint.publish(run.output / "controlnet", control.save_pretrained)
    for one in (control, start):  # diffusers' own method warns of an empty list of exceptions
        nn.Module.to(one, state.device, frozen.unet.dtype)
    pipelines = [pipeline_of(config, frozen, one) for one in (control, start)]
    restores = [pipeline_restorer(one, **vars(config.sampling)) for one in pipelines]
    results = measure(pipelines[0], *restores, tests, milo)
    if state.is_main_process:
        numbers = {"steps": result.step, **used, "held_out": {"before": before, "after": after}, "results": results}
        replace_file(run.output / "metrics.json", json.dumps(numbers, indent=1) + "\n")
        write_png(run.output / "samples" / "final.png", picture(config, frozen, loss, milo, control, quick))
        beside = None if config.beside is None else read_beside(run.output / config.beside)
        print(f"{table(results, loss.label, beside)}\nMILO weights: {milo.weights}; run folder: {run.output}")
        if config.beside is None and config.loss.kind != "mse":
            print("The same with MSE beside it: --set beside=mse, and another --output")
    return 0


def in_parts(frozen: Frozen, degraded: Tensor, target: Tensor, size: int = 4) -> dict[str, Tensor]:
    """`Frozen.encode`, a few images at a time."""
    pairs = zip(*(images.to(frozen.vae.device).split(size) for images in (degraded, target)))
    parts = [frozen.encode(*pair) for pair in pairs]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def cached(config: Config, frozen: Frozen, pairs: DegradedPairs, source: dict[str, str]) -> CachedLatents:
    """The pool of latents in place of the pairs; each process encodes its part of what is missing."""
    state, seed = PartialState(), config.training.seed
    identity = {**source, "files": contents(pairs, config.cache.samples), **frozen.sha256()}
    latents = cache_latents(
        pairs, frozen.encode, str(config.cache.folder),
        identity=identity, samples=config.cache.samples, patch=config.patch, seed=seed,
        device=state.device, workers=config.training.workers, share=(state.process_index, state.num_processes),
    )  # fmt: skip
    state.wait_for_everyone()
    return latents


def pipeline_of(config: Config, frozen: Frozen, control: nn.Module) -> DiffBIRPipeline:
    """The frozen networks with a control."""
    pipeline = DiffBIRPipeline(**frozen.for_pipeline(), controlnet=control, scheduler=noise_scheduler(config.version))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def picture(
    config: Config, frozen: Frozen, loss: DiffusionLoss, milo: MILO, control: nn.Module, pairs: list[RestorationPair]
) -> NDArray[np.uint8]:
    """Input | cleaner | output | target | mask: MILO's on the latents where that is the loss's, else on the images.

    The mask rises where the output is wrong: bright is where errors weigh more.
    """

    def mask(output: Tensor, target: Tensor) -> Tensor:
        if loss.metric is None:
            images = [image.to(frozen.vae.device) for image in (output, target)]
            return milo.predict_mask(*images) / milo.n_scales
        latents = [frozen.latents(images).mode() * frozen.scale for images in (output, target)]
        return loss.metric.predict_mask(*latents) / loss.metric.n_scales

    restore = pipeline_restorer(pipeline_of(config, frozen, control), **vars(config.sampling))
    return restoration_samples(restore, pairs, mask, "mask, bright: weighs more")
