r"""Restore photographs in an autoencoder's latents, in one pass, with MSE, L1 or LatentMILO as the loss.

    milo-restore assets fetch taef2 BSD400 CBSD68
    python recipes/latent_restore.py                                   # FLUX.2's latents, sigma 25: some minutes
    python recipes/latent_restore.py --set task=x4 loss.kind=mse loss.loss_weight=1 --output runs/latent_x4_mse

A photograph is degraded in pixels and encoded; a small network takes its latent to a clean one, which is decoded and
measured. The training crops are encoded once, and windows of their latents are trained on: in training nothing is
decoded. Ctrl-C saves and stops; the same command with ``--resume latest`` goes on, on a CPU bit for bit.
"""

from __future__ import annotations

import milo_restore.interrupt  # noqa: F401  isort: skip  first: what follows takes seconds

import json
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from latent_world import LatentData, OneStep, Task, World, codec_of, load_world, photographs
from torch import Tensor, nn

from milo_restore.config import dump_config
from milo_restore.data import write_png
from milo_restore.files.write import replace_file
from milo_restore.loss import LatentMILOLoss, LossSettings, RestorationLoss
from milo_restore.loss.build import latent_loss
from milo_restore.loss.cosine import cosine_with_mse
from milo_restore.measure import Restore, comparison_table, evaluate_restorers, sample_picture, score_restorer
from milo_restore.measure.metrics import Protocol, load_metrics
from milo_restore.metric import LatentSpace
from milo_restore.train import PartialState, TrainSettings, fit
from milo_restore.train.command import RunArguments, run_recipe
from milo_restore.train.dry_run import look_at_all, training_looks
from milo_restore.train.memory import parameter_count

WORDS = {"input": "degraded photograph", "untouched": "encoded and decoded", "autoencoder": "autoencoder's limit"}
SMALLEST = 128  # pixels along a side of a window: LatentMILO's 16 cells


@dataclass(frozen=True)
class Network:
    """Size of the network: 0.5 M parameters at 32 channels."""

    width: int = 64  # channels of the features
    blocks: int = 6  # residual blocks of two convolutions each


@dataclass(frozen=True)
class Config:
    """The whole experiment."""

    task: Task = "denoise"  # white noise of sigma 25, or x4: bicubic, four times smaller
    vae: str = "taef2"  # FLUX.2's tiny autoencoder, a folder in diffusers' format, or OWNER/NAME of the hub
    data: LatentData = field(default_factory=LatentData)
    network: Network = field(default_factory=Network)
    loss: LossSettings = field(default_factory=lambda: LossSettings(weights="flux2-taef2"))
    training: TrainSettings = field(default_factory=TrainSettings)
    metrics: tuple[str, ...] = ("psnr", "milo", "st-lpips")  # any of milo-restore evaluate

    def __post_init__(self) -> None:
        for stage in self.training.stages:
            if stage.patch % 8 or not SMALLEST <= stage.patch <= self.data.crop:
                what = f"a stage's patch must be a multiple of 8 from {SMALLEST} to data.crop, {self.data.crop}"
                raise ValueError(f"{what}, got {stage.patch}")


def build(config: Config, space: LatentSpace) -> tuple[nn.Module, RestorationLoss]:
    """The network and its loss.

    Raises:
        WeightsError: the loss's weights cannot be had.
        ConfigError: they are for other latents.
    """
    torch.manual_seed(config.training.seed)
    model = OneStep(space.channels, config.network.width, config.network.blocks)
    return model, latent_loss(config.loss, config.training.steps, space, f"vae {config.vae}")


def main(config: Config, run: RunArguments) -> int:
    """Latents, network, loss, training, final evaluation."""
    if run.dry_run:
        return check(config, run)
    state, settings = PartialState(), config.training
    metrics, _ = load_metrics(config.metrics, Protocol(), state.device, skip_unavailable=False)
    _, space = codec_of(config.vae, state.device)
    model, loss = build(config, space)  # what does not fit is refused before all is encoded
    world = load_world(config.vae, config.task, config.data, state.device)
    loss.to(state.device)
    milo = loss if isinstance(loss, LatentMILOLoss) else None
    used = {
        "loss": config.loss.label, "loss_weights": str(milo.weights) if milo else None,
        "vae": world.codec.sha256, "images": world.images, "crops": [config.data.crops, config.data.crop],
        "task": config.task, "parameters": parameter_count(model),
    }  # fmt: skip

    def step(model: nn.Module, batch: dict[str, Any], number: int) -> tuple[Tensor, dict[str, Tensor]]:
        said, clean = model(batch["condition"]), batch["latent"]
        value, watched = loss.terms(said, clean, step=number)
        if number % settings.log_every == 0:
            watched["cosine_mse"] = cosine_with_mse(loss, said, clean, number)
        return value, watched

    def restorer(model: nn.Module) -> Restore:
        return partial(world.restore, model)

    quick = [pair for pairs in world.tests.values() for pair in pairs][: config.data.quick_images]
    result = fit(
        model, step, world.windows(settings.seed), settings, run.output,
        resume=run.resume,
        evaluate=lambda model: score_restorer(restorer(model), quick, metrics, device=state.device, progress=False),
        sample=lambda model: sample_picture({"output": restorer(model)}, quick[:3]),
        lower_better={metric.name: metric.lower_better for metric in metrics},
        curriculum=milo.curriculum.position if milo else None,
        record={"config": dump_config(config), "fixed": used, "metrics": {m.name: m.weights for m in metrics},
                "about": {"data": f"{config.data.crops} crops of {', '.join(config.data.train)}, {config.task}",
                          "loss": used["loss"], "weights": str(used["loss_weights"])}},
    )  # fmt: skip
    if result.stopped:
        return result.exit_code
    evaluate(config, run, world, restorer(model.to(state.device)), metrics, {"steps": result.step, **used})
    return 0


def evaluate(
    config: Config, run: RunArguments, world: World, restore: Restore, metrics: Any, record: dict[str, Any]
) -> None:
    """Restore and measure the held-out photographs, beside the autoencoder's own limits."""
    words = {**WORDS, "restored": config.loss.label}
    methods: dict[str, Restore] = {
        "untouched": world.untouched, "restored": restore, "autoencoder": world.limit
    }  # fmt: skip
    state, cache = PartialState(), Path(config.data.cache) / "measured"
    results = evaluate_restorers(
        methods, world.tests, metrics, run.output / "eval", labels=words, cache=cache, device=state.device
    )
    if state.is_main_process:
        replace_file(run.output / "run.json", json.dumps(record, indent=1) + "\n")
        first = next(iter(world.tests.values()))
        write_png(run.output / "samples" / "final.png", sample_picture({"output": restore}, first[:3]))
        print(comparison_table(results, words))
        print(f"run folder: {run.output}; milo-restore report {run.output} --output runs/report.html shows pictures")


def check(config: Config, run: RunArguments) -> int:
    """Load all that the configuration names, train nothing, and say all that is wrong, a line each.

    Raises:
        ConfigError: something is wrong.
    """
    print(dump_config(config))
    space: list[LatentSpace] = []

    def vae() -> str:
        codec, known = codec_of(config.vae, torch.device("cpu"))
        space.append(known)
        return f"{codec.channels} channels, sha256 {codec.sha256[:12]}"

    def loss() -> str:
        model, built = build(config, *(space or [LatentSpace(32)]))
        weights = f", {built.weights}" if isinstance(built, LatentMILOLoss) else ""
        return f"{config.loss.label}{weights}; a network of {parameter_count(model):,} parameters"

    def metrics() -> str:
        found, _ = load_metrics(config.metrics, Protocol(), torch.device("cpu"), skip_unavailable=False)
        return ", ".join(f"{metric.name} ({metric.weights})" for metric in found)

    return look_at_all({
        "data.train": lambda: f"{len(photographs(config.data)[0])} images",
        "data.test": lambda: ", ".join(f"{name}: {len(each)}" for name, each in photographs(config.data)[1].items()),
        f"vae {config.vae}": vae,
        "loss": loss,
        "metrics": metrics,
        **training_looks(config.training, run.output, run.resume, config.metrics),
    })  # fmt: skip


if __name__ == "__main__":
    default = Path(__file__).parent / "configs" / "latent_restore.yaml"
    sys.exit(run_recipe(main, Config, default, __doc__ or ""))
