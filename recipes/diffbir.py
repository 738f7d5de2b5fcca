r"""Blind restoration with Stable Diffusion: DiffBIR's second stage, trained with MSE, MAE or MILO's latent mask.

Shared by diffbir_denoise.py, diffbir_sr.py and diffbir_face.py, which name the task's configuration. What is trained is
IRControlNet, a copy of the UNet's encoder that also sees the latent of a roughly cleaned image. UNet, VAE, cleaner and
metric are frozen: `fit` never sees them, so they reach neither DDP nor the optimiser.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffbir_check import check
from diffbir_config import WORDS, Config, planned
from torch import Tensor, nn

from milo_restore.config import dump_config
from milo_restore.data import write_png
from milo_restore.data.degraded_sets import contents, fingerprint, held_out, pieces, training_pairs
from milo_restore.data.image_sets import identity_of
from milo_restore.data.latent_cache import cache_latents
from milo_restore.files.hashes import module_sha256
from milo_restore.files.quarantine import Quarantine
from milo_restore.files.write import publish, replace_file
from milo_restore.loss import DiffusionLoss
from milo_restore.measure import comparison_table, evaluate_restorers, sample_picture, score_restorer
from milo_restore.measure.held_out import held_out_loss
from milo_restore.measure.metrics import Protocol, load_metrics
from milo_restore.measure.results import read_results
from milo_restore.models.diffbir import noise_scheduler, predict
from milo_restore.models.diffbir.frozen import Draws, Frozen, load_frozen
from milo_restore.models.diffbir.restorers import stage_restorers
from milo_restore.show.text import slug
from milo_restore.train import PartialState, fit
from milo_restore.train.command import RunArguments


def main(config: Config, run: RunArguments) -> int:
    """One run, or the one with MSE and then this one."""
    config = planned(config, run.output, PartialState().num_processes)
    if run.dry_run:
        return check(config, run)
    first = replace(run, output=run.output / "mse")
    code = 0
    if config.beside is not None and not (first.output / "run.json").is_file():
        code = train(config.with_mse(), first)
    return code or train(config, run)


def train(config: Config, run: RunArguments) -> int:
    """Data, frozen networks, control, loss, training, final evaluation by sampling."""
    state, seed, settings = PartialState(), config.training.seed, config.training
    quarantine, again = Quarantine.of_run(run.output, run.resume), run.resume is not None
    pairs: Any = training_pairs(config.data, seed, quarantine=quarantine, home=run.output, resume=again)
    tests = held_out(config.data)
    quick = [pair for pairs_of_one in zip(*tests.values()) for pair in pairs_of_one][: config.data.quick_images]
    torch.manual_seed(seed)
    frozen = load_frozen(
        config.base, config.cleaner, config.texts, device=state.device, embeddings=config.cache.folder,
        unet_dtype=torch.bfloat16 if settings.mixed_precision == "bf16" else torch.float32,
        gradient_checkpointing=config.gradient_checkpointing, captions=config.data.captions.source is not None,
    )  # fmt: skip
    config.loss.check_latents_of(frozen.scale, config.base)
    control = frozen.start_control(config.control, gradient_checkpointing=config.gradient_checkpointing)
    loss = DiffusionLoss(config.loss, noise_scheduler(config.version), settings.steps).to(state.device)
    metrics, _ = load_metrics(config.measured, Protocol(), state.device, skip_unavailable=False)
    curves = [metric for metric in metrics if metric.name in config.curves]
    source, hashes = fingerprint(pairs, config.data), frozen.sha256()
    if config.cache.folder is not None:
        identity = {**source, "files": contents(pairs, config.cache.samples), **hashes}
        pairs = cache_latents(pairs, frozen.encode, **vars(config.cache), identity=identity, patch=config.patch,
                              seed=seed, device=state.device, workers=settings.workers)  # fmt: skip
    unseen = frozen.encode_in_parts(*pieces(quick, config.patch))

    def held(control: nn.Module) -> dict[str, float]:
        return held_out_loss(control, frozen.unet, loss, unseen, frozen.context)

    def evaluate(control: nn.Module) -> dict[str, float]:
        restore = stage_restorers(frozen, config.version, config.sampling, control, prompt=config.prompt)["restored"]
        return held(control) | score_restorer(restore, quick, curves, device=state.device, progress=False)

    before = held(control.to(state.device))
    used = {"loss": loss.label, "loss_weights": str(loss.weights), **hashes}
    fixed = {name: getattr(config, name) for name in ("version", "prompt", "condition_noise")}
    targets = [(pair.name, pair.target) for pairs_of_one in tests.values() for pair in pairs_of_one]
    fixed |= {"latents_on_disk": config.cache.folder is not None, "test_images": identity_of(targets)}
    result = fit(
        control, step_of(config, frozen, loss), pairs, settings, run.output,
        resume=run.resume,
        evaluate=evaluate if curves else held,
        sample=lambda control: picture(config, frozen, loss, control, quick),
        lower_better={"loss": True, "mse": True, **{metric.name: metric.lower_better for metric in curves}},
        curriculum=None if config.loss.curriculum == "constant" else loss.position,
        record={"config": dump_config(config), "metrics": {metric.name: metric.weights for metric in metrics},
                "fixed": {**used, **source, **fixed, "unet": module_sha256(frozen.unet)},
                "about": {"data": f"{', '.join(config.data.train)}, degraded by {config.data.degradation}",
                          "loss": f"{loss.label}, {loss.weights}"},
                "free": ["data.root", "cache.folder", "licences"]},
        changes=run.changes,
    )  # fmt: skip
    if result.stopped:
        return result.exit_code
    after = held(control.to(state.device).eval())
    if state.is_main_process:
        publish(run.output / "controlnet", control.save_pretrained)
        write_png(run.output / "samples" / "final.png", picture(config, frozen, loss, control, quick))
    for one in (control, start := frozen.start_control(config.control)):  # their own method warns for no reason
        nn.Module.to(one, state.device, frozen.unet.dtype)
    methods = stage_restorers(frozen, config.version, config.sampling, control, start, prompt=config.prompt)
    words = {**WORDS, "restored": f"control after training, {loss.label}"}
    results = evaluate_restorers(methods, tests, metrics, run.output / "eval", labels=words, device=state.device,
                                 notice=result.notice)  # fmt: skip
    if state.is_main_process:
        say(config, run, results, words)
        numbers = {"steps": result.step, **used, "held_out": {"before": before, "after": after}}
        replace_file(run.output / "run.json", json.dumps(numbers, indent=1) + "\n")
    return 0


def step_of(config: Config, frozen: Frozen, loss: DiffusionLoss) -> Any:
    """One step of training, for `fit`."""
    scheduler, seed, settings = loss.scheduler, config.training.seed, config.training

    def step(control: nn.Module, batch: dict[str, Any], number: int) -> tuple[Tensor, dict[str, Tensor]]:
        latents = frozen.latents_of(batch, config.data.realesrgan, seed)
        draws = Draws.of(seed, number, batch["position"].tolist(), latents["mean"])
        z0 = latents["mean"] + latents["deviation"] * draws.posterior
        timesteps = (draws.time * len(scheduler)).long()
        z_t = scheduler.add_noise(z0, draws.noise, timesteps)
        condition = latents["condition"]
        if config.condition_noise:
            level = (draws.level * config.condition_noise).long()
            condition = scheduler.add_noise(condition, draws.augmentation, level)
        prediction = predict(frozen.unet, control, z_t, timesteps, frozen.contexts(batch), condition)
        log = number % settings.log_every == 0 or number == settings.steps
        return loss.terms(
            prediction, z_t, z0, draws.noise, timesteps, step=number, condition=latents["condition"], compare=log
        )

    return step


def picture(config: Config, frozen: Frozen, loss: DiffusionLoss, control: nn.Module, pairs: Any) -> Any:
    """Input | cleaner | output | target, and the loss's mask where it has one: bright is where errors weigh more."""
    stages = stage_restorers(frozen, config.version, config.sampling, control, prompt=config.prompt)
    methods = {"cleaner": stages["cleaner"], "output": stages["restored"]}
    mask = None if loss.metric is None else partial(frozen.mask, loss.metric)
    return sample_picture(methods, pairs, mask, "latent mask, bright: weighs more")


def say(config: Config, run: RunArguments, results: dict[str, dict[str, Any]], words: dict[str, str]) -> None:
    """The table of what was measured, the run with MSE in it where there is one."""
    if config.beside is not None:
        for name, found in results.items():
            other = run.output / config.beside / "eval" / slug(name) / "restored" / "results.json"
            results[name] = {"mse": read_results(other), **found}
    print(comparison_table(results, words))
    print(f"run folder: {run.output}; milo-restore report {run.output} --output runs/report.html shows pictures")
    if config.beside is None and config.loss.kind != "mse":
        print("The same with MSE beside it: --set beside=mse, and another --output")
