"""Cost of MILO as a loss on this machine, against its plain form, LPIPS and a Restormer step."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from milo_restore.bench.plain import PlainMILO
from milo_restore.bench.timing import interleaved, machine, machine_line, peak_mib, ratio, threads
from milo_restore.errors import ConfigError
from milo_restore.loss import L1Loss, MILOLoss
from milo_restore.processes import choose_device, native_bfloat16

Loss = Callable[[Tensor, Tensor], Tensor]
Step = Callable[[], tuple[Tensor, Tensor]]
PLAIN_ROW, FLOAT32, BFLOAT16 = "plain MILO", "MILO float32", "MILO bfloat16"
CONSTANT_MASK, BFLOAT16_CONSTANT = f"{FLOAT32}, constant mask", f"{BFLOAT16}, constant mask"
LARGE, LARGE_QUICK = (4096, 4096), (512, 768)
"""Sizes whose memory per pixel is compared with that of the size asked for."""
ALEX, VGG = "LPIPS-AlexNet", "LPIPS-VGG"


@dataclass(frozen=True)
class BenchSettings:
    """Settings of the benchmark.

    Attributes:
        width: of the loss's images, in pixels.
        height: of the loss's images, in pixels.
        batch: images per loss call; the Restormer step always has one.
        threads: CPU threads.
        repeats: timed rounds, after one warm-up.
        weights: MILO's weights: ``official``, ``mini`` or a path.
        device: where everything runs, as torch names it.
        quick: a reduced Restormer and small images, to see that everything runs; its times mean nothing.
    """

    width: int = 512
    height: int = 384
    batch: int = 1
    threads: int = 2
    repeats: int = 9
    weights: str = "mini"
    device: str = "cpu"
    quick: bool = False

    def __post_init__(self) -> None:
        if min(self.width, self.height) < 64:  # LPIPS-AlexNet's five strides leave nothing of less
            raise ConfigError(f"sides must be at least 64, got {self.width}x{self.height}", where="--size")
        if min(self.batch, self.threads, self.repeats) < 1:
            raise ConfigError("batch, threads and repeats must be at least 1")


def run_bench(settings: BenchSettings) -> dict[str, Any]:
    """Measure everything.

    Returns:
        ``machine``, ``weights``, ``size``, ``batch``, ``rounds``, ``losses`` (one row per loss: ``name``, ``ms``,
        ``peak_mib`` (None where the device has no such counter), ``vs_plain`` and ``vs_vgg``: how many times faster
        than those two), ``agreement`` (per comparison: ``loss``, a relative difference, and ``cosine`` of the
        gradients), ``restormer``, ``memory`` (by size, bytes of peak memory per pixel of the loss with a constant
        mask; None without a counter) and ``notes``, sentences. JSON can hold it.

    Raises:
        ConfigError: the device does not exist.
        WeightsError: MILO's weights cannot be had.
    """
    device = choose_device(settings.device)
    with threads(settings.threads):
        losses, weights = _losses(settings, device)
        image, reference = _pair(settings, device)
        steps = {name: _step(loss, image, reference) for name, loss in losses.items()}
        times = interleaved(steps, settings.repeats, device, "losses")
        peaks = {name: peak_mib(step, device) for name, step in steps.items()}
        pairs = [(FLOAT32, PLAIN_ROW), (BFLOAT16, FLOAT32), (BFLOAT16_CONSTANT, CONSTANT_MASK)]
        agreement = {f"{a} and {b}": _agreement(steps[a], steps[b]) for a, b in pairs}
        restormer = _restormer_step(settings, losses[CONSTANT_MASK], device)
        memory = _memory(settings, losses[CONSTANT_MASK], device)
    rows = [
        {
            "name": name,
            "ms": median(times[name]) * 1e3,
            "peak_mib": peaks[name],
            "vs_plain": ratio(times[PLAIN_ROW], times[name]),
            "vs_vgg": ratio(times[VGG], times[name]),
        }
        for name in steps
    ]
    native = native_bfloat16(device)
    gain = ratio(times[FLOAT32], times[BFLOAT16])
    notes = [f"{_NATIVE[native]}: {BFLOAT16} ran {gain:.2f} times as fast as {FLOAT32}."]
    if settings.quick:
        notes.append("--quick: these sizes only show that everything runs; the times mean nothing.")
    return {
        "machine": machine(settings.threads, device) | {"native_bfloat16": native},
        "weights": weights,
        "size": f"{settings.width}x{settings.height}",
        "batch": settings.batch,
        "rounds": settings.repeats,
        "losses": rows,
        "agreement": agreement,
        "restormer": restormer,
        "memory": memory,
        "notes": notes,
    }


_NATIVE = {
    True: "bfloat16 is native here",
    False: "bfloat16 is NOT native here but emulated, so float32 is the choice on this machine",
    None: "Whether bfloat16 is native here, torch cannot tell",
}


def format_report(report: dict[str, Any]) -> str:
    """The report of `run_bench` as text for a terminal."""
    step = report["restormer"]
    size = f"{step['patch']}x{step['patch']}"
    lines = [
        machine_line(report),
        f"MILO weights {report['weights']}",
        "",
        f"Loss forward + backward, {report['size']}, batch {report['batch']}, {report['rounds']} rounds",
        f"{'':30s}{'ms':>10s}{'x plain':>10s}{'x VGG':>10s}{'peak MiB':>10s}",
    ]
    for row in report["losses"]:
        cells = [(row["ms"], ".1f"), (row["vs_plain"], ".2f"), (row["vs_vgg"], ".2f"), (row["peak_mib"], ".0f")]
        lines.append(f"{row['name']:30s}" + "".join(f"{'-' if v is None else format(v, f):>10s}" for v, f in cells))
    lines.append("x: how many times faster than plain MILO and than LPIPS-VGG. Peak: extra memory of torch's tensors.")
    lines.append(
        "Constant mask (the default): the mask is a weight. The others send gradients through it, as plain MILO."
    )
    sizes = [f"{size} {value:.0f}" for size, value in report["memory"].items() if value is not None]
    if sizes:
        lines.append(f"{CONSTANT_MASK}, peak memory in bytes per pixel: {', '.join(sizes)}")
    for names, values in report["agreement"].items():
        lines.append(f"{names}: loss differs by {values['loss']:.2e}, gradient cosine {values['cosine']:.6f}")
    lines += [
        "",
        f"Training step of Restormer ({step['parameters'] / 1e6:.1f} M parameters), {size}, batch 1",
        f"{'model (forward, backward, AdamW)':38s}{step['model_ms']:10.1f} ms",
        f"{'MAE forward + backward':38s}{step['mae_ms']:10.1f} ms",
        f"{'MILO forward + backward':38s}{step['milo_ms']:10.1f} ms",
        f"{'step with MILO / step with MAE':38s}{step['milo_over_mae']:10.4f}",
        "",
        *report["notes"],
    ]
    return "\n".join(lines)


def _losses(settings: BenchSettings, device: torch.device) -> tuple[dict[str, Loss], str]:
    """The contenders, and which weights MILO runs with."""
    exact = MILOLoss(settings.weights, mask_gradient=True).to(device)
    return {
        PLAIN_ROW: PlainMILO().load(dict(exact.metric.named_buffers()), "mask_network.").to(device),
        FLOAT32: exact,
        BFLOAT16: MILOLoss(settings.weights, mask_gradient=True, compute_dtype=torch.bfloat16).to(device),
        CONSTANT_MASK: MILOLoss(settings.weights, mask_gradient=False).to(device),
        BFLOAT16_CONSTANT: MILOLoss(settings.weights, mask_gradient=False, compute_dtype=torch.bfloat16).to(device),
        ALEX: lpips_loss("alex", device),
        VGG: lpips_loss("vgg", device),
    }, str(exact.weights)


def lpips_loss(net: str, device: torch.device) -> Loss:
    """LPIPS with a random backbone: the same work as with the real one, and no download."""
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lpips names torchvision's weights by its old argument
        metric = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).requires_grad_(False).to(device)
    return lambda image, reference: metric(image, reference, normalize=True).mean()


def _pair(settings: BenchSettings, device: torch.device) -> tuple[Tensor, Tensor]:
    """A photograph that scikit-image ships, at the asked size, and the same with noise of sigma 25/255."""
    from skimage import data

    photograph = torch.from_numpy(data.coffee()).permute(2, 0, 1)[None].float() / 255
    size = (settings.height, settings.width)
    reference = F.interpolate(photograph, size=size, mode="bilinear", antialias=True).repeat(settings.batch, 1, 1, 1)
    noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(0))
    return (reference + 25 / 255 * noise).clamp(0, 1).to(device), reference.to(device)


def _step(loss: Loss, image: Tensor, reference: Tensor) -> Step:
    """Forward and backward to the image, as in a training step; gives the loss and the gradient."""

    def step() -> tuple[Tensor, Tensor]:
        prediction = image.detach().requires_grad_()
        value = loss(prediction, reference)
        value.backward()
        assert prediction.grad is not None  # noqa: S101  (a leaf that the loss depends on)
        return value.detach(), prediction.grad

    return step


def _agreement(ours: Step, other: Step) -> dict[str, float]:
    (loss, gradient), (expected, expected_gradient) = ours(), other()
    cosine = F.cosine_similarity(gradient.flatten().double(), expected_gradient.flatten().double(), dim=0)
    return {"loss": ((loss - expected).abs() / expected.abs()).item(), "cosine": cosine.item()}


def _memory(settings: BenchSettings, loss: Loss, device: torch.device) -> dict[str, float | None]:
    """Bytes of peak memory per pixel, forward and backward, of the size asked for and of a large image."""
    memory: dict[str, float | None] = {}
    for side in ((settings.width, settings.height), LARGE_QUICK if settings.quick else LARGE):
        image, reference = _pair(replace(settings, width=side[0], height=side[1], batch=1), device)
        peak = peak_mib(_step(loss, image, reference), device)
        memory[f"{side[0]}x{side[1]}"] = None if peak is None else peak * 2**20 / (side[0] * side[1])
    return memory


def _restormer_step(settings: BenchSettings, milo: Loss, device: torch.device) -> dict[str, float | int]:
    """Cost that MILO adds to a training step over MAE.

    Model and losses are timed apart and added up: the difference of two whole steps of seconds each would drown in
    the machine's noise.
    """
    from milo_restore.models.restormer import Restormer

    torch.manual_seed(0)
    patch = 64 if settings.quick else 128
    small = Restormer(dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1) if settings.quick else None
    model = (small or Restormer()).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    image, reference = (torch.rand(1, 3, patch, patch, device=device) for _ in range(2))

    def model_step() -> None:
        optimizer.zero_grad(set_to_none=True)
        output = model(image)
        output.backward(torch.full_like(output, 1 / output.numel()))
        optimizer.step()

    contenders = {"model": model_step, "mae": _step(L1Loss(), image, reference), "milo": _step(milo, image, reference)}
    times = interleaved(contenders, max(2, settings.repeats // 2), device, "Restormer step")
    model_s, mae_s, milo_s = (median(times[name]) for name in contenders)
    return {
        "patch": patch,
        "parameters": sum(p.numel() for p in model.parameters()),
        "model_ms": model_s * 1e3,
        "mae_ms": mae_s * 1e3,
        "milo_ms": milo_s * 1e3,
        "milo_over_mae": (model_s + milo_s) / (model_s + mae_s),
    }
