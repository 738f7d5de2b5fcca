"""Training a metric on people's opinions, as the supplement's section 2.1 does: the part of train_milo.py for it.

KADID-10k's references are split 80-20. The metric learns from crops of the 80 %, its best weights are those that follow
KADID's training split best (section 1), and these are tested on the 20 %, and on CSIQ, TID2013 and PIPAL.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from milo_restore.config import dump_config
from milo_restore.files.hashes import text_sha256
from milo_restore.files.write import replace_file
from milo_restore.measure.cache import ScoreCache
from milo_restore.measure.metrics import load_metric
from milo_restore.opinions.coefficients import Correlation
from milo_restore.opinions.correlate import correlate_metric, hash_pairs
from milo_restore.opinions.datasets import OpinionPair, opinion_pairs
from milo_restore.teach.agreement import HeldOut, agreement, as_they_are, held_out_people
from milo_restore.teach.people import OpinionCrops, split_references
from milo_restore.teach.students import Student, load_student
from milo_restore.train import PartialState, fit
from milo_restore.train.command import RunArguments
from milo_restore.train.dry_run import first_samples, look_at_all, training_looks
from milo_restore.train.memory import parameter_count

if TYPE_CHECKING:
    from train_milo import Config


@dataclass(frozen=True)
class Tested:
    """Folders of further data sets that the trained metric is tested on, beside KADID's 20 %."""

    csiq: str | None = None  # folder of CSIQ
    tid2013: str | None = None  # folder of TID2013
    pipal: str | None = None  # folder of PIPAL


def learn_opinions(config: Config, run: RunArguments) -> int:
    """Pairs with opinions, student, training, tests."""
    state, seed, device = PartialState(), config.training.seed, PartialState().device
    if run.dry_run:
        return check(config, run)
    learned, validating, what = training_pairs(config)
    sets = {name: read() for name, read in test_sets(config).items()}
    samples = OpinionCrops(learned, seed)
    first_samples(samples, config.training)  # a patch that does not fit is refused before all that follows
    torch.manual_seed(seed)
    model = load_student(config.student, config.start, samples, config.training.stages[0].patch, device)
    state.print(f"{len(samples):,} pairs of {len({pair.reference for pair in learned})} references teach {model.name}")
    held_out = held_out_people(validating, what, config.data.validation_pairs, seed, as_they_are, device)
    opinions = text_sha256(json.dumps([(pair.distorted.name, pair.score) for pair in learned]))
    used = {"teacher": f"opinions {opinions[:16]}", "student": model.name, "start": model.weights}

    def evaluate(module: nn.Module) -> dict[str, float]:
        assert isinstance(module, Student)  # noqa: S101  (fit hands the model over bare)
        return agreement(module, held_out, device)

    before = evaluate(model)
    result = fit(
        model, step, samples, config.training, run.output,
        resume=run.resume, evaluate=evaluate, lower_better={"srcc": False, "plcc": False},
        record={"config": dump_config(config), "fixed": used,
                "about": {"data": f"{len(samples):,} pairs with opinions", "loss": "MSE of opinions"}},
    )  # fmt: skip
    if result.stopped:
        return 128 + (result.signal or 0)
    if state.is_main_process:
        report(run.output, model, {"before": before}, evaluate, held_out, sets, used)
    return 0


def step(model: nn.Module, batch: dict[str, Any], number: int) -> tuple[Tensor, dict[str, Tensor]]:
    """L2 between predicted and people's mean opinion scores (section 1)."""
    loss = F.mse_loss(model(batch["image"], batch["reference"]), batch["label"])
    return loss, {"mos": loss.detach()}


def training_pairs(config: Config) -> tuple[list[OpinionPair], list[OpinionPair], str]:
    """Pairs to train on, those to validate on, and what the latter are."""
    assert config.data.kadid is not None  # noqa: S101  (Config sees to it)
    found = opinion_pairs("kadid10k", config.data.kadid, "kadid-train")
    learned, kept = split_references(found, config.data.validation_references, config.training.seed)
    return learned, kept or learned, f"pairs of kadid-train, {'not ' if kept else ''}trained on"


def test_sets(config: Config) -> dict[str, Callable[[], list[OpinionPair]]]:
    """Readers of the data sets to test on, by name."""
    roots = {name: root for name, root in dataclasses.asdict(config.tested).items() if root is not None}
    kadid = ("kadid10k", str(config.data.kadid), "kadid-test")
    found: dict[str, Callable[[], list[OpinionPair]]] = {"kadid-test": lambda: opinion_pairs(*kadid)}
    return found | {name: lambda name=name, root=root: opinion_pairs(name, root) for name, root in roots.items()}


def check(config: Config, run: RunArguments) -> int:
    """A dry run: read every table, look for every image, build the student; train nothing.

    Raises:
        ConfigError: something is wrong; a line each has been printed.
    """

    def student() -> str:
        samples = OpinionCrops(training_pairs(config)[0], config.training.seed)
        model = load_student(config.student, config.start, samples, config.training.stages[0].patch)
        return f"{model.name}, {parameter_count(model):,} parameters to learn, from {model.weights or 'random weights'}"

    def training() -> str:
        pairs = training_pairs(config)[0]
        first_samples(OpinionCrops(pairs, config.training.seed), config.training)
        return f"{len(pairs)} pairs of kadid-train"

    def validation() -> str:
        _, validating, what = training_pairs(config)
        return f"{min(len(validating), config.data.validation_pairs or len(validating))} {what}"

    def said(read: Callable[[], list[OpinionPair]]) -> Callable[[], str]:
        return lambda: f"{len(read())} pairs"

    print(dump_config(config))
    tests = {f"test on {name}": said(read) for name, read in test_sets(config).items()}
    return look_at_all({
        "training": training, "validation": validation,
        "student": student, **tests, **training_looks(config.training, run.output, run.resume, ("srcc", "plcc")),
    })  # fmt: skip


def report(
    output: Path,
    model: Student,
    rows: dict[str, dict[str, float]],
    evaluate: Callable[[nn.Module], dict[str, float]],
    held_out: HeldOut,
    sets: dict[str, list[OpinionPair]],
    used: dict[str, Any],
) -> None:
    """Write the metric's weights and what they agree on; test the best of them; print both tables."""
    tested = output
    for name in ("final", "best"):  # the best are tested; where none are kept, the final ones
        if not (output / name / "model.safetensors").is_file():
            continue
        state = load_file(output / name / "model.safetensors")
        model.load_state_dict(state)
        rows[name] = evaluate(model.eval())
        agreed = {key: f"{value:.4f}" for key, value in rows[name].items()}
        tested = output / f"{model.name}_{name}.safetensors"
        save_file(model.file_state(state), tested, {"format": "pt", "teacher": used["teacher"], **agreed})
    print(f"{held_out.source}:")
    for name, row in rows.items():
        print(f"{name:12}" + "".join(f"{key} {value:.4f}   " for key, value in row.items()).rstrip())
    found = test(model.name, tested, sets, output / "scores")
    print(f"{tested.name}, against people, as milo-restore correlate has it:")
    print(f"{'data set':12}{'n':>6}  {'SRCC':<24}  {'PLCC':<24}  KRCC")
    for name, one in found.items():
        print(f"{name:12}{one.n:>6}  {one.srcc!s:<24}  {one.plcc!s:<24}  {one.krcc}")
    results = {name: dataclasses.asdict(one) for name, one in found.items()}
    numbers = {"held_out": held_out.source, "agreement": rows, "weights": tested.name, "tested": results, **used}
    replace_file(output / "run.json", json.dumps(numbers, indent=1) + "\n")
    print(f"run folder: {output}")


def test(student: str, weights: Path, sets: dict[str, list[OpinionPair]], cache: Path) -> dict[str, Correlation]:
    """Correlations with people on each data set; scores are kept, so that an interrupted test goes on."""
    device = PartialState().device
    metric = load_metric(f"{student}:{weights}", device=device)
    scores = ScoreCache.open(cache, metric)
    return {
        name: correlate_metric(pairs, hash_pairs(pairs), metric, scores, device=device).overall
        for name, pairs in sets.items()
    }
