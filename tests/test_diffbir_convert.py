"""Conversion of DiffBIR's and Stable Diffusion's original files to diffusers folders: strict, and in one piece."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import assert_near
from original_keys import (
    HEAD_CHANNELS,
    control_keys,
    disturb,
    small_unet,
    small_vae,
    text_keys,
    unet_keys,
    vae_keys,
)
from safetensors.torch import load_file, save_file

import milo_restore.cli.convert
from milo_restore.cli import main
from milo_restore.errors import ConfigError, DataError, WeightsError
from milo_restore.files.manifest import verify
from milo_restore.files.state import read_state
from milo_restore.models.diffbir import VERSIONS, IRControlNet, convert_diffbir, from_original

CONTEXT = 128  # two heads of the text encoder
SCHEDULE = {
    "betas": torch.linspace(0, 1, 10),
    "alphas_cumprod": torch.linspace(1, 0, 10),
    "model_ema.decay": torch.ones(1),
}


BIAS = "first_stage_model.decoder.conv_out.bias"


def prefixed(prefix, state):
    return {f"{prefix}.{key}": value for key, value in state.items()}


@pytest.fixture(scope="module")
def networks():
    """A small Stable Diffusion and a control network, all with weights of their own."""
    torch.manual_seed(1)
    unet = disturb(small_unet(context=CONTEXT))
    return {"vae": disturb(small_vae()), "unet": unet, "controlnet": disturb(IRControlNet.from_unet(unet)).eval()}


@pytest.fixture(scope="module")
def text_encoder():
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPTextConfig(
        vocab_size=50, hidden_size=CONTEXT, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=9, hidden_act="gelu", bos_token_id=48, eos_token_id=49, pad_token_id=0,
    )  # fmt: skip
    return disturb(transformers.CLIPTextModel(config)).eval()


@pytest.fixture(scope="module")
def states(networks):
    """The same networks under the original keys."""
    return {
        "control": control_keys(networks["controlnet"].state_dict()),
        "unet": prefixed("model.diffusion_model", unet_keys(networks["unet"].state_dict())),
        "vae": prefixed("first_stage_model", vae_keys(networks["vae"].state_dict())),
    }


@pytest.fixture
def files(states, tmp_path):
    """A control network alone, and a base in one file."""
    torch.save(states["control"], tmp_path / "v2.pth")
    torch.save({"state_dict": states["unet"] | states["vae"] | SCHEDULE, "global_step": 5}, tmp_path / "sd.ckpt")
    return tmp_path


def same(folder, network):
    back = load_file(next(folder.glob("*.safetensors")))
    expected = network.state_dict()
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[key], value) for key, value in expected.items())


def left_behind(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_the_small_networks_have_every_kind_of_key(states):
    kinds = ("zero_convs.3.0.weight", "middle_block_out.0.bias", "input_blocks.2.0.op.weight", "time_embed.2.bias")
    assert all(kind in states["control"] for kind in kinds)
    assert states["control"]["input_blocks.0.0.weight"].shape == (32, 8, 3, 3)
    assert "model.diffusion_model.output_blocks.1.1.conv.weight" in states["unet"]
    assert states["vae"]["first_stage_model.encoder.mid.attn_1.q.weight"].shape == (64, 64, 1, 1)
    assert "first_stage_model.decoder.up.1.upsample.conv.weight" in states["vae"]
    assert "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight" in states["vae"]


def test_a_file_with_everything_becomes_a_folder_with_everything(files, networks, states, text_encoder):
    text = prefixed("cond_stage_model.model", text_keys(text_encoder.state_dict()))
    save_file(states["unet"] | states["vae"] | text | SCHEDULE, files / "sd.safetensors")
    (files / "tokenizer").mkdir()
    (files / "tokenizer" / "vocab.json").write_text("{}")
    lines = []
    out = convert_diffbir(
        files / "v2.pth", files / "sd.safetensors", files / "new" / "out",
        tokenizer=files / "tokenizer", head_channels=HEAD_CHANNELS, report=lines.append,
    )  # fmt: skip
    for name, network in networks.items():
        same(out / name, network)
        ours, theirs = (
            dict(config) for config in (json.loads((out / name / "config.json").read_text()), network.config)
        )
        kept = {key for key in theirs if not key.startswith("_")} - {"sample_size", "in_channels"}
        assert {key: ours[key] for key in kept} == json.loads(json.dumps({key: theirs[key] for key in kept})), name
    import transformers

    back = transformers.CLIPTextModel.from_pretrained(out / "text_encoder", local_files_only=True).eval()
    tokens = torch.tensor([[48, 3, 7, 49, 0, 0, 0, 0, 0]])
    with torch.no_grad():
        assert_near(back(tokens)[0], text_encoder(tokens)[0])
    assert (out / "tokenizer" / "vocab.json").is_file()
    index = json.loads((out / "model_index.json").read_text())
    assert index["controlnet"] == ["milo_restore", "IRControlNet"]
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]
    assert any("2 schedule tables, 1 tensors of a running average" in line for line in lines)
    assert left_behind(files / "new") == []


def test_a_text_encoder_that_ends_before_the_unused_block_keeps_all_its_blocks(files, states, text_encoder, capsys):
    """As DiffBIR v2.1's base, made from diffusers' weights; one block less is a cosine of 0.83 to the right embeddings.

    The key of position numbers, which transformers wrote in those days, stops nothing.
    """
    text = text_keys(text_encoder.state_dict(), whole=False)
    text["transformer.text_model.embeddings.position_ids"] = torch.arange(9)[None]
    save_file(states["unet"] | states["vae"] | prefixed("cond_stage_model.model", text), files / "sd.safetensors")
    lines = []
    out = convert_diffbir(
        files / "v2.pth", files / "sd.safetensors", files / "out", head_channels=HEAD_CHANNELS, report=lines.append
    )
    back = type(text_encoder).from_pretrained(out / "text_encoder", local_files_only=True).eval()
    tokens = torch.tensor([[48, 3, 49]])
    with torch.no_grad():
        assert_near(back(tokens)[0], text_encoder(tokens)[0])
    said = " ".join(lines)
    assert "reads block 2 of the text encoder, left out 1 tensors" in said
    assert f"{len(text) - 1} keys of text_encoder" in said


@pytest.mark.parametrize(
    ("blocks", "projection", "layers"), [(24, True, 23), (24, False, 23), (23, True, 23), (23, False, 23)]
)
def test_stable_diffusions_text_encoder_has_23_blocks(blocks, projection, layers):
    text = {f"transformer.resblocks.{i}.mlp.c_fc.weight": torch.empty(4, 2) for i in range(blocks)}
    text |= {"positional_embedding": torch.empty(9, 2), "token_embedding.weight": torch.empty(5, 2)}
    text |= {"text_projection": torch.empty(2, 2)} if projection else {}
    assert from_original._text_config(text)["num_hidden_layers"] == layers


def test_networks_that_do_not_work_together_are_refused(files, states):
    torch.save(
        {"state_dict": states["unet"] | states["vae"] | {BIAS: torch.full_like(states["vae"][BIAS], torch.nan)}},
        files / "sd.ckpt",
    )
    with pytest.raises(WeightsError, match=r"sd.ckpt: its decoder put out numbers that are not finite\. Get the file"):
        convert_diffbir(files / "v2.pth", files / "sd.ckpt", files / "out", head_channels=HEAD_CHANNELS)
    assert not (files / "out").exists()


def test_the_converted_networks_compute_the_same(files, networks):
    from diffusers import AutoencoderKL, UNet2DConditionModel

    out = convert_diffbir(files / "v2.pth", files / "sd.ckpt", files / "out", head_channels=HEAD_CHANNELS)
    kinds = {"vae": AutoencoderKL, "unet": UNet2DConditionModel, "controlnet": IRControlNet}
    back = {name: kind.from_pretrained(out / name, local_files_only=True).eval() for name, kind in kinds.items()}
    latent, context = torch.randn(1, 4, 8, 8), torch.randn(1, 3, CONTEXT)
    with torch.no_grad():
        for found, expected in ((back[name], networks[name]) for name in kinds):
            if isinstance(expected, AutoencoderKL):
                assert_near(found.decode(latent).sample, expected.decode(latent).sample)
            elif isinstance(expected, IRControlNet):
                outputs = [net(latent, 5, context, latent.flip(3), return_dict=False) for net in (found, expected)]
                for ours, theirs in zip(outputs[0][0], outputs[1][0], strict=True):
                    assert_near(ours, theirs)
            else:
                assert_near(found(latent, 5, context).sample, expected(latent, 5, context).sample)
    assert back["vae"].config.scaling_factor == 0.18215


@pytest.mark.parametrize(
    ("name", "version", "predicts"),
    [
        ("v1_face.pth", None, "epsilon"),
        ("DiffBIR_v2.1.pt", None, "v_prediction"),
        ("0030000.pt", "v2", "epsilon"),  # as DiffBIR's training names them
        ("0030000.pt", "v2.1", "v_prediction"),
    ],
)
def test_the_scheduler_is_the_versions(files, name, version, predicts):
    from diffusers import DDPMScheduler

    assert VERSIONS == milo_restore.cli.convert.VERSIONS
    (files / "v2.pth").rename(files / name)
    out = convert_diffbir(files / name, files / "sd.ckpt", files / "out", version, head_channels=HEAD_CHANNELS)
    rescaled = predicts == "v_prediction"
    scheduler = DDPMScheduler.from_pretrained(out / "scheduler", local_files_only=True)
    assert (scheduler.config.prediction_type, scheduler.config.rescale_betas_zero_snr) == (predicts, rescaled)
    assert (float(scheduler.alphas_cumprod[-1]) == 0) == rescaled


def test_a_diffusers_folder_serves_as_base(files, networks):
    base = files / "sd"
    for name in ("vae", "unet"):
        networks[name].save_pretrained(base / name)
    (base / "tokenizer").mkdir()
    (base / "tokenizer" / "vocab.json").write_text("{}")
    (base / "scheduler").mkdir()
    (base / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "epsilon"}')
    out = convert_diffbir(files / "v2.pth", base, files / "out")
    for name, network in networks.items():
        same(out / name, network)
    assert sorted(path.name for path in out.iterdir()) == [
        "controlnet", "manifest.json", "model_index.json", "scheduler", "tokenizer", "unet", "vae"
    ]  # fmt: skip
    verify(out)
    with pytest.raises(WeightsError, match=r"base for epsilon, DiffBIR v2\.1 asks for v_prediction"):
        convert_diffbir(files / "v2.pth", base, files / "other", "v2.1")
    (base / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"scheduler_config\.json: holds no readable settings"):
        convert_diffbir(files / "v2.pth", base, files / "other")


def whole_v1(states):
    encoder = {key: value for key, value in states["vae"].items() if "encoder." in key or ".quant_conv." in key}
    encoder = {key: value for key, value in encoder.items() if "decoder" not in key}
    return (
        prefixed("control_model", states["control"])
        | states["unet"]
        | states["vae"]
        | {key.replace("first_stage_model", "cond_encoder"): value for key, value in encoder.items()}
        | {"preprocess_model.conv_first.weight": torch.randn(4, 3, 3, 3), "preprocess_model.mean": torch.zeros(1)}
        | SCHEDULE
    )


def test_v1s_whole_model_brings_its_own_base_and_cleaner(states, networks, tmp_path):
    whole = whole_v1(states)
    torch.save({"state_dict": whole}, tmp_path / "mine.ckpt")
    out = convert_diffbir(tmp_path / "mine.ckpt", None, tmp_path / "out", head_channels=HEAD_CHANNELS)
    for name, network in networks.items():
        same(out / name, network)
    cleaner = load_file(out / "cleaner.safetensors")
    assert cleaner.keys() == {"conv_first.weight", "mean"}
    assert torch.equal(cleaner["conv_first.weight"], whole["preprocess_model.conv_first.weight"])
    with pytest.raises(ConfigError, match=r"holds its own unet, vae.*Leave out the base"):
        convert_diffbir(tmp_path / "mine.ckpt", tmp_path / "out", tmp_path / "other")
    whole["cond_encoder.encoder.conv_in.weight"] = whole["cond_encoder.encoder.conv_in.weight"] + 1
    torch.save(whole, tmp_path / "mine.ckpt")
    with pytest.raises(WeightsError, match=r"1 tensors of cond_encoder differ.*encoder\.conv_in\.weight"):
        convert_diffbir(tmp_path / "mine.ckpt", None, tmp_path / "other", head_channels=HEAD_CHANNELS)


def changed(state, key, value):
    state = dict(state)
    if value is None:
        del state[key]
    else:
        state[key] = value
    return state


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("control", "zero_convs.1.0.bias", None, r"1 missing: controlnet_down_blocks\.1\.bias"),
        ("control", "middle_block_out.0.weight", None, r"1 missing: controlnet_mid_block\.weight"),
        ("control", "input_hint_block.0.weight", torch.ones(3), r"1 unexpected: input_hint_block\.0\.weight"),
        ("control", "extra.weight", torch.ones(3), r"1 unexpected: extra\.weight"),
        ("control", "time_embed.0.bias", torch.ones(3), r"time_embedding\.linear_1\.bias \(3,\) instead of \(128,\)"),
        ("control", "input_blocks.0.0.weight", torch.ones(32, 4, 3, 3), r"no DiffBIR control network.*\(32, 4, 3, 3\)"),
        (
            "unet",
            "model.diffusion_model.label_emb.weight",
            torch.ones(3),
            r"UNet.*1 unexpected: label_emb\.weight",
        ),
        ("unet", "model.diffusion_model.out.2.bias", None, r"1 missing: conv_out\.bias"),
        ("unet", "model.diffusion_model.input_blocks.1.1.proj_in.weight", torch.ones(32, 32, 1, 1), "Diffusion 1"),
        ("unet", "lora.up.weight", torch.ones(3), r"1 keys of no known network: lora\.up\.weight"),
        ("vae", "first_stage_model.loss.logvar", torch.ones(1), r"VAE.*1 unexpected: loss\.logvar"),
        ("vae", "first_stage_model.quant_conv.weight", None, r"autoencoder.*quant_conv\.weight"),
        ("vae", "first_stage_model.decoder.conv_in.bias", None, r"1 missing: decoder\.conv_in\.bias"),
    ],
)
def test_no_key_is_lost_and_none_is_made_up(files, states, part, key, value, message):
    states = states | {part: changed(states[part], key, value)}
    torch.save(states["control"], files / "v2.pth")
    torch.save(states["unet"] | states["vae"], files / "sd.ckpt")
    with pytest.raises(WeightsError, match=message):
        convert_diffbir(files / "v2.pth", files / "sd.ckpt", files / "out", head_channels=HEAD_CHANNELS)
    assert not (files / "out").exists()
    assert left_behind(files) == []


def test_the_control_must_fit_the_unet(files):
    unet = small_unet(channels=(64, 64), context=CONTEXT)
    torch.save(control_keys(IRControlNet.from_unet(unet).state_dict()), files / "v2.pth")
    with pytest.raises(WeightsError, match=r"does not fit the control network: .*57 of wrong shape: controlnet_cond"):
        convert_diffbir(files / "v2.pth", files / "sd.ckpt", files / "out", head_channels=HEAD_CHANNELS)


def test_the_full_size_is_read_off_its_keys():
    """On the meta device: names and shapes of Stable Diffusion 2.1-base and DiffBIR, no numbers."""
    transformers = pytest.importorskip("transformers")
    from diffusers import AutoencoderKL

    path = Path("full.ckpt")
    levels = (320, 640, 1280, 1280)
    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
        unet = small_unet(levels, 2, 1024, head_channels=64)
        control = IRControlNet.from_unet(unet)
        options = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
        text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**options))
        keys = {
            "unet": unet_keys(unet.state_dict(), 2),
            "control": control_keys(control.state_dict(), 2),
            "vae": vae_keys(vae.state_dict()),
            "text": text_keys(text.state_dict()),
        }
    assert {name: len(state) for name, state in keys.items()} == {"unet": 686, "control": 324, "vae": 248, "text": 294}
    built = from_original.build_unet(keys["unet"], path)
    assert built.config.attention_head_dim == [5, 10, 20, 20]
    assert built.config.down_block_types == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    count = {
        "unet": built,
        "control": from_original.build_control(keys["control"], path, built),
        "vae": from_original.build_vae(keys["vae"], path),
        "text": from_original.build_text_encoder(keys["text"], path)[0],
    }
    count = {name: sum(p.numel() for p in network.parameters()) for name, network in count.items()}
    assert count == {"unet": 865_910_724, "control": 363_153_280, "vae": 83_653_863, "text": 340_387_840}


def test_wrappings_are_taken_off(states, tmp_path):
    control = states["control"]
    torch.save({"state_dict": prefixed("module", control)}, tmp_path / "a.pt")
    torch.save(control, tmp_path / "b.pth", _use_new_zipfile_serialization=False)  # cannot be mapped into memory
    save_file(control, tmp_path / "c.safetensors")
    for path in sorted(tmp_path.iterdir()):
        found = read_state(path, mapped=True).tensors
        assert found.keys() == control.keys()
        assert all(torch.equal(found[key], value) for key, value in control.items())


def test_bad_arguments_are_named_before_anything_is_made(files):
    control, base, out = files / "v2.pth", files / "sd.ckpt", files / "out"
    with pytest.raises(WeightsError, match="no such weight file"):
        convert_diffbir(files / "v3.pth", base, out)
    with pytest.raises(ConfigError, match="holds the control network alone.*2.1-base"):
        convert_diffbir(control, None, out)
    with pytest.raises(ConfigError, match="'v4'"):
        convert_diffbir(control, base, out, "v4")
    with pytest.raises(WeightsError, match="is no base: it holds a control"):
        convert_diffbir(control, control, out)
    with pytest.raises(WeightsError, match="holds no control network"):
        convert_diffbir(base, None, out, "v2", head_channels=HEAD_CHANNELS)
    with pytest.raises(WeightsError, match="holds no tokenizer"):
        convert_diffbir(control, base, out, tokenizer=files)
    with pytest.raises(WeightsError, match="no readable AutoencoderKL"):
        convert_diffbir(control, files, out)
    control.rename(files / "mine.pth")
    with pytest.raises(ConfigError, match=r"version is not known.*v2\.1 predicts the velocity"):
        convert_diffbir(files / "mine.pth", base, out)
    out.mkdir()
    (out / "precious").write_text("x")
    with pytest.raises(DataError, match="already exists"):
        convert_diffbir(files / "mine.pth", base, out, "v2")
    assert (out / "precious").read_text() == "x"
    assert sorted(path.name for path in files.iterdir()) == ["mine.pth", "out", "sd.ckpt"]


class Evil:
    def __reduce__(self):
        return os.system, ("touch unpickled",)


def test_damaged_and_hostile_files_are_refused(files, monkeypatch):
    monkeypatch.chdir(files)
    content = (files / "sd.ckpt").read_bytes()
    (files / "cut.ckpt").write_bytes(content[: len(content) // 2])
    (files / "cut.safetensors").write_bytes(b"\x10" * 50)
    torch.save({"a": Evil()}, files / "evil.ckpt")
    torch.save({"a": 3}, files / "number.ckpt")
    (files / "image.png").write_bytes(b"")
    for name, message in {
        "cut.ckpt": "unreadable|damaged", "cut.safetensors": "unreadable", "evil.ckpt": "damaged, or holds objects",
        "number.ckpt": "no dictionary of tensors", "image.png": "unknown suffix",
    }.items():  # fmt: skip
        with pytest.raises(WeightsError, match=message):
            read_state(files / name, mapped=True)
    assert not (files / "unpickled").exists()


def test_a_full_disk_leaves_nothing_behind(files, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diffusers.DDPMScheduler.save_pretrained", fail)
    with pytest.raises(DataError, match="out: cannot be written .No space left on device"):
        convert_diffbir(files / "v2.pth", files / "sd.ckpt", files / "out", head_channels=HEAD_CHANNELS)
    assert sorted(path.name for path in files.iterdir()) == ["sd.ckpt", "v2.pth"]


def test_the_command_converts_and_says_what_is_missing(files, networks, capsys):
    base = files / "sd"
    for name in ("vae", "unet"):
        networks[name].save_pretrained(base / name)
    command = ["convert", "diffbir", str(files / "v2.pth"), "--base", str(base), "--out", str(files / "out")]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(files / "out")
    assert "keys of the control network, version v2" in printed.err
    assert "no tokenizer" in printed.err
    assert "no text encoder" in printed.err
    same(files / "out" / "controlnet", networks["controlnet"])
    assert main(command) == 2
    assert "already exists" in capsys.readouterr().err
    assert main([*command[:-1], str(files / "new"), "--version", "v9"]) == 2


@pytest.mark.golden
def test_the_original_small_diffbir_converts_and_assert_near(shared, tmp_path):
    from diffusers import UNet2DConditionModel

    from milo_restore.models.diffbir import predict

    golden = load_file(shared / "golden" / "diffbir_control_small.safetensors")
    io = {key[3:]: golden.pop(key) for key in list(golden) if key.startswith("io.")}
    vae = prefixed("first_stage_model", vae_keys(small_vae().state_dict()))
    save_file(golden | vae, tmp_path / "whole.safetensors")
    out = convert_diffbir(tmp_path / "whole.safetensors", None, tmp_path / "out", "v2", head_channels=16)
    unet = UNet2DConditionModel.from_pretrained(out / "unet", local_files_only=True)
    control = IRControlNet.from_pretrained(out / "controlnet", local_files_only=True)
    with torch.no_grad():
        down, middle = control(io["z_t"], io["t"], io["context"], io["c_img"], return_dict=False)
        eps = predict(unet, control, io["z_t"], io["t"], io["context"], io["c_img"])
    found = {f"control.{i}": residual for i, residual in enumerate([*down, middle])} | {"eps": eps}
    for name, value in found.items():
        assert_near(value, io[name], rounding=5e-5)  # a dozen layers deep, and the golden numbers are another CPU's
    assert len(found) == 14
