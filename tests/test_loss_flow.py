"""The diffusion loss under flow matching: diffusers' own noising, targets and weights of the SD 3 and FLUX scripts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import assert_near
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_loss_weighting_for_sd3

from milo_restore import LatentMILO
from milo_restore.errors import ConfigError, DataError
from milo_restore.loss import DiffusionLoss, DiffusionLossSettings, clean_latent, prediction_target
from milo_restore.loss.parametrization import amplification, min_snr_weight, noised, signal_and_noise

SD3 = FlowMatchEulerDiscreteScheduler(shift=3.0)
FLUX = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
MSE = DiffusionLossSettings(kind="mse")
INDICES = (0, 250, 600, 990)


@pytest.fixture
def milo(latent_weights):
    return DiffusionLossSettings(weights=latent_weights)


class Batch:
    """Latents, noised as the scripts do it, and a velocity that is off by a third."""

    def __init__(self, scheduler=SD3, indices=INDICES, channels=4):
        generator = torch.Generator().manual_seed(5)
        shape = (len(indices), channels, 16, 21)
        self.z0, self.noise, off = (torch.randn(shape, generator=generator) for _ in range(3))
        self.timesteps = scheduler.timesteps[list(indices)]
        self.sigmas = scheduler.sigmas[list(indices)].view(-1, 1, 1, 1)  # the scripts' get_sigmas
        self.z_t = (1.0 - self.sigmas) * self.z0 + self.sigmas * self.noise
        self.target = self.noise - self.z0
        self.prediction = self.target + 0.3 * off

    def __call__(self, loss, prediction=None, **options):
        said = self.prediction if prediction is None else prediction
        return loss(said, self.z_t, self.z0, self.noise, self.timesteps, **options)


@pytest.mark.parametrize("scheduler", [SD3, FLUX])
def test_the_formulas_are_the_schedulers(scheduler):
    batch = Batch(scheduler, range(1000))
    alpha, sigma = signal_and_noise(scheduler, batch.timesteps)
    torch.testing.assert_close(sigma, batch.sigmas, rtol=2e-7, atol=0)
    torch.testing.assert_close(batch.z_t, scheduler.scale_noise(batch.z0, batch.timesteps, batch.noise))
    torch.testing.assert_close(alpha * batch.z0 + sigma * batch.noise, batch.z_t)
    assert torch.equal(prediction_target(scheduler, batch.z0, batch.noise, batch.timesteps), batch.target)
    exact = clean_latent(scheduler, batch.target, batch.z_t, batch.timesteps)
    torch.testing.assert_close(exact, batch.z0, atol=2e-6, rtol=0)


def test_the_clean_latent_is_what_the_sampler_steps_to():
    """One Euler step from sigma to 0 ends at z0_hat."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(1)
    batch = Batch(SD3, (0,))  # sigma 1
    step = scheduler.step(batch.prediction, scheduler.timesteps[0], batch.z_t).prev_sample
    torch.testing.assert_close(clean_latent(scheduler, batch.prediction, batch.z_t, batch.timesteps), step)
    error = clean_latent(SD3, batch.prediction, batch.z_t, batch.timesteps) - batch.z0
    gain = amplification(SD3, batch.timesteps) * (batch.prediction - batch.target)
    torch.testing.assert_close(error, -gain, atol=2e-6, rtol=0)


@pytest.mark.parametrize("scheme", ["none", "sigma_sqrt", "cosmap", "logit_normal"])
def test_mse_is_the_scripts_loss_under_every_weighting_scheme(scheme):
    batch = Batch()
    weighting = compute_loss_weighting_for_sd3(weighting_scheme=scheme, sigmas=batch.sigmas)
    theirs = torch.mean(
        (weighting.float() * (batch.prediction.float() - batch.target.float()) ** 2).reshape(len(batch.z0), -1), 1
    ).mean()
    ours = "none" if scheme == "logit_normal" else scheme  # it draws timesteps and weighs none
    torch.testing.assert_close(batch(DiffusionLoss(replace(MSE, weighting_scheme=ours), SD3, 1)), theirs)


@pytest.mark.parametrize("scheme", ["none", "sigma_sqrt"])
def test_preconditioned_outputs_are_clean_latents(scheme, milo):
    """SD 3's --precondition_outputs: the model's output times -sigma plus z_t is compared with z_0."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.register_to_config(prediction_type="sample")
    batch = Batch()
    said = batch.prediction * (-batch.sigmas) + batch.z_t
    assert torch.equal(clean_latent(scheduler, said, batch.z_t, batch.timesteps), said)
    weighting = compute_loss_weighting_for_sd3(weighting_scheme=scheme, sigmas=batch.sigmas)
    theirs = (weighting * (said - batch.z0) ** 2).mean()
    torch.testing.assert_close(batch(DiffusionLoss(replace(MSE, weighting_scheme=scheme), scheduler, 1), said), theirs)
    masks = [
        DiffusionLoss(milo, one, 1).mask(value, batch.z_t, batch.z0, batch.timesteps)
        for one, value in ((scheduler, said), (SD3, batch.prediction))
    ]
    torch.testing.assert_close(*masks)


def test_the_mask_is_on_the_clean_latents_and_the_residual_a_velocity(milo):
    batch = Batch()
    z0_hat = batch.z_t - batch.sigmas * batch.prediction
    m = LatentMILO.from_pretrained(milo.weights).mask(z0_hat, reference=batch.z0) / 4
    square = (batch.prediction - batch.target) ** 2
    torch.testing.assert_close(batch(DiffusionLoss(milo, SD3, 1)), (m * square).mean())
    cosine = DiffusionLoss(replace(milo, curriculum="cosine"), SD3, 100)
    torch.testing.assert_close(batch(cosine, step=50), (0.5 * square).mean())
    blended = DiffusionLoss(replace(milo, noise_blend=2.0), SD3, 1)
    b = batch.sigmas**2
    torch.testing.assert_close(batch(blended), ((m + b * (1 - m)) * square).mean())
    anchor = DiffusionLoss(replace(milo, anchor=0.7, anchor_timestep=700), SD3, 1)
    assert batch.timesteps.tolist()[2] < 700 < batch.timesteps.tolist()[1]
    raw = (4 * m * (z0_hat - batch.z0).abs()).mean((1, 2, 3))
    torch.testing.assert_close(batch(anchor), square.mean() + 0.7 * raw[2:].sum() / 4)
    for settings in (milo, replace(milo, mask_gradient=True)):
        said = batch.prediction.clone().requires_grad_()
        batch(DiffusionLoss(settings, SD3, 1), said).backward()
        assert said.grad.isfinite().all()


def test_min_snr_and_the_z0_residual_weigh_the_clean_latents_error():
    batch = Batch(indices=range(1000))
    error = clean_latent(SD3, batch.prediction, batch.z_t, batch.timesteps) - batch.z0
    snr = ((1 - batch.sigmas) / batch.sigmas) ** 2
    weighted = min_snr_weight(SD3, batch.timesteps, 5.0) * (batch.prediction - batch.target) ** 2
    torch.testing.assert_close(weighted, snr.clamp_max(5) * error**2, atol=1e-4, rtol=1e-3)
    z0 = batch(DiffusionLoss(replace(MSE, residual="z0"), SD3, 1))
    torch.testing.assert_close(z0, (error**2).mean(), atol=1e-6, rtol=1e-4)
    clean = torch.zeros(1)  # sigma 0: nothing is noisy, nothing is to be learnt
    assert min_snr_weight(SD3, clean, 5.0).item() == 0


def test_sixteen_channels_need_no_mask_and_with_one_are_refused(milo):
    batch = Batch(channels=16)
    torch.testing.assert_close(batch(DiffusionLoss(MSE, FLUX, 1)), ((batch.prediction - batch.target) ** 2).mean())
    with pytest.raises(DataError, match="16, 16, 21"):
        batch(DiffusionLoss(milo, FLUX, 1))


def test_what_is_no_timestep_of_a_flow_is_refused(milo):
    batch = Batch()
    batch.timesteps = torch.tensor(INDICES)
    with pytest.raises(DataError, match=r"floating point.*scheduler.timesteps\[indices\]"):
        batch(DiffusionLoss(MSE, SD3, 1))
    for wrong in (batch.sigmas.flatten(), SD3.timesteps[[990, 600, 250, 0]]):
        batch.timesteps = wrong
        with pytest.raises(DataError, match="z_t: is not the noising of z0 at these timesteps"):
            batch(DiffusionLoss(MSE, SD3, 1))
    batch.timesteps = 1000 + torch.ones(4)
    with pytest.raises(DataError, match="between 0 and 1000, got 1001"):
        batch(DiffusionLoss(MSE, SD3, 1))


def test_the_noising_may_be_in_half_precision():
    batch = Batch()
    expected = batch(DiffusionLoss(MSE, SD3, 1))
    sigmas, z0, noise = (tensor.bfloat16() for tensor in (batch.sigmas, batch.z0, batch.noise))
    batch.z_t = (1.0 - sigmas) * z0 + sigmas * noise
    assert_near(batch(DiffusionLoss(MSE, SD3, 1)), expected)


def test_the_models_compared_at_noise_levels_may_be_of_flows():
    z0 = torch.randn(2, 4, 16, 16)
    ((z_t, noise, times),) = noised(SD3, z0, [500], seed=0)
    torch.testing.assert_close(z_t, 0.5 * z0 + 0.5 * noise)
    loss = DiffusionLoss(MSE, SD3, 1)
    assert loss(noise - z0, z_t, z0, noise, times).item() == 0


def test_a_weighting_scheme_is_flow_matchings():
    with pytest.raises(ConfigError, match="weighting_scheme: is flow matching's"):
        DiffusionLoss(replace(MSE, weighting_scheme="cosmap"), DDPMScheduler(), 1)
    with pytest.raises(ValueError, match="snr_gamma and weighting_scheme both weigh"):
        replace(MSE, weighting_scheme="cosmap", snr_gamma=5.0)
    with pytest.raises(ValueError, match="'mode' is not one of"):
        replace(MSE, weighting_scheme="mode")
    assert replace(MSE, weighting_scheme="sigma_sqrt").label == "mse-sigmasqrt"
