"""Content of the report: measured runs, put side by side where they restored the same images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milo_restore.errors import ConfigError, DataError
from milo_restore.measure.restorer import PROVENANCE, RESTORED, RESULTS
from milo_restore.measure.results import read_results


@dataclass(frozen=True)
class Run:
    """One method on one set of images.

    Attributes:
        label: the method's name.
        file: the results.json.
        results: its content.
        provenance: the provenance.json beside it; empty where there is none.
    """

    label: str
    file: Path
    results: dict[str, Any]
    provenance: dict[str, Any]

    def picture(self, role: str, image: dict[str, Any]) -> Path | None:
        """Path of an image's ``pred``, ``ref`` or ``input``; None where the run has none."""
        folder, name = self.results[role], image[role]
        return None if folder is None or name is None else Path(folder) / name

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the images, without suffix; of those in subfolders with the way there."""
        return tuple(Path(image["name"]).with_suffix("").as_posix() for image in self.results["images"])


@dataclass(frozen=True)
class Group:
    """Runs that restored the same images.

    Attributes:
        title: of the section.
        runs: side by side, in order.
    """

    title: str
    runs: tuple[Run, ...]

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Description of each metric that some run measured, by name."""
        found: dict[str, dict[str, Any]] = {}
        for run in self.runs:
            for name, about in run.results["metrics"].items():
                found.setdefault(name, about)
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the images."""
        return self.runs[0].names

    @property
    def notices(self) -> tuple[str, ...]:
        """Warnings from the runs' provenance, each once."""
        return tuple(dict.fromkeys(run.provenance["notice"] for run in self.runs if run.provenance.get("notice")))

    @property
    def source(self) -> Run | None:
        """A run whose inputs are those of all runs that name any; None where there are none, or others."""
        named = [run for run in self.runs if run.results["input"] is not None]
        return named[0] if len({run.results["input"] for run in named}) == 1 else None

    @property
    def milo(self) -> str | None:
        """The MILO that measured all runs against references, by the metric's name."""
        if any(run.results["ref"] is None for run in self.runs):
            return None
        names = [name for name in self.metrics if name.split(":")[0] == "milo"]
        return next((name for name in names if all(name in run.results["metrics"] for run in self.runs)), None)

    @property
    def ranking(self) -> str | None:
        """The metric that says which images are the best and the worst: MILO where it was measured, else the first."""
        names = [name for name in self.metrics if name.split(":")[0] == "milo"] or list(self.metrics)
        return names[0] if names else None

    def values(self, metric: str) -> list[list[float | None]]:
        """Values of every image, of every run."""
        return [[image["values"].get(metric) for image in run.results["images"]] for run in self.runs]


def read_runs(names: Sequence[str]) -> list[Run]:
    """The runs that are asked for.

    Args:
        names: each a folder with a results.json, a run folder of a recipe with some below it, or such a file; or
            ``LABEL=`` and one of these. What several runs share, such as the degraded input, is shown once.

    Raises:
        DataError: a file is missing or no results.json.
        ConfigError: one run is given twice.
    """
    runs, seen = [], set()
    for name in names:
        label, separator, path = name.partition("=")
        given = label if separator and not Path(name).exists() else None
        files = find_results(Path(name if given is None else path))
        for file in files:
            run = _read(file, given if len(files) == 1 or file.parent.name == RESTORED else None)
            pictures = tuple((image["sha256"]["pred"], image["sha256"]["ref"]) for image in run.results["images"])
            if len(files) == 1 or (run.label, pictures) not in seen:
                runs.append(run)
            seen.add((run.label, pictures))
    found = [run.file.resolve() for run in runs]
    if twice := [run.file for run, file in zip(runs, found) if found.count(file) > 1]:
        raise ConfigError("is given twice", where=twice[0])
    return runs


def find_results(path: Path) -> list[Path]:
    """The results.json of a folder, or all of those below it, or the file itself.

    Raises:
        DataError: there is none.
    """
    files = [path]
    if path.is_dir():
        files = [path / RESULTS] if (path / RESULTS).is_file() else sorted(path.rglob(RESULTS))
    if not files or not files[0].is_file():
        mend = "Give a run folder that has finished, or a folder or file that 'milo-restore evaluate --output' wrote"
        raise DataError("no such results", where=path, mend=mend)
    return files


def _read(file: Path, given: str | None) -> Run:
    results = read_results(file)
    provenance: dict[str, Any] = {}
    if (record := file.parent / PROVENANCE).is_file() and file.name == RESULTS:
        try:
            provenance = json.loads(record.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"cannot be read ({error})", where=record, mend="Remove or mend it") from error
        _check_provenance(provenance, record)
    default = file.parent.name if file.name == RESULTS else file.stem
    return Run(given or provenance.get("method") or default or str(file), file, results, provenance)


def _check_provenance(record: Any, where: Path) -> None:
    """Refuse what the page could not show.

    Raises:
        DataError: the record, or a part of it, is of another kind.
    """
    kinds: dict[str, Any] = dict.fromkeys(("paper", "digits", "configs"), dict)
    kinds |= {"order": int, **dict.fromkeys(("group", "method", "title"), str)}
    wrong = ["the whole"]
    if isinstance(record, dict):
        wrong = [key for key, kind in kinds.items() if key in record and not isinstance(record[key], kind)]
    if not wrong:
        numbers = record.get("paper", {}).values()
        wrong = [] if all(value is None or isinstance(value, (int, float)) for value in numbers) else ["paper"]
    if wrong:
        what = f"is no provenance.json of format 1 ({', '.join(wrong)})"
        raise DataError(what, where=where, mend="Remove or mend it; 'milo-restore tables' writes such files")


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Put runs side by side: by the group that their provenance names, else where names and references are the same.

    Test sets of one run have titles, which keep those apart that degrade the same images in several ways.

    Raises:
        ConfigError: runs of one group have other images or references, or one label.
    """
    found: dict[Any, list[Run]] = {}
    for run in runs:
        found.setdefault(run.provenance.get("group") or (run.provenance.get("title"), _identity(run)), []).append(run)
    groups = []
    for key, members in found.items():
        ordered = sorted(members, key=lambda run: run.provenance.get("order", 0))
        title = key if isinstance(key, str) else ordered[0].provenance.get("title") or _title(ordered[0])
        for run in ordered[1:]:
            if _identity(run) != _identity(ordered[0]):
                what = f"has other images or references than {ordered[0].file}, both of {title}"
                raise ConfigError(what, where=run.file, mend="Compare runs on the same images")
        groups.append(Group(title, tuple(_labelled(ordered))))
    return groups


def _identity(run: Run) -> tuple[Any, ...]:
    """Names and references' hashes; without references, the folder of the inputs."""
    references = tuple(image["sha256"]["ref"] for image in run.results["images"])
    return run.names, references, None if any(references) else run.results["input"]


def _title(run: Run) -> str:
    folder = run.results["ref"] or run.results["input"] or run.results["pred"]
    return "/".join(Path(folder).parts[-2:])


def _labelled(runs: Sequence[Run]) -> list[Run]:
    """Two runs of one label get their folders' names behind it."""
    labels = [run.label for run in runs]
    named = [
        run if labels.count(run.label) == 1 else Run(
            f"{run.label} ({run.file.parent.name})", run.file, run.results, run.provenance
        )
        for run in runs
    ]  # fmt: skip
    labels = [run.label for run in named]
    for run in named:
        if labels.count(run.label) > 1:
            raise ConfigError(f"a second run called {run.label}", where=run.file, mend="Give LABEL=PATH")
    return named


def extremes(group: Group, count: int) -> list[int]:
    """Images that are worth a look where not all can be shown, in the order of the images.

    Args:
        group: of which.
        count: how many. Each run's best and worst by `Group.ranking` take turns, so that every run's own are among
            them; images without a value come last.
    """
    everything = range(len(group.names))
    if group.ranking is None or count >= len(group.names):
        return list(everything[:count])
    sign = -1.0 if group.metrics[group.ranking]["better"] == "higher" else 1.0
    orders = []
    for values in group.values(group.ranking):
        known = [(sign * value, number) for number, value in enumerate(values) if value is not None]
        orders.append([number for _, number in sorted(known)])
    turns = [
        order[place]
        for step in everything
        for place in (step, -1 - step)
        for order in orders
        if step < len(order)
    ]  # fmt: skip
    return sorted(list(dict.fromkeys([*turns, *everything]))[:count])
