"""MILO and LatentMILO against upstream's own outputs, and what they refuse."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from milo_restore import MILO, LatentMILO, metric
from milo_restore.errors import ConfigError, DataError, WeightsError
from milo_restore.metric import Agreement

SHA256 = {
    "MILO.pth": "a1d66a7e0ebe0f839564ad70160ffdec709708f0b9a7dd03b19c0bee90d31f79",
    "MILO_latent.pth": "639448793a4e2a41614cd1ed7fb97234533ba2d02fa2c18f94909ca44fc169b3",
}
CASES = [(MILO, "milo_image.npz", i) for i in range(5)] + [(LatentMILO, "milo_latent.npz", i) for i in range(4)]


@pytest.fixture(scope="module")
def official(shared):
    return {cls: cls.from_pretrained("official") for cls in (MILO, LatentMILO)}


@pytest.fixture(scope="module")
def mini():
    return MILO.from_pretrained("mini")


def tensors(shared, file, case):
    archive = np.load(shared / "golden" / file)
    return {k.split(".")[1]: torch.from_numpy(archive[k]) for k in archive.files if k.startswith(f"{case}.")}


@pytest.mark.golden
@pytest.mark.parametrize(("cls", "file", "case"), CASES)
def test_equals_upstream(official, shared, cls, file, case):
    golden, milo = tensors(shared, file, case), official[cls]
    image = golden["dist"].clone().requires_grad_()
    score = milo(image, reference=golden["ref"])
    torch.testing.assert_close(score, golden["score"], atol=1e-6, rtol=1e-5)
    # 1e-5 of its range (0, 4): four sigmoids, each of sums that every CPU takes in an order of its own
    torch.testing.assert_close(milo.mask(image, reference=golden["ref"]), golden["mask"], atol=4e-5, rtol=0)
    score.sum().backward()
    largest = golden["grad_dist"].abs().max()
    assert (image.grad - golden["grad_dist"]).abs().max() <= 1e-5 * largest
    if "map" in golden:
        torch.testing.assert_close(milo.map(image, reference=golden["ref"]), golden["map"], atol=1e-5, rtol=0)
        quality = milo.quality(image, reference=golden["ref"])
        torch.testing.assert_close(quality, golden["quality"], atol=1e-6, rtol=1e-5)


@pytest.mark.golden
def test_sample_pair(official, shared):
    pair, golden = shared / "data/iqa/milo_pair", json.loads((shared / "golden/milo_pair.json").read_text())
    image, reference = (
        torch.from_numpy(np.asarray(Image.open(pair / f"{n}.png").convert("RGB")).copy()).permute(2, 0, 1)[None] / 255
        for n in ("dist", "ref")
    )
    milo, expected = official[MILO], golden["image"]
    assert milo(image, reference=reference).item() == pytest.approx(expected["raw"], rel=1e-5)
    assert milo(reference, reference=image).item() == pytest.approx(expected["raw_swapped"], rel=1e-5)
    assert milo.quality(image, reference=reference).item() == pytest.approx(expected["quality"], rel=1e-5)
    assert milo.mos(image, reference=reference).item() == pytest.approx(2.44766235, rel=1e-5)
    assert milo.mos(reference, reference=reference).item() == pytest.approx(4.34625, rel=1e-5)
    mask = milo.mask(image, reference=reference)
    assert [mask.min().item(), mask.mean().item(), mask.max().item()] == pytest.approx(
        [expected["mask_min"], expected["mask_mean"], expected["mask_max"]], rel=1e-5
    )
    latents = [torch.from_numpy(np.load(pair / f"{n}.npy"))[None] for n in ("dist", "ref")]
    assert official[LatentMILO](latents[0], reference=latents[1]).item() == pytest.approx(
        golden["latent"]["raw"], rel=1e-5
    )


@pytest.mark.golden
def test_official_weights_are_the_published_files(official):
    assert official[MILO].weights.sha256 == SHA256["MILO.pth"]
    assert official[LatentMILO].weights.sha256 == SHA256["MILO_latent.pth"]


@pytest.mark.golden
@pytest.mark.parametrize("case", range(5))
def test_bfloat16_stays_close(official, shared, case):
    fast, golden = (
        MILO.from_pretrained("official", compute_dtype=torch.bfloat16),
        tensors(shared, "milo_image.npz", case),
    )
    gradients = []
    for milo in (fast, official[MILO]):
        through, constant = (golden["dist"].clone().requires_grad_() for _ in range(2))
        score = milo(through, reference=golden["ref"])
        assert score.dtype == torch.float32
        torch.testing.assert_close(score, golden["score"], atol=0, rtol=0.01)
        score.sum().backward()
        mask = milo.mask(golden["dist"], reference=golden["ref"])
        (mask * (constant - golden["ref"]).abs()).mean().backward()
        gradients.append((through.grad.flatten(), constant.grad.flatten()))
    through, constant = (torch.cosine_similarity(*pair, dim=0) for pair in zip(*gradients))
    assert constant > 0.999
    assert through > 0.98


def test_other_dtypes_are_refused():
    with pytest.raises(ConfigError, match="bfloat16"):
        MILO.from_pretrained("mini", compute_dtype=torch.float16)


def test_scores_of_a_batch_are_those_of_its_images(mini):
    image, reference = torch.rand(3, 3, 37, 50), torch.rand(3, 3, 37, 50)
    singly = torch.cat([mini(image[i : i + 1], reference=reference[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(mini(image, reference=reference), singly, atol=1e-7, rtol=1e-5)


def test_identical_images_have_no_error_and_no_gradient(mini):
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    score = mini(image, reference=image.detach().clone())
    score.sum().backward()
    assert score.item() == 0
    assert image.grad.abs().max() == 0
    # S(0) - S(0), computed twice: where memory lies may change a last bit
    assert mini.map(image, reference=image.detach()).abs().max() < 1e-6


def test_grey_equals_its_rgb(mini):
    image, reference = torch.rand(1, 1, 32, 40), torch.rand(1, 1, 32, 40)
    rgb = mini(image.expand(-1, 3, -1, -1), reference=reference.expand(-1, 3, -1, -1))
    torch.testing.assert_close(mini(image, reference=reference), rgb)


def test_frozen_metric_owns_no_parameters(mini):
    assert list(mini.parameters()) == []
    assert mini.state_dict() == {}
    assert not mini.training
    assert sum(b.numel() for b in mini.buffers()) == 44_930


def test_a_fresh_metric_can_be_trained():
    milo = MILO.untrained()
    milo(torch.rand(1, 3, 32, 32), reference=torch.rand(1, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in milo.mask_network.parameters())
    assert milo.weights is None


def test_autocast_does_not_change_the_score(mini):
    image, reference = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = mini(image, reference=reference)
    torch.testing.assert_close(inside, mini(image, reference=reference), atol=0, rtol=1e-5)  # bfloat16 moves it by 5e-4


R = torch.full((1, 3, 32, 32), 0.5)


@pytest.mark.parametrize(
    ("image", "reference", "words"),
    [
        (R * 255, R * 255, "divide 8-bit values by 255"),
        (R * 4 - 3, R * 4 - 3, "(x + 1) / 2"),
        (R * float("nan"), R, "NaN"),
        (R, R * float("inf"), "NaN or infinite"),
        (R[0], R[0], "image[None]"),
        (R[:, :2], R[:, :2], "3 channels"),
        (R, R[..., :31], "shapes differ"),
        (R[..., :15], R[..., :15], "at least 16"),
        (R[:0], R[:0], "empty"),
        ((R * 255).byte(), (R * 255).byte(), "x.float() / 255"),
        (R.numpy(), R, "torch tensor"),
        (R, R.to("meta"), "devices differ"),
    ],
)
def test_bad_images_are_refused_in_one_line(mini, image, reference, words):
    with pytest.raises(DataError) as error:
        mini(image, reference=reference)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.golden
def test_unscaled_latents_are_refused(official, shared):
    """A real one of Stable Diffusion, whole and in its smallest pieces, and of none of them where it was multiplied."""
    latent = torch.from_numpy(np.load(shared / "data/iqa/milo_pair/ref.npy"))[None]
    pieces = [latent, *(latent[..., i : i + 16, j : j + 16] for i in range(0, 49, 16) for j in range(0, 49, 16))]
    for piece in pieces:
        official[LatentMILO](piece, piece)
        with pytest.raises(DataError, match=r"scaling_factor"):
            official[LatentMILO](piece / 0.18215, piece / 0.18215)


def test_latents_foreign_to_mini_are_warned_of_once():
    milo, own = LatentMILO("mini"), torch.randn(2, 4, 16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        milo(own, own)
    foreign = own + torch.tensor([0, 0, 0, -0.8])[:, None, None]
    with pytest.warns(UserWarning, match=r"tiny world's latents only.*mean of 0\.[789].*'official'"):
        milo(foreign, foreign)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        milo(foreign, foreign)
        LatentMILO.untrained()(foreign, foreign)


def test_image_first_and_reference_second(mini):
    image, reference = torch.rand(2, 3, 20, 24), torch.rand(2, 3, 20, 24)
    for name in ("forward", "mask", "map", "quality", "mos"):
        method = getattr(mini, name)
        named = method(image=image, reference=reference)
        torch.testing.assert_close(method(image, reference), named, atol=1e-6, rtol=1e-5)
        assert (method(reference, image) - named).abs().max() > 1e-5
    assert not mini.higher_is_better


def test_official_is_what_one_gets_by_default(monkeypatch, tmp_path):
    (tmp_path / "MILO.pth").write_bytes(b"not it")
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(tmp_path))
    with pytest.raises(WeightsError, match=r"MILO\.pth: is damaged"):
        MILO()


@pytest.mark.golden
@pytest.mark.parametrize("cls", [MILO, LatentMILO])
def test_the_constructor_and_from_pretrained_are_one(official, shared, cls):
    metric = cls()
    assert metric.weights == official[cls].weights
    assert not metric.training
    assert list(metric.parameters()) == []
    assert f"{cls.__name__}(weights: official (MILO" in repr(metric)
    assert metric.weights.sha256[:12] in repr(metric)


def test_repr_says_which_weights(mini):
    assert (
        repr(mini)
        == f"MILO(weights: mini (milo_mini.safetensors, sha256 {mini.weights.sha256[:12]}), reduction='none')"
    )
    assert repr(MILO.untrained(reduction="sum")) == "MILO(weights: untrained, reduction='sum')"


@pytest.mark.parametrize("load", [MILO, LatentMILO])
def test_loading_leaves_the_random_numbers_as_they_were(load):
    before = torch.get_rng_state()
    load("mini")
    assert torch.equal(torch.get_rng_state(), before)
    load.untrained()
    assert not torch.equal(torch.get_rng_state(), before)


def test_reductions(mini):
    image, reference = torch.rand(3, 3, 20, 24), torch.rand(3, 3, 20, 24)
    for reduction in ("mean", "sum"):
        reduced = MILO("mini", reduction=reduction)
        for name in ("forward", "quality", "mos"):
            each = getattr(mini, name)(image, reference)
            assert each.shape == (3,)
            torch.testing.assert_close(getattr(reduced, name)(image, reference), getattr(each, reduction)())
        assert reduced.mask(image, reference).shape == (3, 1, 20, 24)
    with pytest.raises(ConfigError, match="reduction: 'avg'"):
        MILO("mini", reduction="avg")


@pytest.mark.parametrize("channels", [1, 3])
def test_videos_are_scored_frame_by_frame(mini, channels):
    image, reference = torch.rand(2, 3, channels, 20, 24), torch.rand(2, 3, channels, 20, 24)
    for name in ("forward", "quality", "mos", "mask", "map"):
        method = getattr(mini, name)
        frames = torch.stack([method(image[:, t], reference[:, t]) for t in range(3)], 1)
        torch.testing.assert_close(method(image, reference), frames, atol=1e-6, rtol=1e-5)
    assert mini(image, reference).shape == (2, 3)
    assert MILO("mini", reduction="mean")(image, reference).shape == ()
    with pytest.raises(DataError, match=r"shapes differ: image \(2, 3, ., 20, 24\), reference \(2, 2"):
        mini(image, reference[:, :2])


@pytest.mark.parametrize("shape", [(2, 3, 19, 24), (2, 1, 19, 24), (2, 3, 3, 16, 17)])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_scores_in_one_pass_are_the_separate_ones(shape, reduction):
    metric = MILO("mini", reduction=reduction)
    image, reference = torch.rand(shape), torch.rand(shape)
    expected = [method(image, reference) for method in (metric, metric.quality, metric.mos)]
    passes = []
    metric.mask_network.register_forward_hook(lambda *_: passes.append(1))
    metric(image, reference)
    one = len(passes)
    scores = metric.scores(image, reference)
    assert len(passes) == 2 * one > 0
    assert scores._fields == ("raw_error", "quality", "mos")
    for score, separate in zip(scores, expected, strict=True):
        assert torch.equal(score, separate)


@pytest.mark.parametrize(("image", "reference", "grey"), [(1, 3, "image"), (3, 1, "reference")])
def test_grey_against_colour_is_refused(mini, image, reference, grey):
    with pytest.raises(DataError, match=rf"channels differ: image {image}, reference {reference}.*{grey}\.expand"):
        mini(torch.rand(1, image, 20, 20), torch.rand(1, reference, 20, 20))


def test_weights_that_do_not_fit_are_refused(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "noise.pth").write_bytes(b"not a checkpoint")
    save_file({"mask_network.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    torch.save({"f": print}, tmp_path / "code.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("noise.pth", "other.safetensors", "code.pth", "list.pth", "missing.pth"):
        with pytest.raises(WeightsError, match=name):
            MILO.from_pretrained(tmp_path / name)
    save_file(MILO.untrained().state_dict(), tmp_path / "rgb.safetensors")
    with pytest.raises(WeightsError, match="LatentMILO"):
        LatentMILO.from_pretrained(tmp_path / "rgb.safetensors")


def test_a_path_of_ones_own_weights(tmp_path):
    from safetensors.torch import save_file

    milo = MILO.untrained()
    save_file(milo.state_dict(), tmp_path / "mine.safetensors")
    again = MILO.from_pretrained(tmp_path / "mine.safetensors")
    image, reference = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(again(image, reference=reference), milo(image, reference=reference))
    assert str(tmp_path) in again.weights.path


def test_agreement_is_read_from_the_file(tmp_path, mini):
    from safetensors.torch import save_file

    state = MILO.untrained().state_dict()
    save_file(state, tmp_path / "taught.safetensors", {"gradient_cosine": "0.61", "mask_correlation": "0.45"})
    assert MILO(tmp_path / "taught.safetensors").weights.agreement == Agreement(0.61, 0.45)
    save_file(state, tmp_path / "half.safetensors", {"mask_correlation": "0.45", "teacher": "someone"})
    assert MILO(tmp_path / "half.safetensors").weights.agreement == Agreement(None, 0.45)
    save_file(state, tmp_path / "silent.safetensors")
    assert MILO(tmp_path / "silent.safetensors").weights.agreement == Agreement()
    save_file(state, tmp_path / "wrong.safetensors", {"gradient_cosine": "high"})
    with pytest.raises(WeightsError, match="wrong.safetensors: its metadata is no number"):
        MILO(tmp_path / "wrong.safetensors")


def test_auto_is_never_for_latents():
    with pytest.raises(ConfigError, match="different VAEs"):
        LatentMILO("auto")


@pytest.mark.parametrize("name", list(metric._FORMER))
def test_former_names_still_work_and_warn(name):
    with pytest.warns(FutureWarning, match=rf"milo_restore\.metric\.{name} is now {metric._FORMER[name]};") as caught:
        former = getattr(metric, name)
    assert former is getattr(metric, metric._FORMER[name])
    assert caught[0].filename == __file__
    assert name not in metric.__all__
