"""The training loop: one for all recipes. The science arrives as ``step``, the images as ``data``."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM
from typing import Any, NoReturn

import numpy as np
import torch
from safetensors.torch import save_model
from torch import nn

from milo_restore.errors import ConfigError, DataError, NumericsError, listed
from milo_restore.files.lock import FolderLock
from milo_restore.files.write import settle
from milo_restore.processes import gather, on_main
from milo_restore.train import bad_files, best, checkpoint, health, identity
from milo_restore.train.diverged import Diverged
from milo_restore.train.feed import MicroBatch, feed
from milo_restore.train.guard import Outcome, Step, culprits, take_step
from milo_restore.train.introduce import introduction, peak
from milo_restore.train.log import Journal, environment
from milo_restore.train.opening import open_folder
from milo_restore.train.processes import deterministic, start_accelerator
from milo_restore.train.schedule import check_split, learning_rate
from milo_restore.train.settings import TrainSettings, check_best
from milo_restore.train.signals import StopSignals
from milo_restore.train.state import TrainingState
from milo_restore.train.waiting import Waiting
from milo_restore.train.watch import GamingWatch


@dataclass(frozen=True)
class FitResult:
    """Result of `fit`."""

    step: int  # the last step done
    finished: bool  # whether that was the last of the run, planned or by ``stop``; then ``final`` exists
    stopped: bool  # whether SIGINT or SIGTERM came; the state is saved
    signal: int | None  # which of the two
    loss: float | None  # of the last step done by this call; None where there was none left to do
    evaluation: dict[str, float] | None  # the latest of this call
    final: Path | None  # the folder of the final weights
    best: Path | None  # the folder of the best weights, where ``keep_best`` names what is best
    seconds: float  # wall-clock time of this call
    changes: tuple[str, ...] = ()  # what was changed on the way, from which step on, in words

    @property
    def exit_code(self) -> int:
        """Exit code of a program that only trains: 0, or 128 + the signal that stopped it, as in shells."""
        return 128 + self.signal if self.signal is not None else 0

    @property
    def notice(self) -> str | None:
        """Sentence for readers of the run's numbers where it was changed on its way; else None."""
        return f"This run was changed on its way: {'; '.join(self.changes)}" if self.changes else None


@dataclass
class _Run:
    """State of one call of `fit`."""

    state: TrainingState
    journal: Journal
    settings: TrainSettings
    output: Path
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None
    sample: Callable[[nn.Module], np.ndarray[Any, Any]] | None
    curriculum: Callable[[int], float] | None
    lower_better: Mapping[str, bool]
    evaluation: dict[str, float] | None = None
    loss: float | None = None
    watch: GamingWatch = field(default_factory=GamingWatch)
    told: bool = False  # of the memory that a step takes
    readings: list[tuple[float, float]] | None = None  # L1 and MILO of the steps since the last line; None: no step yet


def fit(
    model: nn.Module,
    step: Step,
    data: Any,
    settings: TrainSettings,
    output: str | Path,
    *,
    resume: str | Path | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    sample: Callable[[nn.Module], np.ndarray[Any, Any]] | None = None,
    curriculum: Callable[[int], float] | None = None,
    lower_better: Mapping[str, bool] | None = None,
    record: Mapping[str, Any] | None = None,
    changes: Sequence[str] = (),
    until: int | None = None,
) -> FitResult:
    """Train ``model``, on one process or, under ``accelerate launch``, on many; save, and resume exactly.

    Args:
        model: trained in place. After a finished run it holds the final weights (the averaged ones, where kept).
        step: ``step(model, batch, number)`` gives the mean loss over the micro-batch, and optionally a dict of
            further scalars to log, as a loss's ``terms`` does; of these ``l1``, the mean absolute residual, stands
            beside the loss, and is watched together with ``milo``, see `milo_restore.train.watch`. It calls the model
            it is given, once, and not one from outside.
        data: ``data[key]`` gives a dict; a key unpacks as ``step, index, position, patch``. Collated samples arrive
            in ``step`` on the right device, with ``batch["position"]`` (int64) for keyed random numbers. Where it has
            a ``quarantine`` (`milo_restore.files.quarantine`), files that cannot be trained on are passed over.
        settings: the run's.
        output: the run folder. One process writes there: a second run is refused as long as the first one lives.
        resume: None: a fresh run, refused where the folder holds one already. ``"latest"``: the newest intact
            checkpoint, or a fresh start where there is none at all. A path: that checkpoint or nothing.
        evaluate: ``evaluate(model)`` gives numbers to log. Called on all processes; the main one's result counts.
        sample: ``sample(model)`` gives a picture, uint8 (H, W, 3) RGB. Called on the main process only.
        curriculum: the curriculum's position at a step, for the bar and the log.
        lower_better: of each number that ``evaluate`` gives, whether less is better; a ``keep_best`` that is none of
            them is refused before the start. Without it more is better, and the first evaluation shows what there is.
        record: what else to keep: ``"config"`` is the text of config.yaml, and ``"fixed"`` a dict of what is not
            written there (hashes of images and weights, ...); neither may change on resume, but for the keys of the
            configuration in ``"free"``, such as where caches lie. The rest goes to env.json and the final metadata;
            of these ``"about"``, such as ``{"data": "3 images", "loss": "milo"}``, is also told at the start.
        changes: keys that may differ on resume all the same. What differs is then on record as ``changes`` in
            state.json, env.json and final/metadata.json.
        until: pause after this step with a checkpoint, as if stopped; the schedules still see the whole run.

    Raises:
        ConfigError: a folder already in use, a setting changed on resume, a batch too small to split.
        WeightsError: a damaged checkpoint named by path, or none intact.
        DataError: more files than ``max_bad_files`` lets pass cannot be trained on; the state is saved.
        NumericsError: ``max_bad_steps`` steps in a row with a non-finite loss or gradient. Where other samples can be
            trained on, the state is saved. Where the weights have diverged, it is not, and the checkpoints that hold
            them are renamed: ``"latest"`` is then the newest one after which a step was finite.
        MiloRestoreError: the run folder cannot be written; the previous checkpoint is intact.
    """
    began, output, record = time.perf_counter(), Path(output), dict(record or {})
    config, free = record.get("config"), record.pop("free", ())
    if lower_better is not None:
        check_best(settings, lower_better)
    accelerator = start_accelerator(settings, output)
    check_split(settings, accelerator.num_processes)
    with contextlib.ExitStack() as stack:
        lock = FolderLock(output)
        stack.callback(lock.release)
        source, notes = on_main(lambda: open_folder(output, resume, lock))
        values = None if config is None else identity.flattened(config, free)
        quarantine = getattr(data, "quarantine", None)
        state = TrainingState(model, settings, accelerator, record.get("fixed", {}), values, quarantine)
        stack.callback(state.release)
        if source is not None:
            notes += state.read(source, changes)
        if state.step > settings.steps:
            what = f"the run ends at step {settings.steps}, the checkpoint is of step {state.step}"
            raise ConfigError(what, where="training.stages", mend="Make the last stage longer")
        record["changes"] = state.lineage
        last = min(settings.steps if until is None else until, settings.steps)
        journal = Journal(accelerator, output, settings, record, state.step, last)
        stack.callback(journal.close)
        if curriculum is not None and curriculum(1) != curriculum(settings.steps):
            notes.append(
                "the loss follows a curriculum: its values do not compare between steps, l1's and evaluations do"
            )
        for note in [*introduction(state, settings, output, last, record.get("about", {})), *notes]:
            journal.say(note)
        bad_files.start(state, journal, output)
        bad_files.check(state, settings, output)
        run = _Run(state, journal, settings, output, evaluate, sample, curriculum, lower_better or {})
        stack.enter_context(deterministic(settings.deterministic))
        signals = stack.enter_context(StopSignals())
        _train(run, step, data, last, signals)
        stopped = any(gather(bool(signals.received)))
        finished = state.step == settings.steps or state.waiting.over(settings.stop)
        final = _finish(run, record) if finished else None
    received = (signals.received or SIGTERM) if stopped else None  # None: another process received it
    seconds = time.perf_counter() - began
    kept = output / "best" if (output / "best").exists() else None
    told = tuple(identity.told(state.lineage))
    return FitResult(state.step, finished, stopped, received, run.loss, run.evaluation, final, kept, seconds, told)


def _train(run: _Run, step: Step, data: Any, last: int, signals: StopSignals) -> None:
    """The loop, up to ``last`` or a signal."""
    state, settings, accelerator = run.state, run.settings, run.state.accelerator
    process, processes = accelerator.process_index, accelerator.num_processes
    pin = accelerator.device.type == "cuda"
    if state.step:
        # What a kill right after the checkpoint left out; and where evaluations count, the one that it is older than.
        _show(run, again=settings.stop is None or state.waiting.at == state.step)
    if state.waiting.over(settings.stop):
        return
    steps = feed(data, settings, state.step + 1, last, process, processes, pin=pin)
    with contextlib.closing(steps):
        for number, batches in steps:
            outcome, losses = take_step(state, step, number, batches, settings, lambda: bool(signals.received))
            state.step = number
            run.loss = outcome.loss
            if outcome.skipped:
                _report_skipped(run, step, data, outcome, (batches, losses))
            else:
                state.bad_steps, state.sound = 0, number
            _log(run, outcome)
            _pass_over(run, outcome, batches)
            # One process need not wait for the next exchange to know that it was asked to stop.
            stop = number < last and (outcome.stop or (processes == 1 and bool(signals.received)))
            if stop:
                run.journal.say(f"stopping after step {number}: saving")
            # Before anything slow: whoever sent a signal may not wait. In a row of bad steps the weights are those of
            # the step before it, and perhaps the reason.
            saved = stop or number == last or (number % settings.checkpoint_every == 0 and not state.bad_steps)
            if saved:
                _save(run)
            _show(run)
            over = state.waiting.over(settings.stop)
            if over or (saved and settings.stop is not None and state.waiting.at == number):
                _save(run)  # now with this evaluation, which counts
            if over:
                run.journal.say(f"ending after step {number}: of {settings.keep_best} {state.waiting}")
            if stop or over:
                return


def _pass_over(run: _Run, outcome: Outcome, batches: list[MicroBatch]) -> None:
    """Put on record what cannot be trained on; stop the run, which can be gone on with, where it is too much."""
    if not outcome.found:
        return
    bad_files.record(run.state, run.journal, run.output, batches)
    try:
        bad_files.check(run.state, run.settings, run.output)
    except DataError:
        if not run.state.bad_steps:
            _save(run)
        raise


def _report_skipped(
    run: _Run, step: Step, data: Any, outcome: Outcome, found: tuple[list[MicroBatch], list[torch.Tensor]]
) -> None:
    """Name the samples of a skipped step; stop the run where it was one too many in a row."""
    state, settings = run.state, run.settings
    names = culprits(*found)
    run.journal.write(state.step, {"skipped": outcome.skipped, "samples": names}, track=False)
    if outcome.skipped == "overflow":
        return
    state.bad_steps += 1
    samples = listed(names, 16)
    run.journal.say(f"step {state.step} skipped: the {outcome.skipped} is not finite; samples: {samples}")
    if state.bad_steps < settings.max_bad_steps:
        return
    what = f"the {outcome.skipped} was not finite in {settings.max_bad_steps} steps in a row"
    if not health.sound(state, step, data, settings):
        _diverged(run, f"{what}, and is not on samples for which it was: the weights have diverged")
    state.bad_steps = 0  # whoever resumes has seen this error, and gets as many tries again
    _save(run, prune=False)  # the last good checkpoint stays, whatever keep_checkpoints says
    raise NumericsError(
        f"{what}; weights are unchanged since",
        where=f"step {state.step}, samples {samples}",
        mend="Look at these samples, lower learning_rate, or set mixed_precision to 'no'",
    )


def _diverged(run: _Run, what: str) -> NoReturn:
    state = run.state
    left = on_main(lambda: health.set_aside(run.output, state))
    raise Diverged(what, where=f"step {state.step}", rate=run.settings.learning_rate, left=left)


def _log(run: _Run, outcome: Outcome) -> None:
    state, settings, journal = run.state, run.settings, run.journal
    rate = learning_rate(state.step, settings)
    position = None if run.curriculum is None else float(run.curriculum(state.step))
    if not run.told:
        journal.say(f"memory after the first step: {peak(state.accelerator.device)}")
        run.told = True
    journal.advance(outcome.loss, outcome.parts.get("l1"), rate, position)
    if not outcome.skipped:
        _watch(run, outcome)
    if outcome.skipped or (state.step % settings.log_every and state.step != settings.steps):
        return
    values = {"loss": outcome.loss, **outcome.parts, "lr": rate, "gradient_norm": outcome.gradient_norm}
    if position is not None:
        values["curriculum"] = position
    journal.progress(state.step, values)


def _watch(run: _Run, outcome: Outcome) -> None:
    """Say once how large the loss is beside L1; have the first step, and the mean of every line's steps, watched."""
    step, l1, milo = run.state.step, outcome.parts.get("l1"), outcome.parts.get("milo")
    if l1 is None:
        return
    if step == 1 and l1 > 0:
        run.journal.say(f"loss / L1 on the first batch: {outcome.loss / l1:.3g}")
    if milo is None:
        return
    first = run.readings is None
    run.readings = run.readings or []
    run.readings.append((l1, milo))
    if first or step % run.settings.log_every == 0:
        means = [sum(values) / len(run.readings) for values in zip(*run.readings)]
        run.readings.clear()
        _warn(run, run.watch.observe(step, means[0], means[1]))


def _warn(run: _Run, line: str | None) -> None:
    if line is not None:
        run.journal.say(f"warning: {line}")
        run.journal.write(run.state.step, {"warning": line}, track=False)


def _show(run: _Run, *, again: bool = False) -> None:
    """The sample picture and the evaluation, where they are due, with the weights that the run would end with.

    Args:
        run: the run.
        again: only what is not in the run folder yet.
    """
    state, settings = run.state, run.settings
    shown = on_main(lambda: run.journal.shown(state.step)) if again else (False, False)
    due = [
        every is not None and not there and (state.step % every == 0 or state.step == settings.steps)
        for every, there in zip((settings.sample_every, settings.evaluate_every), shown)
    ]
    if run.sample is not None and due[0] and state.accelerator.is_main_process:
        with state.averaged() as model:
            picture = run.sample(model)
        run.journal.picture(state.step, picture)
    if run.evaluate is not None and due[1]:
        with state.averaged() as model:
            run.evaluation = {key: float(value) for key, value in run.evaluate(model).items()}
        if settings.keep_best is not None:  # first: the line says that all is done
            _offer(run, settings.keep_best, run.evaluation)
        run.journal.write(state.step, {"evaluation": run.evaluation})
        numbers = "  ".join(f"{key} {value:.4g}" for key, value in run.evaluation.items())
        run.journal.say(f"step {state.step} evaluation: {numbers}")
        _warn(run, run.watch.evaluated(state.step, run.evaluation))


def _offer(run: _Run, name: str, evaluation: Mapping[str, float]) -> None:
    """Keep the weights if they are the best; count how long none were."""
    state, lower = run.state, run.lower_better.get(name, False)

    def act() -> Waiting:  # on one process: others' numbers may differ in their last bits
        best.offer(run.output / "best", state, evaluation, lower=lower)
        return state.waiting.after(state.step, evaluation[name], lower=lower)

    state.waiting = on_main(act)


def _save(run: _Run, *, prune: bool = True) -> None:
    """Publish a checkpoint of the present step; every process learns whether it worked."""
    state, target = run.state, run.output / f"checkpoint-{run.state.step:06d}"
    if not health.finite(state):  # equal on all processes
        _diverged(run, "the weights are not finite")

    def act() -> None:
        run.journal.sync()
        checkpoint.publish(target, state.write)
        if prune and not state.bad_steps:
            checkpoint.prune(run.output, target, run.settings.keep_checkpoints, state.sound)

    on_main(act)


def _finish(run: _Run, record: Mapping[str, Any]) -> Path:
    """Write final/ and leave the final weights in the model."""
    state, target = run.state, run.output / "final"
    averaged = state.ema is not None
    if state.ema is not None:
        state.ema.copy_to(state.parameters)

    def write(folder: Path) -> None:
        save_model(state.module, str(folder / "model.safetensors"), {"format": "pt", "step": str(state.step)})
        settle(folder / "model.safetensors")
        about = {"step": state.step, "averaged": averaged, "settings": state.fingerprint, **environment()}
        about.update({key: value for key, value in record.items() if key != "config"})
        (folder / "metadata.json").write_text(json.dumps(about, indent=1, default=str) + "\n", encoding="utf-8")

    on_main(lambda: checkpoint.publish(target, write))
    return target
