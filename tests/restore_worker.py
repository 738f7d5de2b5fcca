"""Run by test_cli_restore_processes under two processes, as accelerate launch starts them: folder, rank, port."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path

import torch

from milo_restore import processes
from milo_restore.cli import main
from milo_restore.data import images
from milo_restore.errors import DataError
from milo_restore.processes import rank_and_size

if __name__ == "__main__":
    folder, rank, port = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    torch.set_num_threads(1)
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    write, written, full = images.write_png, [], []

    def write_png(path, image):
        if full and rank == "1":
            raise DataError("cannot be written", where=path)
        write(path, image)
        written.append([path.name, *rank_and_size()])

    images.write_png = write_png
    leave, processes.leave = processes.leave, lambda: None  # a process runs one command, here several

    def run(out, *arguments):
        """Exit code, what was written by this process, and what was said."""
        written.clear()
        printed, errors = io.StringIO(), io.StringIO()
        words = ["restore", "--task", "denoise", "--input", str(folder / "in"), "--output", str(out), *arguments]
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
            code = main([*words, "--steps", "1", "--guidance", "1"])
        return [code, list(written), printed.getvalue(), errors.getvalue()]

    found = {"refused": main(["restore", "--task", "sr", "--input", "x", "--output", "y", "--device", "meta"])}
    found["there"] = run(folder / "half")  # some results are there already
    full.append("the disk of the second process")
    found["full"] = run(folder / "out", "--samples", "2", "--batch-size", "2")
    full.clear()
    found["resumed"] = run(folder / "out", "--samples", "2", "--batch-size", "2", "--resume")
    found["again"] = run(folder / "out", "--samples", "2", "--resume")
    (folder / f"{rank}.json").write_text(json.dumps(found))
    leave()
