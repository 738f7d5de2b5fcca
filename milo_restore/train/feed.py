"""Feeds the loop: a DataLoader over the keys of the steps still to do. There is no sampler state."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from milo_restore.errors import MiloRestoreError
from milo_restore.files.quarantine import Quarantine
from milo_restore.train.schedule import Key, key_lists, micro_batches, stage_of
from milo_restore.train.settings import TrainSettings


class MicroBatch(NamedTuple):
    """A collated micro-batch, its keys, its share of the step's effective batch, and what making it brought to light.

    ``found`` are paths and reasons of files that cannot be trained on, see `milo_restore.files.quarantine`.
    """

    batch: dict[str, Any]
    keys: list[Key]
    share: float
    found: Sequence[tuple[str, str]] = ()

    def names(self) -> list[str]:
        """Names of its samples in a message: ``batch["name"]``, or else their positions in the run."""
        names = self.batch.get("name")
        return [str(name) for name in names] if names is not None else [f"sample {k.position}" for k in self.keys]


class _KeyedLists(Dataset[Any]):
    """Fetches whole lists of keys. A user's error comes back as a value, for a worker would wrap it in a traceback."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __getitems__(self, keys: Sequence[Key]) -> tuple[list[Any], list[tuple[str, str]]] | MiloRestoreError:
        quarantine: Quarantine | None = getattr(self.data, "quarantine", None)
        try:
            samples = [self.data[key] for key in keys]
        except MiloRestoreError as error:
            return error
        return samples, [] if quarantine is None else quarantine.drain()


def _collate(fetched: Any) -> Any:
    return fetched if isinstance(fetched, MiloRestoreError) else (default_collate(fetched[0]), fetched[1])


def _start_worker(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the whole process group; only the training process answers them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(1)  # workers share the machine with the training process and with one another


def _obey_parent(parent: int) -> None:
    """End on the training process's own SIGTERM, with which multiprocessing ends workers that are left at exit."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def feed(
    data: Any, settings: TrainSettings, first: int, last: int, process: int, processes: int, *, pin: bool
) -> Generator[tuple[int, list[MicroBatch]], None, None]:
    """Yield each step's number and this process's micro-batches, from step ``first`` to step ``last``.

    ``data[Key]`` gives a dict of tensors, numbers and strings, which are stacked into batches. ``batch["position"]``
    (int64, one per sample) is added where the data set does not set it: the key for random numbers drawn in a step.

    Raises:
        MiloRestoreError: the data set's own, unchanged, whichever worker met it.
    """
    loader: DataLoader[Any] = DataLoader(
        _KeyedLists(data),
        batch_sampler=_Lists(settings, first, last, process, processes),
        num_workers=settings.workers,
        worker_init_fn=_start_worker,
        collate_fn=_collate,
        pin_memory=pin,
        generator=torch.Generator().manual_seed(settings.seed),  # leaves the global generator alone
    )
    batches = iter(loader)  # one pass over the whole plan, so the workers live as long as the run
    try:
        for step in range(first, last + 1):
            whole = stage_of(step, settings)[0].batch
            parts = []
            for keys in micro_batches(step, settings, process, processes):
                fetched = next(batches)
                if isinstance(fetched, MiloRestoreError):
                    raise fetched
                batch, found = fetched
                batch.setdefault("position", torch.tensor([key.position for key in keys]))
                parts.append(MicroBatch(batch, keys, len(keys) / whole, found))
            yield step, parts
    finally:
        # Now, and not when the garbage collector finds them: a traceback would keep the workers alive.
        getattr(batches, "_shutdown_workers", lambda: None)()


class _Lists:
    """The batch sampler: `key_lists`, iterable."""

    def __init__(self, *plan: Any) -> None:
        self.plan = plan

    def __iter__(self) -> Iterator[list[Key]]:
        return key_lists(*self.plan)
