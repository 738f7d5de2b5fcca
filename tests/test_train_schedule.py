"""The learning rate, the plan of keys, and the settings: pure functions and refusals."""

from __future__ import annotations

import math
import typing

import pytest
import torch
from diffusers.optimization import get_scheduler
from train_tiny import settings

from milo_restore.config import load_config
from milo_restore.errors import ConfigError
from milo_restore.train import Stage, TrainSettings, learning_rate
from milo_restore.train.identity import fingerprint
from milo_restore.train.schedule import check_split, micro_batches, stage_of
from milo_restore.train.settings import Scheduler


def test_restormers_learning_rate():
    """Restormer, arXiv 2111.09881: 3e-4 for 92k iterations, then a cosine to 1e-6 at 300k."""
    run = TrainSettings(
        stages=(Stage(300_000, 128, 8),), constant_steps=92_000, learning_rate=3e-4, final_learning_rate=1e-6
    )
    assert learning_rate(1, run) == learning_rate(92_000, run) == 3e-4
    assert learning_rate(92_000 + 104_001, run) == pytest.approx((3e-4 + 1e-6) / 2, rel=1e-12)
    quarter = 1e-6 + (3e-4 - 1e-6) * (1 + math.cos(math.pi / 4)) / 2
    assert learning_rate(92_000 + 52_001, run) == pytest.approx(quarter, rel=1e-12)
    assert learning_rate(300_000, run) == pytest.approx(1e-6, rel=1e-3)
    rates = [learning_rate(step, run) for step in range(92_000, 300_001, 100)]
    assert rates == sorted(rates, reverse=True)


def test_learning_rate_without_a_cosine():
    run = settings(constant_steps=None)
    assert {learning_rate(step, run) for step in range(1, 13)} == {1e-2}


@pytest.mark.parametrize("name", typing.get_args(Scheduler))
def test_diffusers_schedules_are_diffusers(name):
    more = {"cosine_with_restarts": {"num_cycles": 3}, "polynomial": {"power": 2.0}}.get(name, {})
    warmup = 0 if name == "constant" else 3
    run = settings(constant_steps=None, scheduler=name, warmup_steps=warmup, **more)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=run.learning_rate)
    schedule = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=12, **more)
    for step in range(1, 13):
        assert learning_rate(step, run) == pytest.approx(schedule.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        schedule.step()
    assert (learning_rate(1, run) == 0) == (warmup > 0)  # as in diffusers' programs


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scheduler": "cosine", "constant_steps": 3}, "needs constant_steps and decay_every null"),
        (
            {"scheduler": "cosine", "decay_every": 3, "constant_steps": None},
            "needs constant_steps and decay_every null",
        ),
        ({"warmup_steps": 2}, "needs a scheduler"),
        ({"scheduler": "constant", "warmup_steps": 2, "constant_steps": None}, "constant_with_warmup"),
        ({"scheduler": "linear", "warmup_steps": 12, "constant_steps": None}, "less than the run's 12 steps"),
        ({"scheduler": "linear", "num_cycles": 2, "constant_steps": None}, "cosine_with_restarts"),
        ({"scheduler": "linear", "power": 2.0, "constant_steps": None}, "needs scheduler: polynomial"),
        ({"scheduler": "polynomial", "power": 0.0, "constant_steps": None}, "must be positive"),
    ],
)
def test_schedules_that_mean_nothing_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        settings(**change)


def test_a_rate_below_polynomials_end_is_refused():
    with pytest.raises(ConfigError, match=r"training.learning_rate: lr_end"):
        learning_rate(1, settings(constant_steps=None, scheduler="polynomial", learning_rate=1e-8))


def test_a_scheduler_is_part_of_a_runs_identity_and_none_is_as_before():
    model = torch.nn.Linear(1, 1)
    assert "warmup_steps" not in fingerprint(model, settings(), {})
    assert fingerprint(model, settings(constant_steps=None, scheduler="linear"), {})["scheduler"] == "linear"


def test_stages_follow_one_another():
    run = settings()
    assert stage_of(1, run) == (Stage(6, 12, 4), 0)
    assert stage_of(6, run) == (Stage(6, 12, 4), 20)
    assert stage_of(7, run) == (Stage(6, 16, 5), 24)
    assert stage_of(12, run) == (Stage(6, 16, 5), 49)
    with pytest.raises(IndexError):
        stage_of(13, run)


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 1), (1, 4), (2, 1), (2, 2), (3, 1)])
def test_every_split_draws_each_sample_once(processes, accumulation):
    run = settings(accumulation=accumulation)
    for step, batch, before, patch in ((1, 4, 0, 12), (8, 5, 29, 16)):
        parts = [p for r in range(processes) for p in micro_batches(step, run, r, processes)]
        assert len(parts) == processes * accumulation
        assert all(parts)
        keys = sorted(key for part in parts for key in part)
        assert keys == [(step, index, before + index, patch) for index in range(batch)]


def test_batch_too_small_to_split():
    check_split(settings(accumulation=2), 2)
    with pytest.raises(ConfigError, match=r"stages.0.batch.*at least 6"):
        check_split(settings(accumulation=2), 3)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("stages", "[]", "stages is empty"),
        ("stages", "[{steps: 0, patch: 64, batch: 8}]", "steps must be at least 1, got 0"),
        ("accumulation", "0", "accumulation must be at least 1"),
        ("learning_rate", "-1e-4", "learning_rate must be at least 0"),
        ("clip_norm", "0", "clip_norm must be positive"),
        ("ema_decay", "1", "ema_decay must lie between 0 and 1"),
        ("betas", "[0.9, 1.0]", "betas must lie in"),
        ("checkpoint_every", "0", "checkpoint_every must be at least 1"),
        ("keep_checkpoints", "0", "keep_checkpoints must be at least 1"),
        ("workers", "-1", "workers must be at least 0"),
        ("mixed_precision", "fp8", "'fp8' is not one of"),
        ("learning_rat", "1", "Did you mean 'learning_rate'"),
    ],
)
def test_wrong_settings_are_refused(key, value, text):
    with pytest.raises(ConfigError, match=text):
        load_config(TrainSettings, overrides=[f"{key}={value}"])
