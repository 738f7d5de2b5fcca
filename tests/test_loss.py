"""The losses: what they compute, what they train (nothing), and how the curriculum moves."""

from __future__ import annotations

import inspect
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from milo_restore import Curriculum, L1Loss, LatentMILOLoss, LPIPSLoss, MILOLoss
from milo_restore.errors import ConfigError, DataError, WeightsError
from milo_restore.loss import LossSettings, agreement, build_loss
from milo_restore.metric.weights import Agreement, WeightsInfo


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
    loss = cls("official", mask_gradient=True)(image, reference)
    loss.backward()
    assert loss.item() == pytest.approx(archive["1.score"].mean(), rel=1e-5)
    gradient = torch.from_numpy(archive["1.grad_dist"]) / len(reference)
    assert (image.grad - gradient).abs().max() <= 1e-5 * gradient.abs().max()


def test_the_mask_as_a_constant_is_another_loss(pair):
    gradients = []
    for settings in ({"mask_gradient": True}, {}):  # a constant mask is the default
        prediction = pair[0].clone().requires_grad_()
        loss = MILOLoss("mini", **settings)(prediction, pair[1])
        loss.backward()
        gradients.append((loss.item(), prediction.grad))
    assert gradients[0][0] == pytest.approx(gradients[1][0])
    mask = MILOLoss("mini").mask(*pair)
    assert mask.min() > 0
    assert mask.max() < 1
    by_hand = 4 * mask * (pair[0] - pair[1]).sign() / pair[0].numel()
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


def test_the_mask_of_a_loss_is_the_metrics_over_its_scales(pair):
    loss = MILOLoss("mini")
    assert torch.equal(4 * loss.mask(*pair), loss.metric.mask(*pair))


def test_the_former_name_of_blend_still_works():
    curriculum, mask = Curriculum("linear", 10), torch.rand(2, 1, 4, 4)
    with pytest.warns(FutureWarning, match=r"Curriculum\.weights is now Curriculum\.blend") as caught:
        former = curriculum.weights(mask, 3)
    assert caught[0].filename == __file__
    torch.testing.assert_close(former, 0.7 * (1 - mask) + 0.3 * mask)
    assert torch.equal(former, curriculum.blend(mask, 3))


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
    w = elements / (pair[0] - pair[1]).abs()
    torch.testing.assert_close(w.mean((1, 2, 3)), torch.ones(2), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("step", [0, 50, 100])
def test_normalized_loss_stays_at_the_scale_of_l1(pair, step):
    for normalize, ratio in ((True, 1.0), (False, {0: 4.0, 50: 2.0, 100: 0.1}[step])):
        loss = MILOLoss("mini", curriculum="linear", total_steps=100, normalize=normalize)
        value, terms = loss.terms(*pair, step=step)
        assert (value / terms["l1"]).item() == pytest.approx(ratio, rel=0.25 if ratio >= 1 else 1)


def test_an_anchor_adds_l1(pair):
    milo, l1 = MILOLoss("mini"), L1Loss()
    anchored = MILOLoss("mini", anchor=0.1, loss_weight=10)  # L1 + 10 MILO
    torch.testing.assert_close(anchored(*pair), l1(*pair) + 10 * milo(*pair))
    assert build_loss(LossSettings(weights="mini", anchor=0.1), 1).anchor == 0.1
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="anchor"):
            MILOLoss("mini", anchor=wrong)


@pytest.mark.parametrize("settings", [{}, {"reduction": "sum"}, {"normalize": True, "anchor": 0.5, "loss_weight": 3}])
def test_terms_are_the_loss_and_what_to_watch(pair, settings):
    loss = MILOLoss("mini", curriculum="cosine", total_steps=10, **settings)
    prediction = pair[0].clamp(0, 1).requires_grad_()
    weight = torch.rand(pair[0].shape)
    value, terms = loss.terms(prediction, pair[1], weight, step=3)
    torch.testing.assert_close(value, loss(prediction, pair[1], weight, step=3), atol=0, rtol=1e-5)
    assert value.requires_grad
    assert {name: (term.ndim, term.requires_grad) for name, term in terms.items()} == {"l1": (0, 0), "milo": (0, 0)}
    torch.testing.assert_close(terms["l1"], nn.functional.l1_loss(prediction, pair[1]))
    torch.testing.assert_close(terms["milo"], loss.metric(prediction, reference=pair[1]).mean())
    value, terms = L1Loss(2.0).terms(*pair, weight)
    torch.testing.assert_close(value, 2 * (weight * (pair[0] - pair[1]).abs()).mean())
    torch.testing.assert_close(terms, {"l1": nn.functional.l1_loss(*pair)})


@pytest.mark.parametrize("kind", ["constant", "linear"])
@pytest.mark.parametrize("step", [0.5, float("nan"), float("inf"), torch.tensor(0.25)])
def test_a_fractional_step_is_refused(pair, kind, step):
    loss = MILOLoss("mini", curriculum=kind, total_steps=10)
    with pytest.raises(ConfigError, match="no whole number"):
        loss(*pair, step=step)
    for whole in (3, 3.0, np.int64(3), torch.tensor(3)):
        torch.testing.assert_close(loss(*pair, step=whole), loss(*pair, step=3))


@pytest.mark.parametrize("cls", [MILOLoss, LatentMILOLoss])
def test_every_argument_stands_in_signature_and_docstring(cls):
    arguments = list(inspect.signature(cls).parameters)
    assert arguments == [
        "weights", "curriculum", "total_steps", "start_step", "mask_gradient", "normalize", "anchor", "compute_dtype",
        "loss_weight", "reduction",
    ]  # fmt: skip
    assert all(
        f"\n        {name}: " in inspect.cleandoc(cls.__doc__).replace("\n    ", "\n        ") for name in arguments
    )


def test_repr_says_what_trains():
    text = repr(nn.Sequential(MILOLoss("mini", curriculum="linear", total_steps=20, anchor=0.5)))
    for words in ("MILOLoss(weights: mini (milo_mini.safetensors, sha256", "linear over steps 0 to 20",
                  "mask_gradient=False", "normalize=False", "anchor=0.5"):  # fmt: skip
        assert words in text


def test_weights_below_the_goal_are_told_once(monkeypatch):
    def told(name, sha, **values):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            agreement.warn_below_goal(WeightsInfo(name, f"{name}.safetensors", sha, agreement=Agreement(**values)))
        return [str(warning.message) for warning in caught]

    monkeypatch.setattr(agreement, "_told", set())
    (message,) = told("mine", "a" * 64, gradient_cosine=0.95, mask_correlation=0.44)
    assert "mask correlation 0.44, goal 0.8" in message
    assert "gradient cosine" not in message
    assert told("mine", "a" * 64, gradient_cosine=0.95, mask_correlation=0.44) == []
    assert told("mine", "b" * 64, gradient_cosine=0.9, mask_correlation=0.8) == []
    assert told("official", "c" * 64) == told("mine", "d" * 64) == []
    assert "not all of it is recorded" in told("mini", "e" * 64)[0]


def test_building_a_loss_leaves_the_random_state(monkeypatch):
    import lpips

    real = lpips.LPIPS
    monkeypatch.setattr(lpips, "LPIPS", lambda **k: real(**k, pnet_rand=True))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for build in (lambda: MILOLoss("mini"), lambda: LatentMILOLoss("mini"), LPIPSLoss):
        build()
        assert torch.equal(torch.get_rng_state(), before)


def test_video_frames_count_as_images(pair):
    loss = MILOLoss("mini", normalize=True)
    video = [x[None].expand(2, -1, -1, -1, -1) for x in pair]
    torch.testing.assert_close(loss(*video), loss(*pair))
    assert MILOLoss("mini", reduction="none")(*video).shape == video[0].shape


ALL = {"curriculum": "linear", "total_steps": 10, "normalize": True, "anchor": 0.1}


@pytest.mark.parametrize("settings", [{}, {**ALL, "mask_gradient": True}])
def test_compiles_into_one_graph(pair, settings):
    loss = MILOLoss("mini", **settings)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for step in (2, 3, 7):
        gradients = []
        for function in (loss, compiled):
            prediction = pair[0].clone().requires_grad_()
            value = function(prediction, pair[1], step=step)
            value.backward()
            gradients.append((value.detach(), prediction.grad))
        torch.testing.assert_close(gradients[1][0], gradients[0][0])
        assert (gradients[1][1] - gradients[0][1]).abs().max() <= 1e-5 * gradients[0][1].abs().max()


@pytest.fixture(scope="module")
def exportable(pair):
    from torch.export import Dim

    sides = {0: Dim("n", max=64), 2: Dim("h", min=16, max=4096), 3: Dim("w", min=16, max=4096)}
    shapes = {"prediction": sides, "target": sides, "step": None}
    return MILOLoss("mini", **ALL), {"args": pair, "kwargs": {"step": 3}, "dynamic_shapes": shapes}


def other_sizes():
    generator = torch.Generator().manual_seed(4)
    for shape in ((2, 3, 40, 33), (3, 3, 33, 57), (1, 3, 64, 16)):
        yield torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)


def test_exports_with_dynamic_sides(exportable):
    loss, how = exportable
    program = torch.export.export(loss, **how).module()
    for prediction, target in other_sizes():
        torch.testing.assert_close(program(prediction, target, step=3), loss(prediction, target, step=3))


def test_onnx_computes_the_same(exportable, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    loss, how = exportable
    torch.onnx.export(loss.eval(), **how, dynamo=True, verbose=False).save(tmp_path / "loss.onnx")
    session = runtime.InferenceSession(tmp_path / "loss.onnx", providers=["CPUExecutionProvider"])
    for prediction, target in other_sizes():
        (value,) = session.run(None, {"prediction": prediction.numpy(), "target": target.numpy()})
        assert float(value) == pytest.approx(loss(prediction, target, step=3).item(), abs=1e-5, rel=1e-5)


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
    value, terms = loss.terms(prediction, images[1], step=3)
    value.backward()
    torch.testing.assert_close(terms, {"l1": nn.functional.l1_loss(prediction.detach(), images[1])})
    assert value.item() > 0
    assert prediction.grad.abs().max() > 0
    assert loss(images[1], images[1]).item() == pytest.approx(0, abs=1e-7)
    assert list(loss.parameters()) == []


def test_build_loss():
    assert isinstance(build_loss(LossSettings(kind="mae"), 10), L1Loss)
    loss = build_loss(LossSettings(weights="mini", curriculum="cosine"), 10)
    assert isinstance(loss, MILOLoss)
    assert loss.curriculum == Curriculum("cosine", 10)
    assert not loss.mask_gradient
    labels = {
        "milo": {},
        "milo-through": {"mask_gradient": True},
        "milo-linear": {"curriculum": "linear"},
        "milo-cosine-through": {"curriculum": "cosine", "mask_gradient": True},
        "milo-normalized-anchor0.1": {"normalize": True, "anchor": 0.1},
        "mae": {"kind": "mae"},
    }
    assert {name: LossSettings(**settings).label for name, settings in labels.items()} == {n: n for n in labels}
    for wrong, what in (
        ({"kind": "mae", "curriculum": "linear"}, "curriculum"),
        ({"kind": "lpips", "anchor": 0.1}, "anchor"),
        ({"anchor": -1.0}, "anchor"),
    ):
        with pytest.raises(ValueError, match=what):
            LossSettings(**wrong)
