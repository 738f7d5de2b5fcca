"""A run that ends where its evaluation has been at its best, and ends there too when it is continued."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from train_tiny import Patches, Tiny, l1, settings

from milo_restore.errors import ConfigError
from milo_restore.train import fit
from milo_restore.train.waiting import Waiting

SCORES = {2: 0.3, 4: 0.7, 6: float("nan"), 8: 0.7, 10: 0.6, 12: 0.9}  # by step: the third in a row after 4 is 10
RUN = settings(
    evaluate_every=2, keep_best="score", stop=3, checkpoint_every=3, keep_checkpoints=None, learning_rate=1e-3
)


def train(output, run=RUN, scores=SCORES, **options):
    """Each evaluation's number is that of its step, whichever call of `fit` comes by it."""
    at = {"step": 0}

    def step(model, batch, number):
        at["step"] = number
        return l1(model, batch, number)

    def evaluate(model):
        return {"score": scores[at["step"]]}

    if (state := options.pop("began_at", None)) is not None:
        at["step"] = state
    return fit(Tiny(), step, Patches(), run, output, evaluate=evaluate, **options)


def evaluations(output):
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "evaluation" in line]


def assert_same(one, other):
    for name in ("final", "best", "checkpoint-000010"):
        first, second = (load_file(folder / name / "model.safetensors") for folder in (one, other))
        assert all(torch.equal(first[key], second[key]) for key in first), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    result = train(output)
    assert (result.step, result.finished, result.stopped, result.exit_code) == (10, True, False, 0)
    assert result.final == output / "final"
    return output


def test_it_ends_after_so_many_without_a_better(whole, capsys):
    assert evaluations(whole) == [2, 4, 6, 8, 10]
    assert json.loads((whole / "best" / "evaluation.json").read_text())["step"] == 4
    assert json.loads((whole / "checkpoint-000010" / "state.json").read_text())["waiting"] == {
        "best": 0.7, "since": 3, "at": 10,
    }  # fmt: skip
    # The weights it ends with are the averaged ones of step 10.
    final, averages = (load_file(whole / n) for n in ("final/model.safetensors", "checkpoint-000010/ema.safetensors"))
    assert all(torch.equal(final[key], averages[key]) for key in averages)


def test_it_says_why(tmp_path, capsys):
    train(tmp_path)
    assert "ending after step 10: of score none better than 0.7 in 3 evaluations" in capsys.readouterr().err


@pytest.mark.parametrize("cut", [3, 4, 6, 7, 8, 9])
def test_a_continued_run_ends_there_too(whole, tmp_path, cut):
    assert not train(tmp_path, until=cut).finished
    result = train(tmp_path, resume="latest")
    assert (result.step, result.finished) == (10, True)
    assert evaluations(tmp_path) == [2, 4, 6, 8, 10]
    assert_same(whole, tmp_path)


def test_best_weights_of_later_steps_do_not_count(whole, tmp_path):
    """Continued from before them, a run comes by them again: it must not wait longer for having seen them."""
    train(tmp_path)
    result = train(tmp_path, resume=tmp_path / "checkpoint-000003")
    assert result.step == 10
    assert_same(whole, tmp_path)


def test_an_ended_run_stays_ended(whole, tmp_path):
    train(tmp_path)
    result = train(tmp_path, resume="latest")
    assert (result.step, result.finished, result.loss) == (10, True, None)
    assert_same(whole, tmp_path)


@pytest.mark.parametrize("killed", [False, True])
def test_a_signal_at_an_evaluation_loses_none(whole, tmp_path, monkeypatch, killed):
    """The checkpoint is saved before the evaluation: it is counted after that, or, after a kill, when going on."""

    def step(model, batch, number):
        if number == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        at["step"] = number
        return l1(model, batch, number)

    def evaluate(model):
        if killed and at["step"] == 6:
            raise KeyboardInterrupt
        return {"score": SCORES[at["step"]]}

    at = {"step": 0}
    try:
        assert fit(Tiny(), step, Patches(), RUN, tmp_path, evaluate=evaluate).stopped
    except KeyboardInterrupt:
        assert killed
    waiting = json.loads((tmp_path / "checkpoint-000006" / "state.json").read_text())["waiting"]
    assert waiting["at"] == (4 if killed else 6)
    assert train(tmp_path, resume="latest", began_at=6).step == 10
    assert evaluations(tmp_path) == [2, 4, 6, 8, 10]
    assert_same(whole, tmp_path)


def test_less_may_be_better():
    waiting = Waiting()
    for step, value in enumerate([3.0, float("nan"), 2.0, 2.0, 5.0], 1):
        waiting = waiting.after(step, value, lower=True)
    assert waiting == Waiting(2.0, 2, 5)
    assert waiting.over(2)
    assert not waiting.over(3)
    assert not waiting.over(None)
    assert Waiting().after(1, float("nan"), lower=False).best is None


def test_what_matters_cannot_change(tmp_path):
    train(tmp_path, until=4)
    for change, key in (({"stop": 4}, "stop"), ({"stop": None}, "stop"), ({"evaluate_every": 3}, "evaluate_every")):
        run = settings(**{**RUN.__dict__, **change})
        with pytest.raises(ConfigError, match=f"{key} is now"):
            train(tmp_path, run, resume="latest")
    with pytest.raises(ValueError, match="stop: 3 needs keep_best"):
        settings(stop=3)
    with pytest.raises(ValueError, match="stop must be at least 1"):
        settings(stop=0, keep_best="score", evaluate_every=2)


def test_checkpoints_of_runs_that_do_not_wait_are_as_they_were(tmp_path):
    fit(Tiny(), l1, Patches(), settings(), tmp_path, until=2)
    state = json.loads((tmp_path / "checkpoint-000002" / "state.json").read_text())
    assert "waiting" not in state
    assert "stop" not in state["fingerprint"]
