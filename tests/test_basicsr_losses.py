"""MILO and LPIPS as BasicSR's losses, and the hook through which they learn the iteration."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY, assert_near

import milo_restore.basicsr  # noqa: F401  # isort: skip
from basicsr.losses import build_loss
from basicsr.models.base_model import BaseModel
from basicsr.utils.registry import LOSS_REGISTRY

from milo_restore import MILOLoss as Plain
from milo_restore.basicsr import curriculum, door, losses
from milo_restore.basicsr.losses import BasicSRMILOLoss
from milo_restore.errors import ConfigError

MINI = {"type": "MILOLoss", "weights": "mini"}


def pair(*shape):
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(*shape, generator=generator)
    return target + 0.2 * torch.randn(*shape, generator=generator), target


class Model(BaseModel):
    """As much of a model as the hook looks at."""

    def __init__(self, **attributes):
        self.opt = {"train": {"total_iter": 10}}
        self.schedulers, self.optimizers = [], []
        vars(self).update(attributes)


@pytest.mark.parametrize("shape", [(2, 3, 32, 40), (2, 1, 32, 40)])
def test_it_is_the_librarys_loss(shape):
    prediction, target = pair(*shape)
    loss = build_loss({**MINI, "loss_weight": 0.5, "anchor": "2e-1"})
    expected = Plain("mini", loss_weight=0.5, anchor=0.2)(prediction, target)
    assert_near(loss(prediction, target), expected)
    assert expected > 0


def test_the_mask_is_a_constant_unless_a_file_says_otherwise():
    def gradient(loss):
        prediction, target = pair(1, 3, 32, 40)
        loss(prediction.requires_grad_(), target).backward()
        return prediction.grad

    constant, through = (gradient(Plain("mini", mask_gradient=value)) for value in (False, True))
    assert_near(gradient(build_loss(MINI)), constant)
    assert_near(gradient(build_loss({**MINI, "mask_gradient": True})), through)
    assert torch.nn.functional.cosine_similarity(constant.flatten(), through.flatten(), dim=0) < 0.99


def test_frames_of_a_video_count_as_images():
    prediction, target = pair(2, 3, 3, 24, 32)
    weight = torch.rand(2, 1, 1, 24, 32)
    flat = build_loss(MINI)(prediction.flatten(0, 1), target.flatten(0, 1), weight.repeat(1, 3, 1, 1, 1).flatten(0, 1))
    assert_near(build_loss(MINI)(prediction, target, weight=weight), flat)


def test_numbers_that_yaml_reads_as_text_are_numbers():
    prediction, target = pair(1, 3, 32, 32)
    assert_near(
        build_loss({**MINI, "loss_weight": "1e-2"})(prediction, target),
        build_loss({**MINI, "loss_weight": 0.01})(prediction, target),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curiculum": "linear"}, "Did you mean 'curriculum'"),
        ({"eps": 1e-6}, "unknown key 'eps'. Remove it"),
        ({"curriculum": "quadratic"}, "'quadratic' is not one of"),
        ({"loss_weight": "much"}, "'much' is not a number"),
        ({"anchor": "much"}, "key 'anchor': 'much' is not a number"),
        ({"anchor": True}, "True is not a number"),
        ({"anchor": -0.5}, "-0.5"),
        ({"ancor": 0.5}, "Did you mean 'anchor'"),
        ({"mask_gradient": "no"}, "neither true nor false"),
        ({"reduction": "max"}, "'max' is not one of"),
        ({"start_iter": 5, "total_iter": 5, "curriculum": "linear"}, "the end must come after the start"),
    ],
)
def test_what_means_nothing_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build_loss({**MINI, **options})


def test_the_perceptual_slot_gets_a_pair():
    prediction, target = pair(1, 3, 32, 32)
    model = Model(cri_pix=build_loss(MINI), cri_perceptual=build_loss(MINI))
    model.update_learning_rate(1)
    value, style = model.cri_perceptual(prediction, target)
    assert_near(model.cri_pix(prediction, target), value)
    assert style is None


@pytest.mark.parametrize(
    ("kind", "expected"), [("linear", [0.1, 0.2, 0.7, 1.0]), ("cosine", [0.0245, 0.0955, 0.7939, 1.0])]
)
def test_the_position_is_the_runs_iteration_over_its_length(kind, expected):
    loss = build_loss({**MINI, "curriculum": kind})
    model, positions = Model(cri_pix=loss), []
    for iteration in (1, 2, 7, 11):  # a run that jumps, as one that resumes does, and ends late, as BasicSR's do
        model.update_learning_rate(iteration, warmup_iter=-1)
        positions.append(loss.position)
    assert positions == pytest.approx(expected, abs=5e-5)


def test_the_loss_follows_the_position():
    prediction, target = pair(1, 3, 32, 32)
    loss = build_loss({**MINI, "curriculum": "linear", "start_iter": 2, "total_iter": 6})
    model = Model(cri_pix=loss)
    model.update_learning_rate(4)
    expected = Plain("mini", curriculum="linear", start_step=2, total_steps=6)(prediction, target, step=4)
    assert_near(loss(prediction, target), expected)
    assert not torch.equal(loss(prediction, target), Plain("mini")(prediction, target))


def test_a_curriculum_nobody_tells_the_iteration_is_refused():
    class Deaf(Model):
        def update_learning_rate(self, current_iter, warmup_iter=-1):  # and no super()
            pass

    prediction, target = pair(1, 3, 32, 32)
    loss = build_loss({**MINI, "curriculum": "linear"})
    Deaf(cri_pix=loss).update_learning_rate(1)
    with pytest.raises(ConfigError, match="needs the iteration"):
        loss(prediction, target)
    assert build_loss(MINI)(prediction, target) > 0  # without a curriculum nobody need know


def test_importing_and_installing_twice_is_harmless():
    hooked = BaseModel.update_learning_rate
    door.install()
    curriculum.install(BaseModel)
    assert BaseModel.update_learning_rate is hooked
    assert LOSS_REGISTRY.get("MILOLoss") is BasicSRMILOLoss
    code = "import milo_restore.basicsr, importlib; importlib.reload(milo_restore.basicsr); print('fine')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


def test_the_former_name_of_the_class_still_works():
    with pytest.warns(FutureWarning, match=r"losses\.MILOLoss is now BasicSRMILOLoss"):
        assert losses.MILOLoss is BasicSRMILOLoss


def test_a_users_own_loss_of_that_name_stays(monkeypatch):
    monkeypatch.setattr(LOSS_REGISTRY, "_obj_map", {})
    theirs = type("MILOLoss", (torch.nn.Module,), {})
    LOSS_REGISTRY.register(theirs)
    door.install()
    assert "LPIPSLoss_basicsr" in LOSS_REGISTRY
    assert LOSS_REGISTRY.get("MILOLoss") is theirs
    LOSS_REGISTRY.register(type("LPIPSLoss", (torch.nn.Module,), {}))  # ours left the plain name free


def test_lpips_takes_its_own_keys_only():
    with pytest.raises(ConfigError, match="neither 'alex' nor 'vgg'"):
        build_loss({"type": "LPIPSLoss", "net": "squeeze"})
    with pytest.raises(ConfigError, match="unknown key 'weights'"):
        build_loss({"type": "LPIPSLoss", "weights": "mini"})
