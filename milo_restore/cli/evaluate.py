"""``milo-restore evaluate``: a folder of restored images, measured with full- and no-reference metrics."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milo_restore.cli.metric import add_list_metrics, add_pairing
from milo_restore.errors import ConfigError, DataError, listed
from milo_restore.files.write import check_target, replace_file

if TYPE_CHECKING:
    from milo_restore.measure.metrics import Protocol

_PROTOCOLS = (
    "rgb", "y", "restormer", "swinir-x2", "swinir-x3", "swinir-x4", "diffbir", "stablesr", "seesr", "codeformer",
    "denoising", "super-resolution", "super-resolution-y",
)  # fmt: skip


class _ListProtocols(argparse.Action):
    """Prints what every protocol does, with its source, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        from milo_restore.measure.metrics.protocol import protocols_text

        print(protocols_text())
        parser.exit()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``evaluate``."""
    parser.description = (
        "Measure a folder of restored images: per-image values, means and 95% intervals over images. Values are kept "
        "in a cache under the files' hashes: a second run computes only what is new, an interrupted one goes on. "
        "For several processes: accelerate launch -m milo_restore.cli evaluate ..."
    )
    parser.add_argument("--pred", required=True, type=Path, metavar="DIR", help="the restored images")
    parser.add_argument("--ref", type=Path, metavar="DIR", help="what they should be; full-reference metrics need it")
    parser.add_argument(
        "--input", type=Path, metavar="DIR", help="what they were restored from: only recorded, for the report"
    )
    parser.add_argument(
        "--metrics",
        required=True,
        nargs="+",
        metavar="NAME",
        help="psnr, ssim, milo, milo:PATH, st-lpips, ..., or any metric of pyiqa by its exact name; see --list-metrics",
    )
    add_list_metrics(parser)
    parser.add_argument(
        "--set-ref",
        type=Path,
        metavar="DIR",
        help="what fid and kid compare the folder with, of any number and names, such as FFHQ (default: --ref)",
    )
    parser.add_argument("--output", "--out", required=True, type=Path, metavar="FILE", help="results.json to write")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write one line per image, too")
    parser.add_argument(
        "--skip-unavailable", action="store_true", help="go on without metrics whose weights or package are missing"
    )
    _add_protocol(parser)
    add_pairing(parser)
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="where values are kept (default: the cache's scores/)"
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="images of equal size at once (default: 8 on a GPU, 1 on a CPU)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one, else cpu)")


def _add_protocol(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--protocol",
        choices=_PROTOCOLS,
        metavar="NAME",
        help="colour of psnr and ssim, what is cut off for every metric, and checkpoints, as in published tables: rgb "
        "(the default: whole images), y, restormer, swinir-x2, swinir-x3, swinir-x4, diffbir, stablesr, seesr, "
        "codeformer; formerly denoising, super-resolution and super-resolution-y, now restormer, diffbir and swinir-x4",
    )
    parser.add_argument(
        "--list-protocols", action=_ListProtocols, nargs=0, help="print what each does and its source, and end"
    )
    parser.add_argument("--colour", choices=("rgb", "y"), help="of psnr and ssim, instead of the protocol's")
    parser.add_argument("--border", type=int, metavar="PIXELS", help="cut off for every metric, instead of its own")
    parser.add_argument(
        "--modcrop",
        type=int,
        metavar="SCALE",
        help="cut restored images and references to multiples of this before, instead of the protocol's",
    )
    parser.add_argument(
        "--psnr-cap",
        type=float,
        metavar="DB",
        help="the largest psnr, 80 in pyiqa; without it, images equal to their references are no part of its mean",
    )


def main(arguments: argparse.Namespace) -> int:
    """Measure, write, and print the table."""
    from milo_restore.processes import start_processes

    for file in (arguments.output, arguments.csv):
        if file is not None:
            check_target(file)
    _check_replaced(arguments.output)
    device = start_processes(arguments.device)

    from milo_restore.files import cache_folder
    from milo_restore.measure.cache import KnownImages
    from milo_restore.measure.folders import find_images, left_out
    from milo_restore.measure.metrics import find_metric, load_metrics
    from milo_restore.measure.of_sets import describe_sets, plan_sets, split_names
    from milo_restore.measure.results import make_results, results_table, to_csv, to_json
    from milo_restore.measure.run import measure
    from milo_restore.show.text import counted

    protocol = _protocol(arguments)
    names, whole = split_names(arguments.metrics)
    for name in names:
        if find_metric(name).reference and arguments.ref is None:
            raise ConfigError("compares with a reference", where=name, mend="Give --ref DIR, or leave it out")
    folders = {"pred": arguments.pred, "ref": arguments.ref, "input": arguments.input}
    cache = arguments.cache or cache_folder() / "scores"
    known = KnownImages(cache)
    images = find_images(
        **folders,
        modcrop=protocol.modcrop,
        recursive=arguments.recursive,
        only_present=arguments.only_present,
        size_of=known.size,
    )
    skip = arguments.skip_unavailable
    sets = plan_sets(whole, images, device, ref=arguments.ref, against=arguments.set_ref, skip=skip and bool(names))
    metrics, unavailable = load_metrics(names, protocol, device, skip_unavailable=skip)
    measured = measure(
        images,
        metrics,
        cache,
        device=device,
        batch_size=arguments.batch_size or (8 if device.type == "cuda" else 1),
        known_images=known,
    )
    found = sets.measure()
    if os.environ.get("RANK", "0") != "0":
        return 0
    unavailable |= sets.unavailable
    results = make_results(folders, images, metrics, unavailable, protocol, measured, device, found)
    replace_file(arguments.output, to_json(results))
    if arguments.csv is not None:
        replace_file(arguments.csv, to_csv(results))
    print(f"{counted(len(images))} of {arguments.pred}")
    used = {place: [getattr(image, role) for image in images] for role, place in folders.items() if place is not None}
    for line in left_out(used, recursive=arguments.recursive):
        print(line)
    print(f"protocol: {protocol}")
    if arguments.protocol is not None:
        print(f"{protocol.name}: {protocol.source}")
    print(results_table(results))
    for line in [*_notes(results, measured.computed), *describe_sets(results)]:
        print(line)
    return 0


def _check_replaced(file: Path) -> None:
    """Refuse to write over a file that is no results file.

    Raises:
        ConfigError: it is another one.
    """
    from milo_restore.measure.results import read_results

    if file.is_file():
        try:
            read_results(file)
        except DataError as error:
            mend = "Name another --output, or remove it"
            raise ConfigError("is there already and holds no results of this command", where=file, mend=mend) from error
        print(f"milo-restore: the results in {file} are replaced", file=sys.stderr)


def _protocol(arguments: argparse.Namespace) -> Protocol:
    from milo_restore.measure.metrics import PROTOCOLS

    preset = PROTOCOLS[arguments.protocol or "rgb"]
    given = {key: getattr(arguments, key) for key in ("colour", "border", "modcrop", "psnr_cap")}
    changed = {key: value for key, value in given.items() if value is not None and value != getattr(preset, key)}
    if not changed:
        return preset
    words = ", ".join(
        f"{key.replace('_', '-')} {value if key == 'colour' else f'{value:g}'}" for key, value in changed.items()
    )
    return dataclasses.replace(preset, **changed, name=f"{preset.name} with {words}")


def _notes(results: Mapping[str, Any], computed: Mapping[str, int]) -> list[str]:
    """Notes under the table: sources, weights, surrogates, failures."""
    from milo_restore.show.text import counted

    lines = []
    for name, about in results["metrics"].items():
        fresh = computed[name]
        kept = results["counts"][name] - fresh
        work = f"{fresh} computed, {max(kept, 0)} from the cache"
        lines.append(f"{name}: {about['source']}, {about['name']}; weights: {about['weights'] or 'none'}; {work}")
        if "note" in about:
            lines.append(f"{name}: {about['note']}")
        failed = [image["name"] for image in results["images"] if name in image["failures"]]
        if failed:
            first = next(image["failures"][name] for image in results["images"] if name in image["failures"])
            lines.append(
                f"{name}: no value of {counted(len(failed))}, which its mean leaves out: {listed(failed)} ({first})"
            )
    lines += [f"{name}: {about['mend']}" for name, about in results["unavailable"].items() if about["mend"]]
    return lines
