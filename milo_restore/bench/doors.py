"""Cost of ``milo-restore run`` itself: a step of somebody's program bare, and the same step through the door.

The door keeps the program's own loss here (``--loss l1`` of BasicSR, ``--loss mse`` of diffusers), so the two steps
compute the same and differ by the hooks alone. Those cost microseconds, which a whole step's noise covers: they are
measured a second time, in processor time, with a network of one pixel-wise convolution, where hardly anything else is
left.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median, quantiles
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from milo_restore.basicsr import door as basicsr_door
from milo_restore.bench.losses import BenchSettings
from milo_restore.bench.swinir import swinir_light
from milo_restore.bench.timing import interleaved, machine, machine_line, ratio, threads
from milo_restore.doors import diffusers as diffusers_door
from milo_restore.doors.ledger import LEDGER
from milo_restore.doors.wish import Wish
from milo_restore.models import tiny
from milo_restore.processes import choose_device

SMALL_ROUNDS = 400
"""Timed rounds of the steps with a network of one convolution."""
SCALE = 2
_HOOKED = ("update_learning_rate", "reduce_loss_dict", "validation")  # of basicsr's BaseModel, beside its making
BARE, THROUGH = "bare", "through the door"

Steps = dict[str, Callable[[], Any]]


def run_door_bench(settings: BenchSettings) -> dict[str, Any]:
    """Measure whole training steps without and with the door, interleaved in one process.

    ``SwinIR-light`` is a step of basicsr's ``SRModel`` with Adam: x2, patches of ``width`` by ``height``. The other is
    one of diffusers' ``train_controlnet.py``, written out here as it stands there, on the shipped tiny world: a
    ControlNet's copy of the UNet, images of 128x128, AdamW.

    Args:
        settings: ``quick`` takes a reduced SwinIR and few rounds.

    Returns:
        ``machine``, ``batch``, ``rounds`` and ``programs``, one entry each: ``name``, ``bare_ms`` and ``through_ms``,
        medians; ``ratio``, the median over rounds with its quartiles ``ratio_quartiles``; ``own_us``, the door's own
        time per step in microseconds, with ``own_quartiles``; ``share``, that time as a share of ``bare_ms``.

    Raises:
        ConfigError: no such device.
        MissingPackage: basicsr or diffusers is not installed.
        WeightsError: the tiny world is damaged.
    """
    device = choose_device(settings.device)
    kinds = {"SwinIR-light in BasicSR": _basicsr_steps, "train_controlnet, tiny world": _controlnet_steps}
    with threads(settings.threads), _undone():
        programs = [_measure(name, make, settings, device) for name, make in kinds.items()]
    return {
        "machine": machine(settings.threads, device),
        "batch": settings.batch,
        "rounds": settings.repeats,
        "programs": programs,
    }


def format_door_report(report: dict[str, Any]) -> str:
    """The report of `run_door_bench` as text for a terminal."""
    lines = [
        machine_line(report),
        "",
        f"One training step bare and through milo-restore run, batch {report['batch']}, {report['rounds']} rounds",
        f"{'':30s}{'bare ms':>10s}{'door ms':>10s}{'ratio':>8s}{'quartiles':>16s}{'own us':>9s}{'quartiles':>12s}"
        f"{'own share':>11s}",
    ]
    for row in report["programs"]:
        low, high = row["ratio_quartiles"]
        least, most = row["own_quartiles"]
        lines.append(
            f"{row['name']:30s}{row['bare_ms']:10.1f}{row['through_ms']:10.1f}{row['ratio']:8.4f}"
            f"{f'{low:.4f}-{high:.4f}':>16s}{row['own_us']:9.0f}{f'{least:.0f}-{most:.0f}':>12s}{row['share']:11.3%}"
        )
    return "\n".join((*lines, "own: the hooks' time in a step with a network of one convolution, and its share of the "
                      "bare step."))  # fmt: skip


def _measure(name: str, make: Callable[..., Steps], settings: BenchSettings, device: torch.device) -> dict[str, Any]:
    whole = interleaved(make(settings, device, small=False), settings.repeats, device, name)
    rounds = 20 if settings.quick else SMALL_ROUNDS
    clock = time.process_time if device.type == "cpu" else time.perf_counter  # what other programs take is not counted
    small = interleaved(make(settings, device, small=True), rounds, device, f"{name}, own time", clock)
    ratios = [through / bare for through, bare in zip(whole[THROUGH], whole[BARE])]
    own = [(through - bare) * 1e6 for through, bare in zip(small[THROUGH], small[BARE])]
    bare_ms = median(whole[BARE]) * 1e3
    return {
        "name": name,
        "bare_ms": bare_ms,
        "through_ms": median(whole[THROUGH]) * 1e3,
        "ratio": ratio(whole[THROUGH], whole[BARE]),
        "ratio_quartiles": quantiles(ratios, n=4)[::2],
        "own_us": median(own),
        "own_quartiles": quantiles(own, n=4)[::2],
        "share": median(own) / 1e3 / bare_ms,
    }


@contextlib.contextmanager
def _undone() -> Iterator[None]:
    """Whatever doors replace within it is as before after it."""
    from basicsr.models.base_model import BaseModel
    from diffusers import DDIMScheduler, DDPMScheduler, optimization

    owners: list[Any] = [BaseModel, DDIMScheduler, DDPMScheduler, optimization, F, LEDGER]
    before = [copy.copy(dict(vars(owner))) for owner in owners]
    LEDGER.entries, LEDGER.seen = [], []
    try:
        yield
    finally:
        for owner, names in zip(owners, before):
            for name, value in names.items():
                if vars(owner).get(name) is not value:
                    setattr(owner, name, value)


def _basicsr_steps(settings: BenchSettings, device: torch.device, *, small: bool) -> Steps:
    """Steps of two ``SRModel``: one of a class with basicsr's own methods, one with those that the door has hooked."""
    from basicsr.models.base_model import BaseModel
    from basicsr.models.sr_model import SRModel

    basicsr_door.install(Wish("l1"))
    # To import milo_restore.basicsr is half of the door; what it wraps, too, is not in the bare model.
    bare = type("Bare", (SRModel,), {name: inspect.unwrap(vars(BaseModel)[name]) for name in _HOOKED})
    sides = (8, 8) if small else (settings.height, settings.width)
    generator = torch.Generator().manual_seed(0)
    batch = {
        name: torch.rand(settings.batch, 3, *(factor * side for side in sides), generator=generator)
        for name, factor in (("lq", 1), ("gt", SCALE))
    }

    def step(model: Any, count: list[int]) -> None:
        count[0] += 1
        model.update_learning_rate(count[0], warmup_iter=-1)
        model.feed_data(batch)
        model.optimize_parameters(count[0])

    models = {BARE: bare, THROUGH: SRModel}
    return {name: partial(step, _sr_model(kind, settings, device, small), [0]) for name, kind in models.items()}


def _sr_model(kind: Any, settings: BenchSettings, device: torch.device, small: bool) -> Any:
    """An ``SRModel`` around a network, past basicsr's look-up of networks by name, which would log their layers."""
    training = {
        "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
        "optim_g": {"type": "Adam", "lr": 2e-4, "betas": (0.9, 0.99)},
        "scheduler": {"type": "MultiStepLR", "milestones": [10**6], "gamma": 0.5},
        "total_iter": 10**6,
    }
    options = {"num_gpu": int(device.type == "cuda"), "dist": False, "rank": 0, "is_train": True, "scale": SCALE}
    make = object.__new__(kind)
    super(next(base for base in kind.__mro__ if base.__name__ == "SRModel"), make).__init__(
        {**options, "train": training, "path": {}, "logger": {"print_freq": 100}}
    )
    small_network = nn.Sequential(nn.Conv2d(3, 3 * SCALE**2, 1), nn.PixelShuffle(SCALE))
    make.net_g = (small_network if small else swinir_light(SCALE, settings)).to(device)
    make.init_training_settings()
    return make


def _controlnet_steps(settings: BenchSettings, device: torch.device, *, small: bool) -> Steps:
    """Steps of ``train_controlnet.py`` with diffusers' and torch's functions of before the door came, and after."""
    from diffusers import DDPMScheduler

    before = SimpleNamespace(add_noise=DDPMScheduler.add_noise, mse_loss=F.mse_loss)
    diffusers_door.install(Wish("mse"))
    after = SimpleNamespace(add_noise=DDPMScheduler.add_noise, mse_loss=F.mse_loss)
    scheduler = tiny.tiny_scheduler()
    predict, parameters = _one_convolution(device) if small else _controlled_unet(settings, device)
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    numbers = torch.Generator().manual_seed(0)
    latents = torch.randn(settings.batch, 4, 16, 16, generator=numbers).to(device)

    def step(by: Any) -> None:
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),), device=device)
        noisy = by.add_noise(scheduler, latents, noise, timesteps)
        by.mse_loss(predict(noisy, timesteps).float(), noise.float(), reduction="mean").backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return {BARE: partial(step, before), THROUGH: partial(step, after)}


Predict = Callable[[Tensor, Tensor], Tensor]


def _one_convolution(device: torch.device) -> tuple[Predict, list[nn.Parameter]]:
    network = nn.Conv2d(4, 4, 1).to(device)
    return lambda noisy, timesteps: network(noisy), list(network.parameters())


def _controlled_unet(settings: BenchSettings, device: torch.device) -> tuple[Predict, list[nn.Parameter]]:
    """The tiny world's frozen UNet with a ControlNet made of it, which is trained."""
    from diffusers import ControlNetModel, UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(tiny.tiny_world() / "unet").requires_grad_(False).to(device)
    control = ControlNetModel.from_unet(unet).train().to(device)
    condition = torch.rand(settings.batch, 3, 128, 128, device=device)
    context = torch.zeros(settings.batch, tiny.TOKENS, tiny.PROMPT_WIDTH, device=device)

    def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
        down, middle = control(noisy, timesteps, context, controlnet_cond=condition, return_dict=False)
        prediction: Tensor = unet(
            noisy,
            timesteps,
            context,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]
        return prediction

    return predict, list(control.parameters())
