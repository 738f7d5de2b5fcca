"""Checkpoints that are whole or not there: a temporary folder, a sha256 manifest, one rename, verified on load.

checkpoint-000500/
  model.safetensors   the training weights and buffers
  optimizer.pt        AdamW's state, and the loss scaler's under fp16
  ema.safetensors     the averaged weights, where they are kept
  state.json          the step, and the settings that must not change on resume
  quarantine.jsonl    the files that cannot be trained on, where any were found
  manifest.json       size and sha256 of each file above, and a digest of its own
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from milo_restore.errors import WeightsError
from milo_restore.files import manifest, write
from milo_restore.files.write import ASIDE, TEMPORARY, is_temporary

_RESUME = ", then continue with --resume latest"

# A training's files and folders are written like all others; what went wrong ends with how to go on.
publish = partial(write.publish, then=_RESUME)
replace_file = partial(write.replace_file, then=_RESUME)
writing = partial(write.writing, then=_RESUME)
verify = partial(manifest.verify, mend="Resume from an intact checkpoint (--resume latest finds the newest)")

_BELOW = ("samples", "eval", "images.index")  # where pictures, tables and lists are written, folders below included
_NAME = re.compile(r"checkpoint-(\d{6,})")


def step_of(folder: Path) -> int:
    """The step in a checkpoint folder's name; -1 where the name is not a checkpoint's."""
    match = _NAME.fullmatch(folder.name)
    return int(match.group(1)) if match else -1


def checkpoints(output: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first; intact or not."""
    return sorted((path for path in output.glob("checkpoint-*") if step_of(path) >= 0), key=step_of)


def clean(output: Path) -> None:
    """Remove what a killed run left half-written; put back what had stepped aside for it. Others' files stay."""
    for path in output.glob(f"{ASIDE}*"):
        target = output / path.name[len(ASIDE) :].rpartition("-")[0]
        if not target.exists():
            os.rename(path, target)
    written = [output.glob(f"{TEMPORARY}*"), *((output / name).rglob(f"{TEMPORARY}*") for name in _BELOW)]
    for path in [path for found in written for path in found if is_temporary(path)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def newest_intact(output: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that verifies; each damaged one is named through ``say`` and passed over.

    Returns:
        None where the run has no checkpoints at all.

    Raises:
        WeightsError: where it has some, but none is intact.
    """
    found = checkpoints(output)
    for folder in reversed(found):
        try:
            verify(folder)
        except WeightsError as error:
            say(f"refused checkpoint {folder.name}: {error.where} {error.what}")
            continue
        return folder
    if found:
        raise WeightsError("no intact checkpoint is left", where=output, mend="Start again in another --output")
    return None


def prune(output: Path, newest: Path, keep: int | None, sound: int) -> None:
    """Delete checkpoints beyond the ``keep`` newest, counted back from ``newest``; later ones are not its to judge.

    The newest one after which a step was finite, ``sound`` at the latest, stays in any case: the weights of those that
    follow are not tried yet.
    """
    if keep is None:
        return
    found = [path for path in checkpoints(output) if step_of(path) <= step_of(newest)]
    tried = [path for path in found if step_of(path) < sound][-1:]
    old = [path for path in found[:-keep] if path not in tried]
    for path in old:
        # Renamed first: a kill halfway leaves a temporary folder, never a checkpoint with files missing.
        aside = output / f"{TEMPORARY}gone-{path.name}-{os.getpid()}"  # not ASIDE: it is not to come back
        os.rename(path, aside)
        shutil.rmtree(aside, ignore_errors=True)
