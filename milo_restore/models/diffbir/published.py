"""DiffBIR's published models, ready to restore with: fetched, converted, tested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from milo_restore.errors import MiloRestoreError, WeightsError
from milo_restore.files import registry, weights
from milo_restore.files.hub import parse_repository, repository_folder
from milo_restore.files.manifest import verify
from milo_restore.files.published import BASES, hold_hashes, model_folder
from milo_restore.models.diffbir.components import find_base
from milo_restore.models.diffbir.convert import convert_diffbir

__all__ = ["fetch_base", "fetch_model", "fetch_tokenizer"]

Report = Callable[[str], None]
_PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
_TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json")


def fetch_base(name: str, report: Report = lambda line: None) -> Path:
    """A base of `BASES` in the hub's cache, from the first of its addresses that has it.

    Its files are held to what they were at the first fetch.

    Args:
        name: such as ``sd21-base``.
        report: called with a line for every address that failed.

    Raises:
        WeightsError: no address has it, or a file is another one than at first.
    """
    return _first(name, find_base, _PARTS, report)


def fetch_tokenizer(name: str, report: Report = lambda line: None) -> Path:
    """The tokenizer of a base alone, as `fetch_base`."""

    def get(address: str) -> Path:
        repository, revision = parse_repository(address) or (address, None)
        patterns = {"allow_patterns": [f"tokenizer/{file}" for file in (*_TOKENIZER, "special_tokens_map.json")]}
        return repository_folder(repository, revision, patterns=patterns, lacking=_without_tokenizer)

    return _first(name, get, ("tokenizer",), report) / "tokenizer"


def _without_tokenizer(folder: Path) -> list[str]:
    return [f"tokenizer/{file}" for file in _TOKENIZER if not (folder / "tokenizer" / file).is_file()]


def _first(name: str, get: Callable[[str], Path], parts: tuple[str, ...], report: Report) -> Path:
    failures = []
    for address in registry.upstream()["bases"][name]["addresses"]:
        try:
            folder = get(address)
        except WeightsError as error:
            failures.append(f"{address} {error.what}")
            report(f"{name}: {failures[-1]}")
            continue
        paths = [path for part in parts for path in (folder / part).rglob("*") if path.is_file()]
        record = hold_hashes(name, address, folder, paths)
        report(f"{name}: {address}, {len(paths)} files as in {record}")
        return folder
    mend = "See which addresses live: milo-restore doctor --online"
    raise WeightsError("; ".join(failures), where=name, mend=mend)


def fetch_model(name: str, root: Path | None = None, report: Report = lambda line: None) -> Path:
    """A model of `milo_restore.files.published.MODELS` in diffusers' format: base, control and tokenizer in one folder.

    What is missing is downloaded (base and tokenizer to the hub's cache), the cleaners of the version with it. The
    conversion ends with its self-test.

    Args:
        name: such as ``diffbir-v2``.
        root: where it is made, and where weights are looked for and downloaded to; by default the cache.
        report: called with one line for each thing done.

    Raises:
        MiloRestoreError: something cannot be had or written, does not fit, or is damaged.
    """
    out = model_folder(name, root)
    if out.is_dir():
        verify(out, f"Delete the folder, then run 'milo-restore assets fetch {name}'")
        return out
    table = registry.upstream()["models"][name]

    def weight(part: str) -> Path:
        path = weights.find_weights(part, root) or weights.fetch_weights(part, root)
        report(f"{name}: {part} in {path}")
        return path

    control, _ = weight(table["control"]), [weight(cleaner) for cleaner in table["cleaners"]]
    if table["base"] in BASES:
        base, tokenizer = fetch_base(table["base"], report), None
    else:
        base, tokenizer = weight(table["base"]), fetch_tokenizer(table["tokenizer"], report)
    try:
        return convert_diffbir(control, base, out, table["version"], tokenizer=tokenizer, report=report)
    except MiloRestoreError as error:
        mend = ". ".join(filter(None, (error.mend, "What was downloaded stays; the same command goes on from there")))
        raise type(error)(error.what, where=error.where, mend=mend) from error
