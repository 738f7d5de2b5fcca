"""Diffusion's loss: the clean latent, the mask's weights, Min-SNR, what is refused, and what it costs."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_near
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler
from diffusers.training_utils import compute_snr

from milo_restore import LatentMILO, bench
from milo_restore.config import load_config
from milo_restore.errors import ConfigError, DataError, MiloRestoreError
from milo_restore.loss import DiffusionLoss, DiffusionLossSettings, clean_latent, gradient_cosines, prediction_target
from milo_restore.loss.parametrization import min_snr_weight, signal_and_noise

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def schedule(kind, zero_snr=False, cls=DDPMScheduler):
    return cls(**SD, prediction_type=kind, rescale_betas_zero_snr=zero_snr)


EPS, V = schedule("epsilon"), schedule("v_prediction", zero_snr=True)
SAID = [EPS, schedule("v_prediction"), V, schedule("sample"), schedule("v_prediction", True, DDIMScheduler)]
IDS = ["eps", "v", "v-zero-snr", "sample", "v-zero-snr-ddim"]


@pytest.fixture
def milo(latent_weights):
    return DiffusionLossSettings(weights=latent_weights)


class Batch:
    """Latents at several noise levels and a prediction that is off by a third."""

    def __init__(self, scheduler, timesteps=(0, 400, 999), side=16, error=0.3):
        generator = torch.Generator().manual_seed(5)
        shape = (len(timesteps), 4, side, side + 5)
        self.z0, self.noise, off = (torch.randn(shape, generator=generator) for _ in range(3))
        self.timesteps = torch.tensor(timesteps)
        self.z_t = scheduler.add_noise(self.z0, self.noise, self.timesteps)
        self.target = prediction_target(scheduler, self.z0, self.noise, self.timesteps)
        self.prediction = self.target + error * off

        self.condition = self.z0 + 0.5 * torch.randn(shape, generator=generator)

    def __call__(self, loss, prediction=None, step=None, condition=None):
        said = self.prediction if prediction is None else prediction
        return loss(said, self.z_t, self.z0, self.noise, self.timesteps, step=step, condition=condition)

    def mask(self, loss):
        return loss.mask(self.prediction, self.z_t, self.z0, self.timesteps)


def with_mask(loss, value):
    """The same loss, its mask network saying ``value`` everywhere."""
    loss.metric.predict_mask = lambda image, _: value * loss.metric.n_scales * torch.ones_like(image[:, :1])
    return loss


@pytest.mark.parametrize("scheduler", SAID, ids=IDS)
def test_the_clean_latent_of_an_exact_prediction_is_z0(scheduler):
    batch = Batch(scheduler, range(1000), side=4)
    z0_hat = clean_latent(scheduler, batch.target, batch.z_t, batch.timesteps)
    assert z0_hat.dtype == torch.float32
    error = (z0_hat - batch.z0).abs().amax((1, 2, 3))
    assert error[:400].max() < 5e-6
    assert error.max() < 5e-5  # eps at t = 999: float32's 1e-7 of z_t up to 4, times 14.6
    if scheduler.config.rescale_betas_zero_snr:
        assert scheduler.alphas_cumprod[-1] == 0
        assert torch.equal(z0_hat[999], batch.z0[999])


@pytest.mark.parametrize("scheduler", SAID[:4], ids=IDS[:4])
def test_formulas_are_the_schedulers(scheduler):
    scheduler.set_timesteps(1000)
    for t in (0, 1, 250, 998, 999):
        batch = Batch(scheduler, [t], side=4)
        step = scheduler.step(batch.prediction, t, batch.z_t).pred_original_sample
        ours = clean_latent(scheduler, batch.prediction, batch.z_t, batch.timesteps)
        # z_t - sigma eps rounds to 2.4e-7 a few times, and is then divided by 0.068 under eps at t = 999.
        torch.testing.assert_close(ours, step, atol=1e-5, rtol=1e-5)
        if scheduler.config.prediction_type == "v_prediction":
            velocity = scheduler.get_velocity(batch.z0, batch.noise, batch.timesteps)
            torch.testing.assert_close(batch.target, velocity, atol=1e-6, rtol=1e-6)


def test_the_clean_latent_amplifies_the_error_as_documented():
    for scheduler, gain in ((EPS, 14.6), (V, 1.0)):
        batch = Batch(scheduler, [999])
        z0_hat = clean_latent(scheduler, batch.prediction, batch.z_t, batch.timesteps)
        measured = (z0_hat - batch.z0).norm() / (batch.prediction - batch.target).norm()
        assert measured.item() == pytest.approx(gain, rel=2e-3)


def test_half_precision_and_autocast_change_only_the_prediction(milo):
    for scheduler in (EPS, V, schedule("sample")):
        batch = Batch(scheduler)
        loss = DiffusionLoss(milo, scheduler, 1)
        for dtype in (torch.float16, torch.bfloat16):
            said = batch.prediction.to(dtype)
            expected = batch(loss, said.float())
            assert batch(loss, said).dtype == torch.float32
            assert clean_latent(scheduler, said, batch.z_t, batch.timesteps).dtype == torch.float32
            assert_near(batch(loss, said), expected)  # a mask in bfloat16 is 6e-6 off
            with torch.autocast("cpu", torch.bfloat16):
                assert_near(batch(loss, said), expected)
            halves = [x.to(dtype) for x in (batch.prediction, batch.z_t, batch.z0, batch.noise)]
            assert loss(*halves, batch.timesteps).item() == pytest.approx(expected.item(), rel=0.02)


@pytest.mark.parametrize("kind", ["mse", "mae"])
@pytest.mark.parametrize("scheduler", [EPS, V], ids=["eps", "v"])
def test_a_mask_of_one_is_the_plain_loss(milo, kind, scheduler):
    batch = Batch(scheduler)
    function = {"mse": F.mse_loss, "mae": F.l1_loss}[kind]
    plain = batch(DiffusionLoss(DiffusionLossSettings(kind=kind), scheduler, 1))
    assert_near(plain, function(batch.prediction, batch.target))
    settings = replace(milo, power={"mse": 2, "mae": 1}[kind])
    for more in ({}, {"normalize": True}, {"noise_blend": 2.0}, {"mask_gradient": True}):
        masked = with_mask(DiffusionLoss(replace(settings, **more), scheduler, 1), 1.0)
        assert_near(batch(masked), plain)
    end = with_mask(DiffusionLoss(replace(settings, curriculum="cosine"), scheduler, 50), 1.0)
    assert_near(batch(end, step=50), plain)
    factor = DiffusionLoss(DiffusionLossSettings(kind=kind, loss_weight=0.5), scheduler, 1)
    assert_near(batch(factor), 0.5 * plain)


def test_the_mask_is_latent_milos_on_the_clean_latents(milo):
    batch = Batch(V)
    loss = DiffusionLoss(milo, V, 1)
    z0_hat = clean_latent(V, batch.prediction, batch.z_t, batch.timesteps)
    m = LatentMILO.from_pretrained(milo.weights).mask(z0_hat, reference=batch.z0) / 4
    assert_near(batch.mask(loss), m)
    assert m.shape == (3, 1, 16, 21)
    assert 0 < m.min() < m.max() < 1
    assert m.std() > 0.01
    residual = batch.prediction - batch.target
    torch.testing.assert_close(batch(loss), (m * residual**2).mean())
    torch.testing.assert_close(batch(DiffusionLoss(replace(milo, power=1), V, 1)), (m * residual.abs()).mean())


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_the_curriculum_goes_from_the_invisible_to_the_visible(milo, kind):
    batch = Batch(V)
    loss = DiffusionLoss(replace(milo, curriculum=kind), V, 200)
    m, square = batch.mask(loss), (batch.prediction - batch.target) ** 2
    for step in (0, 50, 200, 999):
        t = min(step / 200, 1)
        a = t if kind == "linear" else (1 - math.cos(math.pi * t)) / 2
        assert loss.position(step) == pytest.approx(a)
        torch.testing.assert_close(batch(loss, step=step), (((1 - a) * (1 - m) + a * m) * square).mean())
    torch.testing.assert_close(batch(loss, step=0), ((1 - m) * square).mean())
    assert_near(batch(loss, step=200), batch(DiffusionLoss(milo, V, 1)))
    with pytest.raises(ConfigError, match="step"):
        batch(loss)


def test_normalized_weights_have_mean_one_and_blended_ones_go_to_one(milo):
    batch = Batch(V)
    arguments = (batch.prediction, batch.z_t, batch.z0, batch.timesteps)
    plain = DiffusionLoss(milo, V, 1).pixel_weights(*arguments)
    normalized = DiffusionLoss(replace(milo, normalize=True), V, 1).pixel_weights(*arguments)
    torch.testing.assert_close(normalized, plain / plain.mean((1, 2, 3), keepdim=True))
    for k in (1.0, 4.0):
        blended = DiffusionLoss(replace(milo, noise_blend=k), V, 1).pixel_weights(*arguments)
        b = ((1 - V.alphas_cumprod[batch.timesteps]) ** (k / 2)).view(-1, 1, 1, 1)
        torch.testing.assert_close(blended, (1 - b) * plain + b)
        torch.testing.assert_close(blended[2], torch.ones_like(blended[2]))  # pure noise at t = 999
        assert (blended[0] - plain[0]).abs().max() < 0.05
        early = DiffusionLoss(replace(milo, noise_blend=k, curriculum="linear"), V, 9).pixel_weights(*arguments, step=0)
        torch.testing.assert_close(early, (1 - b) * (1 - plain) + b)


@pytest.mark.parametrize("scheduler", SAID[:4], ids=IDS[:4])
def test_min_snr_is_the_published_weight(milo, scheduler):
    timesteps = torch.arange(999)  # compute_snr divides by sigma and we by snr: both exist up to here
    snr = compute_snr(scheduler, timesteps)
    least = torch.stack([snr, torch.full_like(snr, 5.0)]).amin(0)
    over = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[scheduler.config.prediction_type]
    ours = min_snr_weight(scheduler, timesteps, 5.0)
    assert ours.shape == (999, 1, 1, 1)
    torch.testing.assert_close(ours.flatten(), least / over, rtol=2e-5, atol=1e-7)

    batch = Batch(scheduler, (10, 500))
    factor = (least / over)[[10, 500]].view(-1, 1, 1, 1)
    square = (batch.prediction - batch.target) ** 2
    for settings in (DiffusionLossSettings(kind="mse", snr_gamma=5.0), replace(milo, snr_gamma=5.0)):
        loss = DiffusionLoss(settings, scheduler, 1)
        m = batch.mask(loss) if settings.kind == "milo" else 1.0
        torch.testing.assert_close(batch(loss), (factor * m * square).mean(), rtol=2e-5, atol=1e-7)


def test_min_snr_at_zero_snr_is_zero_not_nan():
    batch = Batch(V, [999])
    assert batch(DiffusionLoss(DiffusionLossSettings(kind="mse", snr_gamma=5.0), V, 1)).item() == 0


def test_the_gradient_reaches_the_prediction_only(milo):
    gradients = {}
    for name, settings in {
        "mse": DiffusionLossSettings(kind="mse"),
        "milo": milo,
        "through": replace(milo, mask_gradient=True),
    }.items():
        batch = Batch(EPS)
        for tensor in (batch.prediction, batch.z_t, batch.z0, batch.noise):
            tensor.requires_grad_()
        loss = DiffusionLoss(settings, EPS, 1)
        batch(loss).backward()
        assert (batch.z_t.grad, batch.z0.grad, batch.noise.grad) == (None, None, None)
        assert list(loss.parameters()) == []
        assert loss.state_dict() == {}
        gradients[name] = batch.prediction.grad
    batch = Batch(EPS)
    m = batch.mask(DiffusionLoss(milo, EPS, 1))
    by_hand = 2 * m * (batch.prediction - batch.target) / batch.z0.numel()
    assert_near(gradients["milo"], by_hand)
    assert torch.cosine_similarity(gradients["milo"].flatten(), gradients["through"].flatten(), dim=0) < 0.999


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("scheduler", SAID[:4], ids=IDS[:4])
def test_the_residual_of_the_clean_latent_is_not_amplified(milo, scheduler, power):
    batch = Batch(scheduler, (0, 200, 400, 700, 990))
    loss = DiffusionLoss(replace(milo, residual="z0", power=power), scheduler, 1)
    z0_hat = clean_latent(scheduler, batch.prediction, batch.z_t, batch.timesteps)
    alpha, sigma = signal_and_noise(scheduler, batch.timesteps)
    gain = {"epsilon": sigma / alpha, "v_prediction": sigma}.get(
        scheduler.config.prediction_type, torch.ones(5, 1, 1, 1)
    )
    error = (z0_hat - batch.z0).abs() * (1 / gain).clamp_max(1)
    expected = (batch.mask(loss) * error**power).mean()
    torch.testing.assert_close(batch(loss), expected, rtol=1e-3, atol=1e-6)


def test_the_clean_latents_error_moves_weight_between_timesteps_only():
    """Where the prediction's error is amplified it is MSE; elsewhere, under eps, Min-SNR with gamma 1."""
    mse, z0 = DiffusionLossSettings(kind="mse"), DiffusionLossSettings(kind="mse", residual="z0")
    noisy = Batch(EPS, (600, 999))
    torch.testing.assert_close(noisy(DiffusionLoss(z0, EPS, 1)), noisy(DiffusionLoss(mse, EPS, 1)))
    both = Batch(EPS, (0, 100, 999))
    snr = DiffusionLoss(replace(mse, snr_gamma=1.0), EPS, 1)
    torch.testing.assert_close(both(DiffusionLoss(z0, EPS, 1)), both(snr), rtol=1e-4, atol=1e-7)
    assert both(DiffusionLoss(z0, EPS, 1)) < 0.5 * both(DiffusionLoss(mse, EPS, 1))
    last = Batch(V, [999])  # no signal: z0_hat's error is the prediction's
    torch.testing.assert_close(last(DiffusionLoss(z0, V, 1)), last(DiffusionLoss(mse, V, 1)))


def test_the_mask_of_the_condition_does_not_depend_on_the_model(milo):
    batch = Batch(EPS)
    loss = DiffusionLoss(replace(milo, mask_pair="condition", normalize=True), EPS, 1)
    m = LatentMILO.from_pretrained(milo.weights).mask(batch.condition, reference=batch.z0) / 4
    square = (batch.prediction - batch.target) ** 2
    expected = (m / m.mean((1, 2, 3), keepdim=True) * square).mean()
    torch.testing.assert_close(batch(loss, condition=batch.condition), expected)
    worse = batch.target + 2 * (batch.prediction - batch.target)
    torch.testing.assert_close(batch(loss, worse, condition=batch.condition), 4 * expected)
    other = DiffusionLoss(replace(milo, normalize=True), EPS, 1)
    assert abs(batch(other) / expected - 1) > 1e-3
    with pytest.raises(ConfigError, match="needs the condition"):
        batch(loss)
    with pytest.raises(DataError, match="condition.*shapes differ|shapes differ.*condition"):
        batch(loss, condition=batch.condition[..., :16])


def test_contrast_is_an_exponent_on_the_mask(milo):
    batch = Batch(V)
    arguments = (batch.prediction, batch.z_t, batch.z0, batch.timesteps)
    m, spreads = batch.mask(DiffusionLoss(milo, V, 1)), []
    for contrast in (0.5, 1.0, 2.0, 4.0):
        settings = replace(milo, contrast=contrast, normalize=True)
        w = DiffusionLoss(settings, V, 1).pixel_weights(*arguments)
        torch.testing.assert_close(w, m**contrast / (m**contrast).mean((1, 2, 3), keepdim=True))
        spreads.append(w.std().item())
    assert spreads == sorted(spreads)
    early = DiffusionLoss(replace(milo, contrast=2.0, curriculum="linear"), V, 9).pixel_weights(*arguments, step=0)
    torch.testing.assert_close(early, 1 - m**2)
    dark = with_mask(DiffusionLoss(replace(milo, contrast=0.5, mask_gradient=True), V, 1), 0.0)
    assert batch(dark).isfinite()


@pytest.mark.parametrize("through", [False, True])
def test_an_anchor_is_mse_and_latent_milo_below_a_timestep(milo, through):
    batch = Batch(EPS, (0, 299, 300, 999))
    mse = F.mse_loss(batch.prediction, batch.target)
    z0_hat = clean_latent(EPS, batch.prediction, batch.z_t, batch.timesteps)
    raw = LatentMILO.from_pretrained(milo.weights)(z0_hat[:2], reference=batch.z0[:2])
    loss = DiffusionLoss(replace(milo, anchor=0.7, anchor_timestep=300, mask_gradient=through), EPS, 1)
    torch.testing.assert_close(batch(loss), mse + 0.7 * raw.sum() / 4)
    assert_near(
        Batch(EPS, (300, 999))(loss), Batch(EPS, (300, 999))(DiffusionLoss(DiffusionLossSettings("mse"), EPS, 1))
    )
    said = batch.prediction.clone().requires_grad_()
    batch(loss, said).backward()
    only_mse = 2 * (batch.prediction - batch.target) / batch.z0.numel()
    assert_near(said.grad[2:], only_mse[2:])
    assert (said.grad[1] - only_mse[1]).norm() > 0.01 * only_mse[1].norm()


def test_the_cosine_with_mse_is_that_of_the_two_gradients(milo):
    batch = Batch(EPS, (50, 500))
    arguments = (batch.z_t, batch.z0, batch.noise, batch.timesteps)
    for settings in (milo, replace(milo, mask_gradient=True), replace(milo, power=1), DiffusionLossSettings("mae")):
        loss = DiffusionLoss(settings, EPS, 1)
        gradients = []
        for one in (loss, DiffusionLoss(DiffusionLossSettings("mse"), EPS, 1)):
            said = batch.prediction.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(batch(one, said), said)
            gradients.append(gradient.double().flatten())
        expected = torch.cosine_similarity(*gradients, dim=0)
        said = batch.prediction.clone().requires_grad_()
        with torch.no_grad():
            found = loss.cosine_with_mse(said, *arguments)
        assert found.item() == pytest.approx(expected.item(), abs=1e-5)
        assert not found.requires_grad
        assert said.grad is None
        tiny = DiffusionLoss(replace(settings, loss_weight=1e-9), EPS, 1)
        assert tiny.cosine_with_mse(said, *arguments).item() == pytest.approx(expected.item(), abs=1e-4)
    mse = DiffusionLoss(DiffusionLossSettings("mse"), EPS, 1)
    assert mse.cosine_with_mse(batch.prediction, *arguments).item() == pytest.approx(1, abs=1e-5)
    assert mse.cosine_with_mse(batch.target, *arguments) == 0  # no gradient, no direction
    assert mse.cosine_with_mse(batch.prediction * float("nan"), *arguments).isnan()


@pytest.mark.golden
def test_on_real_latents_the_constant_mask_is_nearly_mse(shared):
    """Stable Diffusion's latents, the authors' weights, and a model that says a smoothed z_0."""
    z0 = torch.from_numpy(np.load(shared / "data" / "iqa" / "milo_pair" / "ref.npy"))[None]
    smooth = F.avg_pool2d(F.pad(z0, (1, 1, 1, 1), mode="replicate"), 3, 1)

    def cosines(scheduler, **changes):
        def say(z_t, timesteps):
            alpha, sigma = signal_and_noise(scheduler, timesteps)
            return prediction_target(scheduler, smooth, (z_t - alpha * smooth) / sigma, timesteps)

        weights = str(shared / "weights" / "milo" / "MILO_latent.pth")
        loss = DiffusionLoss(DiffusionLossSettings(weights=weights, **changes), scheduler, 1)
        found = gradient_cosines(loss, say, z0, smooth)
        assert list(found) == [50, 250, 500, 750, 900]
        return list(found.values())

    for scheduler in (EPS, V):
        assert all(0.98 < value < 0.995 for value in cosines(scheduler, normalize=True))
        assert all(value < 0.93 for value in cosines(scheduler, normalize=True, contrast=4))
        assert all(value < 0.80 for value in cosines(scheduler, power=1))
        assert all(value < 0.80 for value in cosines(scheduler, mask_gradient=True))


def test_a_diverged_prediction_is_left_to_the_training_loop(milo):
    for scheduler in (EPS, V):
        for through in (False, True):
            batch = Batch(scheduler)
            loss = DiffusionLoss(replace(milo, mask_gradient=through), scheduler, 1)
            assert batch(loss, 1e4 * batch.prediction).isfinite()
            batch.prediction[1, 0, 3, 3] = float("nan")
            assert batch(loss).isnan()


def test_schedules_without_a_clean_latent_are_refused():
    mse = DiffusionLossSettings(kind="mse")
    zero = schedule("epsilon", zero_snr=True)
    nearly = schedule("epsilon")
    nearly.alphas_cumprod = nearly.alphas_cumprod.clone()
    nearly.alphas_cumprod[-1] = 2**-24
    for scheduler in (zero, nearly):
        with pytest.raises(ConfigError, match="v_prediction"):
            DiffusionLoss(mse, scheduler, 1)
    batch = Batch(V)
    with pytest.raises(ConfigError, match="no signal"):
        clean_latent(zero, batch.prediction, batch.z_t, batch.timesteps)
    with pytest.raises(ConfigError, match="variance"):
        DiffusionLoss(mse, EulerDiscreteScheduler(beta_schedule="scaled_linear"), 1)
    unknown = schedule("epsilon")
    unknown.register_to_config(prediction_type="flow")
    with pytest.raises(ConfigError, match="'flow'"):
        DiffusionLoss(mse, unknown, 1)


def test_wrong_shapes_and_timesteps_are_refused_in_one_line(milo):
    good = Batch(V)
    loss = DiffusionLoss(milo, V, 1)

    def refused(match, **changes):
        values = {k: getattr(good, k) for k in ("prediction", "z_t", "z0", "noise", "timesteps")} | changes
        with pytest.raises(DataError, match=match) as error:
            loss(**values)
        assert "\n" not in str(error.value)

    refused("prediction.*z_t", prediction=torch.randn(3, 8, 16, 21))
    refused("z0.*shapes differ", z0=good.z0[:1])
    refused("noise.*shapes differ", noise=good.noise[..., :1])
    refused("floating point", prediction=good.prediction.int())
    refused("one per sample", timesteps=torch.tensor([5]))
    refused("one per sample", timesteps=torch.tensor(5))
    refused("whole numbers", timesteps=torch.tensor([0.1, 0.2, 0.3]))
    refused("between 0 and 999, got 3 to 1000", timesteps=torch.tensor([3, 1000, 7]))
    refused("between 0 and 999, got -1", timesteps=torch.tensor([3, -1, 7]))
    refused("scaling_factor", z0=good.z0 / 0.01)
    small = [x[..., :8, :8] for x in (good.prediction, good.z_t, good.z0, good.noise)]
    with pytest.raises(DataError, match="at least 16.*128 pixels"):
        loss(*small, good.timesteps)
    assert DiffusionLoss(DiffusionLossSettings(kind="mse"), V, 1)(*small, good.timesteps) > 0  # needs no mask
    with pytest.raises(ConfigError, match="no mask"):
        good.mask(DiffusionLoss(DiffusionLossSettings(kind="mse"), V, 1))


def test_settings(tmp_path):
    file = tmp_path / "loss.yaml"
    file.write_text("kind: milo\npower: 1\ncurriculum: cosine\nnoise_blend: 2\nsnr_gamma: 5\nnormalize: true\n")
    settings = load_config(DiffusionLossSettings, file)
    assert settings.label == "milo-l1-cosine-normalized-blend2-minsnr5"
    assert DiffusionLossSettings(mask_gradient=True).label == "milo-through"
    assert [DiffusionLossSettings(kind=k).label for k in ("mse", "mae", "milo")] == ["mse", "mae", "milo"]
    arms = {
        "milo-z0-condition-contrast3": {"residual": "z0", "mask_pair": "condition", "contrast": 3.0},
        "milo-through-anchor0.1-below250": {"anchor": 0.1, "anchor_timestep": 250, "mask_gradient": True},
        "mse-z0": {"kind": "mse", "residual": "z0"},
    }
    assert [DiffusionLossSettings(**arm).label for arm in arms.values()] == list(arms)
    for words, match in (
        (["residual=eps"], "--set residual=eps: 'eps' is not one of 'prediction', 'z0'"),
        (["mask_pair=input"], "--set mask_pair=input: 'input' is not one of 'estimate', 'condition'"),
        (["contrast=0"], "contrast must be a number above 0, got 0"),
        (["anchor=-1"], "anchor must be a number above 0 or null"),
        (["anchor=1", "anchor_timestep=0"], "at least 1"),
        (["anchor=1", "normalize=true"], "normalize shapes the masked residual"),
        (["anchor=1", "residual=z0"], "residual shapes the masked residual"),
        (["anchor=1", "power=1"], "power shapes"),
        (["kind=mse", "anchor=1"], "set kind to milo"),
        (["kind=mae", "contrast=2"], "set kind to milo"),
        (["mask_pair=condition", "mask_gradient=true"], "does not depend on the model"),
        (["residual=z0", "snr_gamma=5"], "set one of them"),
        (["kind=mse", "curriculum=linear"], "set kind to milo"),
        (["kind=mae", "noise_blend=1"], "set kind to milo"),
        (["power=3"], "power"),
        (["snr_gamma=0"], "above 0"),
        (["kind=huber"], "huber"),
    ):
        with pytest.raises(ConfigError, match=match):
            load_config(DiffusionLossSettings, None, words)


def test_the_loss_knows_its_weights(milo):
    assert DiffusionLoss(milo, V, 1).weights.path == milo.weights
    assert DiffusionLoss(DiffusionLossSettings(kind="mae"), V, 1).weights is None
    half = DiffusionLoss(replace(milo, bfloat16=True), V, 1)
    batch = Batch(V)
    assert batch(half).item() == pytest.approx(batch(DiffusionLoss(milo, V, 1)).item(), rel=0.01)
    assert batch(half) != batch(DiffusionLoss(milo, V, 1))


def test_the_bench_measures_every_loss(latent_weights, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    file = tmp_path / "bench.json"
    words = ["--diffusion", "--quick", "--threads", "1", "--repeats", "2", "--weights", latent_weights]
    assert bench.main(parser.parse_args([*words, "--json", str(file)])) == 0
    report, printed = json.loads(file.read_text()), capsys.readouterr().out
    rows = {row["name"]: row for row in report["losses"]}
    assert report["latent"] == "16x16"
    assert list(rows)[0] == "MSE"
    cosines = report["cosines"]["rows"]
    assert report["cosines"]["weights"].startswith(latent_weights)
    assert list(cosines)[0] == "milo-normalized"
    for label, row in cosines.items():
        assert list(row) == ["50", "250", "500", "750", "900"]
        assert all(-1 <= value <= 1 for value in row.values())
        assert any(line.startswith(f"{label} ") and "(t = 50)" in line for line in printed.splitlines())
    for time, cosine in cosines["milo-normalized"].items():
        assert cosine > cosines["milo-through"][time]
    for name, row in rows.items():
        assert all(math.isfinite(row[key]) and row[key] > 0 for key in ("ms", "vs_mse", "vs_milo", "peak_mib", "step"))
        assert any(line.startswith(name) for line in printed.splitlines())
    latent = [row for name, row in rows.items() if "latent" in name]
    decoded = [row for name, row in rows.items() if "decoder" in name]
    assert (len(latent), len(decoded)) == (2, 2)
    assert max(row["peak_mib"] for row in latent) < min(row["peak_mib"] for row in decoded) / 10
    assert min(row["vs_milo"] for row in decoded) > 2
    with pytest.raises(MiloRestoreError, match="multiples of 64"):
        bench.main(parser.parse_args([*words, "--size", "200x128"]))
