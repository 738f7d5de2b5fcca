"""Folders of the Hugging Face hub: found in its local cache, or downloaded into it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from milo_restore.errors import ConfigError, WeightsError

WEIGHTS_FILE = "model.safetensors"
"""Name of the weight file in a folder that this project writes for the hub."""
_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")
_FILES = (".pth", ".pt", ".ckpt", ".safetensors")


def parse_repository(name: str | Path) -> tuple[str, str | None] | None:
    """OWNER/NAME or OWNER/NAME@REVISION in its parts; None for anything else, and for what is a path here."""
    if not isinstance(name, str) or Path(name).expanduser().exists() or name.endswith(_FILES):
        return None
    found = _NAME.fullmatch(name)
    return None if found is None else (found[1], found[2])


def at_revision(name: str | Path, revision: str | None) -> str | Path:
    """A repository's name with its revision, as `parse_repository` reads it; without one, the name as it is.

    Raises:
        ConfigError: a revision of what is no repository, or a second one.
    """
    if revision is None:
        return name
    if (parsed := parse_repository(name)) is None or parsed[1] is not None:
        mend = "Leave it out, or name a repository of the Hugging Face hub as OWNER/NAME"
        raise ConfigError(f"{str(name)!r} has no revisions", where="revision", mend=mend)
    return f"{name}@{revision}"


def weights_folder(name: str | Path) -> Path | None:
    """The folder with `WEIGHTS_FILE` that a name means; None where it names neither a folder nor a repository.

    Args:
        name: a folder here; or OWNER/NAME or OWNER/NAME@REVISION on the hub, as it lies in the local cache, and
            downloaded where it does not.

    Raises:
        WeightsError: there is no such file in it, or it cannot be downloaded.
    """
    if (parsed := parse_repository(name)) is not None:
        return repository_folder(*parsed, patterns={"allow_patterns": ["*.json", WEIGHTS_FILE]}, lacking=_lacking)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return None
    if _lacking(folder):
        raise WeightsError(f"holds no {WEIGHTS_FILE}", where=folder, mend="Name a weight file, or another folder")
    return folder


def repository_folder(
    name: str,
    revision: str | None = None,
    *,
    patterns: dict[str, Any],
    lacking: Callable[[Path], list[str]],
    hint: str = "",
) -> Path:
    """A repository's folder in the local cache where it is complete there, and downloaded otherwise.

    Args:
        name: OWNER/NAME.
        revision: a branch, a tag or a commit; by default ``main``, of which the cache may hold an older state.
        patterns: huggingface_hub's ``allow_patterns`` and ``ignore_patterns``.
        lacking: what a folder lacks, by name.
        hint: appended to the remedy of a failed download.

    Raises:
        WeightsError: it cannot be downloaded, or lacks something.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    options = patterns if revision is None else {**patterns, "revision": revision}
    at = name if revision is None else f"{name} --revision {revision}"
    try:
        cached = Path(snapshot_download(name, local_files_only=True, **options))
        if not lacking(cached):
            return cached
    except (OSError, ValueError):  # it is not there at all
        pass
    # Older huggingface_hub's errors, and those of the HTTP library below it, share no base with OSError.
    expected = (OSError, ValueError, RuntimeError, HfHubHTTPError)
    try:
        folder = Path(snapshot_download(name, **options))
    except expected as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160].strip(" .:")
        mend = (
            f"With a network: hf download {at} (it may ask for a login){hint}. Without: copy such a folder here and "
            "name its path"
        )
        what = f"is no folder here, and cannot be had from the Hugging Face hub ({reason})"
        raise WeightsError(what, where=name, mend=mend) from error
    if missing := lacking(folder):  # offline, the call above gives what is in the cache
        what = f"of its repository on the Hugging Face hub, no complete {', '.join(missing)} could be had"
        mend = f"With a network: hf download {at}. Its parts must be there as safetensors, else name another"
        raise WeightsError(what, where=name, mend=mend)
    return folder


def _lacking(folder: Path) -> list[str]:
    return [] if (folder / WEIGHTS_FILE).is_file() else [WEIGHTS_FILE]
