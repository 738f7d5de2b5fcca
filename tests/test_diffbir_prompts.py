"""Prompts as embeddings: from a text encoder, or from a table."""

from __future__ import annotations

import json
import shutil
import sys
import warnings

import pytest
import torch
from conftest import assert_near
from original_keys import disturb
from safetensors.torch import load_file, save_file

from milo_restore.errors import ConfigError, WeightsError
from milo_restore.models.diffbir import frozen
from milo_restore.models.diffbir.components import load_components
from milo_restore.models.diffbir.prompts import PROMPTS_FILE, DrawnPrompts, EncodedPrompts, StoredPrompts, load_prompts

import micro_world  # noqa: F401  # isort: skip

WIDTH = 24
WORDS = ("!", "a</w>", "blurry</w>", "face</w>", "<|startoftext|>", "<|endoftext|>")
LETTERS = "abcefluryi"


def write_tokenizer(folder, length=9):
    """A CLIP tokenizer of a few words, with the files and settings of Stable Diffusion 2's."""
    folder.mkdir(parents=True)
    merges = ["b l", "bl u", "blu r", "blur r", "blurr y</w>", "f a", "fa c", "fac e</w>"]
    made = [merge.replace(" ", "") for merge in merges]
    words = dict.fromkeys([*WORDS, *LETTERS, *(f"{letter}</w>" for letter in LETTERS), *made])
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    special = {"bos_token": WORDS[4], "eos_token": WORDS[5], "unk_token": WORDS[5], "pad_token": "!"}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(words)


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    """A text encoder of three layers in full, and in ``text_encoder`` without its last."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("text")
    size = write_tokenizer(folder / "tokenizer")
    options = {
        "vocab_size": size, "hidden_size": WIDTH, "intermediate_size": 16, "num_attention_heads": 2, "pad_token_id": 0,
        "max_position_embeddings": 9, "hidden_act": "gelu", "bos_token_id": 4, "eos_token_id": 5,
    }  # fmt: skip
    torch.manual_seed(2)
    full = disturb(transformers.CLIPTextModel(transformers.CLIPTextConfig(**options, num_hidden_layers=3))).eval()
    short = transformers.CLIPTextModel(transformers.CLIPTextConfig(**options, num_hidden_layers=2))
    short.load_state_dict(full.state_dict(), strict=False)
    short.save_pretrained(folder / "text_encoder")
    return folder, full


@pytest.fixture
def text_base(text_folder, tmp_path):
    """A copy that a test may damage, with a table beside it."""
    base = shutil.copytree(text_folder[0], tmp_path / "base")
    write_table(base)
    return base


def write_table(folder):
    tensors = {"0": torch.zeros(3, WIDTH), "1": torch.arange(5.0 * WIDTH).reshape(5, WIDTH)}
    save_file(tensors, folder / PROMPTS_FILE, {"0": "", "1": "a face"})


def test_the_text_encoders_last_layer_is_the_full_ones_last_but_one(text_base, text_folder):
    prompts = load_prompts(text_base)
    full = text_folder[1]
    assert isinstance(prompts, EncodedPrompts)
    for text, tokens in (("", [4, 5]), ("A blurry face", [4, 1, 2, 3, 5])):
        padded = torch.tensor([tokens + [0] * (9 - len(tokens))])
        with torch.no_grad():
            hidden = full(padded, output_hidden_states=True).hidden_states[-2]
            expected = getattr(full, "text_model", full).final_layer_norm(hidden)
        torch.testing.assert_close(prompts.embed(text), expected, rtol=1e-5, atol=1e-5)
        assert prompts.embed(text).shape == (1, 9, WIDTH)


def test_each_text_is_encoded_once(text_base, monkeypatch):
    prompts = load_prompts(text_base)
    first = prompts.embed("a face")
    monkeypatch.setattr(prompts, "encoder", None)
    assert prompts.embed("a face") is first
    assert not first.requires_grad


def test_a_prompt_that_is_too_long_is_cut_as_openclip_cuts_it(text_base):
    """The first tokens, and the end in place of the last that there is room for; and it is said."""
    prompts = load_prompts(text_base)
    assert prompts.embed(" ".join(["face"] * 7)).shape == (1, 9, WIDTH)
    with pytest.warns(UserWarning, match="a prompt of 9 tokens is cut to the 7 that .* reads: 'blurry a' is not read"):
        cut = prompts.embed("face a face a face a face blurry a")
    seen = torch.tensor([[4, 3, 1, 3, 1, 3, 1, 3, 5]])
    assert_near(cut, prompts.encoder(seen)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is cut, and said, once
        assert prompts.embed("face a face a face a face blurry a") is cut


def test_text_encoders_that_cannot_be_read(text_base):
    path = text_base / "text_encoder" / "model.safetensors"
    state = load_file(path)
    name = next(key for key in state if key.endswith("final_layer_norm.bias"))
    save_file({key: value for key, value in state.items() if key != name}, path, {"format": "pt"})
    with pytest.raises(WeightsError, match="text_encoder: lacks 1 keys of a CLIPTextModel, such as .*final_layer_norm"):
        load_prompts(text_base)
    path.write_bytes(b"no")
    with pytest.raises(WeightsError, match="text_encoder: cannot be read"):
        load_prompts(text_base)


def test_a_text_encoder_without_its_tokenizer(text_base):
    shutil.rmtree(text_base / "tokenizer")
    assert isinstance(load_prompts(text_base), StoredPrompts)  # the table that lies beside it
    (text_base / PROMPTS_FILE).unlink()
    with pytest.raises(WeightsError, match="holds no tokenizer/"):
        load_prompts(text_base)


def test_without_transformers(text_base, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'milo-restore\[diffusion\]'"):
        load_prompts(text_base)


def test_a_table_of_prompts(tmp_path):
    write_table(tmp_path)
    prompts = load_prompts(tmp_path)
    assert (prompts.width, sorted(prompts.embeddings)) == (WIDTH, ["", "a face"])
    assert load_prompts(tmp_path, dtype=torch.float16).embed("").dtype == torch.float16
    assert torch.equal(prompts.embed("a face"), torch.arange(5.0 * WIDTH).reshape(1, 5, WIDTH))
    with pytest.raises(ConfigError, match="no embedding of the prompt 'blurry'. It knows '', 'a face'"):
        prompts.embed("blurry")


def test_the_tiny_worlds_prompts_are_drawn_from_the_text():
    table = {"": torch.zeros(3, WIDTH)}
    first, second = (DrawnPrompts(table.copy()) for _ in range(2))
    assert torch.equal(first.embed("a face"), second.embed("a face"))
    assert first.embed("a face").shape == (1, 3, WIDTH)
    assert not torch.equal(first.embed("a face"), first.embed("a cat"))
    assert torch.equal(first.embed(""), torch.zeros(1, 3, WIDTH))
    assert isinstance(load_components("tiny").prompts, DrawnPrompts)


@pytest.mark.parametrize(
    ("tensors", "texts"),
    [
        ({"0": torch.zeros(3, WIDTH)}, {}),
        ({"0": torch.zeros(WIDTH)}, {"0": ""}),
        ({"0": torch.zeros(3, WIDTH), "1": torch.zeros(3, 8)}, {"0": "", "1": "a"}),
        ({}, {"0": ""}),
    ],
)
def test_tables_that_are_none(tmp_path, tensors, texts):
    save_file(tensors, tmp_path / PROMPTS_FILE, texts)
    with pytest.raises(WeightsError, match="is no table of prompts"):
        load_prompts(tmp_path)


def test_the_recipes_ask_a_text_encoder_once(text_base, tmp_path, monkeypatch):
    cache, texts = str(tmp_path / "latents"), ["", "a face"]
    expected = {text: load_prompts(text_base).embed(text) for text in texts}
    first = frozen._embeddings(texts, load_prompts(text_base), cache)
    for text in texts:
        assert_near(first[text], expected[text])
    monkeypatch.setattr(EncodedPrompts, "_embed", lambda self, text: pytest.fail(f"asked again for {text!r}"))
    again = frozen._embeddings(texts, load_prompts(text_base), cache)
    assert all(torch.equal(again[text], first[text]) for text in texts)  # read from the cache
