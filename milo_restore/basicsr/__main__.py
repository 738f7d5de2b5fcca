"""``python -m milo_restore.basicsr -opt FILE.yml``, also under torchrun and accelerate launch."""

from __future__ import annotations

import argparse
import sys

from milo_restore.basicsr.options import add_options
from milo_restore.compat import require_basicsr
from milo_restore.errors import run_program


def main() -> int:
    """Read the command line, train, and turn a user's error into one line."""
    parser = argparse.ArgumentParser(prog="python -m milo_restore.basicsr", description="Train with BasicSR and MILO.")
    add_options(parser)
    return run_program(parser.prog, lambda: _train(parser.parse_args()))


def _train(arguments: argparse.Namespace) -> int:
    require_basicsr()
    from milo_restore.basicsr.launch import run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
