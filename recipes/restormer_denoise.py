r"""Train Restormer to remove Gaussian noise, with MAE, LPIPS or MILO (with or without curriculum) as the loss.

    python recipes/restormer_denoise.py                       # tiny: a few minutes, no network, no GPU
    accelerate launch recipes/restormer_denoise.py --config recipes/configs/restormer_bsd400_sigma25.yaml \
        --set loss.kind=milo loss.curriculum=cosine --output runs/sigma25-milo-cosine

Ctrl-C saves and stops; the same command with ``--resume latest`` goes on, on a CPU bit for bit.
"""

from __future__ import annotations

import milo_restore.interrupt  # noqa: F401  isort: skip  first: what follows takes seconds

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from milo_restore import MILO, Restormer
from milo_restore.config import dump_config
from milo_restore.data import NoisyPatches, load_collection, write_png
from milo_restore.data.image_sets import centre_crop, identity_of
from milo_restore.data.noise import refuse_fraction
from milo_restore.data.restoration_pairs import RestorationPair, noisy_pairs
from milo_restore.errors import ConfigError
from milo_restore.files.hashes import sha256_of
from milo_restore.files.quarantine import Quarantine
from milo_restore.files.write import replace_file
from milo_restore.loss import LossSettings, MILOLoss, build_loss
from milo_restore.measure import Restore, comparison_table, evaluate_restorers, sample_picture, score_restorer
from milo_restore.measure.metrics import Protocol, load_metrics
from milo_restore.measure.restorer import given
from milo_restore.models.denoise import denoise
from milo_restore.models.trained import load_trained
from milo_restore.train import PartialState, TrainSettings, fit
from milo_restore.train.command import RunArguments, run_recipe
from milo_restore.train.dry_run import first_samples, look_at_all, training_looks
from milo_restore.train.memory import parameter_count

MASK_TOP = 1.0  # of (0, 4), where the colours of the pictures' masks end: a mask of leftover noise rarely passes 1


@dataclass(frozen=True)
class Data:
    """Training and test images: named data sets, ``photographs`` (scikit-image's; no download), or folders."""

    train: tuple[str, ...] = ("photographs",)  # named data sets, photographs, or folders of images
    test: tuple[str, ...] = ("held-out-photographs",)  # the same; nothing of them is trained on
    root: str | None = None  # where named data sets lie; null: MILO_RESTORE_ASSETS, then the cache
    sigma: float | tuple[float, float] = 25.0  # noise in 8-bit units; [0, 50] trains a blind denoiser
    test_sigmas: tuple[float, ...] = (25.0,)  # noise levels of the test images, in 8-bit units
    test_side: int | None = None  # centre squares of the test images, in pixels; null: whole images
    mixup: bool = False  # Beta(1.2, 1.2) on half of the steps, as in Restormer's published denoising configurations
    quick_images: int = 8  # images per evaluation during training; the final one takes all

    def __post_init__(self) -> None:
        if not (self.train and self.test and self.test_sigmas) or self.quick_images < 1:
            raise ValueError("train, test and test_sigmas need an entry each, and quick_images at least 1")
        for sigma in (self.sigma, *self.test_sigmas):
            refuse_fraction(max(sigma) if isinstance(sigma, tuple) else sigma)


@dataclass(frozen=True)
class Network:
    """Restormer's constructor arguments, as in the published YAML files, and the weights to start from."""

    # weights to start from: lite, lite-mae, a run folder or a file, such as a published Restormer's; null: random ones
    pretrained: str | None = None
    dim: int = 48  # channels at full size; twice as many at each smaller one
    num_blocks: tuple[int, ...] = (4, 6, 6, 8)  # transformer blocks at each of the four sizes
    num_refinement_blocks: int = 4  # transformer blocks behind the decoder
    heads: tuple[int, ...] = (1, 2, 4, 8)  # attention heads at each size
    ffn_expansion_factor: float = 2.66  # hidden channels of the feed-forward parts, as a multiple
    bias: bool = False  # of the convolutions
    LayerNorm_type: str = "BiasFree"  # or WithBias
    gradient_checkpointing: bool = False  # computes activations again in the backward pass: less memory, more time


@dataclass(frozen=True)
class Config:
    """The whole experiment."""

    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    loss: LossSettings = field(default_factory=LossSettings)
    training: TrainSettings = field(default_factory=TrainSettings)
    # any of milo-restore evaluate; also as curves, and keep_best may name one
    metrics: tuple[str, ...] = ("psnr", "ssim", "milo")


def training_patches(config: Config, run: RunArguments) -> tuple[list[Any], NoisyPatches]:
    """The training images, and their noisy patches; what cannot be read is passed over and listed in the run folder.

    Raises:
        DataError: a data set is missing, or too many of its images cannot be read.
    """
    data, quarantine = config.data, Quarantine.of_run(run.output, run.resume)
    images = [image for name in data.train for image in load_collection(name, data.root, quarantine)]
    options: dict[str, Any] = {"sigma": data.sigma, "seed": config.training.seed, "mixup": data.mixup}
    return images, NoisyPatches(images, **options, quarantine=quarantine)


def test_pairs(data: Data) -> dict[str, list[RestorationPair]]:
    """Test images by set and noise level.

    Raises:
        DataError: a data set is missing, or an image cannot be read.
    """
    tests: dict[str, list[RestorationPair]] = {}
    for name in data.test:
        clean = [(file, centre_crop(image, data.test_side)) for file, image in load_collection(name, data.root)]
        tests |= {f"{name}, sigma {sigma:g}": noisy_pairs(clean, sigma) for sigma in data.test_sigmas}
    return tests


def build_network(settings: Network) -> tuple[Restormer, str | None]:
    """The network, and its weights in words where it starts from some.

    Raises:
        WeightsError: they are missing, damaged, or no Restormer's.
        ConfigError: they are of a network of another architecture.
    """
    arguments = {key: value for key, value in vars(settings).items() if key != "pretrained"}
    model = Restormer(**arguments)
    if settings.pretrained is None:
        return model, None
    trained, file = load_trained(settings.pretrained)
    other = {key: value for key, value in trained.config.items() if value != model.config[key]}
    if other:
        what = f"is of another network: {', '.join(f'{key} {value}' for key, value in other.items())}"
        same = " ".join(f"network.{key}={json.dumps(value, separators=(',', ':'))}" for key, value in other.items())
        raise ConfigError(what, where=f"network.pretrained {settings.pretrained}", mend=f"Add --set {same}")
    model.load_state_dict(trained.state_dict())
    return model, f"{file} (sha256 {sha256_of(file)[:12]})"


def check(config: Config, run: RunArguments) -> int:
    """Load all that the configuration names, train nothing, and say all that is wrong, a line each.

    Raises:
        ConfigError: something is wrong.
    """
    state, settings = PartialState(), config.training
    state.print(dump_config(config))

    def loss() -> str:
        built = build_loss(config.loss, settings.steps)
        return config.loss.label + (f", {built.weights}" if isinstance(built, MILOLoss) else "")

    def network() -> str:
        model, weights = build_network(config.network)
        return f"{parameter_count(model):,} parameters, from {weights or 'random weights'}"

    def metrics() -> str:
        found, _ = load_metrics(config.metrics, Protocol(), state.device, skip_unavailable=False)
        return ", ".join(f"{metric.name} ({metric.weights or 'no weights'})" for metric in found)

    def decoded() -> str:
        return str(training_patches(config, run)[1].decode_all(settings.largest_patch))

    return look_at_all({
        "data.train": lambda: first_samples(training_patches(config, run)[1], settings),
        **({"data.train decoded": decoded} if run.decode else {}),
        "data.test": lambda: ", ".join(f"{name}: {len(pairs)}" for name, pairs in test_pairs(config.data).items()),
        "network": network,
        "loss": loss,
        "metrics": metrics,
        **training_looks(settings, run.output, run.resume, config.metrics),
    })  # fmt: skip


def main(config: Config, run: RunArguments) -> int:
    """Data, network, loss, training, final evaluation."""
    if run.dry_run:
        return check(config, run)
    state, data = PartialState(), config.data
    (images, patches), tests = training_patches(config, run), test_pairs(data)
    first = [pairs for name, pairs in tests.items() if name.endswith(f"sigma {data.test_sigmas[0]:g}")]
    quick = [pair for pairs in first for pair in pairs][: data.quick_images]

    torch.manual_seed(config.training.seed)
    model, started = build_network(config.network)
    loss = build_loss(config.loss, config.training.steps).to(state.device)
    metrics, _ = load_metrics(config.metrics, Protocol(), state.device, skip_unavailable=False)
    milo = next((metric.module for metric in metrics if isinstance(metric.module, MILO)), None)
    used = {"loss": config.loss.label, "loss_weights": str(loss.weights) if isinstance(loss, MILOLoss) else None}
    targets = [(pair.name, pair.target) for pairs in tests.values() for pair in pairs]
    fixed = {**used, "pretrained": started, "images": identity_of(images), "test_images": identity_of(targets)}

    about = {
        "data": f"{len(patches)} images of {', '.join(data.train)}, sigma {data.sigma}; tested on {', '.join(tests)}",
        "weights": f"start from {started or 'random ones'}",
        "loss": config.loss.label + (f", {loss.weights}" if isinstance(loss, MILOLoss) else ""),
    }

    def step(model: nn.Module, batch: dict[str, Any], number: int) -> tuple[Tensor, dict[str, Tensor]]:
        return loss.terms(model(batch["input"]), batch["target"], step=number)

    def denoiser(model: nn.Module) -> Restore:
        return lambda pair, number: denoise(model, pair.degraded)

    def mask(output: Tensor, target: Tensor) -> Tensor:
        return milo.mask(output.to(state.device), reference=target.to(state.device))  # type: ignore[union-attr]

    def picture(model: nn.Module) -> Any:
        return sample_picture({"output": denoiser(model)}, quick[:3], mask if milo else None, mask_top=MASK_TOP)

    def score(restore: Restore) -> dict[str, float]:
        return score_restorer(restore, quick, metrics, device=state.device, progress=False)

    noisy = {f"input_{name}": value for name, value in score(given).items()}
    result = fit(
        model, step, patches, config.training, run.output,
        resume=run.resume,
        evaluate=lambda model: {**score(denoiser(model)), **noisy},
        sample=picture,
        lower_better={metric.name: metric.lower_better for metric in metrics},
        curriculum=loss.curriculum.position if isinstance(loss, MILOLoss) else None,
        record={"config": dump_config(config), "fixed": fixed, "free": ["data.root"],
                "metrics": {m.name: m.weights for m in metrics}, "about": about},
        changes=run.changes,
    )  # fmt: skip
    if result.stopped:
        return result.exit_code
    model.to(state.device)
    words = {"input": "noisy input", "restored": config.loss.label}
    methods = {"restored": denoiser(model)}
    results = evaluate_restorers(methods, tests, metrics, run.output / "eval", labels=words, device=state.device,
                                 notice=result.notice)  # fmt: skip
    if state.is_main_process:
        replace_file(run.output / "run.json", json.dumps({"steps": result.step, **used}, indent=1) + "\n")
        write_png(run.output / "samples" / "final.png", picture(model))
        print(comparison_table(results, words))
        print(f"run folder: {run.output}; milo-restore report {run.output} --output runs/report.html shows pictures")
    return 0


if __name__ == "__main__":
    default = Path(__file__).parent / "configs" / "restormer_tiny.yaml"
    sys.exit(run_recipe(main, Config, default, __doc__ or ""))
