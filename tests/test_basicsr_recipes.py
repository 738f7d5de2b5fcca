"""recipes/basicsr: the nine files by their published values, their schedule and stages, and the README's losses."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
import yaml
from basicsr.utils.options import ordered_yaml
from conftest import REPOSITORY
from torch import nn

from milo_restore.basicsr.batches import Mixup, read_mixup, read_stages, shrink, stage_at
from milo_restore.basicsr.losses import BasicSRMILOLoss, keys_of
from milo_restore.basicsr.options import swap_loss
from milo_restore.basicsr.schedulers import CosineAnnealingRestartCyclicLR
from milo_restore.errors import ConfigError, DataError
from milo_restore.models import Restormer
from milo_restore.train import TrainSettings
from milo_restore.train.schedule import learning_rate, stage_of
from milo_restore.train.settings import Stage

RECIPES = REPOSITORY / "recipes" / "basicsr"
KINDS = ("mae", "milo", "milo_linear")
SIGMAS = (15, 25, 50)


def load(sigma, kind):
    text = (RECIPES / f"restormer_denoise_sigma{sigma}_{kind}.yml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=ordered_yaml()[0])


def plain(value):
    """Ordered dictionaries as plain ones."""
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


# ---------------------------------------------------------------------------------------------- the nine files


def test_there_are_nine_files():
    assert {path.name for path in RECIPES.glob("*.yml")} == {
        f"restormer_denoise_sigma{sigma}_{kind}.yml" for sigma in SIGMAS for kind in KINDS
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_a_file_has_the_published_values(sigma, kind):
    opt = plain(load(sigma, kind))
    data, train, net = opt["datasets"]["train"], opt["train"], opt["network_g"]
    assert opt["name"] == f"restormer_denoise_sigma{sigma}_{kind}"
    assert (opt["model_type"], opt["scale"], opt["num_gpu"], opt["manual_seed"]) == ("ImageCleanModel", 1, 8, 100)
    assert (data["type"], data["sigma_type"], data["sigma_range"]) == ("Dataset_GaussianDenoising", "constant", sigma)
    assert (data["in_ch"], data["geometric_augs"], data["batch_size_per_gpu"]) == (3, True, 8)
    assert data["mini_batch_sizes"] == [8, 5, 4, 2, 1, 1]
    assert data["iters"] == [92000, 64000, 48000, 36000, 36000, 24000]
    assert data["gt_sizes"] == [min(size, 320) for size in (128, 160, 192, 256, 320, 384)]
    assert opt["datasets"]["val"]["sigma_test"] == sigma
    assert net.pop("type") == "Restormer"
    assert net == {key: value for key, value in Restormer().config.items()}  # the published denoiser's
    assert (train["total_iter"], train["warmup_iter"], train["use_grad_clip"]) == (300000, -1, True)
    assert train["grad_clip_norm"] == 0.01
    assert train["optim_g"] == {"type": "AdamW", "lr": 3e-4, "weight_decay": 1e-4, "betas": [0.9, 0.999]}
    assert train["scheduler"] == {
        "type": "CosineAnnealingRestartCyclicLR",
        "periods": [92000, 208000],
        "restart_weights": [1, 1],
        "eta_mins": [3e-4, 1e-6],
    }
    assert train["mixing_augs"] == {"mixup": True, "mixup_beta": 1.2, "use_identity": True}
    assert "ema_decay" not in train
    own = {"type": "MILOLoss", "weights": "official", "mask_gradient": False}
    own |= {"curriculum": {"milo": "cosine", "milo_linear": "linear"}.get(kind)}
    expected = {"type": "L1Loss"} if kind == "mae" else own
    assert train["pixel_opt"] == {**expected, "loss_weight": 1, "reduction": "mean"}
    assert opt["val"]["metrics"]["psnr"] == {"type": "calculate_psnr", "crop_border": 0, "test_y_channel": False}


def test_the_files_differ_only_where_they_must():
    def stripped(sigma, kind):
        opt = plain(load(sigma, kind))
        del opt["name"], opt["train"]["pixel_opt"]
        del opt["datasets"]["train"]["sigma_range"], opt["datasets"]["val"]["sigma_test"]
        return opt

    first = stripped(15, "mae")
    assert all(stripped(sigma, kind) == first for sigma in SIGMAS for kind in KINDS)


@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
def test_an_epoch_leaves_nothing_over(gpus):
    # BasicSR rounds an epoch's iterations up and drops the rest of the batch: with a rest, training ends early.
    data = load(25, "mae")["datasets"]["train"]
    assert 400 * data["dataset_enlarge_ratio"] % (data["batch_size_per_gpu"] * gpus) == 0


def test_the_readme_shows_the_recommended_setting_and_knows_every_key():
    text = (RECIPES / "README.md").read_text(encoding="utf-8")
    command = re.search(r"```bash\n(.*?)\n```", text, re.DOTALL).group(1)
    swapped = {"train": {"pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"}}}
    swap_loss(swapped, command.split("--loss ")[1], "official", RECIPES)
    shown = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL).group(1))
    assert shown == swapped
    files = plain(load(25, "milo"))["train"]["pixel_opt"]
    assert files.pop("mask_gradient") is False  # the default
    assert files == shown["train"]["pixel_opt"]
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", text, re.MULTILINE)
    assert {key for row in rows for key in re.findall(r"\w+", row)} == set(keys_of(BasicSRMILOLoss))


# ---------------------------------------------------------------------------------------------- learning rate


def scheduler_of(periods, weights, minima, rate=3e-4):
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=rate)
    return optimizer, CosineAnnealingRestartCyclicLR(optimizer, periods, weights, minima)


def rate_at(optimizer, scheduler, step):
    scheduler.last_epoch = step - 1  # BasicSR steps it before every iteration but the first
    return scheduler.get_lr()[0]


def test_the_rate_is_the_recipes_constant_then_cosine():
    optimizer, scheduler = scheduler_of([92000, 208000], [1, 1], ["3e-4", "1e-6"])  # YAML reads 1e-6 as text
    stages = (Stage(300000, 8, 1),)
    settings = TrainSettings(stages=stages, constant_steps=92000, learning_rate=3e-4, final_learning_rate=1e-6)
    for step in [1, 2, 91999, 92000, 92001, 92002, 150000, 196001, 299999, 300000, *range(3, 300000, 7919)]:
        ours = rate_at(optimizer, scheduler, step)
        assert ours == pytest.approx(learning_rate(step, settings), rel=1e-12), step
    assert rate_at(optimizer, scheduler, 92001) == 3e-4
    assert rate_at(optimizer, scheduler, 196001) == pytest.approx((3e-4 + 1e-6) / 2)


def test_periods_restart_with_their_weights_and_minima():
    optimizer, scheduler = scheduler_of([4, 8], [1, 0.5], [0.1, 0.2], rate=1.0)
    seen = []
    for _ in range(12):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    expected = [0.1 + 0.45 * (1 + math.cos(math.pi * n / 4)) for n in range(5)]  # the end belongs to the period
    expected += [0.2 + 0.5 * 0.4 * (1 + math.cos(math.pi * n / 8)) for n in range(1, 8)]
    assert seen == pytest.approx(expected)
    with pytest.raises(ConfigError, match="beyond the periods' sum, 12"):
        scheduler.step()


@pytest.mark.parametrize("wrong", [([4, 8], [1], [0, 0]), ([4], [1], [0, 0]), ([0], [1], [0]), ([4], [1], ["x"])])
def test_impossible_periods_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"train\.scheduler\."):
        scheduler_of(*wrong)


# ---------------------------------------------------------------------------------------------- batches


def test_stages_are_those_of_our_own_training():
    opt = load(25, "mae")
    stages, data = read_stages(opt), opt["datasets"]["train"]
    ours = tuple(
        Stage(steps, patch, batch)
        for steps, patch, batch in zip(data["iters"], data["gt_sizes"], data["mini_batch_sizes"])
    )
    for step in (1, 92000, 92001, 156000, 156001, 204001, 240000, 240001, 276000, 276001, 300000):
        expected = stage_of(step, TrainSettings(stages=ours))[0]
        assert stage_at(stages, step)[1:] == (expected.batch, expected.patch), step
    assert stage_at(stages, 92000).patch == 128
    assert stage_at(stages, 92001).patch == 160


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iters": [1, 2]}, "different lengths"),
        ({"gt_sizes": None}, r"gt_sizes: is missing"),
        ({"gt_size": 128}, "is more than gt_size, 128"),
        ({"batch_size_per_gpu": 4}, "is more than batch_size_per_gpu, 4"),
        ({"iters": [1, 1, 1, 1, 1, "1e3"]}, "not a list of positive whole numbers"),
        ({"iters": [1, 1, 1, 1, 1, 1]}, "the stages end at iteration 6, the training at 300000"),
    ],
)
def test_impossible_stages_are_refused(change, message):
    opt = load(25, "mae")
    opt["datasets"]["train"].update(change)
    with pytest.raises(ConfigError, match=message):
        read_stages(opt)


def test_a_configuration_without_stages_has_none():
    opt = load(25, "mae")
    for key in ("iters", "mini_batch_sizes", "gt_sizes"):
        del opt["datasets"]["train"][key]
    assert read_stages(opt) == ()


def test_a_batch_is_cut_to_one_window_of_the_first_samples_everywhere_equally_often():
    gt = torch.arange(4 * 10 * 10, dtype=torch.float32).reshape(4, 1, 10, 10)
    rng, corners = np.random.default_rng(0), []
    for _ in range(900):
        lq, cut = shrink(gt + 0.5, gt, batch=2, patch=8, rng=rng)
        assert cut.shape == (2, 1, 8, 8)
        assert torch.equal(lq, cut + 0.5)
        corner = int(cut[0, 0, 0, 0])
        assert cut[1, 0, 7, 7] == corner + 100 + 77
        corners.append(corner)
    counts = [corners.count(10 * row + column) for row in range(3) for column in range(3)]
    assert sum(counts) == 900
    assert min(counts) > 65  # of 100 each; 65 is 3.7 standard deviations away


def test_a_batch_smaller_than_the_stage_is_refused():
    image = torch.zeros(2, 3, 16, 16)
    with pytest.raises(DataError, match="the stage needs 4 of 8x8"):
        shrink(image, image, batch=4, patch=8, rng=np.random.default_rng(0))


def test_mixup_mixes_half_of_the_batches_by_a_symmetric_beta():
    gt = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
    mix, rng, shares, untouched = Mixup(1.2, use_identity=True), np.random.default_rng(1), [], 0
    for _ in range(4000):
        lq, mixed = mix(gt + 7, gt, rng)
        torch.testing.assert_close(lq, mixed + 7)
        untouched += torch.equal(mixed, gt)
        if mixed[0, 0, 0, 0] > 0:  # mixed, and with the other one
            shares.append(float(mixed[1, 0, 0, 0]))
            assert float(mixed.sum()) == pytest.approx(1)
    # Half are left alone, and of the mixed ones half draw themselves as partners.
    assert untouched / 4000 == pytest.approx(0.75, abs=0.03)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)
    assert np.var(shares) == pytest.approx(1 / (4 * (2 * 1.2 + 1)), rel=0.1)  # Beta(1.2, 1.2)


def test_mixup_without_identity_always_mixes_and_is_off_where_not_asked_for():
    gt = torch.rand(8, 1, 2, 2)
    rng = np.random.default_rng(0)
    assert not any(torch.equal(Mixup(1.2, use_identity=False)(gt, gt, rng)[1], gt) for _ in range(50))
    assert read_mixup({"train": {}}) is None
    assert read_mixup({"train": {"mixing_augs": {"mixup": False, "mixup_beta": 1.2}}}) is None
    with pytest.raises(ConfigError, match="mixup_beta"):
        read_mixup({"train": {"mixing_augs": {"mixup": True}}})
