"""``milo-restore assets``: the weights and data sets that this project knows by name."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from milo_restore.errors import ConfigError, MiloRestoreError

if TYPE_CHECKING:
    from milo_restore.files import AssetStatus

_ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``assets``."""
    parser.description = (
        "Weights and data sets are looked for in the folder that MILO_RESTORE_ASSETS names, then in the cache "
        "(MILO_RESTORE_CACHE), where downloads go."
    )
    actions = parser.add_subparsers(metavar="list|fetch|verify|seal", dest="action", required=True)
    for action, summary, example in (
        ("list", "what there is, what is found where, and under which licence", "milo-restore assets list"),
        ("fetch", f"download what is missing; '{_ALL}': all that can be checked by a known hash",
         "milo-restore assets fetch milo Set12 --root ~/restoration"),
        ("verify", "check sha256 sums; fails where something is damaged or, if named, missing",
         "milo-restore assets verify BSD400"),
    ):  # fmt: skip
        sub = actions.add_parser(action, help=summary, description=f"{summary[0].upper()}{summary[1:]}.",
                                 epilog=f"example: {example}")  # fmt: skip
        sub.add_argument("names", metavar="NAMES", nargs="*", help=f"names that 'list' shows, or '{_ALL}'")
        sub.add_argument("--root", metavar="DIR", type=Path, help="look in, and download to, this folder only")
        if action == "fetch":
            sub.add_argument(
                "--metrics",
                metavar="NAME",
                nargs="+",
                default=[],
                help="metrics of 'evaluate', pyiqa's among them, too",
            )

    seal = actions.add_parser(
        "seal",
        help="write the sha256 of your own images into DIR/seal.json, which every reading of them then checks",
        description="Write the sha256 of all images in DIR, and in the folders below it, into DIR/seal.json. From then "
        "on training, evaluation and every other command refuse an image that has changed, is new, or is gone.",
        epilog="example: milo-restore assets seal ~/photos",
    )
    seal.add_argument("folders", metavar="DIR", nargs="+", type=Path)
    seal.add_argument(
        "--again", action="store_true", help="replace a seal that is there: the images were meant to change"
    )


def main(arguments: argparse.Namespace) -> int:
    """List, fetch, verify or seal."""
    from milo_restore import files
    from milo_restore.files import published

    if arguments.action == "seal":
        return _seal(arguments)
    root = arguments.root
    if root is not None and not root.expanduser().is_dir():
        raise ConfigError("no such folder", where=f"--root {root}", mend="Make it first")
    models = _models_among(arguments)
    metrics = arguments.metrics if arguments.action == "fetch" else []
    if arguments.action == "fetch" and not arguments.names and not metrics:
        choice = ", ".join((*files.NAMES, *published.BASES))
        raise ConfigError("name what to fetch", mend=f"Known: {choice}; or '{_ALL}'")
    everything = (not arguments.names and not metrics) or arguments.names == [_ALL]
    named = [name for name in arguments.names if name not in models]
    names = list(files.NAMES) if everything else [each for name in named for each in files.weights_named(name)]
    if everything and arguments.action == "fetch":
        names = [name for name in files.NAMES if files.can_fetch(name)]
    if arguments.action == "list":
        print(status_table([files.asset_status(name, root) for name in names]))
        return 0
    if arguments.action == "verify" and not arguments.names:
        return _verify_what_is_there([files.asset_status(name, root) for name in names])
    return _fetch_or_verify(arguments, names, metrics)


def _fetch_or_verify(arguments: argparse.Namespace, names: Sequence[str], metrics: Sequence[str]) -> int:
    """Each of the named, whatever became of the others."""
    from milo_restore import files

    root = arguments.root
    act = files.fetch_asset if arguments.action == "fetch" else files.verify_asset
    failures: list[MiloRestoreError] = []
    for name in names:
        try:
            print(_line(act(name, root)), flush=True)
        except MiloRestoreError as error:  # the others are still worth having
            failures.append(error)
    failures += _fetch_models(_models_among(arguments), root) + _fetch_metrics(metrics)
    for failure in failures[:-1]:
        print(f"milo-restore: error: {failure}", file=sys.stderr)
    if failures:
        raise failures[-1]
    return 0


def _seal(arguments: argparse.Namespace) -> int:
    from milo_restore.files.seal import seal

    for folder in arguments.folders:
        print(seal(folder, again=arguments.again))
    return 0


def _models_among(arguments: argparse.Namespace) -> list[str]:
    from milo_restore.files.published import BASES, MODELS

    if arguments.action != "fetch":
        if bases := [name for name in arguments.names if name in BASES]:
            raise ConfigError("can only be fetched", where=", ".join(bases), mend="Fetching checks what is there, too")
        return []
    return [name for name in arguments.names if name in (*BASES, *MODELS)]


def _fetch_models(names: Sequence[str], root: Path | None) -> list[MiloRestoreError]:
    """Get DiffBIR's models and their bases, say where they are, and return what could not be had."""
    if not names:
        return []
    from milo_restore.cli.jobs import say
    from milo_restore.files.published import BASES
    from milo_restore.models.diffbir.published import fetch_base, fetch_model

    failures = []
    for name in names:
        try:
            path = fetch_base(name, say) if name in BASES else fetch_model(name, root and root.expanduser(), say)
            print(f"{name}: found: {path}", flush=True)
        except MiloRestoreError as error:
            failures.append(error)
    return failures


def _fetch_metrics(names: Sequence[str]) -> list[MiloRestoreError]:
    """Download what metrics need, say where it lies, and return what could not be had."""
    if not names:
        return []
    from milo_restore.measure.metrics import fetch_metrics, weight_folders

    failures = []
    for name, found in fetch_metrics(names):
        if isinstance(found, MiloRestoreError):
            failures.append(found)
        else:
            print(f"{name}: ready: {found}", flush=True)
    print("for a machine without network, copy what lies in", ", ".join(map(str, weight_folders())))
    return failures


def status_table(statuses: Sequence[AssetStatus]) -> str:
    """A table of assets, with what to do about the missing and the damaged below their lines."""
    head = ("name", "kind", "state", "size", "licence")
    rows = [(status.name, status.kind, status.state, _size(status.bytes), status.licence) for status in statuses]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(4)]
    width = max(80, shutil.get_terminal_size((120, 24)).columns)
    lines = [_columns(head, widths)]
    for status, row in zip(statuses, rows):
        lines += textwrap.wrap(_columns(row, widths), width, subsequent_indent=" " * (sum(widths) + 8))
        for detail in (status.where, status.note):
            if detail is not None:
                lines.append(f"    {detail}")
    return "\n".join(lines)


def _columns(row: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[-1]])


def _verify_what_is_there(statuses: Sequence[AssetStatus]) -> int:
    damaged = False
    for status in statuses:
        print(_line(status))
        damaged |= status.state == "damaged"
    return MiloRestoreError.exit_code if damaged else 0


def _line(status: AssetStatus) -> str:
    detail = status.note if status.state in ("missing", "damaged") else status.where
    return f"{status.name}: {status.state}: {detail}"


def _size(count: int) -> str:
    if count == 0:
        return "-"  # not known, or brought by the user
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.0f} kB"
