r"""Does LatentMILO restore better than MSE where its mask is exact? One step on the UNet, in the tiny latent world.

    milo-restore assets fetch BSD400 CBSD68
    python recipes/diffbir_one_step_ablation.py --output runs/one_step            # a stopped one goes on
    python recipes/diffbir_one_step_ablation.py --output runs/one_step --table    # what is finished, as Markdown

PROTOCOL, written before any of its cells was run. Before that, a run of 6 steps with the tiny configuration
(LatentMILO, scikit-image's photographs) had been seen, to see that the program works; nothing was set by it.

Every arm trains configs/diffbir_one_step_tiny.yaml with its own loss, for the same 200 steps, from the same start, on
the same crops of BSD400. Seeds 1 and 2: of the crops, their noise, and the LoRA's start. LatentMILO is ``mini``, which
knows the tiny world's latents and is a rough copy of the official one; the official one knows Stable Diffusion's.
Measured after the last step: 24 photographs of CBSD68, centre squares of 256 pixels, sigma 25, decoded to 8 bits: PSNR,
SSIM, MILO with the official weights, and ST-LPIPS, which no loss here knows. ``milo`` and ``l1-milo`` have the factors
of latent_ablation.py, set in other latents; Adam does not see a factor but for its epsilon, the anchor's share it does.

Statistics and decision are latent_ablation.py's: for each photograph the difference arm - mse, averaged over the seeds;
its mean with a 95 % interval (paired, photographs are the sample), and each seed's mean. An arm WINS if the intervals
of MILO and of ST-LPIPS both lie below 0, every seed agrees in sign on both, and PSNR loses at most 0.3 dB; it LOSES if
both lie above 0 and every seed agrees; else NO DIFFERENCE is claimed. Three comparisons, not corrected. What bounds
all arms every run prints: the cleaner, the UNet before training, and the tiny autoencoder's own limit.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from diffbir_one_step import Config
from diffbir_one_step import main as restoring
from latent_ablation import Experiment, run

BASE = Path(__file__).parent / "configs" / "diffbir_one_step_tiny.yaml"
EXPERIMENT = Experiment(Config, restoring, BASE, {"denoise": ("sigma 25", "data.test_sigmas=[25]")}, (
    "data.train=[BSD400]", "data.test=[CBSD68]", "data.test_side=256", "data.test_images=24",
    "training.stages=[{steps: 200, patch: 128, batch: 8}]", "training.constant_steps=75", "training.log_every=50",
    "training.evaluate_every=null", "training.sample_every=null",
))  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line."""
    return run(EXPERIMENT, __doc__ or "", Path("runs/one_step_ablation"), argv)


if __name__ == "__main__":
    sys.exit(main())
