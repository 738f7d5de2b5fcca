"""Restormer's denoising configurations in PyPI's BasicSR: data and model class, then real training runs."""

from __future__ import annotations

import math
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from basicsr.archs import build_network
from basicsr.data import build_dataloader, build_dataset
from basicsr.models import build_model
from basicsr.train import train_pipeline
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, MODEL_REGISTRY
from conftest import REPOSITORY
from PIL import Image
from test_basicsr_recipes import load, plain
from torch import nn
from torch.utils.data import SequentialSampler

from milo_restore.basicsr.denoising_data import Dataset_GaussianDenoising
from milo_restore.basicsr.image_clean_model import ImageCleanModel
from milo_restore.basicsr.restormer import register
from milo_restore.data import evaluation_noise, read_image, to_uint8
from milo_restore.errors import ConfigError, DataError, NumericsError
from milo_restore.measure.metrics import psnr
from milo_restore.models import Restormer
from milo_restore.train import TrainSettings
from milo_restore.train.schedule import learning_rate
from milo_restore.train.settings import Stage

SMALL = {"dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "heads": [1, 1, 1, 1]}

register()

# ---------------------------------------------------------------------------------------------- registration


def test_registering_twice_is_harmless_and_gives_our_classes():
    register()
    register()
    assert ARCH_REGISTRY.get("Restormer").load() is Restormer
    assert MODEL_REGISTRY.get("ImageCleanModel").load() is ImageCleanModel
    assert DATASET_REGISTRY.get("Dataset_GaussianDenoising").load() is Dataset_GaussianDenoising
    assert isinstance(
        ARCH_REGISTRY.get("Restormer")(dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1), Restormer
    )


def test_nothing_of_restormers_is_imported_before_a_file_names_it():
    code = (
        "import sys, milo_restore.basicsr; assert 'basicsr' not in sys.modules; import basicsr; "
        "ours = ('milo_restore.models', 'milo_restore.basicsr.image'); "
        "print([name for name in sys.modules if name.startswith(ours)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_a_users_own_class_of_the_same_name_wins(monkeypatch):
    monkeypatch.setattr(ARCH_REGISTRY, "_obj_map", dict(ARCH_REGISTRY._obj_map))
    theirs = type("Restormer", (nn.Module,), {})
    ARCH_REGISTRY.register(theirs)  # an AssertionError, had ours taken the plain name
    register()
    assert ARCH_REGISTRY.get("Restormer") is theirs


def test_the_network_built_from_the_file_is_the_published_one():
    with torch.device("meta"):
        net = build_network(load(25, "mae")["network_g"])
    assert sum(parameter.numel() for parameter in net.parameters()) == 26_111_668
    assert len(net.state_dict()) == 406


# ---------------------------------------------------------------------------------------------- data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four smooth 64x64 pictures."""
    path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(4):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((64, 64), Image.Resampling.BICUBIC).save(path / f"{number}.png")
    return path


def data_opt(folder, **change):
    opt = load(25, "mae")["datasets"]["train"]
    opt.update(dataroot_gt=str(folder), gt_size=64, phase="train", **change)
    return opt


def val_opt(folder, **change):
    opt = load(25, "mae")["datasets"]["val"]
    opt.update(dataroot_gt=str(folder), phase="val", **change)
    return opt


def test_training_noise_has_its_level_and_is_not_clipped(folder):
    data = build_dataset(data_opt(folder))
    pairs = [data[i % 4] for i in range(16)]
    noise = torch.stack([pair["lq"] - pair["gt"] for pair in pairs]) * 255
    assert float(noise.std()) == pytest.approx(25, rel=0.01)
    assert abs(float(noise.mean())) < 0.3
    assert max(float(pair["lq"].max()) for pair in pairs) > 1
    assert min(float(pair["lq"].min()) for pair in pairs) < 0
    assert not torch.equal(noise[0], noise[4])  # the same image drawn again
    assert pairs[0]["lq"].shape == (3, 64, 64)
    assert pairs[0]["lq"].dtype == torch.float32


def test_all_eight_orientations_come_and_the_noise_is_added_after(folder):
    data = build_dataset(data_opt(folder, sigma_range=0))
    seen = {data[0]["gt"].numpy().tobytes() for _ in range(80)}
    assert len(seen) == 8
    still = build_dataset(data_opt(folder, geometric_augs=False))
    image = torch.from_numpy(read_image(still.paths[0])).permute(2, 0, 1) / 255
    torch.testing.assert_close(still[0]["gt"], image)


def test_levels_are_drawn_as_the_sigma_type_says(folder):
    def levels(**change):
        data = build_dataset(data_opt(folder, geometric_augs=False, check_images=False, **change))
        pairs = [data[0] for _ in range(60)]
        return np.array([float((pair["lq"] - pair["gt"]).std()) * 255 for pair in pairs])

    uniform = levels(sigma_type="random", sigma_range=[0, 50])
    assert uniform.min() < 8
    assert uniform.max() > 42
    assert abs(uniform.mean() - 25) < 7
    chosen = levels(sigma_type="choice", sigma_range=[15, 50])
    assert np.all((abs(chosen - 15) < 1) | (abs(chosen - 50) < 3))
    assert 10 < sum(chosen < 30) < 50


def test_training_follows_torchs_generator_and_not_numpys(folder):
    data = build_dataset(data_opt(folder))
    torch.manual_seed(3)
    first = data[0]["lq"]
    np.random.seed(0)  # noqa: NPY002  (this very generator must not matter)
    assert not torch.equal(data[0]["lq"], first)
    torch.manual_seed(3)
    assert torch.equal(data[0]["lq"], first)


def test_workers_and_epochs_draw_anew(folder):
    # BasicSR's own loader, which gives every worker the same NumPy seed at each epoch.
    data = build_dataset(
        data_opt(folder, geometric_augs=False, batch_size_per_gpu=4, num_worker_per_gpu=2, pin_memory=False)
    )
    loader = build_dataloader(data, data.opt, num_gpu=0, sampler=SequentialSampler(range(8)), seed=100)
    loader.dataset.paths = data.paths * 2  # images 0 to 3 twice, so both workers see some of each
    noises = [pair["lq"][i] - pair["gt"][i] for _ in range(2) for pair in loader for i in range(4)]
    assert len({noise.numpy().tobytes() for noise in noises}) == 16


@pytest.mark.parametrize("channels", [3, 1])
def test_validation_noise_is_restormers_and_the_same_at_every_call(folder, channels):
    data = build_dataset(val_opt(folder, in_ch=channels))
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = data[0], data[0], data[1]
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert torch.equal(first["lq"], again["lq"])
    assert first["gt"].shape == (channels, 64, 64)
    noise = np.random.RandomState(0).normal(0, 25 / 255, (64, 64, channels)).transpose(2, 0, 1)
    for pair in (first, other):
        np.testing.assert_allclose((pair["lq"] - pair["gt"]).numpy(), noise, atol=1e-6)
    assert np.array_equal(noise.transpose(1, 2, 0), evaluation_noise((64, 64, channels), 25))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dataroot_gt": "/nowhere"}, DataError, "no such folder"),
        ({"dataroot_gt": None}, ConfigError, r"datasets\.train\.dataroot_gt: is missing"),
        ({"gt_size": 65}, DataError, r"0\.png: a patch of 65 pixels does not fit into 64x64"),
        ({"sigma_type": "gauss"}, ConfigError, "'gauss' is not one of constant, random, choice"),
        ({"sigma_range": "high"}, ConfigError, "'high' is not a noise level"),
        ({"sigma_range": [15, 25]}, ConfigError, "is not one level"),
        ({"sigma_type": "random", "sigma_range": [50, 0]}, ConfigError, "in the wrong order"),
        ({"in_ch": 4}, ConfigError, "neither 1"),
        ({"io_backend": {"type": "lmdb"}}, ConfigError, "'lmdb' is not supported"),
    ],
)
def test_impossible_data_is_refused_at_the_start(folder, change, error, message):
    with pytest.raises(error, match=message):
        build_dataset({**data_opt(folder), **change})


def test_a_damaged_image_is_refused_at_the_start(folder, tmp_path):
    content = (folder / "0.png").read_bytes()
    (tmp_path / "whole.png").write_bytes(content)
    (tmp_path / "damaged.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"damaged\.png"):
        build_dataset(data_opt(tmp_path))


# ---------------------------------------------------------------------------------------------- the model class


def shrunk(folder, **train):
    """One of the nine files, with a tiny network, four 64x64 images and six iterations."""
    opt = load(25, "mae")
    opt["num_gpu"] = 0
    opt["network_g"].update(SMALL)
    opt["datasets"]["train"].update(
        dataroot_gt=str(folder), num_worker_per_gpu=0, batch_size_per_gpu=3, dataset_enlarge_ratio=6, pin_memory=False,
        mini_batch_sizes=[3, 2, 1], iters=[2, 2, 2], gt_size=32, gt_sizes=[16, 24, 32],
    )  # fmt: skip
    opt["datasets"]["val"]["dataroot_gt"] = str(folder)
    opt["train"].update(total_iter=6, **train)
    opt["train"]["scheduler"]["periods"] = [2, 4]
    opt["val"].update(val_freq=3, save_img=True)
    opt["logger"].update(print_freq=1, save_checkpoint_freq=3, use_tb_logger=False)
    return opt


def model_of(opt, tmp_path):
    for key in ("models", "training_states", "visualization"):
        opt["path"][key] = str(tmp_path / key)
    return build_model({**opt, "is_train": True, "dist": False, "rank": 0, "world_size": 1})


def train_one(model, iteration, batch=3, size=32):
    gt = torch.rand(batch, 3, size, size)
    model.update_learning_rate(iteration, warmup_iter=-1)
    model.feed_data({"lq": gt + 0.1 * torch.randn_like(gt), "gt": gt})
    model.optimize_parameters(iteration)


def validate(model, opt, save_img=False):
    data = build_dataset({**opt["datasets"]["val"], "phase": "val"})
    loader = torch.utils.data.DataLoader(data, batch_size=1)
    model.validation(loader, 1, None, save_img)
    return model.metric_results["psnr"]


class Through(nn.Module):
    """A network that changes nothing, so its output leaves [0, 1] as its input does."""

    def forward(self, image):
        assert image.shape[-1] % 8 == image.shape[-2] % 8 == 0
        return image


def test_validation_never_guesses_the_peak(folder, tmp_path):
    opt = shrunk(folder)
    model = model_of(opt, tmp_path)
    model.net_g = Through()
    data = build_dataset({**opt["datasets"]["val"], "phase": "val"})
    assert max(float(pair["lq"].max()) for pair in data) > 1  # where guessing goes wrong by 48 dB
    expected = [psnr(to_uint8(pair["lq"]), read_image(pair["gt_path"])) for pair in data]
    assert validate(model, opt) == pytest.approx(np.mean(expected), rel=1e-12)
    assert 19 < np.mean(expected) < 22


def test_grey_validation_has_a_peak_of_255_too(folder, tmp_path):
    opt = shrunk(folder)
    opt["network_g"].update(inp_channels=1, out_channels=1)
    opt["datasets"]["val"]["in_ch"] = 1
    model = model_of(opt, tmp_path)
    model.net_g = Through()
    pairs = list(build_dataset({**opt["datasets"]["val"], "phase": "val"}))
    errors = [((pair["lq"].clamp(0, 1) * 255).round() - pair["gt"] * 255).double().square().mean() for pair in pairs]
    expected = np.mean([10 * math.log10(255**2 / float(error)) for error in errors])
    assert validate(model, opt) == pytest.approx(expected, abs=1e-6)


def test_validation_pads_to_the_window_and_sees_whole_images_whatever_the_stage(tmp_path):
    path = tmp_path / "odd"
    path.mkdir()
    image = np.random.default_rng(0).integers(0, 256, (61, 43, 3), dtype=np.uint8)
    Image.fromarray(image).save(path / "odd.png")
    opt = shrunk(path)
    model = model_of(opt, tmp_path)
    model.net_g, model.iteration = Through(), 6
    validate(model, opt, save_img=True)
    saved = read_image(tmp_path / "visualization" / "odd" / "odd_1.png")
    noisy = image / 255 + np.random.RandomState(0).normal(0, 25 / 255, image.shape)
    assert np.abs(saved - (noisy.clip(0, 1) * 255).round()).max() <= 1  # float32 against float64, at ties
    assert np.mean(saved != (noisy.clip(0, 1) * 255).round()) < 0.001


def test_nan_stops_training_before_it_reaches_the_weights_and_validation_too(folder, tmp_path):
    opt = shrunk(folder)
    model = model_of(opt, tmp_path)
    before = deepcopy(model.net_g.state_dict())
    gt = torch.rand(3, 3, 32, 32)
    model.update_learning_rate(1)
    model.feed_data({"lq": gt * float("nan"), "gt": gt})
    with pytest.raises(NumericsError, match="the gradient of iteration 1 is not finite"):
        model.optimize_parameters(1)
    assert all(torch.equal(value, before[key]) for key, value in model.net_g.state_dict().items())
    model.lq = gt * float("nan")
    with pytest.raises(NumericsError, match="NaN"):
        model.test()


@pytest.mark.parametrize("clip", [True, False])
def test_the_gradient_is_clipped_where_asked_for(folder, tmp_path, clip):
    model = model_of(shrunk(folder, use_grad_clip=clip), tmp_path)
    train_one(model, 1)
    norm = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in model.net_g.parameters()))
    assert (norm == pytest.approx(0.01, rel=1e-3)) if clip else (norm > 0.02)


def test_adamw_has_its_options_also_as_text(folder, tmp_path):
    opt = shrunk(folder)
    opt["train"]["optim_g"].update(lr="3e-4", weight_decay="1e-4")
    optimizer = model_of(opt, tmp_path).optimizer_g
    assert type(optimizer) is torch.optim.AdamW
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], tuple(group["betas"])) == (3e-4, 1e-4, (0.9, 0.999))


def test_basicsrs_own_optimiser_and_scheduler_still_work(folder, tmp_path):
    opt = shrunk(folder)
    opt["train"]["optim_g"] = {"type": "Adam", "lr": 1e-4}
    opt["train"]["scheduler"] = {"type": "MultiStepLR", "milestones": [1], "gamma": 0.5}
    model = model_of(opt, tmp_path)
    train_one(model, 1)
    train_one(model, 2)
    assert type(model.optimizer_g) is torch.optim.Adam
    assert model.get_current_learning_rate() == [5e-5]


def test_periods_that_end_before_the_training_are_refused_at_the_start(folder, tmp_path):
    opt = shrunk(folder)
    opt["train"]["scheduler"]["periods"] = [2, 3]
    with pytest.raises(ConfigError, match="the periods end at iteration 5, the training at 6"):
        model_of(opt, tmp_path)


def test_the_average_of_the_weights_is_what_is_validated_and_saved(folder, tmp_path):
    opt = shrunk(folder, ema_decay=0.9)
    model = model_of(opt, tmp_path)
    start = deepcopy(model.net_g.state_dict())
    train_one(model, 1)
    key = "output.weight"
    expected = 0.9 * start[key] + 0.1 * model.net_g.state_dict()[key]
    torch.testing.assert_close(model.net_g_ema.state_dict()[key], expected)
    (tmp_path / "models").mkdir()
    (tmp_path / "training_states").mkdir()
    model.save(0, 1)
    file = tmp_path / "models" / "net_g_1.pth"
    saved = Restormer.from_checkpoint(file, entry="params_ema")
    assert torch.equal(saved.state_dict()[key], model.net_g_ema.state_dict()[key])
    assert not torch.equal(saved.state_dict()[key], model.net_g.state_dict()[key])
    pairs = list(build_dataset({**opt["datasets"]["val"], "phase": "val"}))
    with torch.no_grad():
        restored = [to_uint8(saved.eval()(pair["lq"][None])[0]) for pair in pairs]
    expected = np.mean([psnr(image, read_image(pair["gt_path"])) for image, pair in zip(restored, pairs)])
    assert validate(model, opt) == pytest.approx(expected, abs=1e-3)


def test_a_params_checkpoint_loads_strictly(folder, tmp_path):
    opt = shrunk(folder)
    state = build_network(opt["network_g"]).state_dict()
    opt["path"]["pretrain_network_g"] = str(tmp_path / "given.pth")
    torch.save({"params": state}, tmp_path / "given.pth")
    loaded = model_of(opt, tmp_path).net_g.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    del state["output.weight"]
    torch.save({"params": state}, tmp_path / "given.pth")
    with pytest.raises(RuntimeError, match="output.weight"):
        model_of(opt, tmp_path)


def test_windows_and_mixtures_follow_the_iteration_and_not_what_was_drawn_before(folder, tmp_path):
    gt = torch.rand(3, 3, 32, 32)

    def batch(model, iteration, rank=0):
        model.iteration, model.opt["rank"] = iteration, rank
        model.feed_data({"lq": gt, "gt": gt})
        return model.gt.clone()

    first, second = model_of(shrunk(folder), tmp_path), model_of(shrunk(folder), tmp_path)
    wanted = [batch(first, iteration) for iteration in range(1, 7)]
    for iteration in (6, 2, 4):
        assert torch.equal(batch(second, iteration), wanted[iteration - 1])
    assert not torch.equal(wanted[0], wanted[1])  # one stage, two windows
    assert not torch.equal(batch(second, 1, rank=1), wanted[0])


# ---------------------------------------------------------------------------------------------- whole runs


def run(opt, root, monkeypatch):
    """BasicSR's own train_pipeline on this configuration; what every iteration and validation was made of."""
    file = root / "run.yml"
    file.write_text(yaml.safe_dump(plain(opt)), encoding="utf-8")
    seen = {"steps": {}, "psnr": {}}
    train, test = ImageCleanModel.optimize_parameters, ImageCleanModel.nondist_validation

    def optimize_parameters(self, current_iter):
        rate = self.optimizer_g.param_groups[0]["lr"]
        train(self, current_iter)
        seen["steps"][current_iter] = (tuple(self.gt.shape), tuple(self.output.shape), rate)

    def nondist_validation(self, loader, current_iter, *rest):
        test(self, loader, current_iter, *rest)
        seen["psnr"][current_iter] = self.metric_results["psnr"]

    monkeypatch.setattr(ImageCleanModel, "optimize_parameters", optimize_parameters)
    monkeypatch.setattr(ImageCleanModel, "nondist_validation", nondist_validation)
    monkeypatch.setattr(sys, "argv", ["train.py", "-opt", str(file)])
    monkeypatch.chdir(root)
    train_pipeline(str(root))
    return seen


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as monkeypatch:
        return root, run(shrunk(folder), root, monkeypatch)


def test_a_run_goes_through_the_stages_and_the_schedule(finished):
    _, seen = finished
    shapes = [(3, 3, 16, 16)] * 2 + [(2, 3, 24, 24)] * 2 + [(1, 3, 32, 32)] * 2
    assert [seen["steps"][step][0] for step in range(1, 7)] == shapes
    assert [seen["steps"][step][1] for step in range(1, 7)] == shapes
    stages = (Stage(6, 16, 3),)
    settings = TrainSettings(stages=stages, constant_steps=2, learning_rate=3e-4, final_learning_rate=1e-6)
    rates = [seen["steps"][step][2] for step in range(1, 7)]
    assert rates == pytest.approx([learning_rate(step, settings) for step in range(1, 7)], rel=1e-12)
    assert rates[5] < rates[3] < rates[2] == 3e-4


def test_the_psnr_of_a_run_is_our_own_on_what_it_saved(finished, folder):
    root, seen = finished
    experiment = root / "experiments" / "restormer_denoise_sigma25_mae"
    network = Restormer.from_checkpoint(experiment / "models" / "net_g_6.pth").eval()
    assert {3, 6} <= set(seen["psnr"])
    for iteration in (3, 6):
        values = []
        for clean in sorted(folder.glob("*.png")):
            saved = read_image(experiment / "visualization" / clean.stem / f"{clean.stem}_{iteration}.png")
            values.append(psnr(saved, read_image(clean)))
        assert seen["psnr"][iteration] == pytest.approx(np.mean(values), rel=1e-12)
    image = read_image(clean)  # the last one, at the last iteration
    noisy = image / np.float32(255) + np.random.RandomState(0).normal(0, 25 / 255, image.shape)
    with torch.no_grad():
        output = network(torch.from_numpy(noisy.transpose(2, 0, 1)[None]).float())[0]
    assert np.abs(to_uint8(output).astype(int) - saved).max() <= 1


def test_a_resumed_run_goes_on_with_its_rate_and_stage(finished, folder, tmp_path, monkeypatch):
    root, seen = finished
    experiment = root / "experiments" / "restormer_denoise_sigma25_mae"
    opt = shrunk(folder)
    opt["name"] = "resumed"
    opt["path"]["resume_state"] = str(experiment / "training_states" / "3.state")

    def load_resume_state(opt):  # BasicSR's own asks for a GPU; the launcher mends that
        state = torch.load(opt["path"]["resume_state"], map_location="cpu", weights_only=True)
        opt["path"]["pretrain_network_g"] = str(experiment / "models" / "net_g_3.pth")
        for key in ("experiments_root", "models", "training_states", "visualization"):
            Path(opt["path"][key]).mkdir(parents=True, exist_ok=True)
        return state

    monkeypatch.setattr("basicsr.train.load_resume_state", load_resume_state)
    resumed = run(opt, tmp_path, monkeypatch)
    assert sorted(resumed["steps"]) == [4, 5, 6]
    assert resumed["steps"] == {step: seen["steps"][step] for step in (4, 5, 6)}
