"""``milo-restore restore``: restore the images of a folder with a DiffBIR pipeline."""

from __future__ import annotations

import argparse
from pathlib import Path

from milo_restore.cli.convert import VERSIONS
from milo_restore.cli.jobs import add_existing, find_jobs, say, to_do, usable, write_record
from milo_restore.cli.restore_faces import PHOTO, Photographs, add_faces, check_faces, restore_background
from milo_restore.cli.restore_one_step import load_one_step_pipeline
from milo_restore.cli.restore_run import TILE, Work, load_pipeline, maker, plan, restore_all, share
from milo_restore.errors import ConfigError

TASKS = ("sr", "denoise", "face")  # as the diffbir room has them; torch need not come for --help
DTYPES = ("float32", "bfloat16", "float16")
RECORD = "restore.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``restore``."""
    parser.description = (
        "Restore images with DiffBIR: a cleaner, then sampling with Stable Diffusion under an IRControlNet. All images "
        "are checked before the first is restored. Without --model it is the shipped tiny world, whose pictures say "
        "nothing about the method's quality. Several processes share the images: accelerate launch -m milo_restore.cli "
        "restore ..."
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
        "--one-step",
        type=Path,
        metavar="DIR",
        help="final/ of a run of recipes/diffbir_one_step.py: one pass of the UNet in place of control and sampling, "
        "with the cleaner and the prompt of its training unless given",
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
    add_faces(parser)
    _add_sampling(parser)
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PIXELS",
        help="side of the tiles in which larger images are restored; 0: never, whatever it takes (default: none, and "
        f"{TILE} where an image does not fit into memory, which is said)",
    )
    parser.add_argument(
        "--padding",
        choices=("mirror", "zeros"),
        default="mirror",
        help="how sides become multiples of 64; zeros: as DiffBIR's program (default: mirror)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="images of one size at a time (default: 1)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one, else cpu)")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of UNet, control and text encoder (default: float16 on a GPU, as DiffBIR's program; else float32)",
    )
    add_existing(parser)


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", metavar="TEXT", help="what images should be like (default: the version's)")
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what they should not be (default: the version's)")
    parser.add_argument(
        "--captions",
        type=Path,
        metavar="FILE",
        help="what is on each image, in front of --prompt: a line for each, sorted by name, or .json: names to texts",
    )
    parser.add_argument(
        "--sampler",
        default="spaced",
        metavar="NAME",
        help="spaced, ddim, dpm++_2m, or a scheduler of diffusers, such as UniPCMultistepScheduler (default: spaced)",
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="of sampling (default: 50 for spaced, 10 for others, as DiffBIR)"
    )
    parser.add_argument(
        "--guidance",
        type=float,
        metavar="S",
        help="against the negative prompt; 1: none (default: 4, for v2.1 8)",
    )
    parser.add_argument("--rescale-cfg", action="store_true", help="let the guidance grow from 1 to S + 1")
    parser.add_argument(
        "--strength", type=float, default=1.0, metavar="X", help="of the control; less is more inventive (default: 1)"
    )
    parser.add_argument(
        "--noise-aug",
        type=int,
        default=0,
        metavar="T",
        help="noise the condition as at this timestep; more is more inventive (default: 0)",
    )
    parser.add_argument(
        "--start",
        choices=("noise", "condition"),
        default="noise",
        help="sample from noise, as DiffBIR does, or from the cleaned image's latent, noised (default: noise)",
    )
    parser.add_argument("--seed", type=int, default=231, metavar="N", help="of each image's noise (default: 231)")
    parser.add_argument(
        "--samples",
        type=int,
        default=1,
        metavar="N",
        help="results for each image, NAME_0.png, NAME_1.png, ..., with seeds N, N + 1, ... (default: 1)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Find and check the images, load the networks, restore; each of several processes its share."""
    from milo_restore.models.diffbir.images import MINIMUM_SIDE
    from milo_restore.processes import leave, on_main, rank_and_size, start_processes

    for name in ("samples", "batch_size"):
        if getattr(arguments, name) < 1:
            raise ConfigError(
                f"is {getattr(arguments, name)}", where=f"--{name.replace('_', '-')}", mend="Take 1 or more"
            )
    check_faces(arguments)
    arguments.device = str(start_processes(arguments.device))
    try:
        # One process looks: what others would find is changed by those that are ahead.
        works = on_main(lambda: _wanted(arguments, MINIMUM_SIDE))
        if works:
            _restore(works, arguments)
        elif rank_and_size()[0] == 0:
            print(f"nothing to do: all results are in {arguments.output}")
    finally:
        leave()
    return 0


def _wanted(arguments: argparse.Namespace, minimum_side: int) -> list[Work]:
    """The results that are to be made, after a look at all images."""
    images = find_jobs(arguments.input, arguments.output)
    works = plan(images, arguments)
    wanted = set(to_do([work.job for work in works], arguments))
    waiting = {work.image for work in works if work.job in wanted}
    whole = set(usable([image for image in images if image in waiting], minimum_side, skip=arguments.skip_bad))
    return [work for work in works if work.job in wanted and work.image in whole]


def _restore(works: list[Work], arguments: argparse.Namespace) -> None:
    from milo_restore.processes import gather, on_main, rank_and_size

    pipeline, settings = (load_one_step_pipeline if arguments.one_step else load_pipeline)(arguments)
    make, batch_size, photographs = maker(pipeline, arguments.tile, settings), arguments.batch_size, None
    if arguments.faces == PHOTO:
        background = restore_background(pipeline, arguments, settings)
        make = photographs = Photographs(pipeline, background, settings, arguments)
        batch_size = 1  # a photograph; its faces go in batches
    on_main(lambda: write_record(arguments.output / RECORD, settings, resume=arguments.resume))
    first = rank_and_size()[0] == 0
    if first and arguments.model == "tiny":
        say("the tiny world shows that the program works; its pictures are no statement about quality")
    if first:
        named = (f"{name} {value!r}" if "prompt" in name else f"{name} {value}" for name, value in settings.items())
        say(", ".join(named))
    restore_all(make, share(works), batch_size)
    found = sum(gather(photographs.found if photographs else 0))
    count = len({work.image for work in works})
    what = f"{count} {'image' if count == 1 else 'images'} restored"
    if photographs:
        what += f", with {found} {'face' if found == 1 else 'faces'}"
    if first:
        print(f"{what}: {arguments.output}")
