r"""Blind restoration in one step: a LoRA on Stable Diffusion's UNet, trained with MSE, L1 or LatentMILO.

    python recipes/diffbir_one_step.py                     # tiny: a few minutes, no network, no GPU
    python recipes/diffbir_one_step.py --set loss.kind=mse loss.loss_weight=1 --output runs/one_step_mse
    accelerate launch recipes/diffbir_one_step.py --config recipes/configs/diffbir_one_step_paper.yaml
    milo-restore restore --one-step runs/diffbir_one_step_tiny/final --task denoise --input photos/ --output restored/

The latent of the cleaned image goes through the UNet once, at a fixed timestep, as if it were a noisy one; what the
scheduler's formula makes of the prediction is the clean latent itself. So the loss sees what comes out, its mask is
exact, and nothing is decoded in training. OSEDiff and HYPIR, which restore so, decode and take LPIPS.
``--dry-run`` checks data, weights and licences. Ctrl-C saves and stops; the same command with ``--resume latest`` goes
on. Data, frozen networks and measuring are those of diffbir.py.
"""

from __future__ import annotations

import milo_restore.interrupt  # noqa: F401  isort: skip  first: what follows takes seconds

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffbir_check import check_one_step
from diffbir_config import WORDS, Cache
from torch import Tensor, nn

from milo_restore.config import dump_config
from milo_restore.data import write_png
from milo_restore.data.degraded_sets import DegradedData, contents, fingerprint, held_out, training_pairs
from milo_restore.data.image_sets import identity_of
from milo_restore.data.latent_cache import cache_latents
from milo_restore.files.hashes import module_sha256
from milo_restore.files.quarantine import Quarantine
from milo_restore.files.write import replace_file
from milo_restore.loss import LatentMILOLoss, LossSettings
from milo_restore.loss.build import latent_loss
from milo_restore.loss.cosine import cosine_with_mse
from milo_restore.measure import comparison_table, evaluate_restorers, sample_picture, score_restorer
from milo_restore.measure.metrics import Protocol, load_metrics
from milo_restore.metric import LatentSpace
from milo_restore.models.diffbir.frozen import load_frozen
from milo_restore.models.diffbir.one_step import LoRA, OneStep
from milo_restore.models.diffbir.restorers import one_step_restorers
from milo_restore.models.diffbir.schedules import Version
from milo_restore.train import PartialState, TrainSettings, fit
from milo_restore.train.command import RunArguments, run_recipe


@dataclass(frozen=True)
class Config:
    """The whole experiment."""

    base: str = "tiny"  # frozen Stable Diffusion: tiny (shipped), a diffusers folder, or a hub id
    version: Version = "v2"  # v1, v2: the UNet predicts the noise; v2.1: the velocity, with zero terminal SNR
    cleaner: str = "tiny:denoise"  # stage 1; none, a name of milo_restore.models.diffbir.cleaner, or a file
    prompt: str = ""  # text that the UNet sees with every image
    timestep: int = 200  # at which the UNet is asked; HYPIR's
    lora: LoRA = field(default_factory=LoRA)
    gradient_checkpointing: bool = False  # of the UNet
    data: DegradedData = field(default_factory=DegradedData)
    cache: Cache = field(default_factory=Cache)
    loss: LossSettings = field(default_factory=LossSettings)
    training: TrainSettings = field(default_factory=TrainSettings)
    minimum_side: int = 0  # smaller test images are restored enlarged to it, in pixels; Stable Diffusion knows 512
    metrics: tuple[str, ...] = ("psnr", "ssim", "milo")  # any of milo-restore evaluate
    licences: tuple[str, ...] = ()  # of what the paths above name; needed where the base is not the shipped one

    texts = property(lambda self: [self.prompt])
    measured = property(lambda self: list(self.metrics))
    patch = property(lambda self: self.training.stages[-1].patch)


def main(config: Config, run: RunArguments) -> int:
    """Data, frozen networks, LoRA, loss, training, final evaluation."""
    if run.dry_run:
        return check_one_step(config, run)
    state, settings = PartialState(), config.training
    quarantine, again = Quarantine.of_run(run.output, run.resume), run.resume is not None
    pairs: Any = training_pairs(config.data, settings.seed, quarantine=quarantine, home=run.output, resume=again)
    tests = held_out(config.data)
    quick = [pair for pairs_of_one in zip(*tests.values()) for pair in pairs_of_one][: config.data.quick_images]
    frozen = load_frozen(
        config.base, config.cleaner, config.texts, device=state.device, embeddings=config.cache.folder,
        unet_dtype=torch.bfloat16 if settings.mixed_precision == "bf16" else torch.float32,
        gradient_checkpointing=config.gradient_checkpointing, captions=config.data.captions.source is not None,
    )  # fmt: skip
    hashes = {**frozen.sha256(), "unet": module_sha256(frozen.unet)}
    torch.manual_seed(settings.seed)
    model = OneStep(frozen.unet, config.version, config.timestep, config.lora)
    space = LatentSpace(4, (frozen.scale,))
    loss = latent_loss(config.loss, settings.steps, space, f"base {config.base}").to(state.device)
    milo = loss if isinstance(loss, LatentMILOLoss) else None
    metrics, _ = load_metrics(config.metrics, Protocol(), state.device, skip_unavailable=False)
    source = fingerprint(pairs, config.data)
    if config.cache.folder is not None:
        known = {key: hashes[key] for key in ("vae", "cleaner")}
        identity = {**source, "files": contents(pairs, config.cache.samples), **known}
        pairs = cache_latents(pairs, frozen.encode, **vars(config.cache), identity=identity, patch=config.patch,
                              seed=settings.seed, device=state.device, workers=settings.workers)  # fmt: skip

    def step(model: nn.Module, batch: dict[str, Any], number: int) -> tuple[Tensor, dict[str, Tensor]]:
        latents = frozen.latents_of(batch, config.data.realesrgan, settings.seed)
        said, clean = model(latents["condition"], frozen.contexts(batch)), latents["mean"]
        value, watched = loss.terms(said, clean, step=number)
        if number % settings.log_every == 0:
            watched["cosine_mse"] = cosine_with_mse(loss, said, clean, number)
        return value, watched

    stages = one_step_restorers(frozen, model, config.prompt, config.minimum_side)
    shown = {"cleaner": stages["cleaner"], "output": stages["restored"]}
    targets = [(pair.name, pair.target) for pairs_of_one in tests.values() for pair in pairs_of_one]
    used = {"loss": config.loss.label, "loss_weights": str(milo.weights) if milo else None, **hashes}
    fixed = {**used, **source, "test_images": identity_of(targets),
             "one_step": {**model.about, "prompt": config.prompt, "cleaner": config.cleaner}}  # fmt: skip
    result = fit(
        model, step, pairs, settings, run.output,
        resume=run.resume,
        evaluate=lambda _: score_restorer(stages["restored"], quick, metrics, device=state.device, progress=False),
        sample=lambda _: sample_picture(shown, quick),
        lower_better={metric.name: metric.lower_better for metric in metrics},
        curriculum=milo.curriculum.position if milo else None,
        record={"config": dump_config(config), "metrics": {metric.name: metric.weights for metric in metrics},
                "fixed": fixed,
                "about": {"data": f"{', '.join(config.data.train)}, degraded by {config.data.degradation}",
                          "loss": f"{config.loss.label}, {milo.weights if milo else 'no weights'}"},
                "free": ["data.root", "cache.folder", "licences"]},
        changes=run.changes,
    )  # fmt: skip
    if result.stopped:
        return result.exit_code
    model.to(state.device).eval()
    words = {**WORDS, "start": "one step before training", "restored": f"one step, {config.loss.label}"}
    cache = Path(config.cache.folder, "measured") if config.cache.folder else None
    results = evaluate_restorers(stages, tests, metrics, run.output / "eval", labels=words, cache=cache,
                                 device=state.device, notice=result.notice)  # fmt: skip
    if state.is_main_process:
        write_png(run.output / "samples" / "final.png", sample_picture(shown, quick))
        replace_file(run.output / "run.json", json.dumps({"steps": result.step, **used}, indent=1) + "\n")
        print(comparison_table(results, words))
        print(f"run folder: {run.output}; milo-restore restore --one-step {run.output / 'final'} restores with it")
    return 0


if __name__ == "__main__":
    default = Path(__file__).parent / "configs" / "diffbir_one_step_tiny.yaml"
    sys.exit(run_recipe(main, Config, default, __doc__ or ""))
