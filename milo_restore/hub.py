"""Trained networks for the Hugging Face hub: saved, described from measured results, uploaded.

``push_to_hub(model, "org/name", results="runs/mine/results.json")`` uploads a `MILO`, a `LatentMILO`, a `Restormer` or
an `IRControlNet` with a card. They come back by ``MILO.from_pretrained("org/name", revision=...)``, the others' method
of that name, or ``load_control``; weights are safetensors, and nothing is unpickled.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import milo_restore
from milo_restore.errors import ConfigError, WeightsError
from milo_restore.files.hashes import sha256_of
from milo_restore.files.hub import WEIGHTS_FILE
from milo_restore.files.state import read_state
from milo_restore.measure.restorer import REFERENCE
from milo_restore.measure.results import interval_text, read_results
from milo_restore.metric import LatentMILO, MaskedMetric
from milo_restore.models.restormer import Restormer

__all__ = ["push_to_hub", "save_pretrained"]

Results = str | Path | Sequence[str | Path] | None


@dataclass(frozen=True)
class _About:
    """Text of a card beside what was measured."""

    kind: str
    what: str
    load: str  # with {name} for the repository
    tags: tuple[str, ...]
    restores: bool  # an image is its output
    config: Mapping[str, Any] | None  # for config.json; None: the network writes its own
    recorded: Mapping[str, str]  # about the weights, by their file


def push_to_hub(
    network: nn.Module,
    name: str,
    *,
    results: Results = None,
    license: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    message: str = "Upload by milo-restore",
) -> str:
    """Upload a trained network and its card to the Hugging Face hub; the repository is made where there is none.

    Args:
        network: a `MILO` or `LatentMILO`, frozen or not, a `Restormer`, or an `IRControlNet`.
        name: OWNER/NAME.
        results: the results.json of ``milo-restore evaluate``, one or several, for the card.
        license: the hub's name of the licence that you give it, such as ``apache-2.0``; by default the card names none.
        revision: a branch, made where there is none; by default ``main``.
        private: whether a new repository is private; by default what the owner's settings say.
        token: by default the one of ``hf auth login``.
        message: of the commit.

    Returns:
        The commit's address.

    Raises:
        ConfigError: a network of another class, or one that does not hold float32 as a metric should.
        DataError: a results.json cannot be read.
        WeightsError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="milo-restore", library_version=milo_restore.__version__)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(network, folder, results=results, license=license, name=name)
        try:
            api.create_repo(name, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(name, branch=revision, exist_ok=True)
            done = api.upload_folder(repo_id=name, folder_path=folder, revision=revision, commit_message=message)
        except Exception as error:  # the errors of the HTTP library below it differ between its versions
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:160].strip(" .:")
            mend = (
                "Log in with 'hf auth login' where there is a network; without, save_pretrained writes the same files"
            )
            raise WeightsError(f"cannot be uploaded ({reason})", where=name, mend=mend) from error
    return str(done.commit_url)


def save_pretrained(
    network: nn.Module, folder: str | Path, *, results: Results = None, license: str | None = None, name: str = "PATH"
) -> None:
    """Write what `push_to_hub` uploads: weights, config.json and the card README.md.

    Args:
        network: as `push_to_hub` takes.
        folder: is made; files of these names in it are replaced.
        results: as `push_to_hub` takes.
        license: as `push_to_hub` takes.
        name: how the card calls it, and loads it.

    Raises:
        ConfigError: as `push_to_hub`.
        DataError: as `push_to_hub`.
    """
    files = [results] if isinstance(results, (str, Path)) else list(results or ())
    measured = [read_results(Path(file)) for file in files]
    about, folder = _about(network), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if about.config is None:
        network.save_pretrained(folder)  # type: ignore[operator]  # diffusers'
    else:
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        state = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        save_file(state, folder / WEIGHTS_FILE, {"format": "pt", **about.recorded})
        (folder / "config.json").write_text(json.dumps(about.config, indent=1) + "\n", encoding="utf-8")
    weights = next(folder.glob("*.safetensors"))
    count = sum(value.numel() for value in (*network.parameters(), *_frozen(network)))
    facts = {"parameters": f"{count:,}", "file": f"{weights.name}, sha256 `{sha256_of(weights)}`", **about.recorded}
    (folder / "README.md").write_text(_card(about, name, facts, measured, license), encoding="utf-8")


def _frozen(network: nn.Module) -> list[Tensor]:
    return list(network.buffers()) if isinstance(network, MaskedMetric) else []


def _about(network: nn.Module) -> _About:
    kind = type(network).__name__
    load = f'from milo_restore import {kind}\n\nnetwork = {kind}.from_pretrained("{{name}}")'
    if isinstance(network, MaskedMetric):
        if any(value.dtype != torch.float32 for value in (*network.parameters(), *network.buffers())):
            mend = "Make it without compute_dtype, and give it before .half() and the like"
            raise ConfigError("holds weights that are not float32", where=kind, mend=mend)
        what = f"{kind}, a perceptual metric that weights errors by how visible they are, and a loss: 0 is identical"
        config = {"class": kind, "channels": network.channels, "milo_restore": milo_restore.__version__}
        return _About(kind, what, load, ("image-quality-assessment",), False, config, _recorded(network))
    if isinstance(network, Restormer):
        config = {"class": kind, **network.config, "milo_restore": milo_restore.__version__}
        return _About(kind, "Restormer, an image restoration network", load, ("restormer",), True, config, {})
    from milo_restore.models.diffbir.control import IRControlNet

    if isinstance(network, IRControlNet):
        what = "IRControlNet, the trained part of a DiffBIR: a diffusers ControlNetModel whose condition is a latent"
        load = 'from milo_restore.models.diffbir.components import load_control\n\nnetwork = load_control("{name}")'
        return _About(kind, what, load, ("diffbir", "controlnet", "diffusers"), True, None, {})
    mend = "Give a MILO, a LatentMILO, a Restormer or an IRControlNet"
    raise ConfigError("is none of the networks that this project uploads", where=kind, mend=mend)


def _recorded(metric: MaskedMetric) -> dict[str, str]:
    """Metadata of the weights, from their file; where it has been replaced since, what the metric remembers."""
    space = metric.space.to_metadata() if isinstance(metric, LatentMILO) else {}
    if metric.weights is None:
        return space
    path = Path(metric.weights.path)
    if path.is_file() and sha256_of(path) == metric.weights.sha256:
        return {key: value for key, value in sorted(read_state(path).metadata.items()) if key != "format"} | space
    known = ((field.name, getattr(metric.weights.agreement, field.name)) for field in fields(metric.weights.agreement))
    return {key: f"{value:.4f}" for key, value in known if value is not None} | space


def _card(
    about: _About, name: str, facts: Mapping[str, str], measured: Sequence[Mapping[str, Any]], license: str | None
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    task = "image-to-image" if about.restores else "image-quality-assessment"
    found = [
        EvalResult(task_type=task, dataset_type=data, dataset_name=data, metric_type=metric, metric_value=value)
        for results in measured
        for data in [_data(results)]
        for metric, value in {**results["means"], **{k: v["value"] for k, v in results["sets"].items()}}.items()
        if value is not None
    ]
    data = ModelCardData(
        license=license,
        library_name="milo-restore",
        tags=["image-restoration", "milo", *about.tags],
        pipeline_tag="image-to-image" if about.restores else None,
        model_name=name if found else None,
        eval_results=found or None,
    )
    lines = ["---", data.to_yaml().strip(), "---", "", f"# {name}", "", f"{about.what}.", ""]
    lines += ["```python", about.load.format(name=name), "```", "", "| | |", "|---|---|"]
    lines += [f"| {key.replace('_', ' ')} | {value} |" for key, value in facts.items()]
    lines += [f"| made with | milo-restore {milo_restore.__version__} |", ""]
    for results in measured:
        lines += _measured(results)
    return "\n".join(lines)


def _data(results: Mapping[str, Any]) -> str:
    """Names of the measured folders, without the path to them, which is private."""
    folder = Path(results["ref"] or results["pred"])
    return folder.parent.name if folder.name == REFERENCE else folder.name  # recipes have SET/ref


def _measured(results: Mapping[str, Any]) -> list[str]:
    """A results.json as a section of the card."""
    total = len(results["images"])
    lines = [f"## Measured on {_data(results)}, {total} images", ""]
    lines += ["| metric | better | mean | 95 % interval | images | software, weights |", "|---|---|---|---|---|---|"]
    for name, about in results["metrics"].items():
        mean, count = (results[key][name] for key in ("means", "counts"))
        source = ", ".join(part for part in (about["source"], about["weights"], about.get("note")) if part)
        mean = "-" if mean is None else f"{mean:.5g}"
        lines.append(
            f"| {name} | {about['better']} | {mean} | {interval_text(results, name, 5)} | {count} | {source} |"
        )
    for name, about in results["sets"].items():
        counts, source = f"{about['n']} against {about['references']}", f"{about['source']}, {about['weights']}"
        lines.append(
            f"| {name} | {about['better']} | {about['value']:.5g} | of the whole folder | {counts} | {source} |"
        )
    lines += [f"| {name} | | not measured: {about['reason']} | | | |" for name, about in results["unavailable"].items()]
    protocol, environment = results["protocol"], results["environment"]
    said = "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in protocol.items())
    versions = ", ".join(f"{package} {version}" for package, version in environment["versions"].items())
    lines += ["", f"Protocol: {said}. 95 % intervals: {results['interval']['method']}.", ""]
    return [*lines, f"Measured {environment['date']} by milo-restore {results['milo_restore']}; {versions}.", ""]
