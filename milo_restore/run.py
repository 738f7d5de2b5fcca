"""``milo-restore run``, also ``python -m milo_restore.run``: somebody's training program with MILO, no file edited.

    milo-restore run --loss milo-cosine -- hat/train.py -opt train_HAT.yml
    torchrun --nproc_per_node 8 -m milo_restore.run --loss milo-cosine -- realesrgan/train.py -opt ...
    accelerate launch -m milo_restore.run --loss milo-cosine -- train_controlnet.py ...
    milo-restore run --lpips milo -- train_osediff.py ...

At the end it says what was replaced and how often it was called; where that is nothing, it ends with an error.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from milo_restore.basicsr import door as basicsr
from milo_restore.doors import diffusers, lpips, neosr, trainner
from milo_restore.doors.ledger import LEDGER
from milo_restore.doors.local_rank import accept_local_rank
from milo_restore.doors.program import execute
from milo_restore.doors.source import DOOR, as_written, compiled
from milo_restore.doors.wish import LOSSES, Wish, read_options
from milo_restore.errors import ConfigError, run_program

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The launcher's options, and the program's command line."""
    parser.add_argument("--loss", choices=LOSSES,
                        help="in place of the program's pixel loss, or of its diffusion's MSE")  # fmt: skip
    parser.add_argument("--lpips", choices=["milo"], help="in place of its lpips.LPIPS")
    parser.add_argument("--weights", metavar="official|mini|PATH", help="MILO's weights")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE",
                        help="of MILO's loss, such as normalize=true beside other losses; may be repeated")  # fmt: skip
    parser.add_argument("--local_rank", "--local-rank", metavar="N", help=argparse.SUPPRESS)  # torch.distributed.launch
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- SCRIPT [ARGUMENT ...]",
                        help="the program and its own arguments; or -- -m MODULE")  # fmt: skip


def main(arguments: argparse.Namespace) -> int:
    """Open the doors, execute the program, and say what was replaced.

    Returns:
        The program's exit code.

    Raises:
        ConfigError: the command line is wrong; or the program ended well, and nothing was replaced.
    """
    program = arguments.program[1:] if arguments.program[:1] == ["--"] else arguments.program
    if not program:
        mend = "Write milo-restore run --loss milo-cosine -- train.py and its arguments"
        raise ConfigError("no program is named", where="milo-restore run", mend=mend)
    if arguments.local_rank is not None:
        program = [*program, f"--local_rank={arguments.local_rank}"]
    names = _open_doors(arguments)
    code: int | str | None = 0
    try:
        execute(program, compiled if DOOR in names else as_written, names)
    except SystemExit as stop:
        code = stop.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    finally:
        _say()
    if code not in (0, None):
        return code if isinstance(code, int) else 1
    if not LEDGER.works:
        raise ConfigError(LEDGER.reason(), where=program[0], mend="Where its loss is its own, use the library: README")
    return 0


def _open_doors(arguments: argparse.Namespace) -> dict[str, Any]:
    """Let the doors wait, and give the names that the program's rewritten lines use."""
    if arguments.loss is None and arguments.lpips is None:
        raise ConfigError(
            "replaces nothing without --loss or --lpips", where="milo-restore run", mend="Add one of them"
        )
    accept_local_rank()  # also for a program that only --lpips enters
    options = read_options(arguments.option)
    if arguments.lpips is not None:
        lpips.install(Wish(arguments.lpips, arguments.weights, options))
    if arguments.loss is not None:
        milo = arguments.loss.startswith("milo") or arguments.lpips is None  # with --lpips the weights may be its own
        wish = Wish(arguments.loss, arguments.weights, options) if milo else Wish(arguments.loss)
        for door in (basicsr, trainner, neosr):
            door.install(wish)
        return {DOOR: diffusers.install(wish)}
    return {}


def _say() -> None:
    if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0:
        for line in LEDGER.lines():
            print(f"milo-restore run: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    _PARSER = argparse.ArgumentParser(prog="python -m milo_restore.run", description="Train with MILO in any program.")
    add_arguments(_PARSER)
    sys.exit(run_program(_PARSER.prog, lambda: main(_PARSER.parse_args())))
