"""Run by test_evaluate_run under two processes: each writes what it got; arguments: folder, rank, port."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn

from milo_restore.errors import DataError
from milo_restore.measure.folders import find_images
from milo_restore.measure.metrics import Protocol, load_metrics
from milo_restore.measure.run import measure
from milo_restore.processes import leave

if __name__ == "__main__":
    folder, rank, port = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    images = find_images(folder / "pred", folder / "ref")
    metrics, _ = load_metrics(["psnr", "ssim", "milo:mini"], Protocol(), torch.device("cpu"), skip_unavailable=False)
    found = {
        "measured": asdict(measure(images, metrics, folder / "shared cache", batch_size=2)),
        "again": asdict(measure(images, metrics, folder / "shared cache", batch_size=2)),
        "few": asdict(measure(images[:1], metrics, folder / "few")),  # one process has nothing to do
    }
    try:
        measure(find_images(folder / "torn"), metrics[:0] + [metrics[0]], folder / "few")
    except Exception as error:
        found["no reference"] = str(error)
    try:
        measure(find_images(folder / "torn", folder / "ref"), metrics, folder / "torn cache")
    except DataError as error:  # met by one process, raised on both
        found["torn"] = str(error)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    leave()
