"""Run by test_evaluate under two processes: each writes what it got; arguments: folder, rank, port."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from test_evaluate import Mean, NotFinite, pictures

from milo_restore.errors import NumericsError
from milo_restore.measure import evaluate_denoiser

if __name__ == "__main__":
    folder, rank, port = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = {"scores": evaluate_denoiser(Mean(), pictures(), 25).as_dict()}
    try:
        evaluate_denoiser(NotFinite(at=1), pictures(), 25)
    except NumericsError as error:
        found["error"] = str(error)
    few = evaluate_denoiser(Mean(), pictures()[:1], 25)  # one process has nothing to do
    found["few"] = few.as_dict()
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
