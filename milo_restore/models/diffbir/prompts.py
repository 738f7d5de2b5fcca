"""Text embeddings for Stable Diffusion: from its text encoder, or from a table where there is none."""

from __future__ import annotations

import hashlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from milo_restore.errors import ConfigError, WeightsError
from milo_restore.files.state import read_content

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

__all__ = [
    "NEGATIVE_PROMPT",
    "PRESETS",
    "PROMPTS_FILE",
    "DrawnPrompts",
    "EncodedPrompts",
    "Preset",
    "Prompts",
    "StoredPrompts",
    "load_prompts",
]

NEGATIVE_PROMPT = "low quality, blurry, low-resolution, noisy, unsharp, weird textures"  # DiffBIR v2's and its paper's
PROMPTS_FILE = "prompt_embeds.safetensors"


@dataclass(frozen=True)
class Preset:
    """Defaults of sampling of a version of DiffBIR."""

    prompt: str
    negative_prompt: str
    guidance: float


_V2 = Preset("", NEGATIVE_PROMPT, 4.0)
# As its authors run them: README.md and the defaults of inference.py, commit 3f8b530.
PRESETS: Mapping[str, Preset] = {
    "v1": _V2,
    "v2": _V2,
    "v2.1": Preset(
        "Cinematic, High Contrast, highly detailed, taken using a Canon EOS R camera, hyper detailed photo - realistic "
        "maximum detail, 32k, Color Grading, ultra HD, extreme meticulous detailing, skin pore detailing, hyper "
        "sharpness, perfect without deformations.",
        "painting, oil painting, illustration, drawing, art, sketch, oil painting, cartoon, CG Style, 3D render, "
        "unreal engine, blurring, dirty, messy, worst quality, low quality, frames, watermark, signature, jpeg "
        "artifacts, deformed, lowres, over-smooth.",
        8.0,
    ),
}


class Prompts(ABC):
    """Texts to embeddings. Each text is embedded once.

    Attributes:
        width: channels of an embedding.
        device: where embeddings lie.
        dtype: their precision.
    """

    def __init__(self, width: int, device: torch.device | str, dtype: torch.dtype) -> None:
        self.width, self.device, self.dtype = width, torch.device(device), dtype
        self._known: dict[str, Tensor] = {}

    @torch.no_grad()
    def embed(self, text: str) -> Tensor:
        """The embedding of a text, (1, L, ``width``).

        Raises:
            ConfigError: there is no embedding of this text.
        """
        if text not in self._known:
            self._known[text] = self._embed(text).to(self.device, self.dtype)
        return self._known[text]

    @torch.no_grad()
    def embed_batch(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of captions that training shows once, (N, L, ``width``): they are not kept.

        What is longer than the encoder reads is cut as in `embed`, and not said for each of millions.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return self._embed_all(texts).to(self.device, self.dtype)

    def _embed_all(self, texts: Sequence[str]) -> Tensor:
        return torch.cat([self._embed(text) for text in texts])

    @abstractmethod
    def _embed(self, text: str) -> Tensor: ...


class EncodedPrompts(Prompts):
    """Prompts through CLIP's tokenizer and text encoder.

    Stable Diffusion 2 reads OpenCLIP-H's layer before the last, under the final normalisation. Its text encoder in
    diffusers' format, and the one that `convert_diffbir` makes, ends with that layer. So its output is the embedding.

    Args:
        encoder: moved to ``device`` and ``dtype``, and frozen.
        tokenizer: the one that belongs to it.
        device: where it computes.
        dtype: what it computes in.
    """

    def __init__(
        self,
        encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(int(encoder.config.hidden_size), device, dtype)
        module: Any = encoder  # transformers' own types do not let it be moved
        self.encoder = module.to(device=self.device, dtype=dtype).eval().requires_grad_(False)
        self.tokenizer = tokenizer

    def _embed(self, text: str) -> Tensor:
        return self._embed_all([text])

    def _embed_all(self, texts: Sequence[str]) -> Tensor:
        tokens = torch.cat([self._tokens(text) for text in texts])
        embeddings: Tensor = self.encoder(tokens.to(self.device))[0]
        return embeddings

    def _tokens(self, text: str) -> Tensor:
        length = self.encoder.config.max_position_embeddings
        tokens: Tensor = self.tokenizer(text, padding="max_length", max_length=length, return_tensors="pt").input_ids
        if tokens.shape[1] > length:
            # As OpenCLIP's tokenizer does it: the end stands in place of the last token that there is room for.
            lost = tokens[0, length - 1 : -1]
            warnings.warn(
                f"a prompt of {tokens.shape[1] - 2} tokens is cut to the {length - 2} that the text encoder reads: "
                f"{self.tokenizer.decode(lost).strip()[:60]!r} is not read",
                stacklevel=5,
            )
            tokens = torch.cat([tokens[:, : length - 1], tokens[:, -1:]], dim=1)
        return tokens


class StoredPrompts(Prompts):
    """Prompts that were embedded before.

    Args:
        embeddings: of each text, (L, D).
        source: the file that they come from, for errors.
        device: where embeddings go.
        dtype: their precision.
    """

    def __init__(
        self,
        embeddings: Mapping[str, Tensor],
        source: str | Path = PROMPTS_FILE,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(next(iter(embeddings.values())).shape[-1], device, dtype)
        self.embeddings, self.source = dict(embeddings), source

    def _embed(self, text: str) -> Tensor:
        if text not in self.embeddings:
            known = ", ".join(map(repr, self.embeddings))
            mend = f"It knows {known}; for others the base needs a text_encoder/ and a tokenizer/"
            raise ConfigError(f"holds no embedding of the prompt {text!r}", where=self.source, mend=mend)
        return self.embeddings[text][None]


class DrawnPrompts(StoredPrompts):
    """The tiny world's prompts: random vectors, as those of its table are; those of other texts depend on the text.

    They let everything that has to do with prompts run there. Its UNet knows the table's texts only.
    """

    def _embed(self, text: str) -> Tensor:
        if text not in self.embeddings:
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
            shape = next(iter(self.embeddings.values())).shape
            self.embeddings[text] = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return super()._embed(text)


def load_prompts(
    folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> EncodedPrompts | StoredPrompts:
    """A base's prompts: from ``text_encoder/`` and ``tokenizer/``, or else from ``prompt_embeds.safetensors``.

    Args:
        folder: the base, in diffusers' format.
        device: where the encoder computes, and embeddings lie.
        dtype: in which precision.

    Raises:
        ConfigError: there is a text encoder, but the package transformers is not installed.
        WeightsError: neither is there, or it cannot be read.
    """
    if (folder / "text_encoder").is_dir() and (folder / "tokenizer").is_dir():
        return _read_encoder(folder, device, dtype)
    table = folder / PROMPTS_FILE
    if table.is_file():
        return StoredPrompts(_read_table(table), table, device=device, dtype=dtype)
    missing = [f"{name}/" for name in ("text_encoder", "tokenizer") if not (folder / name).is_dir()]
    mend = f"Copy a Stable Diffusion 2's in diffusers' format there, or put a {PROMPTS_FILE} in their place"
    raise WeightsError(f"holds no {' and no '.join(missing)}", where=folder, mend=mend)


def _read_encoder(folder: Path, device: torch.device | str, dtype: torch.dtype) -> EncodedPrompts:
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        mend = "pip install 'milo-restore[diffusion]'"
        raise ConfigError("its text encoder needs the package transformers", where=folder, mend=mend) from error
    part = "text_encoder"
    try:
        encoder, info = CLIPTextModel.from_pretrained(folder / part, local_files_only=True, output_loading_info=True)
        part = "tokenizer"
        tokenizer = CLIPTokenizer.from_pretrained(folder / part, local_files_only=True)
    except Exception as error:  # transformers raises nearly anything on damaged files
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise WeightsError(f"cannot be read ({reason})", where=folder / part) from error
    lacking = sorted(map(str, info["missing_keys"]))
    if lacking:  # transformers would fill them with random numbers
        what = f"lacks {len(lacking)} keys of a CLIPTextModel, such as {lacking[0]}"
        raise WeightsError(what, where=folder / "text_encoder")
    return EncodedPrompts(encoder, tokenizer, device=device, dtype=dtype)


def _read_table(path: Path) -> dict[str, Tensor]:
    """Tensors "0", "1", ..., each (L, D); the metadata maps a number to its text."""
    tensors, texts = read_content(path)
    wrong = [number for number, tensor in tensors.items() if number not in texts or tensor.ndim != 2]
    if wrong or len({tensor.shape[-1] for tensor in tensors.values()}) != 1:
        mend = "Expected tensors 0, 1, ... of (tokens, width), all of one width, and each one's text as metadata"
        raise WeightsError("is no table of prompts", where=path, mend=mend)
    return {texts[number]: tensors[number] for number in sorted(tensors)}
