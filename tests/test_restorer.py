"""Restorers on test images: the protocol, one number in memory and on disk, pictures, processes, and refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_two_processes
from torch import nn

from milo_restore import MILO
from milo_restore.cli import main
from milo_restore.data import find_dataset, held_out_photographs, read_image, to_tensor, to_uint8
from milo_restore.data.restoration_pairs import RestorationPair, noisy_pairs
from milo_restore.errors import DataError, NumericsError
from milo_restore.measure import comparison_table, evaluate_restorers, psnr, sample_picture, score_restorer
from milo_restore.measure.metrics import load_metric
from milo_restore.measure.restorer import given
from milo_restore.models.denoise import denoise
from milo_restore.report.collect import group_runs, read_runs
from milo_restore.show.grid import heat_map

TESTS = Path(__file__).parent
RGB = np.zeros((16, 16, 3), np.uint8)
METRICS = [load_metric(name) for name in ("psnr", "ssim", "milo:mini")]


class Identity(nn.Module):
    def forward(self, x):
        return x


class Mean(nn.Module):
    """A 3x3 mean: a denoiser that is better than nothing. In training mode it would ruin the picture."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        if self.training or torch.is_grad_enabled():
            return torch.zeros_like(x)
        return self.scale * nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class Perfect(nn.Module):
    def __init__(self, clean):
        super().__init__()
        self.clean = clean

    def forward(self, x):
        return self.clean[None] + 1e-4  # less than half an 8-bit step


class NotFinite(nn.Module):
    """Gives NaN for the one of `pictures` numbered ``at``."""

    def __init__(self, at):
        super().__init__()
        self.height = pictures()[at][1].shape[0]

    def forward(self, x):
        return x * float("nan") if x.shape[2] == self.height else x


def pictures():
    """Three small crops of photographs, of different sizes, names out of order."""
    (_, chelsea), (_, rocket) = held_out_photographs()
    return [("c", chelsea[100:164, 100:180]), ("a", rocket[200:249, 300:351]), ("b", chelsea[50:100, 50:100])]


def noisy(images=None, sigma=25):
    return noisy_pairs(pictures() if images is None else images, sigma)


def denoiser(model):
    return lambda pair, number: denoise(model, pair.degraded)


def test_an_idle_denoiser_scores_as_its_input_by_the_protocol_written_out():
    metric = MILO.from_pretrained("mini")
    for (_, clean), pair in zip(pictures(), noisy()):
        # Legacy seed 0 per image, float noise, clamped and rounded afterwards.
        noise = np.random.RandomState(0).normal(0, 25 / 255.0, clean.shape)
        expected = np.clip(np.float32(clean) / 255 + noise, 0, 1)
        mse = np.mean((np.round(expected * 255) - clean) ** 2)
        scores = score_restorer(denoiser(Identity()), [pair], METRICS)
        assert scores == score_restorer(given, [pair], METRICS)
        assert scores["psnr"] == pytest.approx(10 * math.log10(255**2 / mse), abs=1e-3)
        quantised = torch.from_numpy(np.round(expected * 255).astype(np.float32) / 255).permute(2, 0, 1)[None]
        with torch.no_grad():
            error = metric(quantised, reference=to_tensor(clean)[None]).item()
        assert scores["milo:mini"] == pytest.approx(error, rel=1e-4)


def test_one_number_in_memory_on_disk_and_in_the_report(tmp_path):
    """What a training's curve says of the last step is what results.json, and the page made of it, say."""
    in_memory = score_restorer(denoiser(Mean()), noisy(), METRICS)
    results = evaluate_restorers(
        {"restored": denoiser(Mean())}, {"three, sigma 25": noisy()}, METRICS, tmp_path, labels={"restored": "a mean"}
    )
    assert list(results["three, sigma 25"]) == ["input", "restored"]
    file = tmp_path / "three-sigma-25" / "restored" / "results.json"
    on_disk = json.loads(file.read_text())
    assert on_disk == json.loads(json.dumps(results["three, sigma 25"]["restored"]))
    assert on_disk["means"] == pytest.approx(in_memory, rel=1e-12)
    assert [image["name"] for image in on_disk["images"]] == ["a.png", "b.png", "c.png"]
    assert np.array_equal(read_image(tmp_path / "three-sigma-25" / "ref" / "c.png"), pictures()[0][1])
    (group,) = group_runs(read_runs([str(tmp_path)]))
    assert group.title == "three, sigma 25"
    assert [run.label for run in group.runs] == ["degraded input", "a mean"]
    assert group.runs[1].results["means"] == on_disk["means"]
    table = comparison_table(results, {"restored": "a mean"})
    assert f"{on_disk['means']['psnr']:.2f}" in table
    assert "psnr ↑" in table
    assert "milo:mini ↓" in table
    assert "three, sigma 25 (3)" in table


def test_what_runs_share_is_reported_once(tmp_path, capsys):
    for name, model in (("one", Mean()), ("other", Identity())):
        evaluate_restorers(
            {"restored": denoiser(model)}, {"three": noisy()}, METRICS[:1], tmp_path / name, labels={"restored": name}
        )
    (group,) = group_runs(read_runs([str(tmp_path / "one"), f"idle={tmp_path / 'other'}"]))
    assert [run.label for run in group.runs] == ["degraded input", "one", "idle"]
    with pytest.raises(DataError, match="no such results"):
        read_runs([str(TESTS)])
    evaluate_restorers({"restored": given}, {"three": noisy()}, METRICS[1:2], tmp_path / "third")
    assert main(["tables", str(tmp_path / "one"), str(tmp_path / "other"), str(tmp_path / "third")]) == 0
    printed = capsys.readouterr().out
    assert printed.split()[:5] == ["images", "psnr", "↑", "ssim", "↑"]
    values = [f"{run.results['means']['psnr']:.2f}" for run in group.runs[1:]]
    rows = [line.split()[-3:] for line in printed.splitlines() if {"one", "other"} & set(line.split())]
    assert rows == [
        ["one", values[0], "-"],
        ["other", values[1], "-"],
    ]  # the third has not measured PSNR, nor they SSIM


def test_noise_levels_of_the_same_images_are_sections_of_their_own(tmp_path, capsys):
    sets = {f"three, sigma {sigma}": noisy(sigma=sigma) for sigma in (15, 50)}
    evaluate_restorers({"restored": denoiser(Mean())}, sets, METRICS[:1], tmp_path)
    groups = group_runs(read_runs([str(tmp_path)]))
    assert [group.title for group in groups] == list(sets)
    assert all([run.label for run in group.runs] == ["degraded input", "restored"] for group in groups)
    for command in (["report", str(tmp_path), "--output", str(tmp_path / "r.html")], ["tables", str(tmp_path)]):
        assert main(command) == 0
    assert main(["compare", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("degraded input - restored") == 2


def test_a_perfect_denoiser_has_no_psnr(tmp_path):
    name, clean = pictures()[0]
    restore = denoiser(Perfect(to_tensor(clean)))
    assert score_restorer(restore, noisy([(name, clean)]), METRICS) == {"ssim": 1.0, "milo:mini": 0.0}
    results = evaluate_restorers({"restored": restore}, {"one": noisy([(name, clean)])}, METRICS, tmp_path)
    assert results["one"]["restored"]["means"]["psnr"] is None
    assert results["one"]["restored"]["images"][0]["failures"]["psnr"].startswith("infinite")
    assert comparison_table(results, {}).splitlines()[-1].split()[1] == "-"


def test_evaluation_is_in_eval_mode_without_gradients_and_leaves_the_model_as_it_was():
    model = nn.Sequential(Mean(), Mean())
    model.train()
    model[1].eval()
    scores, before = (score_restorer(restore, noisy(), METRICS[:1]) for restore in (denoiser(model), given))
    assert scores["psnr"] > before["psnr"] + 3
    assert [module.training for module in model.modules()] == [True, True, False]


def test_a_diverged_network_is_named(tmp_path):
    with pytest.raises(NumericsError, match="^a: the restored image holds NaN"):
        score_restorer(denoiser(NotFinite(at=1)), noisy(), METRICS)
    with pytest.raises(NumericsError, match="^a: the restored image holds NaN"):
        evaluate_restorers({"restored": denoiser(NotFinite(at=1))}, {"three": noisy()}, METRICS, tmp_path)
    with pytest.raises(DataError, match="^c: came out as"):
        score_restorer(lambda pair, number: pair.target[:-1], noisy(), METRICS)


def test_images_that_cannot_be_measured_are_named(tmp_path):
    with pytest.raises(DataError, match="no images"):
        score_restorer(given, [], METRICS)
    with pytest.raises(DataError, match="none: there are no images"):
        evaluate_restorers({}, {"none": []}, METRICS, tmp_path)
    with pytest.raises(DataError, match="^tiny.png: milo:mini: sides must be at least 16, got 12x12"):
        score_restorer(given, noisy([("tiny.png", RGB[:12, :12])]), METRICS)
    with pytest.raises(DataError, match="^tiny.png: ssim: 12x10 leaves sides of less than 11 pixels"):
        score_restorer(given, noisy([("tiny.png", RGB[:10, :12])]), METRICS)


def test_denoise_takes_and_gives_one_image():
    _, clean = pictures()[0]
    assert np.array_equal(denoise(Identity(), to_tensor(clean) + 0.001), clean)


def test_two_processes_share_the_images_and_agree(tmp_path):
    run_two_processes("restorer_worker.py", tmp_path)
    expected = score_restorer(denoiser(Mean()), noisy(), METRICS)
    few = score_restorer(denoiser(Mean()), noisy()[:1], METRICS)
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        for alone, name in ((expected, "means"), (few, "few"), (expected, "results")):
            assert found[name] == pytest.approx(alone, rel=1e-4), name
        assert found["error"].startswith("a: the restored image holds NaN")
    assert (tmp_path / "eval" / "three" / "restored" / "results.json").is_file()


def test_samples_show_input_output_target_and_mask():
    (_, clean), *_ = images = pictures()[:2]
    metric = MILO.untrained().freeze()
    pairs = noisy(images)

    def mask(output, target):
        return metric.mask(output, reference=target)

    grid = sample_picture({"output": denoiser(Identity())}, pairs, mask, mask_top=1.0)
    height, width = clean.shape[:2]
    assert grid.shape[0] == 24 + height + 4 + images[1][1].shape[0]
    matches = [
        x for x in range(grid.shape[1] - width + 1) if np.array_equal(grid[24 : 24 + height, x : x + width], clean)
    ]
    assert len(matches) == 1  # the target, where it belongs: after the noisy input and the output, which are equal
    first = grid[24 : 24 + height, :width]
    second = [x for x in range(1, matches[0]) if np.array_equal(grid[24 : 24 + height, x : x + width], first)]
    assert len(second) == 1
    alone = score_restorer(given, pairs[:1], METRICS[:1])["psnr"]
    assert psnr(np.ascontiguousarray(first), clean) == alone
    expected = heat_map(mask(to_tensor(np.ascontiguousarray(first))[None], to_tensor(clean)[None])[0, 0], 1.0)
    assert any(  # a value on the border of two colours may be drawn in either
        np.mean(grid[24 : 24 + height, x : x + width] == expected) > 0.999
        for x in range(matches[0] + width, grid.shape[1] - width + 1)
    )
    assert sample_picture({"output": denoiser(Identity())}, pairs).shape[1] < grid.shape[1]


def shifted(count):
    """Random images, and the same too bright."""
    rng = np.random.default_rng(4)
    images = [rng.integers(0, 256, (24, 32, 3), dtype=np.uint8) for _ in range(count)]
    return [RestorationPair(f"{n}.png", to_tensor(image) + 16 / 255, image) for n, image in enumerate(images)]


def towards(share):
    """A restorer that takes away this share of the error."""

    def restore(pair, number):
        return to_uint8(pair.degraded + (to_tensor(pair.target) - pair.degraded) * share)

    return restore


def test_stages_are_measured_alike(tmp_path):
    stages = {"cleaner": towards(0.25), "restored": towards(0.5)}
    results = evaluate_restorers(stages, {"three": shifted(3)}, METRICS[:1], tmp_path)["three"]
    means = {stage: found["means"]["psnr"] for stage, found in results.items()}
    assert means["restored"] - means["input"] == pytest.approx(20 * np.log10(2), abs=0.3)
    assert means["cleaner"] - means["input"] == pytest.approx(20 * np.log10(4 / 3), abs=0.3)


def test_a_latent_masks_cells_become_squares():
    pairs = shifted(2)
    masks = iter([torch.zeros(1, 1, 3, 4), torch.ones(1, 1, 3, 4)])
    stages = {"cleaner": towards(0.25), "output": towards(0.5)}
    picture = sample_picture(stages, pairs, lambda output, target: next(masks), "mask")
    rows = (picture[24:48], picture[52:76])  # under the titles, with a gap between
    for value, row in zip((0.0, 1.0), rows):
        colour = heat_map(torch.full((1, 1), value), 1.0)[0, 0]
        assert (row == colour).all(-1).sum() >= 24 * 32
    shown = {tuple(image.reshape(-1)) for pair in pairs for image in (pair.target, to_uint8(pair.degraded))}
    places = [picture[top : top + 24, left : left + 32] for top in (24, 52) for left in range(picture.shape[1] - 32)]
    assert shown <= {tuple(place.reshape(-1)) for place in places}


@pytest.mark.golden
def test_sigma_25_on_cbsd68(shared):
    images = [(path.name, read_image(path)) for path in find_dataset("CBSD68", shared)[:3]]
    metrics = [*METRICS[:1], load_metric(f"milo:{shared / 'weights' / 'milo' / 'MILO.pth'}")]
    for pair in noisy(images):
        before, after = (score_restorer(restore, [pair], metrics) for restore in (given, denoiser(Mean())))
        # Unclipped noise of sigma 25 has 20.17 dB; clamping takes some of it away.
        assert 20.17 < before["psnr"] < 21.0
        assert after["psnr"] > before["psnr"] + 2
        assert min(*list(before.values())[1:], *list(after.values())[1:]) > 0
    assert "a1d66a7e0ebe" in metrics[1].weights
