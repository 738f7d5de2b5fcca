"""The teacher: which members it has, how each is mapped to MOS, and which saved maps it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_near
from PIL import Image
from safetensors.torch import save_file

from milo_restore import MILO
from milo_restore.errors import ConfigError, DataError, WeightsError
from milo_restore.files.manifest import MANIFEST, manifest_of
from milo_restore.metric import ensemble
from milo_restore.metric.e_pixel import EMSE, EPSNR
from milo_restore.metric.ensemble import Member, MosMap, PseudoMOS, load_member
from milo_restore.metric.weights import WeightsInfo
from milo_restore.opinions.datasets import OpinionPair
from milo_restore.opinions.logistic import LogisticFit, fit_logistic
from milo_restore.teach.maps import fit_maps


def invented(cls, name, map_=None):
    metric = cls().freeze()
    metric.weights = WeightsInfo(name, f"{name}.pth", "0" * 64)
    return Member(name, metric, map_ or MosMap())


@pytest.fixture
def pairs(tmp_path):
    """Noisy images, and opinions that fall with the noise from 5 to 1."""
    rng, made = np.random.default_rng(0), []
    for number in range(12):
        clean = rng.integers(60, 190, (24, 24, 3))
        Image.fromarray(clean.astype(np.uint8)).save(tmp_path / f"I{number:02}.png")
        for level, sigma in enumerate((1, 5, 14, 30, 55), 1):
            noisy = np.clip(clean + rng.normal(0, sigma, clean.shape), 0, 255).astype(np.uint8)
            path = tmp_path / f"I{number:02}_01_{level:02}.png"
            Image.fromarray(noisy).save(path)
            score = 1 + 4 / (1 + (sigma / 14) ** 1.5) + rng.normal(0, 0.02)
            made.append(OpinionPair(tmp_path / f"I{number:02}.png", path, float(score), "noise", True))
    return made


def batch(pairs):
    read = lambda path: torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1) / 255  # noqa: E731
    return tuple(torch.stack([read(getattr(p, side)) for p in pairs]) for side in ("distorted", "reference"))


@pytest.mark.golden
def test_the_ensemble_says_who_is_in_it_and_who_is_not(shared, monkeypatch):
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(shared))
    teacher = PseudoMOS.from_names("ensemble")
    assert [member.name for member in teacher.members] == ["e-mae", "e-mse", "e-psnr", "e-ssim"]
    assert set(teacher.absent) == {"e-vgg", "e-lpips", "e-dists"}
    line = teacher.describe()
    assert "\n" not in line
    assert "e-mae (sha256 80c8ff5e7ca0, own-scaler)" in line
    assert "absent: e-vgg, e-lpips, e-dists without a scaler" in line


@pytest.mark.golden
def test_the_ensemble_takes_only_what_is_here(shared, monkeypatch, tmp_path):
    monkeypatch.setenv("MILO_RESTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(tmp_path))
    with pytest.raises(WeightsError, match="assets fetch e-mae e-mse e-psnr e-ssim"):
        PseudoMOS.from_names("ensemble")
    shutil.copy(shared / "weights/enhanced_iqm/E_SSIM.pth", tmp_path)
    teacher = PseudoMOS.from_names("ensemble")
    assert [member.name for member in teacher.members] == ["e-ssim"]
    assert list(teacher.absent) == ["e-mae", "e-mse", "e-psnr", "e-vgg", "e-lpips", "e-dists"]
    assert "e-mae, e-mse, e-psnr weights not here" in teacher.describe()


@pytest.mark.golden
def test_a_mixture_of_scales_is_of_mos_scale(shared, monkeypatch, pairs):
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(shared))
    teacher = PseudoMOS.from_names(["official", "e-mse", "e-psnr"])
    image, reference = batch(pairs[:5])
    raw = [member.metric(image, reference=reference).mean().item() for member in teacher.members]
    assert max(raw) / min(raw) > 1000
    labels, each = teacher(image, reference), teacher.each(image, reference)
    assert labels.shape == (5,)
    assert 0 < labels.min() < 2
    assert 3.5 < labels.max() < 5
    assert (labels.diff() < 0).all()
    torch.testing.assert_close(labels, sum(each.values()) / 3)
    official = MILO.from_pretrained("official").mos(image, reference=reference)
    torch.testing.assert_close(PseudoMOS.from_names("official")(image, reference), official)


@pytest.mark.golden
def test_tid2013_opinions_and_the_ensemble_agree(shared, monkeypatch):
    """Ten images of seven distortions; what people saw and what the teacher says have one direction."""
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(shared))
    folder = shared / "data/iqa/tid2013_subset"
    by_name = {path.name.lower(): path for path in folder.rglob("*.*")}
    rows = [line.split("\t") for line in (folder / "pairs.tsv").read_text().splitlines()[1:]]
    teacher, opinions, labels = PseudoMOS.from_names("ensemble"), [], []
    for reference, distorted, mos, *_ in rows:
        image, clean = (
            torch.from_numpy(np.asarray(Image.open(by_name[name.lower()]).convert("RGB"))[64:192, 64:192].copy())
            .permute(2, 0, 1)[None] / 255
            for name in (distorted, reference)
        )  # fmt: skip
        opinions.append(float(mos))
        labels.append(teacher(image, clean).item())
    stats = pytest.importorskip("scipy.stats")
    assert stats.spearmanr(opinions, labels).statistic > 0.5


def test_labels_carry_no_gradient_and_do_not_depend_on_the_batch(pairs):
    teacher = PseudoMOS([invented(EMSE, "e-mse"), invented(EPSNR, "e-psnr")])
    image, reference = batch(pairs[:4])
    labels = teacher(image.requires_grad_(), reference)
    assert not labels.requires_grad
    singly = torch.cat([teacher(image[i : i + 1], reference[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(labels, singly, atol=1e-5, rtol=1e-5)
    assert list(teacher.parameters()) == []
    assert len(list(teacher.buffers())) == 24


def test_unknown_doubled_and_empty_teachers():
    for teacher, message in (
        ("e-vgg", "'e-vgg' is no member of a teacher. It is without a scaler"),
        (["mini", "oficial"], "Did you mean 'official'"),
        ("lpips2000x", "Known: ensemble, official, mini, e-mae"),
        (["mini", "mini"], "named twice: mini, mini"),
        ([], "at least one member"),
    ):
        with pytest.raises(ConfigError, match=message):
            PseudoMOS.from_names(teacher)


def test_own_scaler_of_the_shipped_weights():
    member, image, reference = load_member("mini"), torch.rand(2, 3, 24, 24), torch.rand(2, 3, 24, 24)
    expected = MILO.from_pretrained("mini").mos(image, reference=reference)
    torch.testing.assert_close(PseudoMOS.from_names("mini")(image, reference), expected)
    assert PseudoMOS.from_names("mini").to_json()["members"]["mini"]["sha256"] == member.sha256


def test_a_logistic_is_that_of_the_fit(pairs):
    fit = LogisticFit((1.2, 4.7, 2e-3, -5e-4), converged=True)
    member = invented(EMSE, "e-mse", MosMap("logistic", fit.beta, "x", "y", 5))
    image, reference = batch(pairs[:5])
    raw = member.metric(image, reference=reference)
    np.testing.assert_allclose(PseudoMOS([member])(image, reference).numpy(), fit.predict(raw.numpy()), atol=1e-5)


def test_a_logistic_that_does_not_saturate_stays_on_the_scale(pairs):
    steep = invented(EMSE, "e-mse", MosMap("logistic", (1.7, 1.2e10, -0.013, 5.9e-4), "x", "y", 5))
    image, reference = batch(pairs[:5])
    labels = PseudoMOS([steep])(image, reference)  # float32 alone would make all of them 0
    raw = steep.metric(image, reference=reference).double().numpy()
    expected = LogisticFit((1.7, 1.2e10, -0.013, 5.9e-4), True).predict(raw)
    np.testing.assert_allclose(labels.numpy(), expected.clip(0, 5), atol=1e-4)
    assert labels.max() > 3
    everywhere = invented(EMSE, "e-mse", MosMap("logistic", (1.7, 1.2e10, 1.0, 5.9e-4), "x", "y", 5))
    assert PseudoMOS([everywhere])(image, reference).tolist() == [5.0] * 5


def test_fitted_maps_fit_and_round_trip(pairs, tmp_path):
    fitted = fit_maps("mini", pairs, tmp_path / "maps.json")
    labels = torch.cat([fitted(*batch([pair])) for pair in pairs]).numpy()
    opinions = np.array([pair.score for pair in pairs])
    assert np.corrcoef(labels, opinions)[0, 1] > 0.9
    assert np.abs(labels - opinions).mean() < 0.4
    assert "mini (sha256" in fitted.describe()
    assert "logistic on kadid10k kadid-train" in fitted.describe()
    saved = json.loads((tmp_path / "maps.json").read_text())["members"]["mini"]
    assert saved["sha256"] == fitted.members[0].sha256
    assert saved["map"]["pairs"] == len(pairs) == 60
    assert (saved["map"]["dataset"], saved["map"]["split"]) == ("kadid10k", "kadid-train")
    again = PseudoMOS.from_names(["mini"], maps=tmp_path / "maps.json")
    image, reference = batch(pairs[:5])
    assert_near(again(image, reference), fitted(image, reference))
    assert again.to_json() == fitted.to_json()


def test_own_scalers_round_trip(tmp_path):
    teacher = PseudoMOS.from_names("mini")
    teacher.save(tmp_path / "teacher.json")
    assert PseudoMOS.from_names("mini", tmp_path / "teacher.json").to_json() == teacher.to_json()


def test_maps_of_other_weights_are_refused(tmp_path, monkeypatch):
    PseudoMOS.from_names("mini").save(tmp_path / "maps.json")
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    save_file(MILO.untrained().state_dict(), shipped / "milo_mini.safetensors")
    (shipped / MANIFEST).write_text(manifest_of(shipped, ["milo_mini.safetensors"]))
    monkeypatch.setattr("milo_restore.metric.weights.SHIPPED", shipped)
    with pytest.raises(WeightsError, match=r"maps\.json: was made with other weights of mini: sha256"):
        PseudoMOS.from_names("mini", tmp_path / "maps.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: "no JSON", r"maps\.json: cannot be read"),
        (lambda tree: json.dumps({**tree, "format": "else"}), "is not in the format"),
        (lambda tree: json.dumps({**tree, "members": {"e-mae": {}}}), "holds no map of mini, only of e-mae"),
        (lambda tree: json.dumps({**tree, "members": {"mini": {"sha256": "0"}}}), "the map of mini is damaged"),
        (lambda tree: json.dumps(with_map(tree, {"kind": "cubic"})), "unknown kind 'cubic'"),
        (lambda tree: json.dumps(with_map(tree, {"kind": "logistic", "beta": [1, 2, 3]})), "not four finite"),
        (lambda tree: json.dumps(with_map(tree, {"kind": "logistic", "beta": [1, 2, 3, 0]})), "not four finite"),
    ],
)
def test_damaged_maps_are_refused(tmp_path, change, message):
    path = tmp_path / "maps.json"
    path.write_text(change(PseudoMOS.from_names("mini").to_json()))
    with pytest.raises(DataError, match=message):
        PseudoMOS.from_names("mini", path)


def with_map(tree, map_):
    return {**tree, "members": {"mini": {**tree["members"]["mini"], "map": map_}}}


def test_fits_that_say_nothing_are_refused(pairs, tmp_path, monkeypatch):
    target = tmp_path / "maps.json"
    turned = [OpinionPair(p.reference, p.distorted, 6 - p.score, p.kind, True) for p in pairs if 1 <= p.score <= 5]
    with pytest.raises(DataError, match="mini on kadid10k kadid-train: the fitted logistic gives worse images"):
        fit_maps("mini", turned, target)
    with pytest.raises(DataError, match="did not converge"):
        fit_maps("mini", pairs[:3], target)
    assert not fit_logistic([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).converged
    monkeypatch.setattr(
        "milo_restore.teach.maps.fit_logistic",
        lambda x, y: LogisticFit((1, 5, 0, 1), False, "for a test"),
    )
    with pytest.raises(DataError, match="did not converge .for a test."):
        fit_maps("mini", pairs, target)
    assert not target.exists()


@pytest.mark.parametrize(("score", "higher_better"), [(0.4, False), (7.2, True), (float("nan"), True)])
def test_opinions_of_other_scales_are_refused(tmp_path, score, higher_better):
    pair = OpinionPair(Path("a.png"), Path("b.png"), score, "noise", higher_better)
    with pytest.raises(DataError, match=r"b\.png: .* is no MOS in \[0, 5\]"):
        fit_maps("mini", [pair], tmp_path / "maps.json")


def test_members_are_all_loadable_names():
    assert ensemble.MEMBERS == ("official", "mini", "e-mae", "e-mse", "e-psnr", "e-ssim")
