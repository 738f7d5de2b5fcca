"""``milo-restore bench``: what MILO costs here, as a loss and to train.

Everything is timed in one process and interleaved: each round runs every contender once, every second round in
reverse order, and a ratio is the median over rounds of the ratio within a round. A busy machine then slows both
sides of a ratio. Times in milliseconds are medians over rounds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from milo_restore.bench.diffusion import WIDTHS, Networks, format_diffusion_report, run_diffusion_bench
from milo_restore.bench.evaluation import format_evaluation_report, run_evaluation_bench
from milo_restore.bench.latents import format_latent_report, run_latent_bench
from milo_restore.bench.losses import BenchSettings, format_report, run_bench
from milo_restore.bench.swinir import PATCH, format_swinir_report, run_swinir_bench
from milo_restore.bench.training import format_training_report, run_training_bench
from milo_restore.errors import ConfigError
from milo_restore.files.write import check_target, replace_file

__all__ = ["BenchSettings", "add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``milo-restore bench``."""
    default = BenchSettings()
    parser.add_argument("--size", default=None, metavar="WxH", help="the losses' images (default: 512x384)")
    parser.add_argument("--batch", type=int, default=default.batch, help="images per loss call (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=default.threads, help="CPU threads (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=None, help=f"timed rounds (default: {default.repeats})")
    parser.add_argument("--weights", default=default.weights, help="mini, official or a path (default: %(default)s)")
    parser.add_argument("--device", default=default.device, help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    parser.add_argument("--training", action="store_true", help="measure MILO's own training instead")
    parser.add_argument("--diffusion", action="store_true", help="measure DiffBIR's training losses instead")
    parser.add_argument("--latents", action="store_true", help="measure losses on FLUX.2's latents instead")
    parser.add_argument("--swinir", action="store_true", help="measure a training iteration of SwinIR-light instead")
    parser.add_argument("--evaluation", action="store_true", help="measure 'evaluate' against pyiqa's command instead")
    help_ = "of --diffusion: sd is SD 2.1's size and takes 10 GB (default: quarter, of its channels; --quick: tiny)"
    parser.add_argument("--networks", choices=sorted(WIDTHS), default=None, help=help_)
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="also write the numbers there")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs; times mean nothing")


def main(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write the JSON file if one was asked for.

    Raises:
        ConfigError: an option is wrong.
        WeightsError: MILO's weights cannot be had.
    """
    size = arguments.size or _default_size(arguments)
    width, cross, height = size.partition("x")
    if not (cross and width.isdigit() and height.isdigit()):
        raise ConfigError(f"{size!r} is not a size", where="--size", mend="Give width x height, as in 512x384")
    if arguments.json is not None:
        check_target(arguments.json)  # before the minutes, not after
    settings = BenchSettings(
        width=int(width),
        height=int(height),
        batch=arguments.batch,
        threads=arguments.threads,
        repeats=arguments.repeats or (2 if arguments.quick else BenchSettings.repeats),
        weights=arguments.weights,
        device=arguments.device,
        quick=arguments.quick,
    )
    if arguments.diffusion:
        networks: Networks = arguments.networks or ("tiny" if arguments.quick else "quarter")
        report = run_diffusion_bench(settings, networks)
        print(format_diffusion_report(report))
    elif arguments.latents:
        report = run_latent_bench(settings)
        print(format_latent_report(report))
    elif arguments.swinir:
        report = run_swinir_bench(settings)
        print(format_swinir_report(report))
    elif arguments.evaluation:
        report = run_evaluation_bench(settings, arguments.program)
        print(format_evaluation_report(report))
    elif arguments.training:
        report = run_training_bench(settings)
        print(format_training_report(report))
    else:
        report = run_bench(settings)
        print(format_report(report))
    if arguments.json is not None:
        replace_file(arguments.json, json.dumps(report, indent=2) + "\n")
    return 0


def _default_size(arguments: argparse.Namespace) -> str:
    if arguments.swinir:
        return f"{PATCH}x{PATCH}"
    latent = arguments.diffusion or arguments.latents
    sizes = ("128x128", "512x512") if latent else ("64x64", "512x384")
    return sizes[0 if arguments.quick else 1]
