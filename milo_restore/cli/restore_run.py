"""Restoration of the images that ``milo-restore restore`` found: samples, batches, tiles, networks."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from milo_restore.cli.captions import read_captions
from milo_restore.cli.jobs import Job, say
from milo_restore.errors import ConfigError, MiloRestoreError, WeightsError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from milo_restore.models.diffbir import DiffBIRPipeline

UPSCALE = {"sr": 4.0, "denoise": 1.0, "face": 1.0}
TILE = 512
FEW_STEPS = 10  # of every sampler in DiffBIR's program; its paper's 50 are the ancestral sampler's


@dataclass(frozen=True)
class Work:
    """One result: a sample of an image."""

    image: Job
    job: Job  # with this sample's name
    seed: int
    caption: str


Make: TypeAlias = "Callable[[list[Work], Tensor], list[NDArray[np.uint8]]]"
"""Results of works whose images, (N, 3, H, W) in [0, 1], are of one size."""


def plan(images: Sequence[Job], arguments: argparse.Namespace) -> list[Work]:
    """The results that are asked for, with every image's samples one after the other.

    Raises:
        DataError: the captions are not the images'.
    """
    root = arguments.input if arguments.input.is_dir() else arguments.input.parent
    names = [image.source.relative_to(root).as_posix() for image in images]
    captions = dict.fromkeys(names, "") if arguments.captions is None else read_captions(arguments.captions, names)
    works = []
    for image, name in zip(images, names):
        for number in range(arguments.samples):
            end = f"_{number}" if arguments.samples > 1 else ""
            target = image.target.with_name(f"{image.target.stem}{end}.png")
            works.append(Work(image, Job(image.source, target), arguments.seed + number, captions[name]))
    return works


def share(works: Sequence[Work]) -> list[Work]:
    """The works of this process: of N processes, each every N-th image with all its samples."""
    from milo_restore.processes import rank_and_size

    rank, processes = rank_and_size()
    images = list(dict.fromkeys(work.image for work in works))
    mine = set(images[rank::processes])
    return [work for work in works if work.image in mine]


def load_pipeline(arguments: argparse.Namespace) -> tuple[DiffBIRPipeline, dict[str, Any]]:
    """The networks that the arguments name, and what the results depend on, by name.

    Raises:
        ConfigError: an argument does not fit the model.
        WeightsError: something is missing or damaged.
    """
    import torch

    from milo_restore.models.diffbir import DiffBIRPipeline
    from milo_restore.models.diffbir.cleaner import load_cleaner
    from milo_restore.models.diffbir.components import load_components, load_control
    from milo_restore.models.diffbir.schedules import sampler_named
    from milo_restore.processes import choose_device

    device = choose_device(arguments.device)
    named = dtype_named(arguments, device)
    dtype = getattr(torch, named)
    parts = load_components(arguments.model, device=device, dtype=dtype)
    control = parts.controlnet
    if arguments.control is not None:
        control = load_control(arguments.control, device=device, dtype=dtype)
    if control is None:
        task = arguments.task
        mend = f"Train one (python recipes/diffbir_{task}.py), then give --control runs/diffbir_{task}_tiny/controlnet"
        raise WeightsError("has no control network", where=f"--model {arguments.model}", mend=mend)
    version = _version(arguments.version, parts.scheduler.config.prediction_type)
    scheduler = sampler_named(arguments.sampler, version, _steps(arguments))
    name = arguments.cleaner or _default_cleaner(arguments, version, parts.folder)
    cleaner = load_cleaner(name, entry=arguments.cleaner_entry).to(device)
    pipeline = DiffBIRPipeline(parts.vae, parts.unet, control, scheduler, cleaner=cleaner, prompts=parts.prompts)
    return pipeline, _settings(arguments, version, str(name), named)


def dtype_named(arguments: argparse.Namespace, device: torch.device) -> str:
    """The precision by its name in torch: as asked for, else half on a GPU."""
    return arguments.dtype or ("float16" if device.type == "cuda" else "float32")


def general_settings(arguments: argparse.Namespace, version: str, cleaner: str, dtype: str) -> dict[str, Any]:
    """Settings that the results depend on, sampled or not."""
    from milo_restore.files.hashes import sha256_of

    given = arguments
    return {
        "model": given.model,
        "version": version,
        "cleaner": cleaner,
        "cleaner_entry": given.cleaner_entry,
        "upscale": UPSCALE[given.task] if given.upscale is None else given.upscale,
        "captions": given.captions and f"{given.captions} (sha256 {sha256_of(given.captions)[:16]})",
        "tile": "as memory asks" if given.tile is None else given.tile,
        "padding": given.padding,
        "dtype": dtype,
    }


def _settings(arguments: argparse.Namespace, version: str, cleaner: str, dtype: str) -> dict[str, Any]:
    """Settings that the results depend on; what was not given is DiffBIR's for this version."""
    from milo_restore.models.diffbir.prompts import PRESETS

    preset, given = PRESETS[version], arguments
    return {
        **general_settings(arguments, version, cleaner, dtype),
        "control": str(given.control or "the model's"),
        "prompt": preset.prompt if given.prompt is None else given.prompt,
        "negative_prompt": preset.negative_prompt if given.negative_prompt is None else given.negative_prompt,
        "sampler": given.sampler,
        "steps": _steps(given),
        "guidance": preset.guidance if given.guidance is None else given.guidance,
        "rescale_cfg": given.rescale_cfg,
        "strength": given.strength,
        "noise_aug": given.noise_aug,
        "start": given.start,
        "seed": given.seed,
        "samples": given.samples,
        "faces": given.faces if given.faces == "in-photo" else None,
    }


def _steps(arguments: argparse.Namespace) -> int:
    default = 50 if arguments.sampler == "spaced" else FEW_STEPS
    return default if arguments.steps is None else int(arguments.steps)


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


def restore_all(make: Make, works: Sequence[Work], batch_size: int) -> None:
    """Restore, and write every result as soon as it is there; call it on every process, each with its own works.

    Raises:
        MiloRestoreError: naming the image, and what to do about it; of any process, on all, when all are done.
    """
    from milo_restore.processes import gather

    failure = None
    try:
        _restore_all(make, works, batch_size)
    except MiloRestoreError as error:  # raised below, on all processes: the others would wait for this one for ever
        failure = error
    for problem in filter(None, gather(failure)):
        raise problem


def _restore_all(make: Make, works: Sequence[Work], batch_size: int) -> None:
    from tqdm import tqdm

    from milo_restore.data.images import write_png
    from milo_restore.processes import rank_and_size

    hidden = True if rank_and_size()[0] else None  # None: on terminals only
    with tqdm(total=len(works), desc="restoring", unit="image", disable=hidden) as bar:
        for batch, images in _batches(works, batch_size):
            try:
                for work, image in zip(batch, make(batch, images)):
                    write_png(work.job.target, image)
            except ConfigError:
                raise
            except MiloRestoreError as error:
                where = ", ".join(dict.fromkeys(str(work.image.source) for work in batch))
                mend = ". ".join(filter(None, (error.mend, "Results made so far are whole; --resume goes on")))
                raise type(error)(error.what, where=error.where or where, mend=mend) from error
            bar.update(len(batch))


def _batches(works: Sequence[Work], size: int) -> Iterator[tuple[list[Work], Tensor]]:
    """Neighbours of one size, up to ``size`` at a time, with their images (N, 3, H, W) in [0, 1]."""
    import torch

    from milo_restore.data.images import read_image, to_tensor

    batch: list[Work] = []
    images: list[Tensor] = []
    for work in works:
        again = bool(batch) and batch[-1].image == work.image
        image = images[-1] if again else to_tensor(read_image(work.image.source))
        if batch and (len(batch) == size or image.shape != images[-1].shape):
            yield batch, torch.stack(images)
            batch, images = [], []
        batch.append(work)
        images.append(image)
    if batch:
        yield batch, torch.stack(images)


def maker(pipeline: DiffBIRPipeline, tile: int | None, settings: dict[str, Any]) -> Make:
    """A pipeline under these settings, as a maker of images."""
    from milo_restore.data.images import to_uint8
    from milo_restore.processes import rank_and_size

    hidden = True if rank_and_size()[0] else None
    pipeline.set_progress_bar_config(desc="sampling", leave=False, position=1, disable=hidden)
    return lambda batch, images: [to_uint8(image) for image in _restored(pipeline, batch, images, tile, settings)]


def _restored(
    pipeline: DiffBIRPipeline, batch: list[Work], images: Tensor, tile: int | None, settings: dict[str, Any]
) -> Tensor:
    """The results of a batch, (N, 3, H, W); in tiles where they are asked for, or where memory asks for them."""
    import torch

    prompts = [", ".join(filter(None, (work.caption, settings["prompt"]))) for work in batch]
    known = 8 * int(pipeline.unet.config.sample_size or 0)  # the size that the UNet was trained for

    sampling = {} if "one_step" in settings else {
        "negative_prompt": settings["negative_prompt"], "steps": settings["steps"],
        "guidance_scale": settings["guidance"], "rescale_guidance": settings["rescale_cfg"],
        "control_scale": settings["strength"], "noise_augmentation": settings["noise_aug"],
        "start": settings["start"], "seed": [work.seed for work in batch],
    }  # fmt: skip

    def call(tile: int | None) -> Tensor:
        made: Tensor = pipeline(
            images, prompt=prompts, upscale=settings["upscale"], tile=tile, minimum_side=known,
            padding=settings["padding"], output_type="pt", **sampling,
        ).images  # fmt: skip
        return made

    sides = _sides(pipeline, images, settings["upscale"], known)
    chosen = _tile_for(pipeline, batch, sides) if tile is None else tile or None
    try:
        return call(chosen)
    except torch.cuda.OutOfMemoryError as error:
        if tile is not None or chosen is not None or max(sides) <= TILE:
            mend = "Take a smaller --tile, --batch-size 1, or --dtype float16"
            raise ConfigError("the GPU's memory is too small", where=batch[0].image.source, mend=mend) from error
    torch.cuda.empty_cache()
    say(f"{batch[0].image.source.name}: the GPU's memory is too small for the whole: in tiles of {TILE}")
    return call(TILE)


def _sides(pipeline: DiffBIRPipeline, images: Tensor, upscale: float, minimum_side: int) -> tuple[int, int]:
    """Height and width at which images are denoised."""
    from milo_restore.models.diffbir.condition import result_size
    from milo_restore.models.diffbir.images import working_size

    return working_size(*result_size(pipeline.cleaner, images, upscale), minimum_side)


def _tile_for(pipeline: DiffBIRPipeline, batch: list[Work], sides: tuple[int, int]) -> int | None:
    """Tiles where the whole would not fit into memory, which is said."""
    from milo_restore.models.diffbir.memory import free_bytes, needed_bytes

    needed, free = needed_bytes(pipeline.vae, *sides, len(batch)), free_bytes(pipeline.vae.device)
    if free is None or needed <= free or max(sides) <= TILE:
        return None
    need = f"{sides[1]}x{sides[0]} pixels take some {needed / 1e9:.1f} GB at once, {free / 1e9:.1f} GB are free"
    say(f"{batch[0].image.source.name}: {need}: in tiles of {TILE} (--tile 0 tries without)")
    return TILE
