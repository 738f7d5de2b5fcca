"""IRControlNet: DiffBIR's control network as a diffusers model, its schedules, and the prediction under control."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, assert_near
from original_keys import disturb, small_unet

import milo_restore
from milo_restore.errors import ConfigError, DataError
from milo_restore.models.diffbir import IRControlNet, noise_scheduler, predict, sampling_scheduler


def inputs(batch=2, size=16, context=24):
    generator = torch.Generator().manual_seed(3)
    z_t, condition = (torch.randn(batch, 4, size, size, generator=generator) for _ in range(2))
    return z_t, torch.tensor([7, 950])[:batch], torch.randn(batch, 5, context, generator=generator), condition


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return disturb(small_unet()).requires_grad_(False)


@pytest.fixture
def control(unet):
    """An untrained control."""
    return IRControlNet.from_unet(unet)


def digest(network):
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in network.state_dict().values())).hexdigest()


@pytest.mark.golden
def test_the_original_networks_give_the_original_numbers(shared):
    from safetensors import safe_open

    from milo_restore.models.diffbir.from_original import build_control, build_unet

    path = shared / "golden" / "diffbir_control_small.safetensors"
    with safe_open(path, "pt") as file:
        arguments = json.loads(file.metadata()["unet"])
        tensors = {key: file.get_tensor(key).float() for key in file.keys() if not key.startswith("io.t")}  # noqa: SIM118
        tensors["io.t"] = file.get_tensor("io.t")
    state = {name: {} for name in ("control_model", "model.diffusion_model", "io")}
    for key, value in tensors.items():
        name = next(name for name in state if key.startswith(name + "."))
        state[name][key[len(name) + 1 :]] = value
    unet = build_unet(state["model.diffusion_model"], path, arguments["num_head_channels"])
    control = build_control(state["control_model"], path, unet)
    io = state["io"]
    with torch.no_grad():
        down, middle = control(io["z_t"], io["t"], io["context"], io["c_img"], return_dict=False)
        eps = predict(unet, control, io["z_t"], io["t"], io["context"], io["c_img"])
    found = {f"control.{i}": residual for i, residual in enumerate([*down, middle])} | {"eps": eps}
    assert len(found) == 14
    for name, value in found.items():
        assert_near(value, io[name], rounding=5e-5)  # a dozen layers deep, and the golden numbers are another CPU's


@pytest.mark.golden
@pytest.mark.parametrize("version", ["v2", "v2.1"])
def test_the_schedules_are_the_original_ones(shared, version):
    expected = np.load(shared / "golden" / f"diffbir_schedule_{version}.npz")
    scheduler = noise_scheduler(version)
    alphas = scheduler.alphas_cumprod.sqrt().numpy()
    np.testing.assert_allclose(alphas, expected["sqrt_alphas_cumprod"], rtol=0, atol=1e-6)
    # diffusers takes the betas of the zero-SNR schedule from differences in float32: 1.3e-5 of 0.56 is the worst.
    # No sampler reads them there.
    np.testing.assert_allclose(scheduler.betas, expected["betas"], rtol=1e-4 if version == "v2.1" else 0, atol=1e-6)


def test_versions_differ_in_what_they_predict_and_how_they_end():
    for version in ("v1", "v2"):
        scheduler = noise_scheduler(version)
        assert scheduler.config.prediction_type == "epsilon"
        assert float(scheduler.alphas_cumprod[-1]) == pytest.approx(0.00466, abs=1e-5)
    scheduler = noise_scheduler("v2.1")
    assert scheduler.config.prediction_type == "v_prediction"
    assert float(scheduler.alphas_cumprod[-1]) == 0
    with pytest.raises(ConfigError, match=r"'v3'.*v2\.1"):
        noise_scheduler("v3")


def test_spaced_sampling_reaches_both_ends_evenly():
    timesteps = sampling_scheduler("v2").timesteps
    assert len(timesteps) == 50
    assert (int(timesteps[0]), int(timesteps[-1])) == (999, 0)
    assert set((timesteps[:-1] - timesteps[1:]).tolist()) == {20, 21}
    for steps in (0, 1001):
        with pytest.raises(ConfigError, match=f"{steps} sampling steps"):
            sampling_scheduler("v2", steps)


def test_a_control_starts_as_a_copy_that_changes_nothing(unet, control):
    ours, theirs = control.state_dict(), unet.state_dict()
    new = {key for key in ours if key.startswith("controlnet_")}
    assert {key.split(".")[0] for key in new} == {
        "controlnet_down_blocks", "controlnet_mid_block", "controlnet_cond_embedding"
    }  # fmt: skip
    assert all(not ours[key].any() for key in new)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours.keys() - new)
    z_t, timesteps, context, condition = inputs()
    with torch.no_grad():
        plain = unet(z_t, timesteps, context).sample
        assert_near(predict(unet, control, z_t, timesteps, context, condition), plain)
        disturb(control)
        assert (predict(unet, control, z_t, timesteps, context, condition) - plain).abs().max() > 1e-3


def test_two_convolutions_are_one_over_both_latents(unet, control):
    disturb(control)
    z_t, _, _, condition = inputs()
    weight = torch.cat([control.conv_in.weight, control.controlnet_cond_embedding.weight], 1)
    assert weight.shape == (32, 8, 3, 3)
    both = torch.nn.functional.conv2d(torch.cat([z_t, condition], 1), weight, control.conv_in.bias, padding=1)
    torch.testing.assert_close(control.conv_in(z_t) + control.controlnet_cond_embedding(condition), both)


def test_a_saved_control_comes_back_by_the_name_that_pipelines_use(control, tmp_path):
    disturb(control).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["_class_name"], config["conditioning_channels"], config["in_channels"]) == ("IRControlNet", 4, 4)
    back = getattr(milo_restore, config["_class_name"]).from_pretrained(tmp_path, local_files_only=True)
    assert digest(back) == digest(control)
    arguments = inputs()
    with torch.no_grad():
        first, second = (network.eval()(*arguments, return_dict=False) for network in (control, back))
    for one, other in zip((*first[0], first[1]), (*second[0], second[1]), strict=True):
        assert_near(one, other)


@pytest.mark.parametrize("shape", [(1, 4, 16, 16), (2, 4, 1, 1), (2, 4, 2, 2), (2, 1, 16, 16), (2, 3, 128, 128)])
def test_a_condition_of_another_shape_is_refused(unet, control, shape):
    z_t, timesteps, context, _ = inputs()
    with pytest.raises(DataError, match=r"\(2, 4, 16, 16\)"):
        predict(unet, control, z_t, timesteps, context, torch.zeros(shape))


def test_scales_weigh_the_residuals(unet, control):
    disturb(control)
    z_t, timesteps, context, condition = inputs()
    count = len(control.controlnet_down_blocks) + 1
    with torch.no_grad():
        plain = unet(z_t, timesteps, context).sample
        full, none, each = (
            predict(unet, control, z_t, timesteps, context, condition, scales)
            for scales in (1.0, 0.0, [0.0] * (count - 1) + [1.0])
        )
        down, middle = control(z_t, timesteps, context, condition, return_dict=False)
        only_middle = unet(
            z_t,
            timesteps,
            context,
            down_block_additional_residuals=[torch.zeros_like(residual) for residual in down],
            mid_block_additional_residual=middle,
        ).sample
    assert_near(none, plain)
    torch.testing.assert_close(each, only_middle)
    assert (full - each).abs().max() > 1e-3
    with pytest.raises(DataError, match=f"2 control scales for {count}"):
        predict(unet, control, z_t, timesteps, context, condition, [1.0, 1.0])


def test_one_text_serves_the_whole_batch(unet, control):
    disturb(control)
    z_t, timesteps, context, condition = inputs()
    with torch.no_grad():
        one = predict(unet, control, z_t, timesteps, context[:1], condition)
        many = predict(unet, control, z_t, timesteps, context[:1].repeat(2, 1, 1), condition)
    assert_near(one, many)


def test_gradients_pass_the_frozen_unet_and_reach_the_control_only(unet, control):
    before = digest(unet)
    optimizer = torch.optim.SGD(control.parameters(), lr=0.1)
    z_t, timesteps, context, condition = inputs()
    moved = []
    for _ in range(2):
        optimizer.zero_grad()
        predict(unet, control, z_t, timesteps, context, condition).square().mean().backward()
        moved.append(
            {name for name, value in control.named_parameters() if value.grad is not None and value.grad.any()}
        )
        optimizer.step()
    # Behind the zero convolutions nothing learns at first; once they have moved, everything does.
    assert all(name.startswith(("controlnet_down_blocks", "controlnet_mid_block")) for name in moved[0])
    assert "controlnet_cond_embedding.weight" in moved[1]
    assert moved[1] == {name for name, _ in control.named_parameters()}
    assert all(parameter.grad is None for parameter in unet.parameters())
    assert digest(unet) == before


def test_a_unet_in_half_precision_takes_a_control_in_float32(control):
    unet = disturb(small_unet()).requires_grad_(False).to(torch.bfloat16)
    control = disturb(IRControlNet.from_unet(unet))
    assert control.dtype == torch.float32
    prediction = predict(unet, control, *inputs())
    assert prediction.dtype == torch.bfloat16
    prediction.float().square().mean().backward()
    assert control.controlnet_cond_embedding.weight.grad.abs().max() > 0


def gradients(unet, control, recompute):
    calls = []
    watched = (unet.up_blocks[0].resnets[0], control.down_blocks[0].resnets[0])
    hooks = [module.register_forward_pre_hook(lambda module, *_: calls.append(module)) for module in watched]
    for network in (unet, control):
        network.train()
        (network.enable_gradient_checkpointing if recompute else network.disable_gradient_checkpointing)()
    control.zero_grad()
    predict(unet, control, *inputs()).square().mean().backward()
    for hook in hooks:
        hook.remove()
    return {name: value.grad.clone() for name, value in control.named_parameters()}, [calls.count(m) for m in watched]


def test_gradient_checkpointing_of_both_networks_keeps_the_gradients():
    unet = disturb(small_unet()).requires_grad_(False)
    control = disturb(IRControlNet.from_unet(unet))
    plain, once = gradients(unet, control, recompute=False)
    recomputed, twice = gradients(unet, control, recompute=True)
    assert (once, twice) == ([1, 1], [2, 2])
    assert max(value.abs().max() for value in plain.values()) > 1e-3
    assert recomputed.keys() == plain.keys()
    ours, theirs = (torch.cat([grads[name].flatten() for name in plain]) for grads in (recomputed, plain))
    assert_near(ours, theirs)


def test_the_full_size_is_diffbirs():
    with torch.device("meta"):
        unet = small_unet((320, 640, 1280, 1280), 2, 1024, head_channels=64)
        control = IRControlNet.from_unet(unet)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in control.named_children()}
    assert sum(count.values()) == 363_153_280
    assert count["controlnet_cond_embedding"] == 4 * 320 * 9
    assert count["controlnet_down_blocks"] + count["controlnet_mid_block"] == 11_479_680
    assert len(control.state_dict()) == 324 + 1


def test_importing_the_models_does_not_import_diffusers():
    code = "import sys, milo_restore.models, milo_restore.models.diffbir as d; d.VERSIONS, dir(d); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    names = {name.split(".")[0] for name in result.stdout.split()}
    assert "milo_restore" in names
    assert "diffusers" not in names
    with pytest.raises(AttributeError, match="IRControlNets"):
        milo_restore.models.diffbir.IRControlNets  # noqa: B018
