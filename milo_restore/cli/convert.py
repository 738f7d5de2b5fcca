"""``milo-restore convert diffbir``: official checkpoints to a folder in diffusers' format."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

VERSIONS = ("v1", "v2", "v2.1")  # as milo_restore.models.diffbir has them; torch need not come for --help


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("what", choices=("diffbir",), help="which model's checkpoint it is")
    parser.add_argument(
        "checkpoint", type=Path, help="v2.pth, DiffBIR_v2.1.pt, v1_general.pth, general_full_v1.ckpt, or your own"
    )
    parser.add_argument(
        "--base",
        metavar="SD",
        help="Stable Diffusion 2.1-base (for v2.1 its zero-SNR variant): a folder in diffusers' format, a .ckpt or "
        ".safetensors in the original one, or OWNER/NAME@REVISION on the Hugging Face hub; not for "
        "general_full_v1.ckpt, which holds its own",
    )
    parser.add_argument("--output", "--out", type=Path, required=True, metavar="DIR", help="the folder to make")
    parser.add_argument(
        "--version", choices=VERSIONS, help="DiffBIR's version, where the checkpoint has no published file name"
    )
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="a tokenizer to put in; files in the original format hold none"
    )


def main(arguments: argparse.Namespace) -> int:
    """Convert, and say on standard error what is being done."""
    from milo_restore.models.diffbir.convert import convert_diffbir

    out = convert_diffbir(
        arguments.checkpoint,
        arguments.base,
        arguments.output,
        arguments.version,
        tokenizer=arguments.tokenizer,
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(out)
    return 0
