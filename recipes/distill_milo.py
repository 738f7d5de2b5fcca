"""Distil the official MILO into the small weights that ship with the package (milo_restore/weights/milo_mini).

    python recipes/distill_milo.py --output runs/mini --set data.train=BSDS/train data.validation=BSDS/val

Student and teacher have one architecture; the student starts from random weights and learns the teacher's mask and
score on photographs under noise, blur, JPEG and resampling. The run folder's final/milo.safetensors is what is shipped.
"""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.utils.data import Dataset

from milo_restore import MILO
from milo_restore.config import dump_config
from milo_restore.data import keyed_rng, list_images, load_images, to_tensor
from milo_restore.metric.network import N_SCALES, double
from milo_restore.output import write_text
from milo_restore.train import TrainSettings, fit
from milo_restore.train.command import RunArguments, run_recipe

KINDS = ("noise", "blur", "jpeg", "resampling", "noise and jpeg", "noise and blur")


@dataclass(frozen=True)
class Data:
    """Folders of photographs, and what the final agreement is measured on."""

    train: str = "bsds500/train"
    validation: str = "bsds500/val"
    pairs: int = 400  # distorted validation images
    patch: int = 192  # side of a validation crop, in pixels


@dataclass(frozen=True)
class Config:
    """The whole distillation."""

    data: Data = field(default_factory=Data)
    teacher: str = "official"  # or the path of other MILO weights
    training: TrainSettings = field(default_factory=TrainSettings)


def distort(image: Image.Image, kind: str, strength: float, rng: np.random.Generator) -> np.ndarray:
    """One distorted copy, uint8 (H, W, 3). ``strength`` in [0, 1] runs from barely visible to severe."""
    if "noise" in kind:
        pixels = np.asarray(image, dtype=np.float32)
        channels = 3 if rng.random() < 0.7 else 1
        pixels = pixels + 2.0 * 30.0**strength * rng.standard_normal((*pixels.shape[:2], channels), dtype=np.float32)
        image = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    if "blur" in kind:
        image = image.filter(ImageFilter.GaussianBlur(0.3 * 15.0**strength))
    if kind == "resampling":
        filters = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS, Image.Resampling.BOX)
        small = [max(2, round(side / 6.0**strength)) for side in image.size]
        image = image.resize(small, rng.choice(filters)).resize(image.size, rng.choice(filters))
    if "jpeg" in kind:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=round(95 - 90 * strength))
        image = Image.open(buffer)
    return np.asarray(image.convert("RGB"))


class DistortedPairs(Dataset[dict[str, Any]]):
    """Random crops and their distorted copies; each pair depends on its key alone."""

    def __init__(self, folder: str, seed: int) -> None:
        self.images, self.seed = load_images(list_images(folder)), seed

    def __getitem__(self, key: tuple[int, int, int, int]) -> dict[str, Any]:
        step, index, position, patch = key
        rng = keyed_rng(self.seed, "distill", step, index)
        name, image = self.images[position % len(self.images) if step == 0 else int(rng.integers(len(self.images)))]
        top, left = (int(rng.integers(side - patch + 1)) for side in image.shape[:2])
        crop = np.ascontiguousarray(np.rot90(image[top : top + patch, left : left + patch], int(rng.integers(4))))
        copy = distort(Image.fromarray(crop), str(rng.choice(KINDS)), float(rng.random()), rng)
        return {"image": to_tensor(copy), "reference": to_tensor(crop), "name": name}


class Distillation(nn.Module):
    """Student against teacher: every pyramid level's visibility, the score, and the map from error to quality.

    Each level sees the teacher's coarser mask, so the levels are learned at once; cross-entropy, for most visibilities
    are near zero and a difference of saturated sigmoids would hardly move the student.
    """

    def __init__(self, teacher: MILO) -> None:
        super().__init__()
        self.student = MILO()
        self.teacher = teacher
        convolutions = [layer for layer in self.student.mask_network if isinstance(layer, nn.Conv2d)]
        for layer in convolutions:  # torch's default shrinks a signal threefold per layer; errors are small already
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        with torch.no_grad():  # half of the first filters start on the difference of the two images
            first = convolutions[0].weight
            first[:16, 3:6] = -first[:16, :3]
            first[:16, :6] *= 8

    def forward(self, image: Tensor, reference: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        errors = 4 * torch.rand(4096, 1, 1, 1, device=image.device) ** 4  # errors crowd near zero, as in pictures
        difference = (image - reference).abs()
        with torch.no_grad():
            wanted = self.teacher.predict_mask(image, reference)
        masks = (self.student.predict_mask(image, reference), wanted)
        scores = [torch.log((mask * difference).mean((1, 2, 3)) + 1e-5) for mask in masks]
        terms = {
            "visibility": self.visibility(image, reference),
            "score": (scores[0] - scores[1]).abs().mean(),
            "quality": (self.student.scaler(errors) - self.teacher.scaler(errors)).abs().mean(),
        }
        return terms["visibility"] + 0.2 * terms["score"] + terms["quality"], {k: v.detach() for k, v in terms.items()}

    def visibility(self, image: Tensor, reference: Tensor) -> Tensor:
        """Kullback-Leibler divergence of the student's sigmoids from the teacher's, mean over levels."""
        levels = [torch.cat([image, reference], 1)]
        for _ in range(N_SCALES - 1):
            levels.append(F.avg_pool2d(levels[-1], 2))
        above = levels[-1].new_zeros(len(image), 1, *levels[-1].shape[2:])
        total = torch.zeros((), device=image.device)
        for level in reversed(levels):
            if above.shape[2:] != level.shape[2:]:
                above = double(above, level)
            stacked = torch.cat([level, above], 1)
            with torch.no_grad():
                wanted = self.teacher.mask_network(stacked)
                entropy = F.binary_cross_entropy(wanted, wanted)
            logits = nn.Sequential(*list(self.student.mask_network)[:-1])(stacked)
            total = total + F.binary_cross_entropy_with_logits(logits, wanted) - entropy
            above = wanted + above
        return total / N_SCALES


def step(model: nn.Module, batch: dict[str, Tensor], number: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one micro-batch."""
    return model(batch["image"], batch["reference"])


@torch.no_grad()
def agreement(student: MILO, teacher: MILO, pairs: DistortedPairs, count: int, patch: int) -> dict[str, float]:
    """How far two metrics agree over ``count`` fixed pairs: ranks of scores, their size, masks pixel by pixel."""
    scores, masks = [], []
    for index in range(count):
        pair = pairs[(0, index, index, patch)]
        image, reference = pair["image"][None], pair["reference"][None]
        scores.append([metric(image, reference=reference).item() for metric in (student, teacher)])
        both = torch.stack([metric.predict_mask(image, reference).flatten() for metric in (student, teacher)])
        masks.append(torch.corrcoef(both)[0, 1].item())
    table = np.array(scores)
    visible = table[:, 1] > 1e-6
    return {
        "pairs": float(count),
        "srcc": float(spearmanr(table[:, 0], table[:, 1]).statistic),
        "median_relative_score_error": float(np.median(np.abs(table[visible, 0] / table[visible, 1] - 1))),
        "median_mask_correlation": float(np.nanmedian(masks)),
    }


def main(config: Config, run: RunArguments) -> int:
    """Pairs, teacher, training, agreement."""
    pairs = DistortedPairs(config.data.train, config.training.seed)
    held_out = DistortedPairs(config.data.validation, seed=0)
    teacher = MILO.from_pretrained(config.teacher).to(PartialState().device)
    torch.manual_seed(config.training.seed)
    model = Distillation(teacher)
    if run.dry_run:
        print(dump_config(config))
        return 0
    result = fit(
        model, step, pairs, config.training, run.output, resume=run.resume,
        evaluate=lambda model: agreement(model.student, teacher, held_out, 100, config.data.patch),
        record={"config": dump_config(config), "fixed": {"teacher": str(teacher.weights)}},
    )  # fmt: skip
    if result.final is None:
        return 128 + (result.signal or 0)
    if PartialState().is_main_process:
        student = model.student.cpu().eval()
        weights = {key: value.contiguous() for key, value in student.state_dict().items()}
        save_file(weights, result.final / "milo.safetensors", {"format": "pt", "teacher": str(teacher.weights)})
        numbers = agreement(student, teacher.cpu(), held_out, config.data.pairs, config.data.patch)
        write_text(run.output / "metrics.json", json.dumps(numbers, indent=1) + "\n")
        print("\n".join(f"{key:28} {value:.4f}" for key, value in numbers.items()))
    return 0


if __name__ == "__main__":
    sys.exit(run_recipe(main, Config, Path(__file__).parent / "configs" / "distill_milo.yaml", __doc__ or ""))
