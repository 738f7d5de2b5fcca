r"""Train DiffBIR for blind super-resolution, four times, with MSE, MAE or MILO's latent mask as the loss.

    python recipes/diffbir_sr.py                       # tiny: a few minutes, no network, no GPU
    accelerate launch recipes/diffbir_sr.py --config recipes/configs/diffbir_sr_paper.yaml \
        --set base=weights/diffbir-v2 loss.curriculum=cosine --output runs/sr-milo-cosine

``--dry-run`` checks data, weights and licences. Ctrl-C saves and stops; the same command with ``--resume latest`` goes
on. What is trained, and how, is in diffbir.py. The trained control is the run folder's controlnet/.
"""

from __future__ import annotations

import milo_restore.interrupt  # noqa: F401  isort: skip  first: what follows takes seconds

import sys
from pathlib import Path

from diffbir_config import Config, main

from milo_restore.train.command import run_recipe

if __name__ == "__main__":
    default = Path(__file__).parent / "configs" / "diffbir_sr_tiny.yaml"
    sys.exit(run_recipe(main, Config, default, __doc__ or ""))
