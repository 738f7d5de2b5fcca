"""The losses: what they compute, what they train (nothing), and how the curriculum moves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from milo_restore import Curriculum, L1Loss, LatentMILOLoss, LPIPSLoss, MILOLoss
from milo_restore.errors import ConfigError, DataError, WeightsError
from milo_restore.loss import LossSettings, build_loss


@pytest.fixture(scope="module")
def pair():
    generator = torch.Generator().manual_seed(3)
    target = torch.rand(2, 3, 40, 33, generator=generator)
    return target + 0.1 * torch.randn(target.shape, generator=generator), target


def test_without_curriculum_the_loss_is_the_metric(pair):
    loss = MILOLoss("mini")
    clamped = pair[0].clamp(0, 1)
    torch.testing.assert_close(loss(clamped, pair[1]), loss.metric(clamped, reference=pair[1]).mean())
    scaled = MILOLoss("mini", loss_weight=0.25)
    torch.testing.assert_close(scaled(clamped, pair[1]), 0.25 * loss(clamped, pair[1]))


@pytest.mark.golden
@pytest.mark.parametrize(("cls", "file"), [(MILOLoss, "milo_image.npz"), (LatentMILOLoss, "milo_latent.npz")])
def test_gradient_is_upstreams(shared, cls, file):
    archive = np.load(shared / "golden" / file)
    image = torch.from_numpy(archive["1.dist"]).requires_grad_()
    reference = torch.from_numpy(archive["1.ref"])
    loss = cls("official")(image, reference)
    loss.backward()
    assert loss.item() == pytest.approx(archive["1.score"].mean(), rel=1e-5)
    gradient = torch.from_numpy(archive["1.grad_dist"]) / len(reference)
    assert (image.grad - gradient).abs().max() <= 1e-5 * gradient.abs().max()


def test_the_mask_as_a_constant_is_another_loss(pair):
    gradients = []
    for through in (True, False):
        prediction = pair[0].clone().requires_grad_()
        loss = MILOLoss("mini", mask_gradient=through)(prediction, pair[1])
        loss.backward()
        gradients.append((loss.item(), prediction.grad))
    assert gradients[0][0] == pytest.approx(gradients[1][0])
    mask = MILOLoss("mini").mask(*pair)
    by_hand = mask * (pair[0] - pair[1]).sign() / pair[0].numel()
    torch.testing.assert_close(gradients[1][1], by_hand, atol=1e-9, rtol=1e-4)
    cosine = torch.cosine_similarity(gradients[0][1].flatten(), gradients[1][1].flatten(), dim=0)
    assert cosine < 0.99


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_curriculum_follows_the_formula(pair, kind):
    loss = MILOLoss("mini", curriculum=kind, total_steps=200)
    m = loss.metric.predict_mask(*pair) / 4
    for step in (0, 50, 120, 200, 999):
        t = min(step / 200, 1)
        a = t if kind == "linear" else (1 - math.cos(math.pi * t)) / 2
        expected = 4 * (((1 - a) * (1 - m) + a * m) * (pair[0] - pair[1]).abs()).mean()
        torch.testing.assert_close(loss(*pair, step=step), expected)
    torch.testing.assert_close(loss(*pair, step=200), MILOLoss("mini")(*pair))


def test_curriculum_between_two_steps():
    curriculum = Curriculum("linear", end_step=30, start_step=10)
    assert [curriculum.position(s) for s in (0, 10, 20, 30, 40)] == [0, 0, 0.5, 1, 1]
    assert Curriculum().position(None) == 1


def test_a_curriculum_needs_its_step(pair):
    with pytest.raises(ConfigError, match="step"):
        MILOLoss("mini", curriculum="linear", total_steps=10)(*pair)
    with pytest.raises(ConfigError, match="total_steps"):
        MILOLoss("mini", curriculum="cosine")
    with pytest.raises(ConfigError, match="start"):
        Curriculum("linear", end_step=5, start_step=5)
    with pytest.raises(ConfigError, match="'spiral'"):
        MILOLoss("mini", curriculum="spiral")
    with pytest.raises(ConfigError, match="reduction"):
        L1Loss(reduction="median")


def test_normalized_weights_have_mean_one(pair):
    elements = MILOLoss("mini", normalize=True, reduction="none")(*pair)
    w = elements / (pair[0] - pair[1]).abs() / 4
    torch.testing.assert_close(w.mean((1, 2, 3)), torch.ones(2), atol=1e-4, rtol=1e-4)


def test_reductions_and_element_weights(pair):
    weight = torch.zeros_like(pair[0])
    weight[0] = 1
    for cls in (L1Loss, lambda **k: MILOLoss("mini", **k)):
        elements = cls(reduction="none")(*pair)
        assert elements.shape == pair[0].shape
        torch.testing.assert_close(cls(reduction="sum")(*pair), elements.sum())
        torch.testing.assert_close(cls()(*pair, weight), (elements * weight).mean())
    torch.testing.assert_close(L1Loss()(*pair), nn.functional.l1_loss(*pair))


def test_trains_nothing_of_its_own(pair):
    model = nn.Conv2d(3, 3, 1)
    model.criterion = MILOLoss("mini")
    assert {name for name, _ in model.named_parameters()} == {"weight", "bias"}
    assert set(model.state_dict()) == {"weight", "bias"}
    before = [b.clone() for b in model.criterion.buffers()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    model.criterion(model(pair[0]), pair[1]).backward()
    optimizer.step()
    assert all(torch.equal(b, a) for b, a in zip(before, model.criterion.buffers()))
    assert all(b.grad is None and not b.requires_grad for b in model.criterion.buffers())


def test_a_diverged_prediction_is_left_to_the_training_loop(pair):
    loss = MILOLoss("mini")
    assert loss(pair[0] * float("nan"), pair[1]).isnan()
    assert loss(pair[0] * 1e3, pair[1]).isfinite()
    with pytest.raises(DataError, match="divide"):
        loss(pair[0], pair[1] * 255)
    with pytest.raises(DataError, match="shapes differ"):
        L1Loss()(pair[0], pair[1][:1])


def test_grey_images_and_half_precision_predictions(pair):
    loss = MILOLoss("mini")
    grey = [x[:, :1] for x in pair]
    torch.testing.assert_close(loss(*grey), loss(*[x.expand(-1, 3, -1, -1) for x in grey]))
    assert loss(pair[0].bfloat16(), pair[1]).dtype == torch.float32


def test_lpips_without_its_backbone_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", _offline)
    with pytest.raises(WeightsError, match="backbone"):
        LPIPSLoss()


def _offline(*args, **kwargs):
    from urllib.error import URLError

    raise URLError("no network")


def test_lpips_in_the_same_signature(monkeypatch, pair):
    import lpips

    real = lpips.LPIPS
    monkeypatch.setattr(lpips, "LPIPS", lambda **k: real(**k, pnet_rand=True))  # random backbone: no download here
    loss = LPIPSLoss("alex", loss_weight=2.0)
    images = [nn.functional.interpolate(x, 64).clamp(0, 1) for x in pair]
    prediction = images[0].requires_grad_()
    value = loss(prediction, images[1], step=3)
    value.backward()
    assert value.item() > 0
    assert prediction.grad.abs().max() > 0
    assert loss(images[1], images[1]).item() == pytest.approx(0, abs=1e-7)
    assert list(loss.parameters()) == []


def test_build_loss():
    assert isinstance(build_loss(LossSettings(kind="mae"), 10), L1Loss)
    loss = build_loss(LossSettings(weights="mini", curriculum="cosine", mask_gradient=False), 10)
    assert isinstance(loss, MILOLoss)
    assert loss.curriculum == Curriculum("cosine", 10)
    assert not loss.mask_gradient
    assert LossSettings(weights="mini", curriculum="cosine").label == "milo-cosine"
    assert LossSettings(mask_gradient=False).label == "milo-detached"
    assert LossSettings(kind="mae").label == "mae"
    with pytest.raises(ValueError, match="curriculum"):
        LossSettings(kind="mae", curriculum="linear")
