"""The command line ``milo-restore``. Each command's module is imported only when that command is asked for.

Exit codes: 0 done; 1 ``doctor`` found that the basics do not work; 2 an error that the user can mend, on one line of
standard error; 130 interrupted with Ctrl-C; 141 whoever read the output stopped reading (as in ``| head``).
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import milo_restore
import milo_restore.interrupt  # its words of Ctrl-C while imports last, and of no other package
from milo_restore.errors import MiloRestoreError


class Command(NamedTuple):
    """A subcommand: its module has ``add_arguments(parser)`` and ``main(arguments) -> int``."""

    module: str
    summary: str
    example: str


COMMANDS = {
    "score": Command(
        "milo_restore.cli.score",
        "score distorted images (or latents) against their references",
        "milo-restore score references/ restored/ --csv scores.csv",
    ),
    "map": Command(
        "milo_restore.cli.heatmap",
        "draw where the visible errors are, as a heat map",
        "milo-restore map reference.png distorted.png --output runs/map.png",
    ),
    "levels": Command(
        "milo_restore.cli.levels",
        "list, draw and score KADID-10k's 25 distortions at their five levels",
        "milo-restore levels --distortion 11 --plot runs/figure1.png",
    ),
    "correlate": Command(
        "milo_restore.cli.correlate",
        "measure how well full-reference metrics follow people's opinions",
        "milo-restore correlate --dataset tid2013 --root tid2013/ --metrics milo psnr lpips --csv table.csv",
    ),
    "evaluate": Command(
        "milo_restore.cli.evaluate",
        "measure a folder of restored images with full- and no-reference metrics",
        "milo-restore evaluate --pred restored/ --ref clean/ --metrics psnr ssim milo --output results.json",
    ),
    "compare": Command(
        "milo_restore.cli.compare",
        "compare measured runs image by image: differences, tests, wins, ranks",
        "milo-restore compare runs/mae runs/milo-cosine",
    ),
    "tables": Command(
        "milo_restore.cli.tables",
        "reproduce the paper's Tables 1 to 4 row by row, beside the printed numbers",
        "milo-restore tables all --scale smoke",
    ),
    "report": Command(
        "milo_restore.cli.report",
        "make one HTML page of measured runs, with their pictures",
        "milo-restore report runs/mae runs/milo --output runs/report.html",
    ),
    "denoise": Command(
        "milo_restore.cli.denoise",
        "denoise images with a trained Restormer",
        "milo-restore denoise --model lite --input noisy/ --output denoised/",
    ),
    "restore": Command(
        "milo_restore.cli.restore",
        "restore images: blind denoising, super-resolution, faces",
        "milo-restore restore --task denoise --input photos/ --output restored/ --model diffbir-v2/",
    ),
    "convert": Command(
        "milo_restore.cli.convert",
        "convert DiffBIR's official checkpoints to diffusers folders",
        "milo-restore convert diffbir v2.pth --base v2-1_512-ema-pruned.ckpt --output diffbir-v2/",
    ),
    "basicsr": Command(
        "milo_restore.cli.basicsr",
        "train from an existing BasicSR configuration, with MILO in place of its pixel loss or as it is",
        "milo-restore basicsr -opt train_SwinIR.yml --loss milo-cosine",
    ),
    "run": Command(
        "milo_restore.cli.run",
        "run a training program that someone else wrote, with MILO in place of its loss",
        "milo-restore run --loss milo-cosine -- hat/train.py -opt train_HAT.yml",
    ),
    "config": Command(
        "milo_restore.cli.config",
        "print every key of a recipe's configuration, as text or as a JSON schema for editors",
        "milo-restore config restormer_denoise",
    ),
    "assets": Command(
        "milo_restore.cli.assets",
        "list, fetch and verify weights and data sets",
        "milo-restore assets fetch milo Set12",
    ),
    "doctor": Command(
        "milo_restore.cli.doctor",
        "show versions, devices, weights and data sets, and what to do about what is missing",
        "milo-restore doctor",
    ),
    "bench": Command(
        "milo_restore.bench",
        "measure the speed and memory of the losses on this machine",
        "milo-restore bench",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; by default the process's.

    Returns:
        The exit code; see the module.
    """
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        if sys.stdout is not None:  # None where it was closed before the start
            sys.stdout.flush()  # a closed pipe shows here, not in Python's last moments
        return code
    except BrokenPipeError:
        # Python flushes stdout once more on its way out; that must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EIO, errno.EBADF):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"milo-restore: error: standard output cannot be written ({error.strerror})", file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    try:
        parsed = _parser(arguments).parse_args(arguments)
        code: int = parsed.run(parsed)
        return code
    except SystemExit as stop:  # argparse: 0 after --help, 2 after an error
        return stop.code if isinstance(stop.code, int) else 2
    except MiloRestoreError as error:
        print(f"milo-restore: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("milo-restore: interrupted", file=sys.stderr)
        return 130


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="milo-restore",
        description="Measure images with MILO, a perceptual metric that masks errors by how visible they are.",
        epilog="'milo-restore COMMAND --help' tells more about one command.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {milo_restore.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=f"example: {command.example}",
        )
        if name == chosen:
            module = importlib.import_module(command.module)
            module.add_arguments(sub)
            # For commands that run others: none can import this file, which names them all.
            sub.set_defaults(run=module.main, main=main, program=(sys.executable, "-m", __name__))
    return parser
