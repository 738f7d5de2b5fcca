r"""Train MILO, on images or on latents, on KADID's distortions of any photographs, labelled by a teacher.

    python recipes/train_milo.py                              # tiny: a few minutes, no network, no GPU
    accelerate launch recipes/train_milo.py --config recipes/configs/milo_image_10k.yaml --set data.train=ImageNet/train

The trained weights are milo_final.safetensors and, by the correlation on held-out pairs, milo_best.safetensors:
``MILO.from_pretrained("runs/milo_tiny/milo_best.safetensors")``. ``--resume latest`` goes on where a run was stopped.
With ``teacher: opinions`` people teach, on KADID-10k's own images, and MILO or any E-metric is the student.
"""

from __future__ import annotations

import milo_restore.interrupt  # noqa: F401  isort: skip  first: what follows takes seconds

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from milo_opinions import Tested, learn_opinions
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from milo_restore import MILO, LatentMILO
from milo_restore.config import dump_config
from milo_restore.data import load_collection
from milo_restore.data.decoding import decode_all
from milo_restore.data.image_sets import identity_of
from milo_restore.data.kadid import GeneratorName
from milo_restore.errors import ConfigError
from milo_restore.files.quarantine import Quarantine
from milo_restore.files.state import read_state
from milo_restore.files.write import replace_file, settle
from milo_restore.metric import LatentSpace, MaskedMetric
from milo_restore.metric.ensemble import PseudoMOS
from milo_restore.models.vae import LatentCodec, load_vae
from milo_restore.opinions.datasets import opinion_pairs
from milo_restore.teach.agreement import (
    Encode,
    HeldOut,
    Mask,
    agreement,
    as_they_are,
    held_out_kadid,
    held_out_pairs,
    mask_agreement,
)
from milo_restore.teach.denoising_errors import WithDenoisingErrors
from milo_restore.teach.distillation import error_divergence, mask_divergence
from milo_restore.teach.latent_pairs import Targets, encode_pairs
from milo_restore.teach.maps import fit_maps
from milo_restore.teach.pairs import ALL_DISTORTIONS, DistortedPairs, find_references
from milo_restore.teach.student import MOSTraining, Predictions
from milo_restore.train import PartialState, TrainSettings, fit
from milo_restore.train.command import RunArguments, run_recipe
from milo_restore.train.dry_run import first_samples, look_at_all, training_looks
from milo_restore.train.guard import Step


@dataclass(frozen=True)
class Data:
    """Photographs to distort: a folder, searched with all folders below it, or ``photographs`` (scikit-image's)."""

    train: str = "photographs"  # a folder, searched with all below it, a named data set, or photographs
    references: int | str | None = None  # 10k: with all 25 x 5 distortions; 100k*8: with 8 random ones each; null: all
    views: int | None = (
        None  # beyond the paper: so many unscaled squares from random places of each in place of its centre
    )
    distortions: tuple[int, ...] = ALL_DISTORTIONS  # KADID's numbers
    generator: GeneratorName = "published"  # KADID's own functions; clipped: this project's former reading of them
    noise: float = 0.0  # beyond the paper: share of samples that show noise and what denoising leaves of it instead
    square: int = 256  # side of the centre squares that are distorted, in pixels
    validation: str = "held-out-photographs"  # other photographs, labelled by the teacher
    kadid: str | None = None  # KADID-10k's folder: then people's opinions on its training split, in place of the above
    validation_references: int = 0  # teacher: opinions: of 65, kept back to validate; 0: what is trained on does
    validation_pairs: int | None = 500  # null: all
    validation_side: int = 256  # side of the centre crops of the validation squares that are compared
    vae: str | None = None  # latent domain: taef2, or folder or hub's OWNER/NAME of a diffusers autoencoder
    cache: str | None = None  # latent domain: folder for latents and labels
    latents: str = ""  # latent domain: what the latents are called in the weights file, such as FLUX.2 (TAEF2)


@dataclass(frozen=True)
class Config:
    """The whole training."""

    domain: Literal["image", "latent"] = "image"  # what the trained metric compares
    teacher: str | tuple[str, ...] = "official"  # ensemble, official, mini, a list of metrics; or opinions: people
    student: str = "milo"  # teacher: opinions: or an E-metric, such as e-ssim or e-lpips
    maps: str = "own-scaler"  # metric to MOS: own-scaler; kadid, logistics fitted on its training split; or their file
    start: str | None = None  # weights to start from: official, mini or a path; null: random ones
    score_weight: float = 0.0  # beyond the paper, for one MILO as the teacher: L1 between logarithms of raw errors
    mask_weight: float = 0.0  # the same: divergence of the masks, level by level; of latents from the images' masks
    error_weight: float = 0.0  # the same, of latents: divergence of the masked errors, cell by cell
    hint_weight: float = 0.0  # the same: hidden features that tell the teacher's; fades to 0 over the run
    data: Data = field(default_factory=Data)
    tested: Tested = field(default_factory=Tested)
    training: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        guided = self.guide is not None  # refuses a guide that is not one MILO
        if guided and self.domain == "latent" and (self.hint_weight or self.score_weight):
            raise ValueError("hint_ and score_weight need domain: image; of latents, mask_ and error_weight")
        if self.domain == "image" and self.error_weight:
            raise ValueError("error_weight needs domain: latent")
        if self.domain == "latent" and self.data.noise:
            raise ValueError("data.noise needs domain: image")
        if self.maps == "kadid" and self.data.kadid is None:
            raise ValueError("maps: kadid needs data.kadid, the data set's folder")
        if self.teacher == "opinions" and (self.domain == "latent" or self.data.kadid is None):
            raise ValueError("teacher: opinions needs domain: image and data.kadid, KADID-10k's folder")
        if self.teacher != "opinions" and (self.student != "milo" or self.tested != Tested()):
            raise ValueError("student and tested need teacher: opinions; milo-restore correlate tests any weights")
        if self.domain == "latent" and not (self.data.vae and self.data.cache):
            raise ValueError("domain: latent needs data.vae, a diffusers autoencoder, and data.cache, a folder")
        self._check_patches()

    def _check_patches(self) -> None:
        for patch in (stage.patch for stage in self.training.stages):
            if self.domain == "latent" and patch != self.data.square:
                raise ValueError(f"latents are not cropped: a stage's patch must be data.square, {self.data.square}")
            if self.teacher != "opinions" and patch > self.data.square:
                raise ValueError(f"a patch of {patch} does not fit into squares of {self.data.square}, data.square")

    @property
    def guide(self) -> str | None:
        """The one MILO that teaches more than its opinions; None where opinions are all that is taught.

        Raises:
            ValueError: more is to be taught, but not by one MILO.
        """
        if not (self.mask_weight or self.error_weight or self.hint_weight or self.score_weight):
            return None
        if isinstance(self.teacher, str) and self.teacher in ("official", "mini"):
            return self.teacher
        raise ValueError("mask_, error_, hint_ and score_weight need teacher: official or mini")


def references(name: str, config: Config) -> tuple[list[Any], int]:
    """Images to distort, and how many random distortions each gets; 0: all."""
    if name.endswith("photographs"):
        return list(load_collection(name)), 0
    count = config.data.references if name == config.data.train else None
    found, each = find_references(name, count, config.training.seed)
    return list(found), each


def load_teacher(config: Config, run: RunArguments) -> PseudoMOS:
    """The teacher with its maps; those of KADID are fitted once and stay in the run folder."""
    device, maps = PartialState().device, run.output / "maps.json"
    kadid = config.data.kadid if config.maps == "kadid" else None  # Config sees to it that it is there
    if kadid is None:
        return PseudoMOS.from_names(config.teacher, config.maps).to(device)
    with PartialState().main_process_first():
        if not maps.is_file() and run.dry_run:
            print("maps: not fitted yet; a dry run takes the metrics' own scalers")
            return PseudoMOS.from_names(config.teacher)
        if not maps.is_file():
            fit_maps(config.teacher, opinion_pairs("kadid10k", Path(kadid), "kadid-train"), maps, device=device)
    return PseudoMOS.from_names(config.teacher, maps).to(device)


def validation(
    config: Config, unseen: DistortedPairs, teacher: PseudoMOS, encode: Encode, mask: Mask | None
) -> HeldOut:
    """Pairs that are not trained on, with people's opinions or the teacher's."""
    device, data = PartialState().device, config.data
    if data.kadid is not None:
        return held_out_kadid(data.kadid, data.validation_pairs, config.training.seed, encode, device, mask)
    return held_out_pairs(unseen, data.validation_pairs, data.validation_side, teacher, encode, device, mask)


def student(config: Config, guide: MILO | None, space: LatentSpace | None) -> tuple[MOSTraining, str | None]:
    """The metric that is trained, and which weights it starts from; None: random ones."""
    torch.manual_seed(config.training.seed)
    model = MOSTraining(untrained(space), guide if space is None else None, hints=config.hint_weight > 0)
    if config.start is None:
        return model, None
    weights = (MILO if space is None else LatentMILO)(config.start)
    if space is not None and isinstance(weights, LatentMILO) and weights.channels != space.channels:
        what = f"is for latents of {weights.channels} channels, not {space.channels}"
        raise ConfigError(what, where=f"start: {config.start}", mend="Start from random weights: start: null")
    model.metric.load_state_dict(dict(weights.named_buffers()))
    return model, str(weights.weights)


def untrained(space: LatentSpace | None) -> MaskedMetric:
    """The metric to train: of images where there are no latents."""
    return MILO.untrained() if space is None else LatentMILO.untrained(space=space)


def space_of(codec: LatentCodec | None, config: Config) -> LatentSpace | None:
    """The space of latents that the weights file will name."""
    if codec is None:
        return None
    name = config.data.latents or codec.name
    return LatentSpace(codec.channels, codec.scaling, codec.shift, codec.sha256, name)


def targets(teacher: PseudoMOS, guide: MILO | None) -> Callable[[Tensor, Tensor], Targets]:
    """Targets of latents: the teacher's opinions; and where one MILO is the teacher, its masks and errors."""
    if guide is None:
        return lambda image, reference: {"labels": teacher(image, reference)}

    def said(image: Tensor, reference: Tensor) -> Targets:
        mask = guide.predict_mask(image, reference)  # once for all three
        error = mask * (image - reference).abs().mean(1, keepdim=True)
        return {"labels": guide.mos_of(error.mean((1, 2, 3))), "masks": mask, "errors": error}

    return said


def step_of(config: Config, teacher: PseudoMOS) -> Step:
    """One step of training, for `fit`."""

    def step(model: nn.Module, batch: dict[str, Any], number: int) -> tuple[Tensor, dict[str, Tensor]]:
        image, reference = batch["image"], batch["reference"]
        said: Predictions = model(image, reference)
        parts: dict[str, Tensor] = {}
        if said.taught is not None:
            ratio = (said.error + 1e-5).log() - (said.taught.error + 1e-5).log()
            parts["score"] = config.score_weight * ratio.abs().mean()
            parts["mask"] = config.mask_weight * said.taught.divergence
            parts["hint"] = config.hint_weight * (1 - number / config.training.steps) * said.taught.hint
            labels = said.taught.mos
        else:
            labels = batch["label"] if "label" in batch else teacher(image, reference)
            if "mask" in batch:
                difference = (image - reference).abs().mean(1, keepdim=True)
                parts["mask"] = config.mask_weight * mask_divergence(said.mask, batch["mask"])
                parts["error"] = config.error_weight * error_divergence(said.mask * difference, batch["error"])
        parts["mos"] = F.mse_loss(said.mos, labels)
        return torch.stack(list(parts.values())).sum(), {key: part.detach() for key, part in parts.items()}

    return step


def pairs_of(config: Config, run: RunArguments) -> tuple[DistortedPairs, DistortedPairs, Dataset[dict[str, Any]]]:
    """Pairs to train on, pairs of other photographs to validate on, and the samples that training draws.

    Raises:
        DataError: a folder is missing, or holds too few images.
    """
    data, seed = config.data, config.training.seed
    images, each = references(data.train, config)
    others, _ = references(data.validation, config)
    options: dict[str, Any] = {"square": data.square, "distortions": data.distortions, "generator": data.generator}
    options["unscaled"] = data.views is not None
    # Latents are encoded before the run: there a reference that cannot be read is an error.
    quarantine = Quarantine.of_run(run.output, run.resume) if config.domain == "image" else None
    pairs = DistortedPairs(images * (data.views or 1), one_each=each, seed=seed, quarantine=quarantine, **options)
    samples: Dataset[dict[str, Any]] = WithDenoisingErrors(pairs, data.noise) if data.noise else pairs
    return pairs, DistortedPairs(others, seed=seed + 1, **options), samples


def check(config: Config, run: RunArguments) -> int:
    """Load all that the configuration names, train nothing, and say all that is wrong, a line each.

    Raises:
        ConfigError: something is wrong.
    """
    state, data = PartialState(), config.data
    state.print(dump_config(config))
    spaces: list[LatentSpace] = []

    def train() -> str:
        images, each = references(data.train, config)
        return f"{len(images):,} references, {each or 'all'} distortions of each"

    def decoded() -> str:
        pairs = pairs_of(config, run)[0]
        return str(decode_all(len(pairs.references) // (data.views or 1), pairs.square_of))

    def latents() -> str:
        space = space_of(load_vae(str(data.vae), state.device), config)
        assert space is not None  # noqa: S101  (there is a codec)
        spaces.append(space)
        return f"{space}, {space.channels} channels, VAE {data.vae}"

    def start() -> str:
        guide = None if config.guide is None else MILO.from_pretrained(config.guide)
        return f"from {student(config, guide, spaces[0] if spaces else None)[1] or 'random weights'}"

    def kadid() -> str:
        return f"{len(opinion_pairs('kadid10k', str(data.kadid), 'kadid-train')):,} pairs with opinions"

    looks: dict[str, Callable[[], object]] = {
        "data.train": train,
        "data.validation": lambda: f"{len(references(data.validation, config)[0]):,} references",
        **({"data.train decoded": decoded} if run.decode else {}),
        "samples": lambda: first_samples(pairs_of(config, run)[2], config.training),
        "teacher": lambda: load_teacher(config, run).describe(),
        **({} if data.vae is None else {"latents": latents}),
        **({} if data.kadid is None else {"data.kadid": kadid}),
        "student": start,
    }  # fmt: skip
    return look_at_all({**looks, **training_looks(config.training, run.output, run.resume)})


def main(config: Config, run: RunArguments) -> int:
    """Pairs, teacher, metric, training, agreement."""
    if config.teacher == "opinions":
        return learn_opinions(config, run)
    if run.dry_run:
        return check(config, run)
    state, data = PartialState(), config.data
    pairs, unseen, samples = pairs_of(config, run)
    teacher = load_teacher(config, run)
    codec = None if data.vae is None else load_vae(data.vae, state.device)
    encode, encoder, space = (
        (as_they_are if codec is None else codec.encode),
        codec and codec.sha256,
        space_of(codec, config),
    )
    guide = None if config.guide is None else MILO.from_pretrained(config.guide).to(state.device)
    mask = None if guide is None else guide.mask
    model, started = student(config, guide, space)
    made_by = {"teacher": teacher.to_json(), "encoder": encoder}
    # None for the generator whose name older checkpoints lack.
    used = {**made_by, "start": started, "generator": None if data.generator == "clipped" else data.generator}
    images = pairs.references[: len(pairs.references) // (data.views or 1)]
    fixed = {**used, "images": identity_of(images), "test_images": identity_of(unseen.references)}
    state.print(f"{len(pairs):,} pairs of {len(images):,} references; {teacher.describe()}")
    if space is not None:
        state.print(f"latents: {space}, {space.channels} channels, VAE {data.vae}")
    if config.domain == "latent" and data.cache is not None:  # Config sees to it that it is
        share = (state.process_index, state.num_processes)
        samples = encode_pairs(
            pairs, data.cache, encode, targets(teacher, guide), device=state.device, share=share,
            identity=made_by if guide is None else {**made_by, "dense": "masks, errors"},
        )  # fmt: skip
        state.wait_for_everyone()
    held_out = validation(config, unseen, teacher, encode, mask)

    def evaluate(metric: MaskedMetric) -> dict[str, float]:
        found = agreement(metric, held_out, state.device)
        return found if guide is None else found | mask_agreement(metric, held_out, state.device)

    before = evaluate(model.metric.to(state.device))
    result = fit(
        model, step_of(config, teacher), samples, config.training, run.output,
        resume=run.resume,
        evaluate=lambda _: evaluate(model.metric),  # fit holds this same model
        record={"config": dump_config(config), "fixed": fixed, "free": ["data.cache"],
                "about": {"weights": f"start from {started or 'random ones'}"}},
        changes=run.changes,
    )  # fmt: skip
    if result.stopped:
        return 128 + (result.signal or 0)
    if state.is_main_process:
        report(config, run.output, {"before": before}, evaluate, held_out, teacher, space)
    return 0


def report(
    config: Config,
    output: Path,
    rows: dict[str, dict[str, float]],
    evaluate: Callable[[MaskedMetric], dict[str, float]],
    held_out: HeldOut,
    teacher: PseudoMOS,
    space: LatentSpace | None,
) -> None:
    """Write the metric's weights with what they agree on, the teacher and the numbers; print the table."""
    for name in ("best", "final"):
        weights = output / name / "model.safetensors"
        if not weights.is_file():
            continue
        state = {
            key[7:]: value for key, value in read_state(weights, prefer=()).tensors.items() if key.startswith("metric.")
        }
        metric = untrained(space)
        metric.load_state_dict(state)
        rows[name] = evaluate(metric.freeze().to(PartialState().device))
        agreed = {key: f"{value:.4f}" for key, value in rows[name].items()}
        about = {
            "format": "pt",
            "teacher": teacher.describe(),
            **agreed,
            **({} if space is None else space.to_metadata()),
        }
        save_file(state, output / f"milo_{name}.safetensors", about)
        settle(output / f"milo_{name}.safetensors")
    teacher.save(output / "teacher.json")
    numbers = {"held_out": held_out.source, "agreement": rows, "teacher": teacher.to_json()}
    replace_file(output / "run.json", json.dumps(numbers, indent=1) + "\n")
    print(f"{held_out.source}, against {'people' if config.data.kadid else 'the teacher'}:")
    for name, row in rows.items():
        print(f"{name:12}" + "".join(f"{key} {value:.4f}   " for key, value in row.items()).rstrip())
    print(f"run folder: {output}")


if __name__ == "__main__":
    sys.exit(run_recipe(main, Config, Path(__file__).parent / "configs" / "milo_tiny.yaml", __doc__ or ""))
