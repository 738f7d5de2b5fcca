"""``milo-restore basicsr``: an existing BasicSR configuration, trained with MILO or as it is."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """BasicSR's own options and ours."""
    from milo_restore.basicsr.options import add_options

    add_options(parser)


def main(arguments: argparse.Namespace) -> int:
    """Train; see `milo_restore.basicsr.launch.run`."""
    from milo_restore.compat import require_basicsr

    require_basicsr()
    from milo_restore.basicsr.launch import run

    return run(arguments)
