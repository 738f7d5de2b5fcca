"""``milo-restore doctor``: what is installed here, what is found, and what to do about the rest.

The exit code is 0 where the basics work: the core's dependencies are there, a basicsr can be imported where one is
installed, and MILO scores an image with the authors' weights or the shipped ones. Otherwise it is 1. Missing data sets,
extras and accelerators are told, but are no failure.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import milo_restore
from milo_restore.errors import MiloRestoreError
from milo_restore.extras import BROUGHT_BY, how_to_install

_REQUIRED = ("torch", "numpy", "pyyaml", "safetensors", "pooch")
_DISTRIBUTIONS = {
    "PIL": ("pillow",),
    "skimage": ("scikit-image",),
    "cv2": ("opencv-python-headless", "opencv-python"),
    "stlpips_pytorch": ("stlpips-pytorch",),
    "flip_evaluator": ("flip-evaluator",),
}
_FOR = {
    "recipes": "images, training, measuring",
    "basicsr": "milo-restore basicsr, Real-ESRGAN's and CodeFormer's degradation, DiffBIR's cleaners",
    "diffusion": "DiffBIR",
    "faces": "faces in photographs",
    "eval": "other metrics; pyiqa is under PolyForm Noncommercial 1.0.0, for research and other non-commercial use",
    "data": "training images in WebDataset's shards and parquet tables",
}
_NEWEST = (3, 14)
_THERE = {
    "found": "",
    "unverified": " (another encoding than the known one)",
    "not checked": " (not checked: no hash of it is known)",
}
_MARKS = {"ok": "ok  ", "note": "note", "bad": "BAD "}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        state: ``ok``; ``note``: could be better, nothing of the basics; ``bad``: the basics do not work.
        text: what was found.
        mend: what to do about it.
    """

    state: Literal["ok", "note", "bad"]
    text: str
    mend: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``doctor``."""
    parser.add_argument(
        "--online", action="store_true", help="ask every address of the weights and data sets for its head, too"
    )
    parser.description = (
        "Show versions, devices, weights and data sets, and what to do about what is missing. "
        "Ends with exit code 0 where the basics work (the core, MILO with some weights), with 1 otherwise."
    )
    parser.add_argument("--torture", metavar="RECIPE", type=Path,
                        help="instead: kill this training at every operation on its files, fill the disk, resume, and "
                             "compare with the run that nobody disturbed; what follows -- are its options")  # fmt: skip
    parser.add_argument("--points", metavar="N", type=int, help="of --torture: at most N kills and N full disks")
    parser.add_argument("rest", metavar="-- OPTIONS", nargs="*", help=argparse.SUPPRESS)


def main(arguments: argparse.Namespace) -> int:
    """Print the report; 0 where the basics work, else 1."""
    if arguments.torture is not None:
        from milo_restore.cli.torture import torture

        return torture(arguments.torture, arguments.rest, arguments.points)
    sections: dict[str, Callable[[], list[Finding]]] = {
        "Versions": check_versions,
        "Extras": check_extras,
        "basicsr": check_basicsr,
        "Devices": check_devices,
        "MILO": check_metric,
        "Weights and data sets": check_assets,
    }
    if arguments.online:
        sections["Addresses"] = check_addresses
    bad = 0
    for title, check in sections.items():
        print(f"{title}")
        try:
            findings = check()
        except Exception as error:  # a broken installation is what this command is for: say so and go on
            findings = [Finding("bad", f"this check failed: {type(error).__name__}: {_first_line(error)}")]
        for finding in findings:
            print(f"  {_MARKS[finding.state]}  {finding.text}" + (f"\n        {finding.mend}" if finding.mend else ""))
            bad += finding.state == "bad"
    print("The basics work." if not bad else f"{bad} of the basics do not work: see the lines marked BAD.")
    return 1 if bad else 0


def check_versions() -> list[Finding]:
    """Python, this package, and everything that its core depends on."""
    supported = (3, 10) <= sys.version_info[:2] <= _NEWEST
    findings = [
        Finding("ok", f"milo-restore {milo_restore.__version__} in {Path(milo_restore.__file__).parent}"),
        Finding(
            "ok" if supported else "note" if sys.version_info >= (3, 10) else "bad",
            f"python {platform.python_version()} on {platform.platform()}",
            None if supported else "Tried with Python 3.10 to 3.14",
        ),
    ]
    for name in _REQUIRED:
        version = _version(name)
        mend = None if version else f"Run 'pip install {name}', or install milo-restore again"
        findings.append(Finding("ok" if version else "bad", f"{name} {version or 'is not installed'}", mend))
    return findings


def check_extras() -> list[Finding]:
    """The packages of each extra, and the one command that brings all that are missing."""
    findings, missing = [], []
    for extra, packages in BROUGHT_BY.items():
        versions = {name: _versions(name) for name in packages}
        there = [f"{distribution} {version}" for found in versions.values() for distribution, version in found.items()]
        lacking = [name for name, found in versions.items() if not found]
        missing += lacking
        what = f"{extra} ({_FOR[extra]}): {', '.join(there) or 'none of it'}"
        findings.append(
            Finding("note" if lacking else "ok", f"{what}; without {', '.join(lacking)}" if lacking else what)
        )
    if "basicsr" in missing and sys.version_info >= (3, 13):
        findings.append(Finding("note", "no basicsr", how_to_install(["basicsr"])))
        missing.remove("basicsr")
    if missing:
        findings.append(Finding("note", "for all of them", how_to_install(missing)))
    opencv = _versions("cv2")
    if len(set(opencv.values())) > 1:
        mend = f"Run pip install --force-reinstall --no-deps opencv-python-headless=={opencv['opencv-python']}"
        findings.append(Finding("note", "two versions of OpenCV lie in one folder", mend))
    return findings


def check_basicsr() -> list[Finding]:
    """Check that basicsr imports, and say by what means and which of the packages of that name it is."""
    spec = importlib.util.find_spec("basicsr")
    if spec is None:
        return [Finding("note", "no basicsr can be imported", f"To train by it: {how_to_install(['basicsr'])}")]
    from milo_restore.compat import GONE, StandIn, forks_on_path, is_restormer_fork

    places = [Path(place) for place in spec.submodule_search_locations or []]
    findings = []
    if any(is_restormer_fork(place) for place in places):
        mend = f"Train with it: milo-restore run --loss milo-cosine -- {places[0] / 'train.py'} -opt FILE.yml"
        return [Finding("note", f"{places[0]} is of Restormer's kind, which milo-restore basicsr does not know", mend)]
    loaded = {place.resolve() for place in places}
    for fork in forks_on_path():
        if fork.resolve() not in loaded:
            mend = "Python takes the installed one, whatever PYTHONPATH says; milo-restore run takes its script's own"
            findings.append(Finding("note", f"{fork} is another basicsr, of Restormer's kind, and not in use", mend))
    try:
        importlib.import_module("basicsr")
    except Exception as error:
        mend = f"{how_to_install(['basicsr'])}; leave it where your own program imports it"
        return [*findings, Finding("bad", f"basicsr in {places[0]} fails to import ({_first_line(error)})", mend)]
    stand_in = GONE in sys.modules and isinstance(sys.modules[GONE].__loader__, StandIn)
    how = f"with milo_restore.compat's stand-in for {GONE}" if stand_in else "as it is"
    return [*findings, Finding("ok", f"basicsr {_version('basicsr')} in {places[0]} imports {how}")]


def check_devices() -> list[Finding]:
    """Processor, threads, bfloat16, accelerators."""
    import torch

    from milo_restore.processes import native_bfloat16

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    capability = torch.backends.cpu.get_cpu_capability()
    findings = [Finding("ok", f"{cores} CPU cores, {torch.get_num_threads()} torch threads, {capability}")]
    native = native_bfloat16(torch.device("cpu"))
    if native:
        findings.append(Finding("ok", "the CPU computes in bfloat16"))
    else:
        what = (
            "the CPU has no bfloat16 instructions" if native is False else "torch cannot tell if the CPU has bfloat16"
        )
        mend = "compute_dtype=torch.bfloat16 may gain nothing here: measure with 'milo-restore bench'"
        findings.append(Finding("note", what, mend))
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        findings.append(Finding("note", f"no CUDA device ({built}): everything runs on the CPU"))
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        bfloat16 = "with" if native_bfloat16(torch.device("cuda", index)) else "without"
        findings.append(Finding("ok", f"cuda:{index} {properties.name}, {memory:.0f} GiB, {bfloat16} bfloat16"))
    return findings


def check_metric() -> list[Finding]:
    """Check that MILO runs, with the authors' weights (never downloaded here) or with the shipped ones."""
    import torch

    from milo_restore import MILO
    from milo_restore.files import find_weights

    findings, works = [], False
    for name in ("official", "mini"):
        try:
            if name == "official" and find_weights("milo") is None:
                findings.append(Finding("note", "official weights: not here", "Run 'milo-restore assets fetch milo'"))
                continue
            milo = MILO.from_pretrained(name)
            reference = torch.linspace(0, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
            same = float(milo(reference, reference=reference))
            other = float(milo(1 - reference, reference=reference))
        except MiloRestoreError as error:
            mend = "They ship with the package: install milo-restore again" if name == "mini" else error.mend
            where = f"{error.where} " if error.where else ""
            findings.append(Finding("note", f"{name} weights: {where}{error.what}", mend))
            continue
        if same == 0 and 0 < other < float("inf"):
            findings.append(Finding("ok", f"MILO scores with {milo.weights}"))
            works = True
        else:
            findings.append(Finding("bad", f"MILO with {milo.weights} scores {same} and {other} on two test images"))
    if not works:
        findings.append(Finding("bad", "MILO runs with no weights at all", "Run 'milo-restore assets fetch milo'"))
    return findings


def check_assets() -> list[Finding]:
    """Which named weights and data sets are found, and where they were looked for."""
    from milo_restore import files

    findings = []
    try:
        folder = files.assets_folder()
    except MiloRestoreError as error:
        return [Finding("bad", str(error))]
    findings.append(Finding("ok", f"MILO_RESTORE_ASSETS: {folder or 'not set'}; cache: {files.cache_folder()}"))
    missing = []
    for status in files.list_assets():
        if status.state in _THERE:
            findings.append(Finding("ok", f"{status.name} in {status.where}{_THERE[status.state]}"))
        elif status.state == "missing" and status.note == f"Run 'milo-restore assets fetch {status.name}'":
            missing.append(status.name)
        else:
            findings.append(Finding("note", f"{status.name} is {status.state}", status.note))
    if missing:
        every = f"For all of them run 'milo-restore assets fetch {' '.join(missing)}'"
        findings.append(Finding("note", f"missing: {', '.join(missing)}", every))
    return findings


def _versions(package: str) -> dict[str, str]:
    """The installed distributions that a package may come from, by the name that Python imports."""
    known = _DISTRIBUTIONS.get(package, (package,))
    return {name: version for name in known if (version := _version(name)) is not None}


def check_addresses() -> list[Finding]:
    """Which addresses of the catalogue do not answer. Nothing is downloaded."""
    from milo_restore.files.online import addresses, refusals

    findings = []
    known = addresses()
    refused = refusals([url for urls in known.values() for url in urls])
    for name, urls in known.items():
        dead = [url for url in urls if url in refused]
        findings += [Finding("note", f"{name}: {url}: {refused[url]}") for url in dead]
        if not urls:
            findings.append(Finding("note", f"{name}: not checked: no address of its files is known"))
        elif len(dead) < len(urls):
            findings.append(Finding("ok", f"{name}: {len(urls) - len(dead)} of {len(urls)} addresses answer"))
    dead_count, count = len(refused), sum(map(len, known.values()))
    findings.append(Finding("note" if dead_count else "ok", f"{dead_count} of {count} addresses are dead"))
    return findings


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]
