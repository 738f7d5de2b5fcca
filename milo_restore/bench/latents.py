"""Cost of LatentMILO on FLUX.2's latents, against decoding them with TAEF2 for a loss on images."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from milo_restore.bench.losses import BenchSettings, lpips_loss
from milo_restore.bench.timing import interleaved, machine, machine_line, peak_mib, ratio, threads
from milo_restore.errors import ConfigError
from milo_restore.loss import LatentMILOLoss, MILOLoss
from milo_restore.processes import choose_device

LATENT, RGB, LPIPS, MSE = "LatentMILO", "TAEF2 decodes, MILO", "TAEF2 decodes, LPIPS-VGG", "MSE of the latents"
CHANNELS, FACTOR = 32, 8


def run_latent_bench(settings: BenchSettings) -> dict[str, Any]:
    """Measure the losses, forward and backward to the latents; masks are constants.

    TAEF2 and LPIPS' VGG have random weights: the work is the same, and nothing is downloaded.

    Args:
        settings: sizes are those of the image; latents have an eighth and 32 channels. ``weights`` are of no effect:
            LatentMILO's are ``flux2-taef2``, MILO's ``mini``.

    Returns:
        ``machine``, ``size``, ``latent``, ``batch``, ``rounds``, ``weights``; ``losses``, one row each: ``name``,
        ``ms``, ``peak_mib`` (None where the device has no such counter), and ``vs_latent``: how many times as long as
        LatentMILO. JSON can hold it.

    Raises:
        ConfigError: no such device, or sides that are no multiples of 8 or under 128.
    """
    sides = (settings.height, settings.width)
    if min(sides) < 128 or any(side % FACTOR for side in sides):
        what = f"sides must be multiples of 8 and at least 128, got {settings.width}x{settings.height}"
        raise ConfigError(what, where="--size")
    device = choose_device(settings.device)
    with threads(settings.threads):
        steps, weights = _steps(settings, device)
        times = interleaved(steps, settings.repeats, device, "latent losses")
        peaks = {name: peak_mib(step, device) for name, step in steps.items()}
    return {
        "machine": machine(settings.threads, device),
        "size": f"{settings.width}x{settings.height}",
        "latent": f"{settings.width // FACTOR}x{settings.height // FACTOR}",
        "batch": settings.batch,
        "rounds": settings.repeats,
        "weights": weights,
        "losses": [
            {
                "name": name,
                "ms": median(times[name]) * 1e3,
                "peak_mib": peaks[name],
                "vs_latent": ratio(times[name], times[LATENT]),
            }
            for name in steps
        ],
    }


def format_latent_report(report: dict[str, Any]) -> str:
    """The report of `run_latent_bench` as text for a terminal."""
    lines = [
        machine_line(report),
        f"LatentMILO weights {report['weights']}; TAEF2 and VGG with random weights",
        "",
        f"Loss forward + backward to the latents, {CHANNELS} channels of {report['latent']} (images {report['size']}), "
        f"batch {report['batch']}, float32, {report['rounds']} rounds",
        f"{'':28s}{'ms':>10s}{'x LatentMILO':>14s}{'peak MiB':>10s}",
    ]
    for row in report["losses"]:
        peak = "-" if row["peak_mib"] is None else f"{row['peak_mib']:.1f}"
        lines.append(f"{row['name']:28s}{row['ms']:10.2f}{row['vs_latent']:14.2f}{peak:>10s}")
    lines.append("x: how many times as long as LatentMILO. Peak: extra memory of torch's tensors.")
    return "\n".join(lines)


def _steps(settings: BenchSettings, device: torch.device) -> tuple[dict[str, Callable[[], Tensor]], str]:
    """Forward and backward of each loss, giving the gradient; and which weights LatentMILO runs with."""
    from milo_restore.models.taef2 import TAEF2

    torch.manual_seed(0)
    vae = TAEF2().eval().requires_grad_(False).to(device)
    generator = torch.Generator().manual_seed(0)
    shape = (settings.batch, CHANNELS, settings.height // FACTOR, settings.width // FACTOR)
    start, goal = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    image = torch.rand(settings.batch, 3, settings.height, settings.width, generator=generator).to(device)
    latent = LatentMILOLoss("flux2-taef2").to(device)
    milo, perceptual = MILOLoss("mini").to(device), lpips_loss("vgg", device)

    def decoded(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda latents: loss(vae.decode(latents).sample / 2 + 0.5, image)

    losses: dict[str, Callable[[Tensor], Tensor]] = {
        MSE: lambda latents: F.mse_loss(latents, goal),
        LATENT: lambda latents: latent(latents, goal),
        RGB: decoded(milo),
        LPIPS: decoded(perceptual),
    }

    def step_of(loss: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        def step() -> Tensor:
            latents = start.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(latents), latents)
            return gradient

        return step

    return {name: step_of(loss) for name, loss in losses.items()}, str(latent.weights)
