"""Cleaners: any size in, the published files' formats, and clear words for what is no cleaner."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from basicsr.archs.rrdbnet_arch import RRDBNet
from basicsr.archs.srvgg_arch import SRVGGNetCompact
from safetensors.torch import load_file, save_file

from milo_restore import files
from milo_restore.errors import ConfigError, DataError, WeightsError
from milo_restore.models import tiny
from milo_restore.models.diffbir.cleaner import CLEANERS, TASKS, load_cleaner, published_cleaner


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch):
    """No files but the test's own."""
    (tmp_path / "assets").mkdir()
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(tmp_path / "assets"))
    monkeypatch.setenv("MILO_RESTORE_CACHE", str(tmp_path / "cache"))


def swinir(**options):
    """DiffBIR's SwinIR, small: shuffled into channels at the start, enlarged as often at the end."""
    pytest.importorskip("spandrel")
    from spandrel.architectures.SwinIR import SwinIR

    sizes = {"img_size": 16, "embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 8, "mlp_ratio": 2}
    kind = {"upsampler": "nearest+conv", "upscale": 8, "start_unshuffle": 8}
    network = SwinIR(**{**sizes, **kind, **options}).eval()
    torch.nn.init.normal_(network.conv_last.weight, std=0.05)
    return network


def original(network):
    """Its tensors as DiffBIR writes them: the first convolution stands behind the shuffling."""
    return {
        key.replace("conv_first.", "conv_first.1."): value.contiguous() for key, value in network.state_dict().items()
    }


def kair(state):
    """RRDBNet's tensors under BSRNet's names."""
    outer = {"body": "RRDB_trunk", "conv_body": "trunk_conv", "conv_up1": "upconv1", "conv_up2": "upconv2"}
    renamed = {}
    for key, value in state.items():
        head, _, rest = key.partition(".")
        renamed[f"{outer.get(head, head).replace('conv_hr', 'HRconv')}.{rest.replace('rdb', 'RDB')}"] = value
    return renamed


def rrdb():
    return RRDBNet(3, 3, num_feat=8, num_block=1, num_grow_ch=4).state_dict()


def saved(path, content):
    torch.save(content, path)
    return path


@torch.no_grad()
def by_hand(network, images, multiple, scale):
    height, width = images.shape[2:]
    rows = list(range(height)) + [height - 1] * (-height % multiple)
    columns = list(range(width)) + [width - 1] * (-width % multiple)
    return network(images[:, :, rows][..., columns])[..., : height * scale, : width * scale].clamp(0, 1)


def test_none_changes_nothing():
    images = torch.rand(2, 3, 5, 1)
    cleaner = load_cleaner("none")
    assert torch.equal(cleaner(images), images)
    assert (cleaner.scale, list(cleaner.parameters())) == (1, [])


@pytest.mark.parametrize("task", TASKS)
def test_the_shipped_cleaners_are_their_files(task):
    state = load_file(tiny.SHIPPED / f"cleaner_{task}.safetensors")
    network = tiny.tiny_cleaner()
    network.load_state_dict({key: value.float() for key, value in state.items()})
    cleaner, images = load_cleaner(f"tiny:{task}"), torch.rand(2, 3, 7, 1)
    torch.testing.assert_close(cleaner(images), by_hand(network, images, 1, 1), rtol=0, atol=1e-6)
    assert (cleaner.scale, cleaner.name, cleaner.training) == (1, f"tiny:{task}", False)
    assert {value.dtype for value in cleaner.parameters()} == {torch.float32}
    assert not any(value.requires_grad for value in cleaner.parameters())


@pytest.mark.parametrize(
    ("scale", "wrapper", "prefix"), [(4, None, ""), (2, "params_ema", "module."), (1, "params", "")]
)
def test_rrdbnet_in_either_naming(tmp_path, scale, wrapper, prefix):
    network = RRDBNet(3, 3, scale=scale, num_feat=8, num_block=2, num_grow_ch=4).eval()
    state = network.state_dict() if scale == 1 else kair(network.state_dict())
    state = {prefix + key: value for key, value in state.items()}
    cleaner = load_cleaner(saved(tmp_path / "BSRNet.pth", {wrapper: state} if wrapper else state))
    assert cleaner.scale == scale
    assert sum(value.numel() for value in cleaner.parameters()) == sum(value.numel() for value in network.parameters())
    for size in ((9, 6), (1, 1)):
        images = torch.rand(1, 3, *size)
        output = cleaner(images)
        assert output.shape == (1, 3, size[0] * scale, size[1] * scale)
        torch.testing.assert_close(output, by_hand(network, images, 4 // scale, scale), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["ckpt", "preprocess", "safetensors"])
def test_diffbirs_swinir(tmp_path, form):
    network = swinir()
    state = original(network)
    if form == "ckpt":  # as Lightning writes it
        path = saved(tmp_path / "general_swinir_v1.ckpt", {"epoch": 3, "state_dict": state, "callbacks": {}})
    elif form == "preprocess":
        path = saved(tmp_path / "a.pth", {f"preprocess_model.{key}": value for key, value in state.items()})
    else:  # as `milo-restore convert diffbir` writes it
        save_file(state, path := tmp_path / "cleaner.safetensors")
    cleaner = load_cleaner(path)
    assert (cleaner.scale, cleaner.multiple) == (1, 64)
    assert cleaner.enlarge_first  # it was trained on 512 pixels
    for size in ((64, 64), (70, 3)):
        images = torch.rand(1, 3, *size)
        torch.testing.assert_close(cleaner(images), by_hand(network, images, 64, 1), rtol=0, atol=1e-5)


def test_scunet(tmp_path):
    pytest.importorskip("spandrel")
    from spandrel.architectures.SCUNet import SCUNet

    network = SCUNet(config=[1, 1, 1, 1, 1, 1, 1], dim=64).eval()
    cleaner = load_cleaner(saved(tmp_path / "scunet_color_real_psnr.pth", network.state_dict()))
    assert not cleaner.enlarge_first
    images = torch.rand(1, 3, 20, 33)
    torch.testing.assert_close(cleaner(images), by_hand(network, images, 64, 1), rtol=0, atol=1e-5)


def test_output_is_clamped_and_keeps_the_precision(tmp_path):
    options = {"num_feat": 4, "num_conv": 1, "upscale": 2, "act_type": "prelu"}
    network = SRVGGNetCompact(**options)
    state = {key: value.contiguous() for key, value in network.state_dict().items()}
    state["body.4.bias"] = torch.full_like(state["body.4.bias"], 9.0)
    path = tmp_path / "own.safetensors"
    save_file(state, path, {"architecture": "SRVGGNetCompact", "options": json.dumps(options)})
    cleaner = load_cleaner(path)
    images = torch.rand(1, 3, 4, 5, requires_grad=True)
    output = cleaner(images)
    assert torch.equal(output, torch.ones(1, 3, 8, 10))
    assert not output.requires_grad
    assert not output.is_inference()  # inference tensors cannot take part in training
    assert cleaner(images.half()).dtype == torch.float16
    with pytest.raises(DataError, match=r"takes images \(N, 3, H, W\), this is \(1, 4, 4, 5\)"):
        cleaner(torch.rand(1, 4, 4, 5))


def test_one_image_does_not_see_the_others(tmp_path):
    cleaner = load_cleaner(saved(tmp_path / "a.pth", original(swinir())))
    images = torch.rand(3, 3, 40, 50)
    torch.testing.assert_close(cleaner(images)[1:2], cleaner(images[1:2]), rtol=0, atol=1e-5)


def test_published_choice():
    chosen = {version: [CLEANERS[version][task] for task in ("sr", "denoise", "face")] for version in CLEANERS}
    assert chosen == {
        "v1": ["swinir-general", "swinir-general", "swinir-face"],
        "v2": ["bsrnet", "scunet", "swinir-face"],
        "v2.1": ["swinir-realesrgan", "swinir-realesrgan", "swinir-face"],
    }
    assert published_cleaner("v2", "sr") == "bsrnet"
    assert {name for tasks in CLEANERS.values() for name in tasks.values()} <= set(files.CLEANERS)
    for arguments, message in ((("v3", "sr"), "Known versions: v1, v2, v2.1"), (("v2", "blur"), "no task 'blur'")):
        with pytest.raises(ConfigError, match=message):
            published_cleaner(*arguments)


@pytest.mark.parametrize("place", ["assets", "assets/weights", "cache/weights/diffbir"])
def test_published_names_are_found(tmp_path, place):
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    network = RRDBNet(3, 3, num_feat=8, num_block=1, num_grow_ch=4)
    saved(folder / "BSRNet.pth", kair(network.state_dict()))
    cleaner = load_cleaner("bsrnet")
    assert (cleaner.name, cleaner.scale) == ("bsrnet", 4)
    assert torch.equal(cleaner.network.conv_last.weight, network.conv_last.weight)


def test_a_published_file_that_is_not_here(tmp_path):
    with pytest.raises(WeightsError) as caught:
        load_cleaner("swinir-realesrgan")
    url = "https://huggingface.co/lxq007/DiffBIR-v2/resolve/main/realesrgan_s4_swinir_100k.pth"
    for part in (
        "milo-restore assets fetch swinir-realesrgan",
        url,
        str(tmp_path / "assets" / "weights" / "diffbir"),
        str(tmp_path / "cache"),
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["tiny:colour", "swinir", "no/such/file.pth"])
def test_unknown_names(name):
    with pytest.raises(WeightsError, match=r"no such cleaner.*tiny:denoise"):
        load_cleaner(name)


class Trap:
    """Would run code on loading."""

    def __reduce__(self):
        return pytest.fail, ("the file's code was run",)


def without(state, key):
    return {name: value for name, value in state.items() if name != key}


BROKEN = {
    "trap.pth": (lambda: Trap(), "holds objects that are no weights"),
    "text.pth": (lambda: b"hello", "is damaged"),
    "empty.pth": (lambda: b"", "is damaged"),
    "cut.safetensors": (lambda: b"\x40\0\0\0\0\0\0\0{", "unreadable"),
    "list.pth": (lambda: [1, 2], "holds no dictionary of tensors"),
    "other.pth": (lambda: {"conv.weight": torch.zeros(2)}, "is no cleaner .*BSRNet .*SwinIR or SCUNet"),
    "lacks.pth": (lambda: without(rrdb(), "conv_last.bias"), "does not fit RRDBNet: 1 missing: conv_last.bias"),
    "extra.pth": (lambda: {**kair(rrdb()), "more": torch.zeros(1)}, "does not fit RRDBNet: 1 unexpected: more"),
    "grey.pth": (lambda: {**rrdb(), "conv_first.weight": torch.zeros(8, 1, 3, 3)}, "no RRDBNet for RGB"),
    "swinir.pth": (lambda: without(original(swinir()), "norm.weight"), "is no cleaner .*Missing.*norm.weight"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_are_no_cleaners(tmp_path, name):
    content, message = BROKEN[name][0](), BROKEN[name][1]
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        saved(path, content)
    with pytest.raises(WeightsError, match=message) as caught:
        load_cleaner(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_network_that_spandrel_knows(tmp_path):
    pytest.importorskip("spandrel")
    state = SRVGGNetCompact(num_feat=8, num_conv=2, upscale=2, act_type="prelu").state_dict()
    with pytest.raises(WeightsError, match="is a Compact"):
        load_cleaner(saved(tmp_path / "realesr.pth", state))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"architecture": "Restormer", "options": "{}"}, "unknown architecture 'Restormer'"),
        ({"architecture": "RRDBNet"}, "its metadata are no options of RRDBNet"),
        ({"architecture": "RRDBNet", "options": '{"width": 3}'}, "its metadata are no options of RRDBNet"),
        ({"architecture": "RRDBNet", "options": '{"num_in_ch": 3, "num_out_ch": 3, "scale": 8}'}, "scale 8"),
    ],
)
def test_metadata_that_describe_no_network(tmp_path, metadata, message):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", metadata)
    with pytest.raises(WeightsError, match=message):
        load_cleaner(tmp_path / "a.safetensors")


def test_without_spandrel(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.pth", original(swinir()))
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(ConfigError, match=r"pip install 'milo-restore\[diffusion\]'"):
        load_cleaner(path)
    load_cleaner("tiny:denoise")
