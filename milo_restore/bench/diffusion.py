"""Cost of MILO's latent mask in a training step of DiffBIR, beside MSE and beside losses on decoded images."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn

from milo_restore.bench.losses import BenchSettings, lpips_loss
from milo_restore.bench.timing import interleaved, machine, machine_line, peak_mib, ratio, threads
from milo_restore.errors import ConfigError
from milo_restore.loss import DiffusionLoss, DiffusionLossSettings, MILOLoss, clean_latent, gradient_cosines
from milo_restore.loss.cosine import cosine_line
from milo_restore.models.diffbir import noise_scheduler
from milo_restore.processes import choose_device

Networks = Literal["sd", "quarter", "tiny"]
WIDTHS: dict[str, tuple[int, int, int]] = {"sd": (128, 320, 1024), "quarter": (32, 80, 256), "tiny": (8, 16, 32)}
"""Channels of the VAE decoder's and the UNet's outermost level, and of the text embedding; ``sd`` is SD 2.1's."""
TIMESTEP = 500
MSE, CONSTANT, THROUGH = "MSE", "latent MILO, constant mask", "latent MILO, through the mask"
DECODED_MILO, DECODED_LPIPS, MODEL = "VAE decoder + MILO in RGB", "VAE decoder + LPIPS-VGG", "model"

COSINE_ARMS: tuple[dict[str, Any], ...] = (
    {"normalize": True}, {"normalize": True, "contrast": 4}, {"power": 1}, {"mask_gradient": True},
)  # fmt: skip
"""Whose gradients are held against MSE's; the first is what the recipes train with, where its curriculum ends."""

Loss = Callable[[Tensor], Tensor]


def run_diffusion_bench(settings: BenchSettings, networks: Networks = "quarter") -> dict[str, Any]:
    """Measure the losses, forward and backward to the prediction, and the model that they train.

    All networks have random weights: the work is the same, and nothing is downloaded.

    Args:
        settings: sizes are those of the image; latents have an eighth. ``weights`` are LatentMILO's.
        networks: ``sd`` has SD 2.1's sizes (10 GB of memory), ``quarter`` a quarter of its channels everywhere.

    Returns:
        ``machine``, ``size``, ``latent``, ``batch``, ``rounds``, ``networks``, ``weights``; ``losses``, one row each:
        ``name``, ``ms``, ``peak_mib`` (None where the device has no such counter), ``vs_mse`` and ``vs_milo`` (how many
        times as long as MSE and as MILO with a constant mask), ``step`` (the whole training step with this loss over
        the one with MSE); ``model``: ``ms`` of UNet and control forward and backward and AdamW, and ``parameters`` of
        the two; ``cosines``: `cosine_rows`. JSON can hold it.

    Raises:
        ConfigError: no such device, or sides that are no multiples of 64 or under 128.
        WeightsError: LatentMILO's weights cannot be had.
    """
    size = (settings.height, settings.width)
    if min(size) < 128 or any(side % 64 for side in size):
        what = f"sides must be multiples of 64 and at least 128, got {settings.width}x{settings.height}"
        raise ConfigError(what, where="--size")
    device = choose_device(settings.device)
    few = max(1, settings.repeats // 3)  # a round of the decoders and the model takes seconds to minutes
    with threads(settings.threads):
        losses, weights = _losses(settings, networks, device)
        steps = {name: _step(loss, settings, device) for name, loss in losses.items()}
        cheap = interleaved({n: steps[n] for n in (MSE, CONSTANT, THROUGH)}, settings.repeats, device, "latent losses")
        model_step, parameters = _model_step(settings, networks, device)
        dear = {n: step for n, step in steps.items() if n != THROUGH} | {MODEL: model_step}
        times = interleaved(dear, few, device, "decoders and model")
        peaks = {name: peak_mib(step, device) for name, step in steps.items()}
    return {
        "machine": machine(settings.threads, device),
        "size": f"{settings.width}x{settings.height}",
        "latent": f"{settings.width // 8}x{settings.height // 8}",
        "batch": settings.batch,
        "rounds": [settings.repeats, few],
        "networks": networks,
        "weights": weights,
        "losses": [_row(name, cheap if name in cheap else times, times, peaks[name]) for name in steps],
        "model": {"ms": median(times[MODEL]) * 1e3, "parameters": parameters},
        "cosines": cosine_rows(settings.weights),
    }


def _row(
    name: str, beside: dict[str, list[float]], times: dict[str, list[float]], peak: float | None
) -> dict[str, str | float | None]:
    """One line of the report, from the rounds that this loss took part in and those of the model.

    Model and loss are timed apart and added up: the difference of two whole steps would drown in the machine's noise.
    """
    model = median(times[MODEL])
    return {
        "name": name,
        "ms": median(beside[name]) * 1e3,
        "peak_mib": peak,
        "vs_mse": ratio(beside[name], beside[MSE]),
        "vs_milo": ratio(beside[name], beside[CONSTANT]),
        "step": (model + median(beside[name])) / (model + median(beside[MSE])),
    }


@torch.no_grad()
def cosine_rows(weights: str) -> dict[str, Any]:
    """Cosines between the gradients of MILO's losses and MSE's, on predictions of the shipped tiny world's control.

    Args:
        weights: LatentMILO's. ``official`` know Stable Diffusion's latents and say nothing of these: ``mini`` then.

    Returns:
        ``weights``; ``rows``: by label, the cosines by timestep.
    """
    from milo_restore.data import evaluation_input, to_tensor
    from milo_restore.data.image_sets import centre_crop, load_collection
    from milo_restore.models.diffbir import predict
    from milo_restore.models.diffbir.cleaner import load_cleaner
    from milo_restore.models.diffbir.components import load_components

    world, cleaner = load_components("tiny"), load_cleaner("tiny:denoise")
    control = world.controlnet
    assert control is not None  # noqa: S101  (shipped)
    images = [centre_crop(image, 128) for _, image in load_collection("photographs")]
    noisy = torch.stack([evaluation_input(image, 25.0) for image in images]).clamp(0, 1)
    pair = torch.stack([to_tensor(image) for image in images]), cleaner(noisy)
    factor = float(world.vae.config.scaling_factor)
    z0, condition = (world.vae.encode(part * 2 - 1).latent_dist.mode() * factor for part in pair)
    context = world.prompts.embed("")

    def say(z_t: Tensor, timesteps: Tensor) -> Tensor:
        return predict(world.unet, control, z_t, timesteps, context, condition)

    chosen = "mini" if weights == "official" else weights
    arms = [DiffusionLossSettings(weights=chosen, **arm) for arm in COSINE_ARMS]
    losses = [DiffusionLoss(arm, noise_scheduler("v2"), 1) for arm in arms]
    rows = {loss.label: gradient_cosines(loss, say, z0, condition) for loss in losses}
    return {"weights": str(losses[0].weights), "rows": rows}


def format_diffusion_report(report: dict[str, Any]) -> str:
    """The report of `run_diffusion_bench` as text for a terminal."""
    (many, few), model = report["rounds"], report["model"]
    lines = [
        machine_line(report),
        f"LatentMILO weights {report['weights']}; networks of size {report['networks']!r}, random weights",
        "",
        f"Loss forward + backward to the prediction, latents {report['latent']} (images {report['size']}), "
        f"batch {report['batch']}, float32, {many} rounds, with a decoder {few}",
        f"{'':32s}{'ms':>10s}{'x MSE':>10s}{'x MILO':>10s}{'peak MiB':>10s}{'step':>9s}",
    ]
    for row in report["losses"]:
        numbers = f"{row['ms']:10.2f}{row['vs_mse']:10.1f}{row['vs_milo']:10.2f}"
        peak = "-" if row["peak_mib"] is None else f"{row['peak_mib']:.1f}"
        lines.append(f"{row['name']:32s}{numbers}{peak:>10s}{row['step']:9.4f}")
    return "\n".join(
        (
            *lines,
            "x: how many times as long as MSE and as MILO with a constant mask. Peak: extra memory of torch's tensors.",
            "step: a training step with this loss over one with MSE; the rest of it, forward, backward and AdamW of "
            f"UNet and IRControlNet ({model['parameters'] / 1e6:.1f} M parameters), takes {model['ms']:.0f} ms.",
            "",
            f"Cosine of the loss's gradient with MSE's, tiny world, weights {report['cosines']['weights']}",
            *(f"{label:32s}{cosine_line(row)}" for label, row in report["cosines"]["rows"].items()),
        )
    )


def _losses(settings: BenchSettings, networks: Networks, device: torch.device) -> tuple[dict[str, Loss], str]:
    """Functions of the prediction alone, and which weights LatentMILO runs with."""
    scheduler = noise_scheduler("v2")
    generator = torch.Generator().manual_seed(0)
    shape = (settings.batch, 4, settings.height // 8, settings.width // 8)
    z0, noise = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    timesteps = torch.full(shape[:1], TIMESTEP, device=device)
    z_t = scheduler.add_noise(z0, noise, timesteps)

    def latent(chosen: DiffusionLossSettings) -> tuple[Loss, str]:
        loss = DiffusionLoss(chosen, scheduler, 1).to(device)
        return lambda prediction: loss(prediction, z_t, z0, noise, timesteps), str(loss.weights)

    decode = _decoder(networks, device)
    image = torch.rand(settings.batch, 3, settings.height, settings.width, generator=generator).to(device)

    def decoded(loss: Callable[[Tensor, Tensor], Tensor]) -> Loss:
        return lambda prediction: loss(decode(clean_latent(scheduler, prediction, z_t, timesteps)), image)

    constant, weights = latent(DiffusionLossSettings(weights=settings.weights))
    return {
        MSE: latent(DiffusionLossSettings(kind="mse"))[0],
        CONSTANT: constant,
        THROUGH: latent(DiffusionLossSettings(weights=settings.weights, mask_gradient=True))[0],
        DECODED_MILO: decoded(MILOLoss("mini").to(device)),  # which weights makes no difference to the time
        DECODED_LPIPS: decoded(lpips_loss("vgg", device)),
    }, weights


def _decoder(networks: Networks, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Scaled latents to images in [0, 1] by a frozen decoder of Stable Diffusion's architecture."""
    from diffusers import AutoencoderKL

    width = WIDTHS[networks][0]
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        layers_per_block=2,
        norm_num_groups=min(32, width),
    )
    vae.encoder = nn.Identity()
    vae = vae.to(device).eval().requires_grad_(False)
    factor = float(vae.config.scaling_factor)
    return lambda latents: vae.decode(latents / factor, return_dict=False)[0] / 2 + 0.5


def _step(loss: Loss, settings: BenchSettings, device: torch.device) -> Callable[[], Tensor]:
    """Forward and backward to the prediction; gives its gradient."""
    shape = (settings.batch, 4, settings.height // 8, settings.width // 8)
    said = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)

    def step() -> Tensor:
        prediction = said.detach().requires_grad_()
        loss(prediction).backward()
        assert prediction.grad is not None  # noqa: S101  (a leaf that the loss depends on)
        return prediction.grad

    return step


def _model_step(settings: BenchSettings, networks: Networks, device: torch.device) -> tuple[Callable[[], None], int]:
    """All of a training step but the loss, and how many parameters UNet and control have."""
    from diffusers import UNet2DConditionModel

    from milo_restore.models.diffbir import IRControlNet, predict

    _, width, text = WIDTHS[networks]
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        attention_head_dim=(5, 10, 20, 20) if networks != "tiny" else 4,  # diffusers' name for the number of heads
        norm_num_groups={"sd": 32, "quarter": 16, "tiny": 8}[networks],
        cross_attention_dim=text,
        use_linear_projection=True,
    ).requires_grad_(False)
    control = IRControlNet.from_unet(unet).to(device).requires_grad_(True)
    unet = unet.to(device)
    optimizer = torch.optim.AdamW(control.parameters(), lr=1e-5)
    shape = (settings.batch, 4, settings.height // 8, settings.width // 8)
    z_t, condition = (torch.randn(shape, device=device) for _ in range(2))
    context = torch.randn(1, 77, text, device=device)
    timesteps = torch.full(shape[:1], TIMESTEP, device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        prediction = predict(unet, control, z_t, timesteps, context, condition)
        prediction.backward(torch.full_like(prediction, 1 / prediction.numel()))
        optimizer.step()

    return step, sum(p.numel() for network in (unet, control) for p in network.parameters())
