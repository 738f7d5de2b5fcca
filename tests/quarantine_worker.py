"""Run by test_quarantine, as one of two processes: the run of that module."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch


def main(folder: Path, rank: str, port: str) -> None:
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.set_num_threads(1)
    from accelerate import PartialState
    from test_quarantine import train

    from milo_restore.processes import leave

    PartialState(cpu=True)
    assert train(folder / "images", folder / "two").finished
    leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
