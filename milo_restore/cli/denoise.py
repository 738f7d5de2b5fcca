"""``milo-restore denoise``: remove noise from the images of a folder with a trained Restormer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from milo_restore.cli.jobs import Job, add_existing, find_jobs, say, to_do, usable, write_record
from milo_restore.errors import DataError, NumericsError

if TYPE_CHECKING:
    import torch

    from milo_restore.models.restormer import Restormer

RECORD = "denoise.json"
_SMALLEST = 16  # pixels along a side


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``denoise``."""
    parser.description = (
        "Denoise images with a Restormer. With --add-noise the images are clean ones, to which the fixed noise of "
        "Restormer's published evaluation is added first, neither clipped nor rounded: what the restored ones are then "
        "measured by (milo-restore evaluate --ref) is those images."
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME|RUN|FILE",
        help="lite or lite-mae, the small ones that ship, for white noise of sigma 25, trained with MILO and with MAE; "
        "or a run folder of restormer_denoise.py, or a weight file (./lite where it has such a name)",
    )
    parser.add_argument("--input", required=True, type=Path, metavar="PATH", help="an image, or a folder of them")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="where PNG of the same names go")
    parser.add_argument(
        "--entry",
        metavar="NAME",
        help="of a weight file that holds several networks (default: params_ema first)",
    )
    parser.add_argument("--add-noise", type=float, metavar="SIGMA", help="in 8-bit units; seed 0 for each image")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one, else cpu)")
    add_existing(parser)


def main(arguments: argparse.Namespace) -> int:
    """Find and check the images, load the network, denoise."""
    jobs = to_do(find_jobs(arguments.input, arguments.output), arguments)
    jobs = usable(jobs, _SMALLEST, skip=arguments.skip_bad)
    if not jobs:
        print(f"nothing to do: all results are in {arguments.output}")
        return 0

    from milo_restore.files.hashes import sha256_of
    from milo_restore.models.trained import load_trained
    from milo_restore.processes import choose_device

    device = choose_device(arguments.device)
    model, weights = load_trained(arguments.model, arguments.entry)
    settings = {
        "weights": str(weights), "sha256": sha256_of(weights), "entry": arguments.entry,
        "add_noise": arguments.add_noise,
    }  # fmt: skip
    write_record(arguments.output / RECORD, settings, resume=arguments.resume)
    say(", ".join(f"{name} {value}" for name, value in settings.items()))
    _denoise_all(model.to(device), jobs, arguments.add_noise, device)
    print(f"{len(jobs)} {'image' if len(jobs) == 1 else 'images'} denoised: {arguments.output}")
    return 0


def _denoise_all(model: Restormer, jobs: list[Job], sigma: float | None, device: torch.device) -> None:
    from tqdm import tqdm

    from milo_restore.data import evaluation_input
    from milo_restore.data.images import read_image, to_tensor, write_png
    from milo_restore.models.denoise import denoise

    for job in tqdm(jobs, desc="denoising", unit="image", disable=None):
        image = read_image(job.source)
        noisy = to_tensor(image) if sigma is None else evaluation_input(image, sigma)
        try:
            write_png(job.target, denoise(model, noisy, device=device))
        except NumericsError as error:
            mend = "The network has diverged, or its weights do not fit"
            raise NumericsError(error.what, where=job.source, mend=mend) from error
        except DataError as error:
            mend = ". ".join(filter(None, (error.mend, "Results made so far are whole; --resume goes on")))
            raise DataError(error.what, where=error.where or job.source, mend=mend) from error
