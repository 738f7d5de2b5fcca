"""``milo-restore run``: a training program that someone else wrote, with MILO in place of its loss."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The launcher's options, and the program's command line."""
    from milo_restore import run

    run.add_arguments(parser)


def main(arguments: argparse.Namespace) -> int:
    """Train; see `milo_restore.run.main`."""
    from milo_restore import run

    return run.main(arguments)
