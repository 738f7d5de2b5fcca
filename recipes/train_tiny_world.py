r"""Train the tiny latent world that ships with milo-restore, part by part, each into the folder ``world``.

    python recipes/train_tiny_world.py                                                  # the VAE, first
    python recipes/train_tiny_world.py --config recipes/configs/tiny_world_unet.yaml    # then the noise predictor
    python recipes/train_tiny_world.py --config recipes/configs/tiny_world_cleaner.yaml --set degradation=codeformer
    python recipes/train_tiny_world.py --config recipes/configs/tiny_world_control.yaml

The configurations ask for BSDS500; ``data.train=photographs data.validation=held-out-photographs`` needs no download.
"""

from __future__ import annotations

import milo_restore.interrupt  # noqa: F401  isort: skip  first: what follows takes seconds

import json
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from milo_restore.config import dump_config
from milo_restore.data import NoisyPatches, SampleKey, keyed_rng, load_collection, to_tensor
from milo_restore.data.degrade import CodeFormerSettings, Degradation, FaceSettings, build_degradation
from milo_restore.data.degraded_patches import DegradedPairs
from milo_restore.data.image_sets import centre_crop, identity_of
from milo_restore.errors import WeightsError
from milo_restore.files.write import publish
from milo_restore.models import tiny
from milo_restore.models.diffbir.cleaner import load_cleaner
from milo_restore.train import PartialState, TrainSettings, fit
from milo_restore.train.command import RunArguments, run_recipe
from milo_restore.train.dry_run import first_samples, look_at_all, training_looks

CELL = 8  # pixels along a side of one latent cell


@dataclass(frozen=True)
class Data:
    """Photographs: ``photographs``, ``held-out-photographs``, named data sets, or folders."""

    train: str = "photographs"  # photographs, a named data set, or a folder
    validation: str = "held-out-photographs"  # the same, for the evaluations
    validation_side: int = 128  # side of the centre crops that the evaluations look at, in pixels
    crops: int = 600  # unet, control: crops that are encoded before training
    crop: int = 256  # their side, in pixels


@dataclass(frozen=True)
class Config:
    """One part's training."""

    part: Literal["vae", "unet", "cleaner", "control"] = "vae"  # which to train; each needs those before it
    world: str = "runs/tiny_world"  # folder of the world: earlier parts are read from it, the trained part goes there
    kl_weight: float = 3e-4  # vae: weight of the KL divergence per latent element beside the MSE on [-1, 1]
    degradation: str = "noise"  # cleaner, control: which one to undo, by its name in milo_restore.data.degrade
    codeformer: CodeFormerSettings = field(default_factory=CodeFormerSettings)  # where the degradation is that one
    face: FaceSettings = field(default_factory=FaceSettings)  # the same
    file: str = "denoise"  # cleaner: cleaner_NAME.safetensors; control: which cleaner makes the conditions
    negative_share: float = 0.15  # unet: share of degraded latents, shown with the negative prompt
    data: Data = field(default_factory=Data)
    training: TrainSettings = field(default_factory=TrainSettings)

    @property
    def chosen(self) -> Degradation:
        """The degradation with its settings."""
        return build_degradation(self.degradation, getattr(self, self.degradation, None))


class Autoencoding(nn.Module):
    """A VAE whose forward pass is one training step: encode, sample, decode."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, 3, H, W) in [-1, 1] to their reconstruction and the mean KL divergence per latent element."""
        posterior = self.vae.encode(images).latent_dist
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return self.vae.decode(posterior.sample()).sample, kl


class LatentCrops:
    """Windows of latents that are in memory: clean ones with prompt 0, degraded ones with prompt 1.

    Args:
        clean: (N, C, h, w).
        other: as many of the same places, degraded; or the conditions, which then come along as ``condition``.
        negative_share: how often a degraded one is shown in place of a clean one; None: conditions.
        seed: the run's.
    """

    def __init__(self, clean: Tensor, other: Tensor, negative_share: float | None, seed: int) -> None:
        self.clean, self.other, self.share, self.seed = clean, other, negative_share, seed

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """``latent`` (C, s, s), ``prompt``, and ``condition`` where there are such; s = patch / 8."""
        step, index, _, patch = key
        rng, side = keyed_rng(self.seed, "latents", step, index), patch // CELL
        negative = self.share is not None and rng.random() < self.share
        number = int(rng.integers(len(self.other if negative else self.clean)))
        top, left = rng.integers(self.clean.shape[-1] - side + 1, size=2)
        window = (number, slice(None), slice(top, top + side), slice(left, left + side))
        sample = {"latent": (self.other if negative else self.clean)[window], "prompt": int(negative)}
        return sample if self.share is not None else {**sample, "condition": self.other[window]}


def centre_crops(name: str, side: int) -> Tensor:
    """The centre squares of a collection, (N, 3, side, side) in [0, 1]."""
    return torch.stack([to_tensor(centre_crop(image, side)) for _, image in load_collection(name)])


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Per image, in dB, of values clamped to [0, 1]."""
    return -10 * (images.clamp(0, 1) - targets).square().mean((1, 2, 3)).log10()


@torch.no_grad()
def in_parts(function: Any, *tensors: Tensor, size: int = 10) -> Tensor:
    """Apply a function to a few samples at a time, where its networks are; the result is on the CPU."""
    device = PartialState().device
    parts = zip(*(tensor.split(size) for tensor in tensors))
    return torch.cat([function(*(part.to(device) for part in each)).float().cpu() for each in parts])


def add_part(model: Any, folder: Path) -> None:
    """Save a model into the world in half precision, and bring the checksums up to date."""
    publish(folder, model.to("cpu", torch.float16).save_pretrained)
    complete(folder.parent)


def complete(world: Path) -> None:
    """Write what needs no training, and the checksums."""
    tiny.tiny_scheduler().save_pretrained(world / "scheduler")
    texts = {str(number): text for number, text in enumerate(tiny.PROMPTS)}
    save_file(tiny.tiny_prompts(), world / "prompt_embeds.safetensors", texts)
    tiny.write_sums(world)


def part_of(world: Path, kind: Any, name: str) -> Any:
    """A trained part of the world, frozen, in float32."""
    if not (world / name / "config.json").is_file():
        raise WeightsError(f"the world has no {name} yet", where=world / name, mend=f"Train it first: part={name}")
    return kind.from_pretrained(world / name).requires_grad_(False).eval().to(PartialState().device)


def train_vae(config: Config, run: RunArguments) -> int:
    """The VAE: MSE and a light KL divergence, no adversary."""
    data = config.data
    images = load_collection(data.train)
    patches = NoisyPatches(images, sigma=0.0, seed=config.training.seed)
    crops = centre_crops(data.validation, data.validation_side)
    torch.manual_seed(config.training.seed)
    model = Autoencoding(tiny.tiny_vae())

    def step(model: nn.Module, batch: dict[str, Any], number: int) -> tuple[Tensor, dict[str, Tensor]]:
        images = batch["target"] * 2 - 1
        decoded, kl = model(images)
        error = F.mse_loss(decoded, images)
        return error + config.kl_weight * kl, {"mse": error.detach(), "kl": kl.detach()}

    def evaluate(model: Any) -> dict[str, float]:
        latents = in_parts(lambda part: model.vae.encode(part * 2 - 1).latent_dist.mode(), crops)
        decoded = in_parts(lambda part: model.vae.decode(part).sample / 2 + 0.5, latents)
        return {"psnr": psnr(decoded, crops).mean().item(), "std": latents.std().item()}

    result = learn(config, run, model, step, patches, evaluate)
    if result is None:
        squares = centre_crops(data.train, data.crop) * 2 - 1
        vae = model.vae.to(PartialState().device)
        std = in_parts(lambda part: vae.encode(part).latent_dist.mode(), squares).std().item()
        vae.register_to_config(scaling_factor=round(1 / std, 5))
        add_part(vae, Path(config.world) / "vae")
    return result or 0


def encode_crops(config: Config, cleaner: nn.Module | None, degradations: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """Latents of clean crops and of the same crops degraded (and cleaned, where a cleaner is given)."""
    from diffusers import AutoencoderKL

    vae = part_of(Path(config.world), AutoencoderKL, "vae")
    images, seed = load_collection(config.data.train), config.training.seed
    sources = [DegradedPairs(images, name, seed=seed) for name in degradations]
    keys = [SampleKey(1, number, number, config.data.crop) for number in range(config.data.crops)]
    samples = [sources[number % len(sources)][key] for number, key in enumerate(keys)]

    def encode(part: Tensor) -> Tensor:
        return vae.encode(part * 2 - 1).latent_dist.mode() * vae.config.scaling_factor

    clean = in_parts(encode, torch.stack([sample["target"] for sample in samples]))
    clean_up = nn.Identity() if cleaner is None else cleaner
    degraded = torch.stack([sample["input"] for sample in samples])
    return clean, in_parts(lambda part: encode(clean_up(part).clamp(0, 1)), degraded)


def train_unet(config: Config, run: RunArguments) -> int:
    """The noise predictor: clean latents with the empty prompt, some degraded ones with the negative prompt."""
    clean, degraded = encode_crops(config, None, ("codeformer", "noise"))
    latents = LatentCrops(clean, degraded, config.negative_share, config.training.seed)
    torch.manual_seed(config.training.seed)
    unet, step, evaluate = tiny.tiny_unet(), *diffusion(config)
    result = learn(config, run, unet, step, latents, evaluate)
    if result is None:
        add_part(unet, Path(config.world) / "unet")
    return result or 0


def train_control(config: Config, run: RunArguments) -> int:
    """IRControlNet for blind denoising, plain MSE: where the tiny recipes start from, as the paper's from DiffBIR."""
    from diffusers import UNet2DConditionModel

    from milo_restore.models.diffbir import IRControlNet, predict

    unet = part_of(Path(config.world), UNet2DConditionModel, "unet")
    cleaner = load_cleaner(Path(config.world) / f"cleaner_{config.file}.safetensors", device=PartialState().device)
    latents = LatentCrops(*encode_crops(config, cleaner, (config.chosen,)), None, config.training.seed)
    control = IRControlNet.from_unet(unet)

    def model_output(model: nn.Module, z_t: Tensor, t: Tensor, context: Tensor, batch: dict[str, Any]) -> Tensor:
        return predict(unet, model, z_t, t, context, batch["condition"])

    step, _ = diffusion(config, model_output)
    result = learn(config, run, control, step, latents, None)
    if result is None:
        add_part(control, Path(config.world) / "controlnet")
    return result or 0


def plain_output(unet: Any, z_t: Tensor, t: Tensor, context: Tensor, batch: dict[str, Any]) -> Tensor:
    """Prediction of the UNet without control."""
    return unet(z_t, t, context).sample


def diffusion(config: Config, output: Any = plain_output) -> tuple[Any, Any]:
    """Step and evaluation of noise prediction, with the MSE."""
    from diffusers import AutoencoderKL

    device, scheduler = PartialState().device, tiny.tiny_scheduler()
    prompts = torch.stack(list(tiny.tiny_prompts().values())).to(device)
    vae = part_of(Path(config.world), AutoencoderKL, "vae")
    crops = centre_crops(config.data.validation, config.data.validation_side) * 2 - 1
    held_out = in_parts(lambda part: vae.encode(part).latent_dist.mode() * vae.config.scaling_factor, crops)

    def step(model: nn.Module, batch: dict[str, Any], number: int) -> Tensor:
        latent = batch["latent"]
        noise = torch.randn(latent.shape).to(latent)  # fit seeds each step
        times = torch.randint(len(scheduler), (len(latent),)).to(latent.device)
        z_t = scheduler.add_noise(latent, noise, times)
        return F.mse_loss(output(model, z_t, times, prompts[batch["prompt"]], batch), noise)

    def evaluate(model: Any) -> dict[str, float]:
        noise = torch.randn(held_out.shape, generator=torch.Generator().manual_seed(0))
        errors = {}
        for time in (100, 300, 600, 900):
            times = torch.full((len(noise),), time)
            z_t, context = scheduler.add_noise(held_out, noise, times), prompts[:1].expand(len(noise), -1, -1)
            predicted = in_parts(lambda *part: output(model, *part, {}), z_t, times, context.cpu(), size=25)
            errors[f"eps_{time}"] = F.mse_loss(predicted, noise).item()
        return errors

    return step, evaluate


def train_cleaner(config: Config, run: RunArguments) -> int:
    """A cleaner: from degraded to clean pixels with L1."""
    seed = config.training.seed
    pairs = DegradedPairs(load_collection(config.data.train), config.chosen, seed=seed)
    unseen = DegradedPairs(load_collection(config.data.validation), config.chosen, seed=seed + 1)
    samples = [unseen[SampleKey(1, number, number, config.data.validation_side)] for number in range(len(unseen))]
    inputs, targets = (torch.stack([sample[key] for sample in samples]) for key in ("input", "target"))
    torch.manual_seed(seed)
    cleaner = tiny.tiny_cleaner()

    def step(model: nn.Module, batch: dict[str, Any], number: int) -> Tensor:
        return F.l1_loss(model(batch["input"]), batch["target"])

    def evaluate(model: nn.Module) -> dict[str, float]:
        cleaned = psnr(in_parts(model, inputs), targets).mean().item()
        return {"psnr": cleaned, "input": psnr(inputs, targets).mean().item()}

    result = learn(config, run, cleaner, step, pairs, evaluate)
    if result is None:
        half = {key: value.detach().cpu().half().contiguous() for key, value in cleaner.state_dict().items()}
        metadata = {"format": "pt", "architecture": "SRVGGNetCompact", "options": json.dumps(tiny.CLEANER_OPTIONS)}
        save_file(half, Path(config.world) / f"cleaner_{config.file}.safetensors", metadata)
        complete(Path(config.world))
    return result or 0


def learn(config: Config, run: RunArguments, model: nn.Module, step: Any, data: Any, evaluate: Any) -> int | None:
    """Train. Returns an exit code where the run is to end here, None where it is done."""
    images = load_collection(config.data.train)
    about = {"data": f"{len(images)} images of {config.data.train}", "part": config.part}
    record = {"config": dump_config(config), "fixed": {"images": identity_of(images)}, "about": about}
    result = fit(
        model, step, data, config.training, run.output,
        resume=run.resume, evaluate=evaluate, record=record, changes=run.changes,
    )  # fmt: skip
    return result.exit_code if result.stopped else None


def check(config: Config, run: RunArguments) -> int:
    """Look at the images, at the parts that this one needs, and at the settings; train nothing.

    Raises:
        ConfigError: something is wrong; a line each has been printed.
    """
    PartialState().print(dump_config(config))
    data, world, cleaner = config.data, Path(config.world), f"cleaner_{config.file}.safetensors"

    def train() -> str:
        images = load_collection(data.train)
        if config.part in ("vae", "cleaner"):
            first_samples(DegradedPairs(images, None), config.training)
        return f"{len(images)} images"

    def part(name: str) -> str:
        there = world / name if name == cleaner else world / name / "config.json"
        if not there.is_file():
            raise WeightsError("the world has none yet", where=there, mend="Train it first, see --help")
        return str(there)

    needed = {"vae": (), "unet": ("vae",), "cleaner": (), "control": ("vae", "unet", cleaner)}[config.part]
    return look_at_all({
        "data.train": train,
        "data.validation": lambda: f"{len(load_collection(data.validation))} images",
        **{name: partial(part, name) for name in needed},
        **training_looks(config.training, run.output, run.resume),
    })  # fmt: skip


def main(config: Config, run: RunArguments) -> int:
    """Train one part."""
    if run.dry_run:
        return check(config, run)
    parts = {"vae": train_vae, "unet": train_unet, "cleaner": train_cleaner, "control": train_control}
    return parts[config.part](config, run)


if __name__ == "__main__":
    sys.exit(run_recipe(main, Config, Path(__file__).parent / "configs" / "tiny_world.yaml", __doc__ or ""))
