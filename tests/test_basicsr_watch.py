"""What a run of BasicSR says about its MILO loss: the residual beside it, its scale, and where it is gamed."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from basicsr_runs import forget_logger, scalars_of
from PIL import Image
from test_basicsr_recipes import load, plain

import milo_restore.basicsr  # noqa: F401  # isort: skip
from basicsr.losses import build_loss
from basicsr.models.base_model import BaseModel

from milo_restore import MILOLoss as Plain
from milo_restore import cli
from milo_restore.basicsr import watch

MINI = {"type": "MILOLoss", "weights": "mini"}


class Model(BaseModel):
    """As much of a model as the hooks look at; what it restores is given."""

    def __init__(self, every=10, **attributes):
        self.opt = {"train": {"total_iter": 100}, "logger": {"print_freq": every}, "dist": False}
        self.schedulers, self.optimizers, self.visuals = [], [], []
        vars(self).update(attributes)

    def iterate(self, iteration, prediction, target):
        """An iteration as BasicSR makes it; what the log gets."""
        self.update_learning_rate(iteration)
        return self.reduce_loss_dict({"l_pix": self.cri_pix(prediction, target)})

    def nondist_validation(self, dataloader, current_iter, tb_logger, save_img):
        for self.visuals in dataloader:
            self.get_current_visuals()

    def get_current_visuals(self):
        return self.visuals


@pytest.fixture
def lines(monkeypatch):
    """What was logged: level and text."""
    logged: list[tuple[int, str]] = []
    logger = logging.Logger("test")
    logger.addHandler(SimpleNamespace(level=0, handle=lambda record: logged.append((record.levelno, record.msg))))
    monkeypatch.setattr(watch, "_LOG", logger)
    return logged


def pair(error=0.1, shape=(2, 3, 32, 40)):
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(*shape, generator=generator)
    return target + error * torch.randn(*shape, generator=generator), target


def image(error):
    """Visuals of one image: the input at 20 dB, the output with this many times its error."""
    noise = 0.1 * torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    grey = torch.full_like(noise, 0.5)
    return {"lq": grey + noise, "result": grey + error * noise, "gt": grey}


# ---------------------------------------------------------------------------------------------- the log


def test_l1_comes_first_where_basicsr_logs(lines):
    prediction, target = pair()
    model = Model(every=4, cri_pix=build_loss({**MINI, "loss_weight": 0.5}))
    logs = {i: model.iterate(i, prediction, target) for i in range(1, 10)}
    assert [i for i, log in logs.items() if "l1" in log] == [4, 8]
    assert list(logs[4]) == ["l1", "l_pix"]
    assert logs[4]["l1"] == pytest.approx(float((prediction - target).abs().mean()), rel=1e-6)
    expected = 0.5 * float(Plain("mini")(prediction, target))
    assert [log["l_pix"] for log in logs.values()] == pytest.approx([expected] * 9, rel=1e-5)  # however computed


def test_a_model_without_milo_logs_what_it_did(lines):
    prediction, target = pair()
    model = Model(every=1, cri_pix=build_loss({"type": "L1Loss"}))
    assert list(model.iterate(1, prediction, target)) == ["l_pix"]
    model.validation([image(2)], 1, None)
    assert lines == []


def test_an_iteration_without_the_loss_logs_no_residual(lines):
    model = Model(every=1, cri_pix=build_loss(MINI))
    model.iterate(1, *pair())
    model.update_learning_rate(2)
    assert model.reduce_loss_dict({"l_d_real": torch.tensor(1.0)}) == {"l_d_real": 1.0}


def test_frames_of_a_video_have_one_residual(lines):
    prediction, target = pair(shape=(1, 2, 3, 32, 40))
    log = Model(every=1, cri_pix=build_loss(MINI)).iterate(1, prediction, target)
    assert log["l1"] == pytest.approx(float((prediction - target).abs().mean()), rel=1e-6)


@pytest.mark.parametrize("curriculum", ["constant", "linear"])
def test_the_ratio_to_l1_and_what_a_curriculum_means_for_its_values_are_said_once(curriculum, lines):
    prediction, target = pair()
    options = {"anchor": 0.5, "loss_weight": 0.1, "curriculum": curriculum}
    model = Model(every=1, cri_pix=build_loss({**MINI, **options}))
    for iteration in range(1, 5):
        model.iterate(iteration, prediction, target)
    alone = Plain("mini", anchor=0.5, curriculum=curriculum, total_steps=100)(prediction, target, step=1)
    ratio = float(alone / (prediction - target).abs().mean())
    assert lines[0] == (
        logging.INFO,
        f"pixel_opt: MILOLoss is {ratio:.3g} times L1 of the same loss_weight on the first batch.",
    )
    said = [text for _, text in lines[1:]]
    assert len(said) == (curriculum == "linear")
    assert all("do not compare between iterations" in text for text in said)


def test_beside_other_losses_what_keeps_their_balance_is_offered(lines):
    prediction, target = pair()
    for normalize in (False, True):
        model = Model(every=1, cri_pix=build_loss({**MINI, "loss_weight": 0.1, "normalize": normalize}))
        model.opt["train"].update(pixel_opt={"type": "MILOLoss"}, gan_opt={"type": "GANLoss"}, perceptual_opt=None)
        for iteration in (1, 2):
            model.iterate(iteration, prediction, target)
    warnings = [text for level, text in lines if level == logging.WARNING]
    kept = 0.1 * float((prediction - target).abs().mean() / Plain("mini")(prediction, target))
    assert len(warnings) == 1  # the normalised one has L1's scale
    assert warnings[0].startswith("pixel_opt: beside gan_opt this shifts their balance")
    assert f"loss_weight: {kept:.3g} gives MILOLoss L1's share" in warnings[0]


# ---------------------------------------------------------------------------------------------- the warnings


@pytest.mark.parametrize("seen", [False, True])
def test_a_residual_that_rises_while_milo_falls_is_warned_of_once(seen, lines, monkeypatch):
    """MILO falls where the mask, a stand-in here, looks away from what rises."""
    loss = build_loss(MINI)
    mask = {"value": 1.0}
    monkeypatch.setattr(
        loss.inner, "mask", lambda prediction, target: torch.full_like(prediction[:, :1], mask["value"])
    )
    model = Model(every=5, cri_pix=loss)
    for iteration in range(1, 151):
        if iteration > 30:
            mask["value"] *= 1 if seen else 0.98
        model.iterate(iteration, *pair(error=0.1 * 1.01 ** max(iteration - 30, 0)))
    warned = [text for level, text in lines if level == logging.WARNING]
    assert len(warned) == (not seen)
    assert all("step " in text and "mask_gradient: false" in text for text in warned)


def test_the_watch_sees_the_mean_of_all_iterations_since_the_last_line(lines, monkeypatch):
    seen = []
    model = Model(every=3, cri_pix=build_loss({**MINI, "curriculum": "linear", "loss_weight": 0.1, "anchor": 0.3}))
    monkeypatch.setattr(model.cri_pix.watch, "observe", lambda *reading: seen.append(reading))
    pairs = {i: pair(error=0.02 * i) for i in range(1, 8)}
    logs = {i: model.iterate(i, *pairs[i]) for i in pairs}
    residuals = {i: float((a - b).abs().mean()) for i, (a, b) in pairs.items()}
    raw = {i: float(Plain("mini")(*pairs[i])) for i in pairs}  # neither curriculum, anchor nor weight
    expected = [[3, *(np.mean([kind[i] for i in (1, 2, 3)]) for kind in (residuals, raw))],
                [6, *(np.mean([kind[i] for i in (4, 5, 6)]) for kind in (residuals, raw))]]  # fmt: skip
    assert np.array(seen) == pytest.approx(np.array(expected), rel=1e-5)
    assert logs[6]["l1"] == pytest.approx(residuals[6], rel=1e-6)  # as l_pix, of this one


def test_two_losses_have_one_residual_and_a_ratio_each(lines):
    prediction, target = pair()
    model = Model(every=2, cri_pix=build_loss(MINI), cri_perceptual=build_loss({**MINI, "curriculum": "linear"}))
    for iteration in range(1, 5):
        model.update_learning_rate(iteration)
        values = {
            "l_g_pix": model.cri_pix(prediction, target),
            "l_g_percep": model.cri_perceptual(prediction, target)[0],
        }
        log = model.reduce_loss_dict(values)
    assert list(log) == ["l1", "l_g_pix", "l_g_percep"]
    assert [text.split(":")[0] for _, text in lines] == ["pixel_opt", "perceptual_opt", "perceptual_opt"]


def test_an_output_below_its_input_is_warned_of_once(lines):
    model = Model(cri_pix=build_loss(MINI))
    model.validation([image(0.9), image(0.5)], 10, None)
    assert lines == []
    model.validation([image(0.9), image(2)], 20, None)
    model.validation([image(2)], 30, None)
    ((level, text),) = lines
    assert level == logging.WARNING
    assert "input" in text
    assert model.get_current_visuals() is model.visuals  # nothing is left behind
    assert "get_current_visuals" not in vars(model)


def test_sizes_that_differ_are_not_compared(lines):
    small = {**image(2), "lq": torch.zeros(2, 3, 8, 10)}
    Model(cri_pix=build_loss(MINI)).validation([small, {"lq": small["lq"], "result": small["result"]}], 10, None)
    assert lines == []


# ---------------------------------------------------------------------------------------------- a whole run


def test_a_denoiser_that_gets_worse_says_so_in_its_log_and_trains_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    options = plain(load(25, "milo"))
    options["num_gpu"] = 0
    options["network_g"].update(dim=8, num_blocks=[1, 1, 1, 1], num_refinement_blocks=1, heads=[1, 1, 1, 1])
    data, train = options["datasets"]["train"], options["train"]
    data.update(mini_batch_sizes=[1], iters=[4], gt_sizes=[32], gt_size=32, batch_size_per_gpu=1, num_worker_per_gpu=0)
    data["dataroot_gt"] = options["datasets"]["val"]["dataroot_gt"] = "images"
    train.update(total_iter=4, use_grad_clip=False)
    train["scheduler"].update(periods=[4], restart_weights=[1], eta_mins=[0.1])
    train["optim_g"]["lr"] = 0.1  # ruins any network
    train["pixel_opt"].update(weights="mini", mask_gradient=True, anchor=0.1)  # as an older file may say
    options["val"]["val_freq"], options["logger"]["print_freq"] = 2, 2
    (tmp_path / "options.yml").write_text(yaml.safe_dump(options))
    forget_logger()
    try:
        assert cli.main(["basicsr", "-opt", "options.yml"]) == 0
    finally:
        forget_logger()
    (log,) = (tmp_path / "experiments").rglob("train_*.log")
    text = log.read_text()
    assert text.count("times L1 of the same loss_weight on the first batch") == 1
    assert text.count("the cosine curriculum changes what MILOLoss weighs") == 1
    assert text.count("WARNING: ") - text.count("nondist_validation") >= 1
    assert sum("WARNING" in line and "input" in line for line in text.splitlines()) == 1
    logged = [line for line in text.splitlines() if "l_pix: " in line]
    assert len(logged) == 2
    assert all("l1: " in line.split("l_pix: ")[0] for line in logged)
    scalars = scalars_of(tmp_path.rglob("events.out.*"))
    assert list(scalars["l1"]) == list(scalars["losses/l_pix"]) == [2, 4]
