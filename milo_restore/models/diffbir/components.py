"""The frozen parts of a Stable Diffusion, and its control, from a folder, from the Hugging Face hub, or as shipped."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from milo_restore.errors import WeightsError
from milo_restore.files.hub import at_revision, parse_repository, repository_folder
from milo_restore.files.manifest import verify_folder
from milo_restore.files.published import MODELS, present_model
from milo_restore.files.registry import upstream
from milo_restore.files.state import listed
from milo_restore.models.diffbir.prompts import PROMPTS_FILE, DrawnPrompts, Prompts, StoredPrompts, load_prompts

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from milo_restore.models.diffbir.control import IRControlNet

__all__ = ["Components", "find_base", "load_components", "load_control"]

_NEEDED = ("vae", "unet", "scheduler")
_PARTS = (*_NEEDED, "text_encoder", "tokenizer", "controlnet")
_ORIGINAL = (".ckpt", ".pt", ".pth", ".safetensors")
_CONVERT = "milo-restore convert diffbir"
# From the hub: weights as safetensors and in one precision only. A repository often holds each network four times.
_WANTED = [
    "model_index.json", PROMPTS_FILE, *(f"{part}/*.json" for part in _PARTS), "tokenizer/*.txt",
    *(f"{part}/diffusion_pytorch_model*.safetensors" for part in _PARTS), "text_encoder/model*.safetensors",
]  # fmt: skip
_UNWANTED = ["*.fp16*", "*.bf16*", "*.non_ema*"]


@dataclass(frozen=True)
class Components:
    """A Stable Diffusion in its parts, frozen and in evaluation mode.

    Attributes:
        vae: images to latents (an eighth of the size, four channels) and back.
        unet: predicts the noise or the velocity.
        scheduler: the one that the base names.
        prompts: texts to embeddings.
        controlnet: None where the base holds none.
        folder: where all this was read.
        name: what was asked for.
    """

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler: Any
    prompts: Prompts
    controlnet: IRControlNet | None
    folder: Path
    name: str


def load_components(
    base: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Components:
    """Read a Stable Diffusion. Nothing is converted on the way.

    Args:
        base: see `find_base`.
        device: where the networks go.
        dtype: precision of UNet, control and text encoder. The VAE stays in float32, as DiffBIR has it: Stable
            Diffusion's leaves the range of float16.

    Raises:
        ConfigError: the text encoder needs a package that is not installed.
        WeightsError: a part is missing, cannot be read or downloaded, or is of another architecture.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    folder, device = find_base(base), torch.device(device)
    vae = _network(AutoencoderKL, folder / "vae", device, torch.float32)
    unet = _network(UNet2DConditionModel, folder / "unet", device, dtype)
    scheduler = _scheduler(folder / "scheduler" / "scheduler_config.json")
    _check_stable_diffusion(vae, unet, scheduler, folder)
    prompts = load_prompts(folder, device=device, dtype=dtype)
    if base == "tiny" and isinstance(prompts, StoredPrompts):
        prompts = DrawnPrompts(prompts.embeddings, prompts.source, device=device, dtype=dtype)
    if prompts.width != unet.config.cross_attention_dim:
        what = f"its prompts have {prompts.width} channels, its UNet attends to {unet.config.cross_attention_dim}"
        raise WeightsError(what, where=folder, mend="Take the text encoder that belongs to the UNet")
    control = None
    if (folder / "controlnet").is_dir():
        control = load_control(folder / "controlnet", device=device, dtype=dtype)
        if list(control.config.block_out_channels) != list(unet.config.block_out_channels):
            raise WeightsError("is not for this base's UNet: the widths differ", where=folder / "controlnet")
    return Components(vae, unet, scheduler, prompts, control, folder, str(base))


def load_control(
    folder: str | Path,
    *,
    revision: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> IRControlNet:
    """Read a control network, frozen and in evaluation mode, such as a training run's ``controlnet``.

    Args:
        folder: in diffusers' format; or the id OWNER/NAME or OWNER/NAME@REVISION of one on the Hugging Face hub.
        revision: of the latter, a branch, a tag or a commit.
        device: where it goes.
        dtype: its precision.

    Raises:
        WeightsError: it is missing, cannot be read, or is of another architecture, such as a ControlNet for images.
    """
    from milo_restore.models.diffbir.control import IRControlNet

    parsed = parse_repository(at_revision(folder, revision))
    place = Path(folder).expanduser() if parsed is None else _control_from_hub(*parsed)
    control: IRControlNet = _network(IRControlNet, place, torch.device(device), dtype)
    return control


def find_base(base: str | Path) -> Path:
    """The folder that a base's name means.

    Args:
        base: ``tiny``, the shipped world; a folder in diffusers' format, such as ``milo-restore convert diffbir``
            writes; ``diffbir-v2`` or another model that ``milo-restore assets fetch`` made; or the id OWNER/NAME or
            OWNER/NAME@REVISION of one on the Hugging Face hub, as it lies in the local cache where that is complete,
            and downloaded otherwise.

    Raises:
        WeightsError: it is none of these, or cannot be downloaded.
    """
    if base == "tiny":
        from milo_restore.models.tiny import tiny_world

        return tiny_world()
    if base in MODELS and not Path(base).is_dir():
        return present_model(str(base))
    folder = Path(base).expanduser()
    if folder.is_dir():
        missing = [name for name in _NEEDED if not (folder / name).is_dir()]
        if missing:
            mend = f"Expected Stable Diffusion in diffusers' format, such as {_CONVERT} makes"
            raise WeightsError(f"holds no {'/, no '.join(missing)}/", where=folder, mend=mend)
        return folder
    if folder.is_file() or folder.suffix in _ORIGINAL:
        what = "is a file, not a folder in diffusers' format"
        raise WeightsError(what, where=base, mend=f"Make a folder of it first: {_CONVERT}")
    if (parsed := parse_repository(base)) is None:
        mend = "Name 'tiny', a folder in diffusers' format, or the id OWNER/NAME of one on the Hugging Face hub"
        raise WeightsError("no such folder", where=base, mend=mend)
    return _from_hub(*parsed)


def _from_hub(name: str, revision: str | None) -> Path:
    patterns = {"allow_patterns": _WANTED, "ignore_patterns": _UNWANTED}
    first = upstream()["bases"]["sd21-base"]["addresses"][0]
    hint = f". Stability AI took its own Stable Diffusion 2.1 down in November 2025: take {first}"
    return repository_folder(name, revision, patterns=patterns, lacking=_lacking, hint=hint)


def _control_from_hub(name: str, revision: str | None) -> Path:
    files = ["config.json", "diffusion_pytorch_model*.safetensors"]

    def lacking(folder: Path) -> list[str]:
        return [pattern for pattern in files if not any(folder.glob(pattern))]

    return repository_folder(name, revision, patterns={"allow_patterns": files}, lacking=lacking)


def _lacking(folder: Path) -> list[str]:
    """The parts that are not all there, of those needed and those that the index names; a cache may hold some files."""
    index = folder / "model_index.json"
    named = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    parts = [part for part in _PARTS if part in _NEEDED or any(named.get(part) or ())]

    def whole(part: str) -> bool:
        suffixes = {path.suffix for path in (folder / part).glob("*")}
        return ".json" in suffixes and (part in ("scheduler", "tokenizer") or ".safetensors" in suffixes)

    return [part for part in parts if not whole(part)]


def _network(kind: Any, folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """A network, strictly: diffusers would draw at random what a file lacks, and drop what it does not know."""
    if not folder.is_dir():
        raise WeightsError("no such folder", where=folder, mend=f"Expected {kind.__name__} in diffusers' format")
    verify_folder(folder)
    try:
        network, info = kind.from_pretrained(folder, local_files_only=True, torch_dtype=dtype, output_loading_info=True)
    except Exception as error:  # diffusers raises nearly anything on damaged files
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise WeightsError(f"holds no readable {kind.__name__} ({reason})", where=folder) from error
    faults = listed({fault.removesuffix("_keys"): list(keys) for fault, keys in info.items()})
    if faults:
        raise WeightsError(f"does not fit {kind.__name__}: {faults}", where=folder)
    return network.to(device).eval().requires_grad_(False)


def _scheduler(path: Path) -> Any:
    import diffusers

    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        return getattr(diffusers, settings["_class_name"]).from_config(settings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise WeightsError(f"holds no readable settings of a scheduler ({reason})", where=path) from error


def _check_stable_diffusion(vae: Any, unet: Any, scheduler: Any, folder: Path) -> None:
    channels, factor = vae.config.latent_channels, 2 ** (len(vae.config.block_out_channels) - 1)
    wrong = None
    if (channels, factor) != (4, 8):
        wrong = f"its latents have {channels} channels at 1/{factor} of the size, not 4 at 1/8"
    elif (unet.config.in_channels, unet.config.out_channels) != (4, 4):
        wrong = f"its UNet takes {unet.config.in_channels} and gives {unet.config.out_channels} channels, not 4 and 4"
    elif not hasattr(scheduler, "alphas_cumprod"):
        wrong = f"its scheduler {type(scheduler).__name__} has no betas"
    elif scheduler.config.get("prediction_type", "epsilon") not in ("epsilon", "v_prediction"):
        wrong = f"its UNet predicts {scheduler.config.prediction_type!r}, not epsilon or v_prediction"
    if wrong:
        mend = "DiffBIR stands on Stable Diffusion 2.1-base, or on its zero-SNR variant"
        raise WeightsError(f"is no Stable Diffusion: {wrong}", where=folder, mend=mend)
