"""Cost of MILO in a training iteration of SwinIR's lightweight variant, the smallest network that people train."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from milo_restore.bench.losses import BenchSettings
from milo_restore.bench.timing import interleaved, machine, machine_line, ratio, threads
from milo_restore.errors import ConfigError
from milo_restore.loss import L1Loss, MILOLoss
from milo_restore.processes import choose_device

SCALES = (2, 4)
BASE, CONSTANT, THROUGH = "L1", "MILO", "MILO, through the mask"

Loss = Callable[[Tensor, Tensor], Tensor]


def run_swinir_bench(settings: BenchSettings) -> dict[str, Any]:
    """Measure whole iterations: forward, loss, backward and Adam's step, of one network with each loss in turn.

    The network is SwinIR-light as published (60 channels, four groups of six layers, windows of 8) with random weights.

    Args:
        settings: ``width`` and ``height`` are those of the low-resolution patches; ``quick`` takes a reduced network.

    Returns:
        ``machine``, ``weights``, ``patch``, ``batch``, ``rounds`` and ``scales``, one entry for each of `SCALES`:
        ``scale``, ``parameters`` and ``losses``, one row each: ``name``, ``ms`` of the iteration and ``vs_l1``, how
        many times as long as with L1. JSON can hold it.

    Raises:
        ConfigError: no such device, or sides that are no multiples of the windows'.
        WeightsError: MILO's weights cannot be had.
    """
    if settings.width % 8 or settings.height % 8:
        what = f"sides must be multiples of 8, got {settings.width}x{settings.height}"
        raise ConfigError(what, where="--size")
    device = choose_device(settings.device)
    with threads(settings.threads):
        milo = MILOLoss(settings.weights, mask_gradient=False).to(device)
        through = MILOLoss(settings.weights, mask_gradient=True).to(device)
        losses: dict[str, Loss] = {BASE: L1Loss(), CONSTANT: milo, THROUGH: through}
        scales = [_measure(scale, losses, settings, device) for scale in SCALES]
    return {
        "machine": machine(settings.threads, device),
        "weights": str(milo.weights),
        "patch": f"{settings.width}x{settings.height}",
        "batch": settings.batch,
        "rounds": settings.repeats,
        "scales": scales,
    }


def format_swinir_report(report: dict[str, Any]) -> str:
    """The report of `run_swinir_bench` as text for a terminal."""
    lines = [
        machine_line(report),
        f"MILO weights {report['weights']}",
        "",
        f"Training iteration of SwinIR-light (forward, loss, backward, Adam), inputs {report['patch']}, "
        f"batch {report['batch']}, {report['rounds']} rounds",
        f"{'':30s}{'ms':>10s}{'x L1':>10s}",
    ]
    for at in report["scales"]:
        for row in at["losses"]:
            lines.append(f"x{at['scale']} {row['name']:27s}{row['ms']:10.1f}{row['vs_l1']:10.4f}")
    counts = ", ".join(f"x{at['scale']} {at['parameters'] / 1e3:.0f} thousand" for at in report["scales"])
    return "\n".join((*lines, f"x L1: how many times as long as with L1. Parameters: {counts}."))


def _measure(scale: int, losses: dict[str, Loss], settings: BenchSettings, device: torch.device) -> dict[str, Any]:
    network = swinir_light(scale, settings).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(0)
    shapes = ((settings.batch, 3, factor * settings.height, factor * settings.width) for factor in (1, scale))
    image, reference = (torch.rand(shape, generator=generator).to(device) for shape in shapes)

    def iteration(loss: Loss) -> None:
        optimizer.zero_grad()
        loss(network(image), reference).backward()
        optimizer.step()

    steps: dict[str, Callable[[], Any]] = {name: partial(iteration, loss) for name, loss in losses.items()}
    interleaved(steps, 1, device, f"SwinIR x{scale}, warm-up")
    times = interleaved(steps, settings.repeats, device, f"SwinIR x{scale}")
    rows = [{"name": n, "ms": median(t) * 1e3, "vs_l1": ratio(t, times[BASE])} for n, t in times.items()]
    return {"scale": scale, "parameters": sum(p.numel() for p in network.parameters()), "losses": rows}


def swinir_light(scale: int, settings: BenchSettings) -> nn.Module:
    """SwinIR-light, or for ``quick`` one layer of it."""
    from basicsr.archs.swinir_arch import SwinIR

    torch.manual_seed(0)
    groups = (1,) if settings.quick else (6, 6, 6, 6)
    network: nn.Module = SwinIR(
        upscale=scale,
        img_size=(settings.height, settings.width),
        window_size=8,
        img_range=1.0,
        depths=groups,
        embed_dim=60,
        num_heads=(6,) * len(groups),
        mlp_ratio=2,
        upsampler="pixelshuffledirect",
        resi_connection="1conv",
    )
    return network.train()
