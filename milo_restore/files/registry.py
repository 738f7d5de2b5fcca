"""Registry of outside files: ``third_party/upstream.toml`` and the index of data set files beside it."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from milo_restore.errors import DataError

RAW_HOST = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class RemoteFile:
    """One outside file, pinned by what is known of it.

    Attributes:
        name: its file name here.
        bytes: its size; 0 where it is not known.
        sha256: its hash; empty where it is not known.
        source: ``owner/repository@commit:path`` on GitHub, or an address.
        git_blob: git's hash of it; empty where it is not known or not needed.
    """

    name: str
    bytes: int
    sha256: str
    source: str
    git_blob: str = ""

    @property
    def url(self) -> str:
        """Where it is downloaded from."""
        if self.source.startswith("https://"):
            return self.source
        place, _, path = self.source.partition(":")
        repository, _, commit = place.partition("@")
        return f"{RAW_HOST}/{repository}/{commit}/{quote(path)}"


def third_party() -> Path:
    """The folder of ``upstream.toml``: inside the installed package, or beside it in a source checkout.

    Raises:
        DataError: it is in neither place, so the installation is incomplete.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "third_party", package.parent / "third_party"):
        if (folder / "upstream.toml").is_file():
            return folder
    where = package / "third_party" / "upstream.toml"
    raise DataError("the registry of weights and data sets is missing", where=where, mend="Install milo-restore again")


@functools.cache
def upstream() -> dict[str, Any]:
    """``upstream.toml``, parsed: tables ``repositories``, ``weights``, ``pyiqa`` and ``datasets``."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    with (third_party() / "upstream.toml").open("rb") as file:
        return tomllib.load(file)


@functools.cache
def dataset_index() -> dict[str, dict[str, RemoteFile]]:
    """The known files of each data set, by data set and file name."""
    index: dict[str, dict[str, RemoteFile]] = {}
    lines = (third_party() / "datasets.tsv").read_text(encoding="utf-8").splitlines()
    for line in lines[1:]:
        dataset, name, size, sha256, source = line.split("\t")
        index.setdefault(dataset, {})[name] = RemoteFile(name, int(size), sha256, source)
    return index


def weight_file(name: str) -> RemoteFile:
    """The pinned file of a table ``weights.<name>``."""
    table = upstream()["weights"][name]
    repository = upstream()["repositories"][table["repository"]]
    source = f"{repository['name']}@{repository['commit']}:{table['path']}" if "path" in table else table["url"]
    known = table.get("bytes", 0), table.get("sha256", "")
    return RemoteFile(table["file"], *known, source, table.get("git_blob", ""))
