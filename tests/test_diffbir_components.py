"""A Stable Diffusion in parts: from a folder, from the hub's cache, or the tiny one."""

from __future__ import annotations

import json
import os
import shutil

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from original_keys import disturb, small_unet
from safetensors.torch import load_file, save_file

from milo_restore.errors import WeightsError
from milo_restore.models.diffbir import IRControlNet, noise_scheduler
from milo_restore.models.diffbir.components import find_base, load_components, load_control
from milo_restore.models.diffbir.prompts import NEGATIVE_PROMPT
from milo_restore.models.tiny import PROMPTS, tiny_prompts, tiny_world

WIDTH = 24  # of the small UNet's context


def small_vae(levels=4):
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels, layers_per_block=1, norm_num_groups=2, latent_channels=4, sample_size=32,
    )  # fmt: skip


def write_table(folder, width=WIDTH):
    save_file(
        {"0": torch.zeros(3, width), "1": torch.arange(5.0 * width).reshape(5, width)},
        folder / "prompt_embeds.safetensors",
        {"0": "", "1": "a face"},
    )


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(1)
    unet = disturb(small_unet(context=WIDTH))
    return {"vae": disturb(small_vae()), "unet": unet, "controlnet": disturb(IRControlNet.from_unet(unet))}


@pytest.fixture(scope="module")
def written(networks, tmp_path_factory):
    """A base in diffusers' format, with a table of prompts."""
    folder = tmp_path_factory.mktemp("base")
    for name, network in networks.items():
        network.save_pretrained(folder / name)
    noise_scheduler("v2").save_pretrained(folder / "scheduler")
    write_table(folder)
    return folder


@pytest.fixture
def base(written, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(written, tmp_path / "base")


def same(network, other):
    mine, theirs = network.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def edit(path, **changes):
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, **changes}))


def test_a_folder(written, networks):
    parts = load_components(written, device="cpu", dtype=torch.float32)
    for name, network in networks.items():
        loaded = getattr(parts, name)
        assert type(loaded) is type(network)
        assert same(loaded, network)
        assert not loaded.training
        assert not any(value.requires_grad for value in loaded.parameters())
    assert isinstance(parts.scheduler, DDPMScheduler)
    assert torch.equal(parts.scheduler.betas, noise_scheduler("v2").betas)
    assert (parts.folder, parts.name) == (written, str(written))
    assert parts.prompts.embed("").shape == (1, 3, WIDTH)


def test_precision(written):
    parts = load_components(str(written), dtype=torch.bfloat16)
    found = {name: getattr(parts, name).dtype for name in ("vae", "unet", "controlnet")}
    assert found == {"vae": torch.float32, "unet": torch.bfloat16, "controlnet": torch.bfloat16}
    assert parts.prompts.embed("a face").dtype == torch.bfloat16


def test_the_tiny_world():
    parts = load_components("tiny")
    assert (parts.folder, parts.name) == (tiny_world(), "tiny")
    assert (parts.vae.config.latent_channels, parts.unet.config.in_channels) == (4, 4)
    for number, text in enumerate(PROMPTS):
        assert torch.equal(parts.prompts.embed(text)[0], tiny_prompts()[str(number)])
    assert NEGATIVE_PROMPT in PROMPTS


def test_without_a_control(base):
    shutil.rmtree(base / "controlnet")
    assert load_components(base).controlnet is None


def test_another_scheduler_of_diffusers(base):
    diffusers.PNDMScheduler(beta_schedule="scaled_linear", steps_offset=1).save_pretrained(base / "scheduler")
    scheduler = load_components(base).scheduler
    assert (type(scheduler).__name__, scheduler.config.steps_offset) == ("PNDMScheduler", 1)


def remove(name):
    return lambda base: shutil.rmtree(base / name)


def keys(part, change):
    def spoil(base):
        path = base / part / "diffusion_pytorch_model.safetensors"
        state = load_file(path)
        change(state)
        save_file(state, path, {"format": "pt"})

    return spoil


def replaced(part, make):
    def spoil(base):
        shutil.rmtree(base / part)
        make().save_pretrained(base / part)

    return spoil


def cut(base):
    path = base / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


SPOILT = {
    "no vae": (remove("vae"), "holds no vae/"),
    "no unet, no scheduler": (
        lambda base: (remove("unet")(base), remove("scheduler")(base)),
        "no unet/, no scheduler/",
    ),
    "a key less": (keys("vae", lambda state: state.pop("decoder.conv_out.bias")), "1 missing: decoder.conv_out.bias"),
    "a key more": (keys("unet", lambda state: state.update(more=torch.zeros(1))), "1 unexpected: more"),
    "another shape": (
        keys("unet", lambda state: state.update({"conv_in.bias": torch.zeros(5)})),
        "no readable UNet2DConditionModel .*conv_in.bias",
    ),
    "a cut file": (cut, "no readable UNet2DConditionModel"),
    "no configuration": (lambda base: (base / "vae" / "config.json").unlink(), "no readable AutoencoderKL"),
    "another factor": (replaced("vae", lambda: small_vae(levels=3)), "latents have 4 channels at 1/4 of the size"),
    "an inpainting unet": (
        lambda base: (
            edit(base / "unet" / "config.json", in_channels=9),
            keys("unet", lambda state: state.update({"conv_in.weight": torch.zeros(32, 9, 3, 3)}))(base),
        ),
        "its UNet takes 9 and gives 4 channels",
    ),
    "flow matching": (
        replaced("scheduler", diffusers.FlowMatchEulerDiscreteScheduler),
        "scheduler FlowMatchEulerDiscreteScheduler has no betas",
    ),
    "another prediction": (
        lambda base: edit(base / "scheduler" / "scheduler_config.json", prediction_type="sample"),
        "its UNet predicts 'sample'",
    ),
    "an unknown scheduler": (
        lambda base: edit(base / "scheduler" / "scheduler_config.json", _class_name="NoScheduler"),
        "no readable settings of a scheduler .*NoScheduler",
    ),
    "no text": (lambda base: (base / "prompt_embeds.safetensors").unlink(), "no text_encoder/ and no tokenizer/"),
    "other prompts": (lambda base: write_table(base, WIDTH + 8), "prompts have 32 channels, its UNet attends to 24"),
    "another control": (
        replaced("controlnet", lambda: IRControlNet.from_unet(small_unet(channels=(32, 96), context=WIDTH))),
        "not for this base's UNet",
    ),
    "a control for images": (
        replaced("controlnet", lambda: diffusers.ControlNetModel.from_unet(small_unet(context=WIDTH))),
        "IRControlNet",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_spoilt_folders(base, case):
    spoil, message = SPOILT[case]
    spoil(base)
    with pytest.raises(WeightsError, match=message) as caught:
        load_components(base)
    assert str(base) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_that_are_no_base(tmp_path):
    (tmp_path / "v2.pth").touch()
    for name in (tmp_path / "v2.pth", "models/sd.safetensors"):
        with pytest.raises(WeightsError, match="is a file, not a folder .*milo-restore convert diffbir"):
            find_base(name)
    for name in ("nowhere", "./no/where", tmp_path / "none", "a/b/c"):
        with pytest.raises(WeightsError, match="no such folder. Name 'tiny'"):
            find_base(name)


def test_a_control_alone(written, networks, tmp_path):
    assert same(load_control(written / "controlnet"), networks["controlnet"])
    with pytest.raises(WeightsError, match="no such folder. Expected IRControlNet"):
        load_control(tmp_path / "none")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, and no network."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cached(hub, written, without=()):
    commit = "0" * 40
    snapshot = hub / "models--someone--sd" / "snapshots" / commit
    shutil.copytree(written, snapshot, ignore=shutil.ignore_patterns(*without))
    (hub / "models--someone--sd" / "refs").mkdir()
    (hub / "models--someone--sd" / "refs" / "main").write_text(commit)
    return snapshot


def test_the_hubs_cache(hub, written, networks):
    snapshot = cached(hub, written)
    parts = load_components("someone/sd")
    assert os.path.samefile(parts.folder, snapshot)
    assert parts.name == "someone/sd"
    assert same(parts.unet, networks["unet"])


def test_a_repository_that_is_not_in_the_cache(hub):
    with pytest.raises(WeightsError, match="someone/sd: is no folder here, and cannot be had .*hf download someone/sd"):
        load_components("someone/sd")


@pytest.mark.parametrize(
    ("without", "lacking"), [("unet", "unet"), ("*.safetensors", "vae, unet"), ("tokenizer", "tokenizer")]
)
def test_a_cache_that_lacks_a_part(hub, written, without, lacking):
    snapshot = cached(hub, written, (without,))
    if without == "tokenizer":  # is needed where the index names it
        index = {"tokenizer": ["transformers", "CLIPTokenizer"], "controlnet": [None, None]}
        (snapshot / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(
        WeightsError, match=f"someone/sd: .* no complete {lacking} could be had.*hf download someone/sd"
    ):
        load_components("someone/sd")


def test_a_download(hub, written, monkeypatch):
    """Weights come once, and as safetensors; a repository without a part is refused by name."""
    import huggingface_hub

    asked = []

    def snapshot_download(name, *, allow_patterns, ignore_patterns, local_files_only=False):
        asked.append(local_files_only)
        files = [
            "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin", "sd.ckpt",
            "unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors",
            "text_encoder/model.safetensors", "text_encoder/pytorch_model.bin", "tokenizer/merges.txt",
            "unet/diffusion_pytorch_model-00001-of-00002.safetensors", "safety_checker/model.safetensors",
        ]  # fmt: skip
        kept = list(huggingface_hub.utils.filter_repo_objects(files, **patterns(allow_patterns, ignore_patterns)))
        assert kept == [files[0], files[5], files[7], files[8]]
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not here")
        return str(written)

    def patterns(allow, ignore):
        return {"allow_patterns": allow, "ignore_patterns": ignore}

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert find_base("someone/sd") == written
    assert asked == [True, False]
    (written / "vae").rename(written / "away")
    try:
        with pytest.raises(WeightsError, match="no complete vae could be had"):
            find_base("someone/sd")
    finally:
        (written / "away").rename(written / "vae")
