"""Run by test_restorer under two processes: each writes what it got; arguments: folder, rank, port."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn
from test_restorer import METRICS, Mean, NotFinite, denoiser, noisy

from milo_restore.errors import NumericsError
from milo_restore.measure import evaluate_restorers, score_restorer
from milo_restore.processes import leave

if __name__ == "__main__":
    folder, rank, port = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = {"means": score_restorer(denoiser(Mean()), noisy(), METRICS)}
    try:
        score_restorer(denoiser(NotFinite(at=1)), noisy(), METRICS)
    except NumericsError as error:
        found["error"] = str(error)
    found["few"] = score_restorer(denoiser(Mean()), noisy()[:1], METRICS)  # one process has nothing to do
    results = evaluate_restorers({"restored": denoiser(Mean())}, {"three": noisy()}, METRICS, folder / "eval")
    found["results"] = results["three"]["restored"]["means"]
    (folder / f"{rank}.json").write_text(json.dumps(found))
    leave()
