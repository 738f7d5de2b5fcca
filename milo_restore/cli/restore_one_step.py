"""``milo-restore restore --one-step``: a LoRA on the UNet in place of control and sampling."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from milo_restore.cli.restore_run import dtype_named, general_settings
from milo_restore.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from milo_restore.models.diffbir.one_step import OneStepPipeline

OF_SAMPLING = {
    "control": None, "negative_prompt": None, "sampler": "spaced", "steps": None, "guidance": None,
    "rescale_cfg": False, "strength": 1.0, "noise_aug": 0, "start": "noise", "samples": 1,
}  # fmt: skip
"""The arguments that mean nothing where nothing is sampled, and their defaults."""


def load_one_step_pipeline(arguments: argparse.Namespace) -> tuple[OneStepPipeline, dict[str, Any]]:
    """The networks that the arguments name, and what the results depend on, as `load_pipeline`.

    Raises:
        ConfigError: an argument is sampling's, or does not fit the model.
        WeightsError: something is missing or damaged, or the LoRA is another UNet's.
    """
    import torch
    from torch import nn

    from milo_restore.files.hashes import sha256_of
    from milo_restore.models.diffbir import noise_scheduler
    from milo_restore.models.diffbir.cleaner import load_cleaner
    from milo_restore.models.diffbir.components import load_components
    from milo_restore.models.diffbir.one_step import WEIGHTS, OneStepPipeline, load_one_step
    from milo_restore.processes import choose_device

    _refuse_sampling(arguments)
    device = choose_device(arguments.device)
    named = dtype_named(arguments, device)
    parts = load_components(arguments.model, device=device)  # in float32, as its hash was taken
    model, about = load_one_step(arguments.one_step, parts.unet)
    version, predicts = about["version"], parts.scheduler.config.prediction_type
    if noise_scheduler(version).config.prediction_type != predicts:
        what = f"was trained as {version}, whose prediction is not {predicts}, the model's"
        raise WeightsError(what, where=arguments.one_step, mend="Name the base that it was trained on")
    if arguments.version not in (None, version):
        what = f"is {arguments.version}, {arguments.one_step} was trained as {version}"
        raise ConfigError(what, where="--version", mend="Leave it out")
    nn.Module.to(parts.unet, getattr(torch, named))  # diffusers' own method warns of an empty list of exceptions
    name = str(arguments.cleaner or about["cleaner"])
    cleaner = load_cleaner(name, entry=arguments.cleaner_entry).to(device)
    pipeline = OneStepPipeline(parts.vae, parts.unet, None, model.scheduler, cleaner=cleaner, prompts=parts.prompts)
    settings = general_settings(arguments, version, name, named)
    settings["prompt"] = about["prompt"] if arguments.prompt is None else arguments.prompt
    digest = sha256_of(arguments.one_step / WEIGHTS)[:16]
    return pipeline, {**settings, "one_step": f"{arguments.one_step} (sha256 {digest})"}


def _refuse_sampling(arguments: argparse.Namespace) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in OF_SAMPLING.items() if getattr(arguments, name) != value]
    if given:
        raise ConfigError(f"{', '.join(given)}: nothing is sampled", where="--one-step", mend="Leave it out")
    if arguments.faces != "aligned":
        raise ConfigError("takes whole images or aligned faces", where="--one-step", mend="Leave --faces out")
