"""The processes of one run, started by ``accelerate launch`` or torchrun, and the device that a command runs on."""

from __future__ import annotations

import gc
import os
import platform
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from milo_restore.errors import ConfigError, MiloRestoreError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

_PATIENCE = timedelta(days=7)  # that one process waits for another, whose share of a folder may take longer


def rank_and_size() -> tuple[int, int]:
    """This process's number, from 0, and how many there are."""
    import torch.distributed as dist

    # Not accelerate's PartialState: made before an Accelerator, it sees one process on CPUs, however many there are.
    several = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if several else (0, 1)


def gather(mine: T) -> list[T]:
    """Every process's value, in the order of the processes, on every process; it must be picklable."""
    import torch.distributed as dist

    processes = rank_and_size()[1]
    gathered: list[Any] = [mine] * processes
    if processes > 1:
        dist.all_gather_object(gathered, mine)
    return gathered


def on_main(function: Callable[[], T]) -> T:
    """Call a function on the first process; return its result on every process.

    Raises:
        MiloRestoreError: the function's, on every process.
    """
    import torch.distributed as dist

    rank, processes = rank_and_size()
    answer: list[Any] = [None, None]
    if rank == 0:
        try:
            answer[0] = function()
        except MiloRestoreError as error:
            answer[1] = error
    if processes > 1:
        dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise answer[1]
    return cast(T, answer[0])


def over_processes(count: int, work: Callable[[int], T], *, title: str, progress: bool | None = None) -> list[T]:
    """Work on images, each of N processes on every N-th one; all return all results, in order.

    Args:
        count: how many images there are.
        work: the result of the image of that number, from 0; it must be picklable.
        title: of the progress bar.
        progress: show it on the main process; None: where standard error is a terminal.

    Raises:
        MiloRestoreError: ``work``'s, on all processes.
    """
    from tqdm import tqdm

    rank, processes = rank_and_size()
    hidden = rank > 0 or (None if progress is None else not progress)  # None: on terminals only
    mine = range(rank, count, processes)
    rows: list[tuple[int, T]] = []
    failure: MiloRestoreError | None = None
    try:
        for number in tqdm(mine, desc=title, unit="image", leave=False, disable=hidden):
            rows.append((number, work(number)))
    except MiloRestoreError as error:  # raised below, on all processes: the others would wait for this one for ever
        failure = error
    gathered = gather((rows, failure))
    for failure in [problem for _, problem in gathered if problem is not None]:
        raise failure
    ordered = sorted((row for part, _ in gathered for row in part), key=lambda row: row[0])
    return [row for _, row in ordered]


def leave() -> None:
    """End the process group, if there is one, and gloo's threads with it.

    A thread that lets go of its last tensor while the interpreter goes down aborts the process ("terminate called
    without an active exception", in 1 of 10 runs on busy CPUs, after everything was written). So nothing may hold the
    group any more. torch.distributed.nn does for ever where it is imported after the group was made, as
    DistributedDataParallel does it: the group is the default of its functions' arguments. Whoever makes a group imports
    that module before.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        gc.collect()  # DistributedDataParallel lies in reference cycles, and holds the group
        dist.destroy_process_group()


def start_processes(name: str | None) -> torch.device:
    """The device of ``--device``; where ``accelerate launch`` or torchrun started several processes, they meet here.

    Raises:
        ConfigError: no such device here, one for several processes, or fewer processes than were launched.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched == 1:
        return choose_device(name)
    import torch.distributed.nn  # noqa: F401 before there is a group: see leave
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    if name not in (None, "cpu"):
        mend = "Leave it out: each process gets its own. Or give cpu"
        raise ConfigError("several processes cannot share one device", where=f"--device {name}", mend=mend)
    patient = InitProcessGroupKwargs(timeout=_PATIENCE)
    on_cpu = name == "cpu" or choose_device(None).type == "cpu"
    accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[patient])
    if rank_and_size()[1] != launched:
        raise ConfigError(f"{launched} processes were launched, Accelerate sees {rank_and_size()[1]}")
    device: torch.device = accelerator.device
    return device


def choose_device(name: str | None) -> torch.device:
    """The device of ``--device``; without one, a GPU where there is one.

    Raises:
        ConfigError: no such device here.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0].rstrip(".")  # one whole sentence
        raise ConfigError(f"cannot be used here ({reason})", where=f"--device {name}", mend="Use cpu") from error
    return device


def native_bfloat16(device: torch.device) -> bool | None:
    """True if the hardware multiplies bfloat16 itself; elsewhere it is emulated, correctly and slowly.

    None where torch cannot tell: CPUs that are not x86, torch before 2.6, devices other than cpu and cuda.
    """
    import torch

    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    probes = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(probe() for probe in probes if probe is not None) if any(probes) else None
