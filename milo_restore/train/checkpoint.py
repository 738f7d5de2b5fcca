"""Checkpoints that are whole or not there: a temporary folder, a sha256 manifest, one rename, verified on load.

checkpoint-000500/
  model.safetensors   the training weights and buffers
  optimizer.pt        AdamW's state, and the loss scaler's under fp16
  ema.safetensors     the averaged weights, where they are kept
  state.json          the step, and the settings that must not change on resume
  manifest.json       size and sha256 of each file above, and a digest of its own
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from milo_restore.errors import MiloRestoreError, WeightsError

MANIFEST = "manifest.json"
_TEMPORARY = ".tmp-"
_ASIDE = f"{_TEMPORARY}old-"
_NAME = re.compile(r"checkpoint-(\d{6,})")


def step_of(folder: Path) -> int:
    """The step in a checkpoint folder's name; -1 where the name is not a checkpoint's."""
    match = _NAME.fullmatch(folder.name)
    return int(match.group(1)) if match else -1


def checkpoints(output: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first; intact or not."""
    return sorted((path for path in output.glob("checkpoint-*") if step_of(path) >= 0), key=step_of)


def clean(output: Path) -> None:
    """Remove what a killed run left half-written; put back what had stepped aside for it."""
    for path in output.glob(f"{_ASIDE}*"):
        target = output / path.name[len(_ASIDE) :].rpartition("-")[0]
        if not target.exists():
            os.rename(path, target)
    for path in output.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def publish(target: Path, write: Callable[[Path], None]) -> None:
    """Make the folder ``target`` with what ``write(folder)`` puts into it; whole and on disk, or not at all.

    A folder already there is replaced.

    Raises:
        MiloRestoreError: where it cannot be written (full disk, no permission). Nothing is left behind, and
            what was there before is untouched.
    """
    temporary = target.parent / f"{_TEMPORARY}{target.name}-{os.getpid()}"
    try:
        with writing(target):
            temporary.mkdir(parents=True)
            write(temporary)
            _write_manifest(temporary)
            for path in (*temporary.iterdir(), temporary):
                sync(path)
            _replace(temporary, target)
            sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_file(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name and move it into place.

    Raises:
        MiloRestoreError: where it cannot be written.
    """
    temporary = path.with_name(f"{_TEMPORARY}{path.name}-{os.getpid()}")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Say what a failed write means. Full disks also show as torch's RuntimeError and safetensors' own error.

    Raises:
        MiloRestoreError: naming ``target``, the folder to make room in, and how to go on.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise MiloRestoreError(
            f"cannot be written ({str(error).splitlines()[0] if str(error) else type(error).__name__})",
            where=target,
            mend=f"Free space in {target.parent.absolute()} or allow writing there, then continue with --resume latest",
        ) from error


def _replace(temporary: Path, target: Path) -> None:
    """Rename; a folder already at ``target`` steps aside first, for rename does not overwrite folders."""
    aside = target.parent / f"{_ASIDE}{target.name}-{os.getpid()}"
    if target.exists():
        os.rename(target, aside)
    try:
        os.rename(temporary, target)
    except OSError:
        if aside.exists():
            os.rename(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _manifest_text(files: dict[str, Any]) -> str:
    """The manifest's one spelling; its own digest makes any change to it show."""
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"files": files, "digest": digest}, sort_keys=True, indent=1) + "\n"


def _write_manifest(folder: Path) -> None:
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in folder.iterdir()}
    (folder / MANIFEST).write_text(_manifest_text(files), encoding="utf-8")


def verify(folder: Path) -> None:
    """Check every byte of a checkpoint against its manifest, before any of it is interpreted.

    Raises:
        WeightsError: naming the first file that is missing, too many, or differs.
    """
    mend = "Resume from an intact checkpoint (--resume latest finds the newest)"
    manifest = folder / MANIFEST
    try:
        raw = manifest.read_bytes()
        files = json.loads(raw)["files"]
        if raw != _manifest_text(files).encode():
            raise ValueError("its own digest differs")
    except FileNotFoundError as error:
        raise WeightsError("is missing: not a complete checkpoint", where=manifest, mend=mend) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError("is damaged", where=manifest, mend=mend) from error
    for name in sorted({path.name for path in folder.iterdir()} - {MANIFEST} - set(files)):
        raise WeightsError("does not belong to the checkpoint", where=folder / name, mend=mend)
    for name, entry in files.items():
        path = folder / name
        try:
            if path.stat().st_size != entry["bytes"]:
                raise WeightsError(f"has {path.stat().st_size} bytes, not {entry['bytes']}", where=path, mend=mend)
            if _digest(path) != entry["sha256"]:
                raise WeightsError("is damaged: its sha256 is not the manifest's", where=path, mend=mend)
        except OSError as error:
            raise WeightsError(f"cannot be read ({error.strerror})", where=path, mend=mend) from error


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


def prune(output: Path, newest: Path, keep: int | None) -> None:
    """Delete checkpoints beyond the ``keep`` newest, counted back from ``newest``; later ones are not its to judge."""
    if keep is None:
        return
    old = [path for path in checkpoints(output) if step_of(path) <= step_of(newest)][:-keep]
    for path in old:
        # Renamed first: a kill halfway leaves a temporary folder, never a checkpoint with files missing.
        aside = output / f"{_TEMPORARY}gone-{path.name}-{os.getpid()}"  # not _ASIDE: it is not to come back
        os.rename(path, aside)
        shutil.rmtree(aside, ignore_errors=True)
