r"""Train Restormer to remove Gaussian noise, with MAE, LPIPS or MILO (with or without curriculum) as the loss.

    python recipes/restormer_denoise.py                       # tiny: a few minutes, no network, no GPU
    accelerate launch recipes/restormer_denoise.py --config recipes/configs/restormer_bsd400_sigma25.yaml \
        --set loss.kind=milo loss.curriculum=cosine --output runs/sigma25-milo-cosine

Ctrl-C saves and stops; the same command with ``--resume latest`` goes on, on a CPU bit for bit.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn

from milo_restore import MILO, Restormer
from milo_restore.config import dump_config
from milo_restore.data import NoisyPatches, load_collection, write_png
from milo_restore.data.image_sets import centre_crop
from milo_restore.files.write import replace_file
from milo_restore.loss import LossSettings, MILOLoss, build_loss
from milo_restore.measure import denoising_samples, evaluate_denoiser, summary_table
from milo_restore.train import TrainSettings, fit
from milo_restore.train.command import RunArguments, run_recipe


@dataclass(frozen=True)
class Data:
    """What to train and test on: named data sets, ``photographs`` (scikit-image's; no download), or folders."""

    train: tuple[str, ...] = ("photographs",)
    test: tuple[str, ...] = ("held-out-photographs",)
    root: str | None = None  # where named data sets lie; null: MILO_RESTORE_ASSETS, then the cache
    sigma: float | tuple[float, float] = 25.0  # noise in 8-bit units; [0, 50] trains a blind denoiser
    test_sigmas: tuple[float, ...] = (25.0,)
    test_side: int | None = None  # centre squares of the test images, in pixels; null: whole images
    mixup: bool = False  # Beta(1.2, 1.2) on half of the steps, as in Restormer's published denoising configurations
    quick_images: int = 8  # images per evaluation during training; the final one takes all

    def __post_init__(self) -> None:
        if not (self.train and self.test and self.test_sigmas) or self.quick_images < 1:
            raise ValueError("train, test and test_sigmas need an entry each, and quick_images at least 1")


@dataclass(frozen=True)
class Network:
    """Restormer's constructor arguments, as in the published YAML files."""

    dim: int = 48
    num_blocks: tuple[int, ...] = (4, 6, 6, 8)
    num_refinement_blocks: int = 4
    heads: tuple[int, ...] = (1, 2, 4, 8)
    ffn_expansion_factor: float = 2.66
    bias: bool = False
    LayerNorm_type: str = "BiasFree"
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class Config:
    """The whole experiment."""

    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    loss: LossSettings = field(default_factory=LossSettings)
    training: TrainSettings = field(default_factory=TrainSettings)
    metric_weights: str = "official"  # of the MILO that measures the results: official, mini, auto or a path


def main(config: Config, run: RunArguments) -> int:
    """Data, network, loss, training, final evaluation."""
    state, data, sigma = PartialState(), config.data, config.data.test_sigmas[0]
    images = [image for name in data.train for image in load_collection(name, data.root)]
    patches = NoisyPatches(images, sigma=data.sigma, seed=config.training.seed, mixup=data.mixup)
    tests = {
        name: [(file, centre_crop(image, data.test_side)) for file, image in load_collection(name, data.root)]
        for name in data.test
    }
    quick = [image for collection in tests.values() for image in collection][: data.quick_images]

    torch.manual_seed(config.training.seed)
    model = Restormer(**vars(config.network))
    loss = build_loss(config.loss, config.training.steps).to(state.device)
    milo = MILO.from_pretrained(config.metric_weights).to(state.device)
    used = {"loss": config.loss.label, "loss_weights": str(loss.weights) if isinstance(loss, MILOLoss) else None}

    def step(model: nn.Module, batch: dict[str, Any], number: int) -> tuple[Tensor, dict[str, Tensor]]:
        return loss.terms(model(batch["input"]), batch["target"], step=number)

    if run.dry_run:
        state.print(f"{dump_config(config)}# {used}, measured with MILO {milo.weights}")
        return 0
    result = fit(
        model, step, patches, config.training, run.output,
        resume=run.resume,
        evaluate=lambda model: evaluate_denoiser(model, quick, sigma, milo, progress=False).means(),
        sample=lambda model: denoising_samples(model, quick[:3], sigma, milo),
        curriculum=loss.curriculum.position if isinstance(loss, MILOLoss) else None,
        record={"config": dump_config(config), "fixed": used, "metric_weights": str(milo.weights)},
    )  # fmt: skip
    if result.stopped:
        return 128 + (result.signal or 0)
    model.to(state.device)
    scores = [(n, s, evaluate_denoiser(model, tests[n], s, milo)) for n in data.test for s in data.test_sigmas]
    if state.is_main_process:
        numbers = {"steps": result.step, **used, "results": [{"data": n, **s.as_dict()} for n, _, s in scores]}
        replace_file(run.output / "metrics.json", json.dumps(numbers, indent=1) + "\n")
        write_png(run.output / "samples" / "final.png", denoising_samples(model, quick[:3], sigma, milo))
        print(f"{summary_table(scores)}\nMILO weights: {milo.weights}; run folder: {run.output}")
    return 0


if __name__ == "__main__":
    default = Path(__file__).parent / "configs" / "restormer_tiny.yaml"
    sys.exit(run_recipe(main, Config, default, __doc__ or ""))
