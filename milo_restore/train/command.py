"""The command line that every recipe shares: a configuration file, overrides, an output folder, resume."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from milo_restore.config import load_config
from milo_restore.errors import ConfigError, run_program
from milo_restore.processes import leave
from milo_restore.train.diverged import Diverged

C = TypeVar("C")
_EPILOG = """\
milo-restore config {name} prints every key with its type, default and meaning.

example:
  python recipes/{name}.py --set training.seed=7 --output runs/seed7 --dry-run"""


@dataclass(frozen=True)
class RunArguments:
    """Arguments of a recipe beside its configuration.

    Attributes:
        output: the run folder.
        resume: ``latest``, the path of a checkpoint, or None for a fresh start.
        dry_run: build everything, check every path and key, train nothing.
        decode: with that, decode every training image.
        changes: keys of ``--change``, which may differ from the run that is gone on with.
    """

    output: Path
    resume: str | None
    dry_run: bool
    changes: tuple[str, ...] = ()
    decode: bool = False


def run_recipe(
    main: Callable[[C, RunArguments], int],
    schema: type[C],
    default_config: Path,
    description: str,
    argv: Sequence[str] | None = None,
) -> int:
    """Read the command line and the configuration, run ``main``, and turn a user's error into one line.

    Args:
        main: the recipe; gets the checked configuration, returns an exit code.
        schema: the recipe's configuration dataclass.
        default_config: the YAML file used where ``--config`` is not given; its stem names the default run folder.
        description: shown by ``--help``.
        argv: arguments, by default the process's.

    Returns:
        The exit code: ``main``'s own, or 2 after an error that the user can mend.
    """
    parser = argparse.ArgumentParser(
        description=description,
        epilog=_EPILOG.format(name=Path(sys.argv[0]).stem),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", type=Path, default=default_config, help=f"YAML file (default: {default_config.name})"
    )
    parser.add_argument("--set", dest="overrides", metavar="KEY.SUB=VALUE", action="append", nargs="+", default=[],
                        help="change single values, e.g. --set loss.kind=mae training.seed=7")  # fmt: skip
    parser.add_argument("--output", type=Path, help="run folder (default: runs/NAME-OF-CONFIG)")
    parser.add_argument(
        "--resume", metavar="latest|CHECKPOINT", help="go on from the newest intact or a given checkpoint"
    )
    parser.add_argument("--change", metavar="KEY.SUB[=VALUE]", action="append", nargs="+", default=[],
                        help="with --resume: go on with another value than the run began with, on record; without a "
                             "value, of what follows from others, such as the images' hash")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="check configuration, data and weights; train nothing")
    parser.add_argument(
        "--decode", action="store_true", help="with --dry-run: decode all training images, name bad ones"
    )
    arguments = parser.parse_args(argv)
    output = arguments.output or Path("runs") / arguments.config.stem
    overrides, changes = ([item for group in groups for item in group] for groups in (arguments.overrides,
                                                                                      arguments.change))  # fmt: skip

    def act() -> int:
        if changes and arguments.resume is None:
            raise ConfigError("changes a run that is gone on with", where="--change", mend="Add --resume latest")
        if arguments.decode and not arguments.dry_run:
            raise ConfigError("is a part of a dry run", where="--decode", mend="Add --dry-run")
        config = load_config(schema, arguments.config, [*overrides, *(item for item in changes if "=" in item)])
        keys = tuple(item.partition("=")[0] for item in changes)
        try:
            return main(config, RunArguments(output, arguments.resume, arguments.dry_run, keys, arguments.decode))
        except Diverged as error:
            raise error.with_command(sys.argv if argv is None else [sys.argv[0], *argv]) from error

    try:
        return run_program(parser.prog, act)
    finally:
        leave()
