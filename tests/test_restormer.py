"""Restormer: equal to upstream's outputs, any size, strict loading, checkpointing, the errors."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_near
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from milo_restore.errors import ConfigError, DataError, WeightsError
from milo_restore.files.state import read_state
from milo_restore.models.restormer import Restormer, _pad, infer_arguments
from milo_restore.models.restormer_blocks import BiasFreeBody, cosines

SMALL = {"dim": 8, "num_blocks": (1, 1, 1, 2), "num_refinement_blocks": 1}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors: on a busy machine threads cost ten times what they bring
    yield
    torch.set_num_threads(threads)


def small(**changes):
    torch.manual_seed(0)
    return Restormer(**{**SMALL, **changes})


def gradients(net, x):
    x = x.clone().requires_grad_()
    y = net(x)
    net.zero_grad()
    y.square().mean().backward()
    return y.detach(), x.grad, [p.grad.clone() for p in net.parameters()]


@pytest.mark.golden
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["colour_biasfree", "gray_withbias"])
def test_equals_upstream(shared, name, checkpointing):
    path = shared / "golden" / f"restormer_{name}.safetensors"
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
    golden = load_file(path)
    net = Restormer(**config, gradient_checkpointing=checkpointing)
    net.load_state_dict({k[7:]: v for k, v in golden.items() if k.startswith("params.")})
    output, grad, _ = gradients(net, golden["io.input"])
    assert (output - golden["io.output"]).abs().max() < 1e-5
    assert (grad - golden["io.grad_input"]).abs().max() < 1e-5 * golden["io.grad_input"].abs().max()
    assert net.config == config


@pytest.mark.golden
def test_full_size_keys(shared):
    expected = json.loads((shared / "golden" / "restormer_colour_full_keys.json").read_text())
    with torch.device("meta"):
        net = Restormer()
    assert {k: list(v.shape) for k, v in net.state_dict().items()} == expected


@pytest.mark.parametrize(
    ("arguments", "count", "tensors"),
    [
        ({}, 26_111_668, 406),
        ({"inp_channels": 1, "out_channels": 1}, 26_109_076, 406),
        ({"LayerNorm_type": "WithBias"}, 26_126_644, 494),
        ({"inp_channels": 6, "dual_pixel_task": True}, 26_111_668 + 3 * 48 * 9 + 48 * 96, 407),
    ],
)
def test_parameter_count(arguments, count, tensors):
    with torch.device("meta"):
        net = Restormer(**arguments)
    assert sum(p.numel() for p in net.parameters()) == count
    assert len(net.state_dict()) == tensors


def test_norm_gradient_is_the_formulas():
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=True)
    body = BiasFreeBody(6).double()
    nn.init.normal_(body.weight)

    def plain(x, weight):
        return x / (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt() * weight.view(-1, 1, 1)

    torch.testing.assert_close(body(x), plain(x, body.weight))
    g = torch.randn_like(x)
    for layout in (torch.contiguous_format, torch.channels_last):
        ours = torch.autograd.grad(body(x.contiguous(memory_format=layout)), (x, body.weight), g)
        theirs = torch.autograd.grad(plain(x, body.weight), (x, body.weight), g)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_cosines_match_normalised_products_and_survive_zeros():
    q, k = torch.randn(2, 3, 4, 50), torch.randn(2, 3, 4, 50)
    q[0, 0, 0] = 0
    q.requires_grad_()
    wanted = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
    torch.testing.assert_close(cosines(q, k), wanted, rtol=1e-5, atol=1e-6)
    half = cosines(300 * q.detach().half(), 300 * k.half())  # the raw products overflow
    torch.testing.assert_close(half.float(), wanted.detach(), rtol=0, atol=5e-3)
    assert torch.autograd.grad(cosines(q, k).sum(), q)[0].isfinite().all()


@pytest.mark.parametrize("arguments", [{}, {"bias": True, "LayerNorm_type": "WithBias"}])
def test_both_layouts_agree(arguments):
    net = small(**arguments).double()
    if arguments:  # biases that start at zero would hide a bias left out
        for name, p in net.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(p, std=0.1)
    x = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    last = net._features_to_image(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(last, net._features_to_image(x), rtol=1e-10, atol=1e-12)
    assert net(x).is_contiguous()


def test_biases_take_part():
    net = small(bias=True)
    x = torch.rand(1, 3, 16, 16)
    _, _, grads = gradients(net, x)
    names = [name for name, _ in net.named_parameters()]
    # k's bias included: after L2 normalisation over pixels nothing cancels it
    assert [n for n, g in zip(names, grads) if g.abs().max() == 0] == []


@pytest.mark.parametrize("dual", [False, True])
def test_checkpointing_changes_nothing(dual):
    net = small(inp_channels=6, dual_pixel_task=True) if dual else small()
    x = torch.rand(2, 6 if dual else 3, 16, 20)
    plain = gradients(net, x)
    net.enable_gradient_checkpointing()
    calls = []
    net.latent[0].register_forward_pre_hook(lambda *_: calls.append(1))
    again = gradients(net, x)
    assert len(calls) == 2  # forward, and once more in the backward pass
    for one, other in zip((*plain[:2], *plain[2]), (*again[:2], *again[2]), strict=True):
        assert_near(other, one)
    net.disable_gradient_checkpointing()
    gradients(net, x)
    assert len(calls) == 3


def test_dual_pixel_adds_the_embedding_not_the_input():
    net = small(inp_channels=6, dual_pixel_task=True)
    nn.init.zeros_(net.skip_conv.weight)
    x = torch.rand(1, 6, 16, 16)
    without = net(x)
    assert without.shape == (1, 3, 16, 16)
    nn.init.normal_(net.skip_conv.weight)
    expected = without + F.conv2d(net.skip_conv(net.patch_embed(x)), net.output.weight, padding=1)
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
    nn.init.zeros_(net.output.weight)
    assert net(x).abs().max() == 0


@pytest.mark.parametrize("size", [(1, 1), (3, 17), (5, 8), (4, 4), (13, 30), (16, 24)])
def test_any_size(size):
    net = small().eval()
    x = torch.rand(2, 3, *size)
    y = net(x)
    assert y.shape == x.shape
    assert y.is_contiguous()
    padded = net(_pad(x))
    torch.testing.assert_close(y, padded[..., : size[0], : size[1]])
    torch.testing.assert_close(y[1:], net(x[1:]), rtol=1e-4, atol=1e-5)


def test_pads_by_reflection_or_edge():
    x = torch.arange(3.0 * 13).view(1, 1, 3, 13)
    padded = _pad(x)
    assert padded.shape == (1, 1, 8, 16)
    assert padded[0, 0, 0, 13:].tolist() == [11, 10, 9]  # reflected
    assert padded[0, 0, 3:, 0].tolist() == [26] * 5  # 3 rows cannot reflect 5: the last is repeated
    assert _pad(torch.rand(1, 1, 5, 8))[0, 0].shape == (8, 8)
    same = torch.rand(1, 3, 8, 16)
    assert _pad(same) is same


def test_bfloat16_autocast():
    net = small()
    x = torch.rand(2, 3, 32, 32)
    exact, _, grads = gradients(net, x)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
        assert net.patch_embed(x).dtype == torch.bfloat16
    assert (y.float() - exact).abs().max() < 0.02
    net.zero_grad()
    y.float().square().mean().backward()
    ours, theirs = torch.cat([g.flatten() for g in grads]), torch.cat([p.grad.flatten() for p in net.parameters()])
    assert F.cosine_similarity(ours, theirs, dim=0) > 0.99


def test_ddp(tmp_path, recwarn):
    net = small(gradient_checkpointing=True)
    x = torch.rand(1, 3, 16, 16)
    _, _, plain = gradients(net, x)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(net)
        net.zero_grad()
        wrapped(x).square().mean().backward()
        for parameter, gradient in zip(net.parameters(), plain, strict=True):
            assert_near(parameter.grad, gradient)
        assert not [str(w.message) for w in recwarn if "strides" in str(w.message)]
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"LayerNorm_type": "WithBias", "bias": True, "num_blocks": [1, 2, 1, 3], "num_refinement_blocks": 0},
        {"inp_channels": 6, "dual_pixel_task": True, "heads": [2, 2, 4, 4], "ffn_expansion_factor": 3.0},
    ],
)
@pytest.mark.parametrize("form", ["pth", "pth-bare", "safetensors", "safetensors-bare", "pth-ema"])
def test_from_checkpoint(tmp_path, arguments, form):
    net = small(**arguments)
    state, entry = net.state_dict(), "params_ema" if form == "pth-ema" else "params"
    path = tmp_path / f"net.{form.split('-')[0]}"
    if form.startswith("pth"):
        torch.save(state if form == "pth-bare" else {entry: state}, path)
    else:
        save_file({k if form.endswith("bare") else f"params.{k}": v for k, v in state.items()}, path)
    loaded = Restormer.from_checkpoint(path, gradient_checkpointing=True)
    assert loaded.gradient_checkpointing
    assert all(torch.equal(v, state[k]) for k, v in loaded.state_dict().items())
    assert {k: v for k, v in loaded.config.items() if k != "ffn_expansion_factor"} == {
        k: v for k, v in net.config.items() if k != "ffn_expansion_factor"
    }
    x = torch.rand(1, net.inp_channels, 8, 8)
    assert_near(loaded(x), net(x))
    named = None if form.endswith("bare") else entry
    assert Restormer.from_checkpoint(path, entry=named, **net.config).config == net.config


def test_full_size_arguments_are_inferred():
    with torch.device("meta"):
        net = Restormer()
    assert infer_arguments(net.state_dict()) == net.config


def test_from_checkpoint_refuses(tmp_path):
    path = tmp_path / "net.pth"
    state = small().state_dict()
    torch.save({"params": state}, path)
    with pytest.raises(WeightsError, match=r"net\.pth.*missing: .*norm1\.body\.bias"):
        Restormer.from_checkpoint(path, LayerNorm_type="WithBias")
    with pytest.raises(WeightsError, match=r"unexpected: latent\.1\.attn\.project_out\.weight"):
        Restormer.from_checkpoint(path, num_blocks=(1, 1, 1, 1))
    with pytest.raises(WeightsError, match=r"82 of wrong shape: .*\(16, 16, 1, 1\) instead of \(32, 32, 1, 1\)"):
        Restormer.from_checkpoint(path, dim=16)
    with pytest.raises(ConfigError, match="dimm"):
        Restormer.from_checkpoint(path, dimm=8)
    torch.save({"params": {**state, "extra": torch.zeros(1)}}, path)
    with pytest.raises(WeightsError, match="1 unexpected: extra"):
        Restormer.from_checkpoint(path)
    torch.save({"params": {"conv.weight": torch.zeros(1)}}, path)
    with pytest.raises(WeightsError, match=r"not a Restormer's weights.*patch_embed"):
        Restormer.from_checkpoint(path)
    with pytest.raises(WeightsError, match="no dictionary of tensors"):
        Restormer.from_checkpoint(path, entry="params_ema")
    with pytest.raises(WeightsError, match="no such weight file"):
        Restormer.from_checkpoint(tmp_path / "none.pth")
    for name in ("cut.pth", "cut.safetensors"):
        (tmp_path / name).write_bytes(b"\x01\x02\x03 nothing of use here")
        with pytest.raises(WeightsError, match=f"{name}: unreadable"):
            Restormer.from_checkpoint(tmp_path / name)
    torch.save({"params": nn.Linear(1, 1)}, path)  # would run code on loading
    with pytest.raises(WeightsError, match="unreadable"):
        Restormer.from_checkpoint(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_whatever_is_damaged_is_one_line(tmp_path, suffix):
    whole = tmp_path / f"whole{suffix}"
    state = {"weight": torch.arange(40.0), "bias": torch.zeros(3)}
    torch.save(state, whole) if suffix == ".pth" else save_file(state, whole)
    content = whole.read_bytes()
    refused = []
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        (tmp_path / f"damaged{suffix}").write_bytes(damaged)
        try:
            read_state(tmp_path / f"damaged{suffix}")
        except WeightsError as error:
            refused.append(str(error))
    assert len(refused) > 5  # the rest hit padding or numbers
    assert all(len(line.splitlines()) == 1 for line in refused)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"dim": 7}, "dim"),
        ({"dim": 0}, "dim"),
        ({"heads": [3, 2, 4, 8]}, "heads"),
        ({"heads": [1, 2, 4]}, "heads"),
        ({"num_blocks": 4}, "num_blocks"),
        ({"num_blocks": [1, 1, 0, 1]}, "num_blocks"),
        ({"num_refinement_blocks": -1}, "num_refinement_blocks"),
        ({"LayerNorm_type": "biasfree"}, "LayerNorm_type"),
        ({"ffn_expansion_factor": 0.01}, "ffn_expansion_factor"),
        ({"ffn_expansion_factor": float("nan")}, "ffn_expansion_factor"),
        ({"inp_channels": 6}, "out_channels"),
    ],
)
def test_bad_arguments(arguments, name):
    with pytest.raises(ConfigError, match=name):
        small(**arguments)


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (torch.rand(3, 8, 8), r"\(3, 8, 8\), expected \(N, 3, H, W\)"),
        (torch.rand(1, 1, 8, 8), r"\(1, 1, 8, 8\), expected"),
        (torch.rand(1, 3, 0, 8), "no pixels"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "uint8"),
    ],
)
def test_bad_input(x, text):
    with pytest.raises(DataError, match=text):
        small()(x)
