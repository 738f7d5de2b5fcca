"""Measure a LatentMILO against the published MILO of images: how it ranks, and where its gradient points.

    python recipes/latent_milo_check.py --images BSDS500/data/images/val --output runs/latent_milo_check

Ranking: squares of photographs under all 25 KADID-10k distortions at 5 levels; Spearman's correlation of the latent
errors with MILO's raw errors of the undecoded images, beside plain L1 and MSE of the latents. Pointing: the step test
of `milo_restore.teach.step_test` on one random distortion per photograph, with paired intervals. What was encoded stays
in ``--cache``, so that other weights are measured in seconds to minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from milo_restore import MILO, LatentMILO
from milo_restore.data import list_images, to_tensor
from milo_restore.errors import DataError, run_program
from milo_restore.files.write import replace_file
from milo_restore.measure.intervals import Interval, paired_interval
from milo_restore.metric import LatentSpace
from milo_restore.models.vae import LatentCodec, load_vae
from milo_restore.teach.latent_pairs import LatentPairs, Targets, encode_pairs
from milo_restore.teach.pairs import DistortedPairs
from milo_restore.teach.step_test import latent_losses, left_over

SEED = 7  # of the squares and the distortions


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="flux2-taef2", help="LatentMILO's (default: %(default)s)")
    parser.add_argument("--vae", default="taef2", help="of the latents (default: %(default)s)")
    parser.add_argument("--judge", default="official", help="MILO's weights (default: %(default)s)")
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs that were not trained on")
    parser.add_argument("--photographs", type=int, help="how many are ranked with all distortions (default: all)")
    parser.add_argument("--steps-on", type=int, help="how many the step test takes (default: all)")
    parser.add_argument("--share", type=float, default=0.3, help="of the way that the steps go (default: %(default)s)")
    parser.add_argument("--square", type=int, default=160, help="side in pixels (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Path("runs/latent_milo_check_cache"))
    parser.add_argument("--output", type=Path, default=Path("runs/latent_milo_check"))
    return parser.parse_args()


def main(options: argparse.Namespace) -> int:
    """Encode, rank, walk, report."""
    codec, judge = load_vae(options.vae), MILO(options.judge)
    metric = LatentMILO(options.weights)
    metric.check_space(LatentSpace(codec.channels, codec.scaling, codec.shift, codec.sha256), f"--vae {options.vae}")
    images = list_images(options.images)
    if not images:
        raise DataError("holds no images", where=options.images)
    about = {"weights": str(metric.weights), "judge": str(judge.weights), "vae": codec.sha256, "square": options.square}
    ranked, walked = (_spread(images, count) for count in (options.photographs, options.steps_on))
    numbers = {**about, "ranking": ranking(metric, codec, judge, ranked, options)}
    print(f"{metric.weights} against {judge.weights}; squares of {options.square} pixels")
    print(table_of_ranking(numbers["ranking"]), flush=True)
    numbers["steps"] = step_test(metric, codec, judge, walked, options)
    print(table_of_steps(numbers["steps"], options.share))
    replace_file(options.output / "latent_milo_check.json", json.dumps(numbers, indent=1) + "\n")
    print(f"written: {options.output / 'latent_milo_check.json'}")
    return 0


def _spread(images: list[Path], count: int | None) -> list[Path]:
    """So many images, evenly spread over the list."""
    count = min(count or len(images), len(images))
    return [images[place * len(images) // count] for place in range(count)]


def ranking(
    metric: LatentMILO, codec: LatentCodec, judge: MILO, images: list[Path], options: argparse.Namespace
) -> dict[str, float]:
    """SRCC with the judge over all pairs, of the metric and of plain distances, and how well the masks agree."""
    from scipy.stats import spearmanr

    pairs = DistortedPairs(images, square=options.square, unscaled=True, seed=SEED)
    identity = {"vae": codec.sha256, "judge": str(judge.weights)}
    device = torch.device("cpu")
    cached = encode_pairs(pairs, options.cache, codec.encode, judged(judge), identity=identity, device=device)
    parts = [_of_photograph(metric, cached, number) for number in range(len(images))]
    values = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    found = {name: float(spearmanr(values[name], values["judge"]).statistic) for name in ("milo", "l1", "mse")}
    return {
        "pairs": len(values["judge"]),
        **{f"srcc_{name}": value for name, value in found.items()},
        "mask_correlation": float(np.nanmedian(values["mask"])),
        "error_correlation": float(np.nanmedian(values["error"])),
        "error_correlation_l1": float(np.nanmedian(values["error_l1"])),
    }


def judged(judge: MILO) -> Callable[[Tensor, Tensor], Targets]:
    """The judge's raw errors, its masks and the maps of its errors."""

    def said(image: Tensor, reference: Tensor) -> Targets:
        mask = judge.predict_mask(image, reference)
        error = mask * (image - reference).abs().mean(1, keepdim=True)
        return {"labels": error.mean((1, 2, 3)), "masks": mask, "errors": error}

    return said


@torch.no_grad()
def _of_photograph(metric: LatentMILO, cached: LatentPairs, number: int) -> dict[str, np.ndarray]:
    held = load_file(cached.file(number))
    latents, reference = held["images"], held["reference"].expand_as(held["images"])
    mask = torch.cat([metric.predict_mask(*both) for both in zip(latents.split(25), reference.split(25))])
    difference = (latents - reference).abs().mean(1, keepdim=True)
    plain = {"l1": difference, "mse": (latents - reference).square(), "milo": mask * difference}
    scores = {key: value.mean((1, 2, 3)).numpy() for key, value in plain.items()}
    maps = {"mask": (mask, held["masks"]), "error": (mask * difference, held["errors"])}
    maps["error_l1"] = (difference, held["errors"])
    agreed = {key: np.array([_correlation(*both) for both in zip(*value)]) for key, value in maps.items()}
    return {**scores, **agreed, "judge": held["labels"].numpy()}


def _correlation(first: Tensor, second: Tensor) -> float:
    """Pearson's, cell by cell; NaN of a constant map."""
    return float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])


def step_test(
    metric: LatentMILO, codec: LatentCodec, judge: MILO, images: list[Path], options: argparse.Namespace
) -> dict[str, list[float]]:
    """Error that is left after the steps, by loss, one number per photograph; undistorted ones are left out."""
    from tqdm import tqdm

    pairs = DistortedPairs(images, one_each=True, square=options.square, unscaled=True, seed=SEED)
    found: dict[str, list[float]] = {name: [] for name in latent_losses(metric)}
    for number in tqdm(range(len(images)), desc="steps", unit="image", leave=False, disable=None):
        image, reference = (to_tensor(array)[None] for array in pairs.images(pairs.pair(number)))
        if torch.equal(image, reference):
            continue
        ends = (codec.encode(image), codec.encode(reference))
        left = left_over(latent_losses(metric), *ends, reference, codec.decode, judge, share=options.share)
        for name, value in left.items():
            found[name].append(float(value))
    return found


def table_of_ranking(found: dict[str, float]) -> str:
    """Printed lines of the ranking."""
    return (
        f"{found['pairs']:,} pairs: SRCC {found['srcc_milo']:.4f} (L1 of the latents {found['srcc_l1']:.4f}, MSE "
        f"{found['srcc_mse']:.4f}); medians over pairs: masks {found['mask_correlation']:.3f}, maps of errors "
        f"{found['error_correlation']:.3f} (L1 {found['error_correlation_l1']:.3f})"
    )


def table_of_steps(found: dict[str, list[float]], share: float) -> str:
    """Error left by loss, and its paired difference, in logarithms, to L1 and to MSE."""
    logs = {name: np.log(values) for name, values in found.items()}
    lines = [f"error left after steps of {share:g} of the way, geometric mean of {len(logs['l1'])} photographs;"]
    lines += ["in percent of L1's and of MSE's, with 95 % intervals of the paired difference:"]
    for name, values in logs.items():
        against = [paired_interval(values, logs[other]) for other in ("l1", "mse")]
        lines.append(f"{name:14} {math.exp(values.mean()):.4f}   " + "   ".join(map(_percent, against)))
    return "\n".join(lines)


def _percent(interval: Interval) -> str:
    ends = [math.expm1(each) * 100 for each in (interval.mean, *(interval.ends or ())) if each is not None]
    return f"{ends[0]:+.1f} % " + (f"[{ends[1]:+.1f}, {ends[2]:+.1f}]" if len(ends) == 3 else f"({interval.reason})")


if __name__ == "__main__":
    sys.exit(run_program(Path(__file__).name, lambda: main(arguments())))
