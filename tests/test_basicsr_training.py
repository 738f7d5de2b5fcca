"""BasicSR's published configurations, shrunk, trained by BasicSR itself with their own loss and with MILO.

Everything goes through ``milo-restore basicsr``, in this process but for the run on two.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import sys

import cv2
import numpy as np
import pytest
import torch
from basicsr_images import make_images
from basicsr_options import ITERATIONS, OWN, PERIOD, merge, shrunk, write
from basicsr_runs import Run, forget_logger, launch_two, networks, scalars_of

import milo_restore.basicsr  # noqa: F401  # isort: skip
from basicsr.models.sr_model import SRModel
from basicsr.train import train_pipeline

from milo_restore import cli
from milo_restore.loss import Curriculum

MILO = {"type": "MILOLoss", "weights": "mini", "curriculum": "linear"}
SWAP = ("--loss", "milo-linear", "--weights", "mini")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(autouse=True)
def _globals():
    """BasicSR seeds and switches what belongs to the process."""
    python, numpy, benchmark = random.getstate(), np.random.get_state(), torch.backends.cudnn.benchmark  # noqa: NPY002
    yield
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
    torch.backends.cudnn.benchmark = benchmark


@pytest.fixture
def train(tmp_path, monkeypatch):
    """``train(options, *arguments)`` writes the options to a file and trains by it, in this test's folder.

    With ``own=True`` without our launcher: ``milo_restore.basicsr`` is imported, and that is all.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MILO_RESTORE_CACHE", str(tmp_path / "cache"))
    position = Curriculum.position
    asked: list[float] = []
    monkeypatch.setattr(Curriculum, "position", lambda *a: asked.append(position(*a)) or asked[-1])

    def train(options, *arguments, own=False):
        before = set(tmp_path.rglob("events.out.*"))
        del asked[:]
        forget_logger()
        arguments = ["-opt", str(write(options, tmp_path / "options.yml")), *arguments]
        if own:  # somebody's train.py
            monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
            code = train_pipeline(os.getcwd()) or 0
        else:
            code = cli.main(["basicsr", *arguments])
        return Run(code, scalars_of(set(tmp_path.rglob("events.out.*")) - before), list(asked))

    yield train
    forget_logger()


# ---------------------------------------------------------------------------------------------- six configurations


@pytest.mark.parametrize("loss", ["published", "milo"])
@pytest.mark.parametrize("name", OWN)
def test_a_published_configuration_trains_and_resumes(name, loss, images, train, tmp_path):
    inside = name in ("MSRResNet", "RRDBNet", "MSRGAN")  # the others' files stay as they are
    options = shrunk(name, images, MILO if loss == "milo" and inside else None)
    arguments = SWAP if loss == "milo" and not inside else ()
    whole = train(options, *arguments)
    assert whole.code == 0
    pixel = whole.scalars["losses/l_g_pix" if name == "MSRGAN" else "losses/l_pix"]
    assert list(pixel) == list(range(1, ITERATIONS + 1))
    assert all(math.isfinite(value) and value > 0 for value in pixel.values())
    expected = [i / ITERATIONS for i in range(1, ITERATIONS + 1)] if loss == "milo" else []
    assert whole.positions == expected
    assert len(whole.metrics()) == {"MSRResNet": 4, "BasicVSR": 2}.get(name, 1)
    for metric, values in whole.metrics().items():
        assert len(values) == 2, metric  # at PERIOD, and at the end
        low, high = (1, 30) if metric.endswith("niqe") else (5, 40)
        assert all(low < value < high for value in values), metric
    early, late = networks(tmp_path, options, PERIOD), networks(tmp_path, options, "latest")
    assert {key.split(".")[1] for key in early} == {"params", "params_ema"}
    assert late

    # As if it had been stopped after the checkpoint.
    resumed = train(options, *arguments, "--auto_resume")
    assert resumed.code == 0
    assert resumed.positions == expected[PERIOD:]
    for curve, values in whole.losses().items():
        assert resumed.scalars[curve] == {i: value for i, value in values.items() if i > PERIOD}, curve
    assert {name: values[-1:] for name, values in whole.metrics().items()} == resumed.metrics()
    again = networks(tmp_path, options, "latest")
    assert again.keys() == late.keys()
    assert all(torch.equal(again[key], late[key]) for key in late)
    moved = [key for key in late if not torch.equal(late[key], early[key.replace("latest", str(PERIOD))])]
    assert len(moved) > len(late) / 2


def assert_same_losses(one, other):
    """Of two trainings that are set up in different ways."""
    assert one.losses().keys() == other.losses().keys()
    for curve, values in one.losses().items():
        assert other.losses()[curve] == pytest.approx(values, rel=1e-4), curve


def test_a_swap_is_what_the_file_would_say(images, train, tmp_path, capsys):
    two = {"train": {"total_iter": 2}}
    inside, outside = shrunk("MSRResNet", images, MILO), shrunk("MSRResNet", images)
    for options in (inside, outside):
        merge(options, two)
    first, _ = train(inside), capsys.readouterr()
    second = train(outside, *SWAP)
    printed = capsys.readouterr().out
    assert first.code == second.code == 0
    assert list(first.scalars["losses/l_pix"]) == [1, 2]
    assert_same_losses(first, second)
    assert any("L1Loss" in line and "MILOLoss" in line for line in printed.splitlines())
    assert "L1Loss" in (tmp_path / "options.yml").read_text()


# ---------------------------------------------------------------------------------------------- other ways to train


def test_a_gan_that_skips_generator_steps_keeps_the_place_and_takes_milo_as_perceptual_loss(images, train):
    options = shrunk("MSRGAN", images, MILO)
    options["train"]["perceptual_opt"] = {"type": "MILOLoss", "weights": "mini", "loss_weight": 0.5}
    skip = ("--force_yml", "train:net_d_iters=2")
    whole = train(options, *skip)
    assert whole.code == 0
    linear = [2 / 6, 4 / 6, 6 / 6]
    assert whole.positions[::2] == linear  # the pixel loss's, then the perceptual one's, which is constant
    assert whole.positions[1::2] == [1, 1, 1]
    pixel, perceptual = (whole.scalars[f"losses/l_g_{name}"] for name in ("pix", "percep"))
    assert list(pixel) == list(perceptual) == [2, 4, 6]
    # At the end of the curriculum both are the same loss, weighted 0.01 and 0.5.
    assert perceptual[6] == pytest.approx(50 * pixel[6], rel=1e-5)
    assert perceptual[2] != pytest.approx(50 * pixel[2], rel=0.01)

    resumed = train(options, *skip, "--auto_resume")
    assert resumed.positions == [1, 1]
    assert resumed.scalars["losses/l_g_pix"] == {6: pixel[6]}
    assert resumed.scalars["losses/l_g_percep"] == {6: perceptual[6]}


def test_a_train_py_of_ones_own_needs_the_import_only(images, train):
    options = shrunk("MSRResNet", images, MILO)
    options["train"]["total_iter"] = 2
    ours, theirs = train(options), train(options, own=True)
    assert theirs.positions == [0.5, 1]
    assert list(theirs.scalars["losses/l_pix"]) == [1, 2]
    assert_same_losses(theirs, ours)


def test_a_grey_model_trains(images, train):
    options = shrunk("MSRResNet", images, MILO)
    merge(options, {"network_g": {"num_in_ch": 1, "num_out_ch": 1}, "train": {"total_iter": 2}})
    for data in options["datasets"].values():
        data["color"] = "y"
    del options["val"]["metrics"]["niqe"]
    run = train(options)
    assert run.code == 0
    assert run.positions == [0.5, 1]
    assert list(run.scalars["losses/l_pix"]) == [1, 2]
    assert all(10 < value < 40 for values in run.metrics().values() for value in values)


@pytest.mark.slow
def test_two_processes_train_what_one_trains(images, train, tmp_path):
    """Each with a worker, which is spawned and so imports everything anew."""
    options = shrunk("MSRResNet", images, MILO)
    loader = {"gt_size": 144, "use_hflip": False, "use_rot": False, "dataset_enlarge_ratio": 2}
    loader |= {"dataroot_gt": str(two_squares(images) / "gt"), "dataroot_lq": str(two_squares(images) / "lq")}
    merge(options, {"datasets": {"train": {**loader, "persistent_workers": True}}, "train": {"total_iter": 3}})
    del options["datasets"]["train"]["meta_info_file"], options["datasets"]["val_2"], options["val"]["metrics"]["niqe"]
    one = train(options)
    assert one.code == 0

    options["datasets"]["train"]["batch_size_per_gpu"] = 1
    folder = tmp_path / "two"
    folder.mkdir()
    launch_two(folder, "-opt", write(options, folder / "options.yml"))
    two = scalars_of(folder.rglob("events.out.*"))
    assert list(two["losses/l_pix"]) == [1, 2, 3]
    for name in ("losses/l_pix", "l1", "metrics/Set5/psnr"):
        assert two[name] == pytest.approx(one.scalars[name], rel=1e-5), name
    ours, theirs = (networks(where, options, "latest") for where in (tmp_path, folder))
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-5)


def two_squares(images):
    """The training image's left and right 144 pixels: as large as the crops, so that nothing is left to chance."""
    folder = images / "squares"
    for kind, side in (("gt", 144), ("lq", 36)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        image = cv2.imread(str(images / "train" / kind / "0001.png"))
        cv2.imwrite(str(folder / kind / "a.png"), image[:, :side])
        cv2.imwrite(str(folder / kind / "b.png"), image[:, -side:])
    return folder


# ---------------------------------------------------------------------------------------------- mistakes


def misspelled(options, folder):
    options["train"]["pixel_opt"] = {"type": "MILOLoss", "wieghts": "mini"}


def missing_folder(options, folder):
    options["datasets"]["train"]["dataroot_gt"] = str(folder / "nowhere")


def corrupt_image(options, folder):
    root = folder / "images"
    shutil.copytree(options["datasets"]["train"]["dataroot_gt"], root)
    data = (root / "0001.png").read_bytes()
    (root / "0001.png").write_bytes(data[: len(data) // 2] + bytes(64) + data[len(data) // 2 + 64 :])
    options["datasets"]["train"]["dataroot_gt"] = str(root)


def textual_rate(options, folder):
    options["train"]["optim_g"]["lr"] = "1e-4"  # YAML dumps text that looks like this in quotes, as YAML reads 1e-4


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (misspelled, ["wieghts", "Did you mean 'weights'?"]),
        (missing_folder, ["no such folder", "nowhere", "datasets.train.dataroot_gt"]),
        (corrupt_image, ["images/0001.png", "damaged"]),
        (textual_rate, ["train.optim_g.lr", "1e-4", "!!float 1e-4"]),
    ],
)
def test_a_mistake_is_one_line_before_the_first_iteration(spoil, words, images, train, tmp_path, capsys, monkeypatch):
    options = shrunk("MSRResNet", images)
    spoil(options, tmp_path)
    monkeypatch.setattr(SRModel, "optimize_parameters", lambda *_: pytest.fail("it trains"))
    assert train(options).code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("milo-restore: error: ")
    assert all(word in line for word in words), line
    assert not (tmp_path / "experiments").exists()
