"""DiffBIR's checkpoints, with the Stable Diffusion that they steer, as one folder in diffusers' format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from milo_restore.errors import ConfigError, DataError, WeightsError
from milo_restore.files.hub import parse_repository
from milo_restore.files.state import shortened
from milo_restore.files.write import publish
from milo_restore.models.diffbir import from_original
from milo_restore.models.diffbir.components import find_base
from milo_restore.models.diffbir.control import predict
from milo_restore.models.diffbir.original_file import Parts, read_parts
from milo_restore.models.diffbir.schedules import VERSIONS, noise_scheduler

__all__ = ["PUBLISHED", "convert_diffbir"]

# DiffBIR's published files. Nothing in the weights tells v2 from v2.1.
PUBLISHED = {
    "general_full_v1.ckpt": "v1",
    "face_full_v1.ckpt": "v1",
    "v1_general.pth": "v1",
    "v1_face.pth": "v1",
    "v2.pth": "v2",
    "DiffBIR_v2.1.pt": "v2.1",
}

CLEANER_FILE = "cleaner.safetensors"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
_LIBRARIES = {
    "vae": ("diffusers", "AutoencoderKL"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "controlnet": ("milo_restore", "IRControlNet"),
    "scheduler": ("diffusers", "DDPMScheduler"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
}

Report = Callable[[str], None]


def convert_diffbir(
    checkpoint: str | Path,
    base: str | Path | None,
    out: str | Path,
    version: str | None = None,
    *,
    tokenizer: str | Path | None = None,
    head_channels: int = 64,
    report: Report = lambda line: None,
) -> Path:
    """Convert a DiffBIR checkpoint; every key finds its place, or nothing is written.

    Args:
        checkpoint: the control network alone (v2, v2.1, ``v1_general.pth``), or v1's whole model.
        base: Stable Diffusion 2.1-base (for v2.1 its zero-SNR variant), as a folder in diffusers' format, as one
            file in the original format, or as OWNER/NAME or OWNER/NAME@REVISION on the Hugging Face hub; None for a
            whole model, which holds its own.
        out: the folder to make: ``vae unet controlnet scheduler`` and ``model_index.json``; ``text_encoder`` and
            ``tokenizer`` where the base has them; v1's SwinIR as ``cleaner.safetensors``.
        version: one of `VERSIONS`; None where the file name is a published one, or v1's whole model tells it.
        tokenizer: a tokenizer's folder to copy; files in the original format hold none.
        head_channels: channels of an attention head, where ``base`` is in the original format; it cannot be seen there.
        report: called with one line for each thing done.

    Returns:
        ``out``.

    Raises:
        ConfigError: the version is not known, or ``base`` is missing or one too many.
        DataError: ``out`` already holds something, or cannot be written.
        WeightsError: a file is missing or damaged, of another architecture, has a key without a place, or the base
            predicts something else than the version does.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    _check_arguments(checkpoint, out, version, tokenizer)
    if base is not None and parse_repository(str(base)) is not None:
        report(f"{base}: from the Hugging Face hub, or its cache")
        base = find_base(str(base))
    report(f"reading {checkpoint}")
    parts = read_parts(checkpoint)
    version = version or _recognised(parts)
    networks = _base(parts, base, version, head_channels, report)
    if "control" not in parts.networks:
        raise WeightsError(
            "holds no control network", where=checkpoint, mend="Give DiffBIR's checkpoint, and SD as base"
        )
    networks["controlnet"] = from_original.build_control(parts.networks["control"], checkpoint, networks["unet"])
    report(f"{checkpoint.name}: {len(parts.networks['control'])} keys of the control network, version {version}")
    folders = _text_folders(base, tokenizer)
    _self_test(networks, base or checkpoint)
    report("self-test: one step on a grey square through all networks, in float32: they fit, and all is finite")

    def write(temporary: Path) -> None:
        for name, network in networks.items():
            report(f"writing {out / name}")
            network.save_pretrained(temporary / name)
        noise_scheduler(version).save_pretrained(temporary / "scheduler")
        for name, folder in folders.items():
            shutil.copytree(folder, temporary / name)
        if "cleaner" in parts.networks:
            report(f"writing {out / CLEANER_FILE}: the checkpoint's SwinIR")
            _save_cleaner(parts, temporary / CLEANER_FILE)
        names = [name for name in _LIBRARIES if (temporary / name).is_dir()]
        (temporary / "model_index.json").write_text(_model_index(names), encoding="utf-8")

    publish(out, write)
    _report_missing(out, report)
    return out


def _check_arguments(checkpoint: Path, out: Path, version: str | None, tokenizer: str | Path | None) -> None:
    """Everything that can be refused before gigabytes are read."""
    if version is not None and version not in VERSIONS:
        raise ConfigError(f"no DiffBIR version {version!r}", mend=f"Known versions: {', '.join(VERSIONS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError("already exists", where=out, mend="Name a new folder")
    if tokenizer is not None and not any((Path(tokenizer) / name).is_file() for name in _TOKENIZER_FILES):
        what = f"holds no tokenizer: none of {', '.join(_TOKENIZER_FILES)}"
        raise WeightsError(
            what, where=tokenizer, mend="Name the folder 'tokenizer' of a Stable Diffusion 2 in diffusers' format"
        )


def _recognised(parts: Parts) -> str:
    if parts.networks.keys() & {"cleaner", "condition_encoder"}:
        return "v1"
    if parts.path.name in PUBLISHED:
        return PUBLISHED[parts.path.name]
    known = ", ".join(PUBLISHED)
    mend = f"Give the version, one of {', '.join(VERSIONS)}: v2.1 predicts the velocity, v1 and v2 the noise"
    raise ConfigError(f"the version is not known: the name is none of {known}", where=parts.path, mend=mend)


def _base(parts: Parts, base: str | Path | None, version: str, head_channels: int, report: Report) -> dict[str, Any]:
    """VAE, UNet and, from the original format, the text encoder."""
    own = parts.networks.keys() & {"unet", "vae", "text_encoder"}
    if own and base is not None:
        what = f"holds its own {', '.join(sorted(own))}"
        raise ConfigError(what, where=parts.path, mend="Leave out the base; a tokenizer has an argument of its own")
    if own:
        _check_condition_encoder(parts)
        return _original_base(parts, head_channels, report)
    if base is None:
        mend = "Name Stable Diffusion 2.1-base as base: a folder in diffusers' format, or its .ckpt or .safetensors"
        raise ConfigError("holds the control network alone", where=parts.path, mend=mend)
    base = Path(base)
    report(f"reading {base}")
    if base.is_dir():
        return _diffusers_base(base, version)
    _check_condition_encoder(parts)
    found = read_parts(base)
    others = sorted(found.networks.keys() - {"unet", "vae", "text_encoder"})
    if others:
        raise WeightsError(
            f"is no base: it holds a {' and a '.join(others)}", where=base, mend="Name Stable Diffusion's file"
        )
    return _original_base(found, head_channels, report)


def _original_base(parts: Parts, head_channels: int, report: Report) -> dict[str, Any]:
    missing = [name for name in ("unet", "vae") if name not in parts.networks]
    if missing:
        mend = "Expected model.diffusion_model.* and first_stage_model.*"
        raise WeightsError(f"holds no {' and no '.join(missing)}", where=parts.path, mend=mend)
    networks: dict[str, Any] = {
        "vae": from_original.build_vae(parts.networks["vae"], parts.path),
        "unet": from_original.build_unet(parts.networks["unet"], parts.path, head_channels),
    }
    unused: list[str] = []
    if "text_encoder" in parts.networks:
        encoder, unused = from_original.build_text_encoder(parts.networks["text_encoder"], parts.path)
        networks["text_encoder"], blocks = encoder, encoder.config.num_hidden_layers
        what = f"left out {len(unused)} tensors after that" if unused else "which is its last"
        report(f"{parts.path.name}: Stable Diffusion 2 reads block {blocks} of the text encoder, {what}")
    if parts.left_out:
        averages = sum(key.startswith("model_ema.") for key in parts.left_out)
        what = f"{len(parts.left_out) - averages} schedule tables, {averages} tensors of a running average"
        report(f"{parts.path.name}: left out {what}")
    used = {name: len(parts.networks[name]) for name in networks}
    used["text_encoder"] = used.get("text_encoder", 0) - len(unused)
    counts = ", ".join(f"{count} keys of {name}" for name, count in used.items() if count)
    report(f"{parts.path.name}: {counts}")
    return networks


def _check_condition_encoder(parts: Parts) -> None:
    """V1 stores the VAE's encoder a second time, for the condition; here there is one for both."""
    copy = parts.networks.get("condition_encoder", {})
    vae = parts.networks.get("vae", {})
    other = [key for key, value in copy.items() if key not in vae or not torch.equal(value, vae[key])]
    if other:
        what = f"{len(other)} tensors of cond_encoder differ from the VAE's: {shortened(other)}"
        raise WeightsError(
            what, where=parts.path, mend="Take v1_general.pth or v1_face.pth, which need no second encoder"
        )


def _diffusers_base(base: Path, version: str) -> dict[str, Any]:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    settings = base / "scheduler" / "scheduler_config.json"
    if settings.is_file():
        try:
            predicts = json.loads(settings.read_text(encoding="utf-8")).get("prediction_type", "epsilon")
        except (OSError, ValueError, AttributeError) as error:
            raise WeightsError("holds no readable settings of a scheduler", where=settings) from error
        expected = noise_scheduler(version).config.prediction_type
        if predicts != expected:
            what = f"is a base for {predicts}, DiffBIR {version} asks for {expected}"
            raise WeightsError(
                what, where=base, mend="v2.1 stands on a zero-SNR Stable Diffusion, v1 and v2 on 2.1-base"
            )
    networks: dict[str, Any] = {}
    for name, kind in (("vae", AutoencoderKL), ("unet", UNet2DConditionModel)):
        try:
            networks[name] = kind.from_pretrained(base / name, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise WeightsError(f"holds no readable {kind.__name__} ({reason})", where=base / name) from error
    return networks


@torch.no_grad()
def _self_test(networks: dict[str, Any], where: str | Path) -> None:
    """One pass through what was made, in float32: the networks fit each other, and their numbers are finite.

    Raises:
        WeightsError: they do not.
    """
    precision = {name: network.dtype for name, network in networks.items()}
    vae, unet, control = (networks[name].float().eval() for name in ("vae", "unet", "controlnet"))
    latent = vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mode() * vae.config.scaling_factor
    context = torch.zeros(1, 1, unet.config.cross_attention_dim)
    if "text_encoder" in networks:
        encoder = networks["text_encoder"].float().eval()
        context = encoder(torch.zeros(1, encoder.config.max_position_embeddings, dtype=torch.long))[0]
    try:
        noise = predict(unet, control, latent, torch.tensor([500]), context, latent)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise WeightsError(f"its networks do not belong together ({reason})", where=where) from error
    found = {"VAE": latent, "text encoder": context, "UNet or control": noise, "decoder": vae.decode(latent).sample}
    broken = [name for name, values in found.items() if not values.isfinite().all()]
    if broken:
        what = f"its {' and '.join(broken)} put out numbers that are not finite"
        raise WeightsError(what, where=where, mend="Get the file anew")
    for name, network in networks.items():
        network.to(precision[name])


def _text_folders(base: str | Path | None, tokenizer: str | Path | None) -> dict[str, Path]:
    """Files that are copied as they are."""
    folders = {}
    if base is not None and Path(base).is_dir():
        names = ("text_encoder", "tokenizer")
        folders = {name: Path(base) / name for name in names if (Path(base) / name).is_dir()}
    if tokenizer is not None:
        folders["tokenizer"] = Path(tokenizer)
    return folders


def _save_cleaner(parts: Parts, path: Path) -> None:
    from safetensors.torch import save_file

    save_file({key: value.contiguous() for key, value in parts.networks["cleaner"].items()}, path)


def _model_index(names: list[str]) -> str:
    import diffusers

    index: dict[str, Any] = {"_class_name": "DiffBIRPipeline", "_diffusers_version": diffusers.__version__}
    for name, library in _LIBRARIES.items():
        index[name] = list(library) if name in names else [None, None]
    return json.dumps(index, indent=2) + "\n"


def _report_missing(out: Path, report: Report) -> None:
    if not (out / "tokenizer").is_dir():
        report(
            "no tokenizer: files in the original format hold none. Give --tokenizer with the folder 'tokenizer' of a "
            "Stable Diffusion 2 in diffusers' format, or copy that folder into the result"
        )
    if not (out / "text_encoder").is_dir():
        report("no text encoder in the base: prompts need one, or prompt_embeds.safetensors")
