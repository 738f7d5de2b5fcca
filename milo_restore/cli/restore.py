"""``milo-restore restore``: restore the images of a folder with a DiffBIR pipeline."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milo_restore.cli.convert import VERSIONS
from milo_restore.cli.jobs import Job, add_existing, find_jobs, say, to_do, usable, write_record
from milo_restore.errors import ConfigError, MiloRestoreError, WeightsError

if TYPE_CHECKING:
    from milo_restore.models.diffbir import DiffBIRPipeline

TASKS = ("sr", "denoise", "face")  # as the diffbir room has them; torch need not come for --help
DTYPES = ("float32", "bfloat16", "float16")
UPSCALE = {"sr": 4.0, "denoise": 1.0, "face": 1.0}
TILE = 512
RECORD = "restore.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``restore``."""
    parser.description = (
        "Restore images with DiffBIR: a cleaner, then sampling with Stable Diffusion under an IRControlNet. All images "
        "are checked before the first is restored. Without --model it is the shipped tiny world, whose pictures say "
        "nothing about the method's quality."
    )
    parser.add_argument(
        "--task", required=True, choices=TASKS, help="chooses the cleaner, and the default of --upscale"
    )
    parser.add_argument(
        "--input", required=True, type=Path, metavar="PATH", help="an image, or a folder of them with its subfolders"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where PNG of the same names go")
    parser.add_argument(
        "--model",
        default="tiny",
        metavar="DIR",
        help="what 'milo-restore convert diffbir' made, or another Stable Diffusion in diffusers' format, or its hub "
        "id (default: tiny)",
    )
    parser.add_argument(
        "--control",
        type=Path,
        metavar="DIR",
        help="an IRControlNet, such as a run's controlnet/ (default: the model's)",
    )
    parser.add_argument(
        "--version", choices=VERSIONS, help="DiffBIR's (default: v2.1 where the model predicts velocities, else v2)"
    )
    parser.add_argument(
        "--cleaner",
        metavar="NAME|FILE",
        help="none, tiny:denoise, bsrnet, scunet, swinir-general, ..., or a file (default: DiffBIR's for task and "
        "version)",
    )
    parser.add_argument(
        "--cleaner-entry", metavar="NAME", help="of a cleaner's file with several networks (default: params_ema first)"
    )
    parser.add_argument("--upscale", type=float, metavar="N", help="size of the result (default: 4 for sr, else 1)")
    parser.add_argument("--steps", type=int, default=50, metavar="N", help="of sampling (default: 50)")
    parser.add_argument(
        "--guidance", type=float, default=4.0, metavar="S", help="against the negative prompt; 1: none (default: 4)"
    )
    parser.add_argument(
        "--start",
        choices=("noise", "condition"),
        default="noise",
        help="sample from noise, as DiffBIR does, or from the cleaned image's latent, noised (default: noise)",
    )
    parser.add_argument("--seed", type=int, default=231, metavar="N", help="of each image's noise (default: 231)")
    parser.add_argument(
        "--tile",
        type=int,
        default=TILE,
        metavar="PIXELS",
        help=f"side of the tiles in which larger images are restored; 0: none, more memory (default: {TILE})",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one, else cpu)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of UNet and control (default: float32)")
    add_existing(parser)


def main(arguments: argparse.Namespace) -> int:
    """Find and check the images, load the networks, restore."""
    from milo_restore.models.diffbir.images import MINIMUM_SIDE

    jobs = find_jobs(arguments.input, arguments.output)
    jobs = to_do(jobs, arguments)
    jobs = usable(jobs, MINIMUM_SIDE, skip=arguments.skip_bad)
    if not jobs:
        print(f"nothing to do: all results are in {arguments.output}")
        return 0
    pipeline, settings = load_pipeline(arguments)
    write_record(arguments.output / RECORD, settings, resume=arguments.resume)
    if arguments.model == "tiny":
        say("the tiny world shows that the program works; its pictures are no statement about quality")
    say(", ".join(f"{name} {value}" for name, value in settings.items()))
    _restore_all(pipeline, jobs, arguments, settings)
    plural = "image" if len(jobs) == 1 else "images"
    print(f"{len(jobs)} {plural} restored: {arguments.output}")
    return 0


def load_pipeline(arguments: argparse.Namespace) -> tuple[DiffBIRPipeline, dict[str, Any]]:
    """The networks that the arguments name, and what the results depend on, by name.

    Raises:
        ConfigError: an argument does not fit the model.
        WeightsError: something is missing or damaged.
    """
    import torch

    from milo_restore.models.diffbir import DiffBIRPipeline, noise_scheduler
    from milo_restore.models.diffbir.cleaner import load_cleaner
    from milo_restore.models.diffbir.components import load_components, load_control
    from milo_restore.processes import choose_device

    device, dtype = choose_device(arguments.device), getattr(torch, arguments.dtype)
    parts = load_components(arguments.model, device=device, dtype=dtype)
    control = parts.controlnet
    if arguments.control is not None:
        control = load_control(arguments.control, device=device, dtype=dtype)
    if control is None:
        task = arguments.task
        mend = f"Train one (python recipes/diffbir_{task}.py), then give --control runs/diffbir_{task}_tiny/controlnet"
        raise WeightsError("has no control network", where=f"--model {arguments.model}", mend=mend)
    version = _version(arguments.version, parts.scheduler.config.prediction_type)
    name = arguments.cleaner or _default_cleaner(arguments, version, parts.folder)
    cleaner = load_cleaner(name, entry=arguments.cleaner_entry).to(device)
    pipeline = DiffBIRPipeline(
        parts.vae, parts.unet, control, noise_scheduler(version), cleaner=cleaner, prompts=parts.prompts
    )
    settings = {
        "model": arguments.model,
        "control": str(arguments.control or "the model's"),
        "version": version,
        "cleaner": str(name),
        "cleaner_entry": arguments.cleaner_entry,
        "upscale": UPSCALE[arguments.task] if arguments.upscale is None else arguments.upscale,
        "steps": arguments.steps,
        "guidance": arguments.guidance,
        "start": arguments.start,
        "seed": arguments.seed,
        "tile": arguments.tile,
        "dtype": arguments.dtype,
    }
    return pipeline, settings


def _version(asked: str | None, predicts: str) -> str:
    from milo_restore.models.diffbir import noise_scheduler

    version = asked or ("v2.1" if predicts == "v_prediction" else "v2")
    expected = noise_scheduler(version).config.prediction_type
    if predicts != expected:
        what = f"{version} predicts {expected}, the model {predicts}"
        raise ConfigError(what, where="--version", mend="Leave it out, or name another model")
    return version


def _default_cleaner(arguments: argparse.Namespace, version: str, folder: Path) -> str | Path:
    from milo_restore.models.diffbir.cleaner import published_cleaner
    from milo_restore.models.diffbir.convert import CLEANER_FILE

    if arguments.model == "tiny":
        return f"tiny:{arguments.task}"
    own = folder / CLEANER_FILE  # of a whole v1 model
    return own if own.is_file() else published_cleaner(version, arguments.task)


def _restore_all(
    pipeline: DiffBIRPipeline, jobs: list[Job], arguments: argparse.Namespace, settings: dict[str, Any]
) -> None:
    from tqdm import tqdm

    from milo_restore.data.images import read_image, to_tensor, to_uint8, write_png

    pipeline.set_progress_bar_config(desc="sampling", leave=False, position=1, disable=None)  # on terminals only
    known = 8 * int(pipeline.unet.config.sample_size or 0)  # the size that the UNet was trained for
    for job in tqdm(jobs, desc="restoring", unit="image", disable=None):
        image = to_tensor(read_image(job.source))[None]
        try:
            output = pipeline(
                image, steps=arguments.steps, guidance_scale=arguments.guidance, seed=arguments.seed,
                start=arguments.start, upscale=settings["upscale"], tile=arguments.tile or None, minimum_side=known,
                output_type="pt",
            )  # fmt: skip
            write_png(job.target, to_uint8(output.images[0]))
        except ConfigError:
            raise
        except MiloRestoreError as error:
            where = job.source if error.where is None else error.where
            mend = ". ".join(filter(None, (error.mend, "Results made so far are whole; --resume goes on")))
            raise type(error)(error.what, where=where, mend=mend) from error
