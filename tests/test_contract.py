"""One contract for every metric and every loss: what a caller may rely on, whichever he names.

A new row of the table of metrics, a new class of metric or of loss is tested here without a line of its own, or this
file says what is missing. Where the contract has an exception, `Metric.batched` or `Contract` below holds it as data.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from milo_restore import DiffusionLoss, DiffusionLossSettings, L1Loss, LatentMILOLoss, LPIPSLoss, MILOLoss
from milo_restore.errors import DataError
from milo_restore.loss import MSELoss, RestorationLoss
from milo_restore.measure.metrics import Batch, MetricUnavailable, load_metric
from milo_restore.measure.metrics.table import OURS
from milo_restore.metric import EMetric, LatentMILO, MaskedMetric

NAMES = [*("milo:mini" if name == "milo" else name for name in OURS),
         "pyiqa:psnr", "ssimc", "vsi", "gmsd", "lpips", "entropy", "piqe", "topiq_nr"]  # fmt: skip
KINDS = ("constant", "linear", "cosine")
TOTAL_STEPS, STEP = 10, 3
HALVES = (torch.float16, torch.bfloat16, torch.float64)


def concrete(base):
    """The package's classes below ``base`` that can be built; what tests derive is no part of the contract."""
    below = [found for cls in base.__subclasses__() for found in (cls, *concrete(cls))]
    ours = [cls for cls in below if cls.__module__.startswith("milo_restore") and not cls.__name__.startswith("_")]
    return [cls for cls in ours if not inspect.isabstract(cls)]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Weights that are not at hand are unavailable within milliseconds: the contract is not worth a download."""
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


def random_states():
    kind, keys, *more = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), (kind, keys.tolist(), more), random.getstate()


# --- metrics by name, as evaluate, correlate, trainings and tables use them


@functools.cache
def loaded(name):
    try:
        return load_metric(name)
    except MetricUnavailable as error:
        return error


@pytest.fixture(params=NAMES)
def metric(request):
    found = loaded(request.param)
    if isinstance(found, MetricUnavailable):
        pytest.skip(str(found))
    return found


@functools.cache
def arrays(grey=False):
    """Two restored images and their references: odd sides, and the two blocks of 96 pixels that NIQE needs."""
    rng = np.random.default_rng(3)
    references = [rng.integers(0, 200, (97, 195, 1 if grey else 3), np.uint8) for _ in range(2)]
    images = [clean + rng.integers(0, 50, clean.shape, np.uint8) for clean in references]
    return tuple([np.repeat(array, 3, 2) if grey else array for array in some] for some in (images, references))


def measured(metric, images, references):
    """One by one; a metric without reference is given none."""
    pairs = [Batch([x], [y] if metric.reference else None) for x, y in zip(images, references)]
    return [value for batch in pairs for value in metric.measure(batch)]


@pytest.mark.parametrize("grey", [False, True])
def test_a_named_metric_gives_one_finite_number_per_image(metric, grey):
    values = measured(metric, *arrays(grey))
    assert len(values) == 2
    assert all(type(value) is float and math.isfinite(value) for value in values)


def test_a_named_metric_gives_a_batch_what_its_images_get_alone(metric):
    images, references = arrays()
    if not metric.batched:
        pytest.skip("says of itself that it is measured one by one")
    batch = metric.measure(Batch(images, references if metric.reference else None))
    assert batch == pytest.approx(measured(metric, images, references), rel=1e-5)


def test_a_named_metric_knows_which_direction_is_better(metric):
    if not metric.reference:
        pytest.skip("compares with nothing")
    images, references = arrays()
    for best, value in zip(measured(metric, references, references), measured(metric, images, references)):
        assert best < value if metric.lower_better else best > value


def test_a_named_metric_leaves_the_random_numbers(metric):
    before = random_states()
    again = load_metric(metric.name)
    assert random_states() == before
    first = measured(again, *arrays())
    assert random_states() == before
    assert measured(metric, *arrays()) == first


def test_a_named_metric_says_what_its_values_depend_on(metric):
    entry = metric.as_dict()
    assert entry["source"]
    assert entry["better"] == ("lower" if metric.lower_better else "higher")
    assert (metric.weights is None) == (metric.weights_sha256 is None)
    assert metric.identity() == loaded(metric.name).identity()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_named_metric_is_the_same_on_a_gpu(metric):
    there = load_metric(metric.name, device="cuda")
    for image, reference, value in zip(*arrays(), measured(metric, *arrays())):
        batch = Batch([image], [reference] if metric.reference else None, "cuda")
        assert there.measure(batch) == pytest.approx([value], rel=1e-3)


# --- modules: metrics and losses as tensors see them


@dataclass(frozen=True)
class Contract:
    """What is tested of a module, and its exceptions.

    Attributes:
        build: makes it, frozen.
        channels: of its input; grey is one of three, latents have four.
        refuses_nan: in the target; False: NaN comes out.
        options: of every call.
    """

    build: Callable[[], nn.Module]
    channels: int = 3
    refuses_nan: bool = True
    options: dict[str, int] = field(default_factory=dict)

    def tensors(self, number=2, height=33, width=47, seed=0):
        """A distorted batch and its reference: images in [0, 1], or latents with a spread near 1."""
        generator = torch.Generator().manual_seed(seed)
        shape = (number, self.channels, height, width)
        if self.channels == 4:
            reference = torch.randn(shape, generator=generator)
        else:
            reference = 0.1 + 0.7 * torch.rand(shape, generator=generator)
        return reference + 0.1 * torch.rand(shape, generator=generator), reference


class CleanLatentLoss(nn.Module):
    """`DiffusionLoss` of a model that predicts the clean latent, called as the other losses are."""

    def __init__(self, **settings):
        super().__init__()
        scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type="sample")
        self.loss = DiffusionLoss(DiffusionLossSettings(weights="mini", **settings), scheduler, TOTAL_STEPS)

    def forward(self, prediction, target, *, step):
        timesteps = torch.full((len(target),), 400, device=target.device)
        noise = torch.zeros_like(target)
        return self.loss(prediction, target.detach(), target, noise, timesteps, step=step)


def metric_of(cls):
    build = functools.partial(cls, "mini") if issubclass(cls, MaskedMetric) else lambda: cls().freeze()
    return Contract(build, 4 if cls is LatentMILO else 3)


def random_lpips():
    """LPIPS with a random backbone, which needs no download."""
    import lpips

    with mock.patch.object(lpips, "LPIPS", functools.partial(lpips.LPIPS, pnet_rand=True)):
        return LPIPSLoss()


def losses():
    step = {"step": STEP}
    yield "L1Loss", Contract(L1Loss, refuses_nan=False, options=step)
    yield "MSELoss", Contract(MSELoss, refuses_nan=False, options=step)
    yield "LPIPSLoss", Contract(random_lpips, refuses_nan=False, options=step)
    for kind in ("mse", "mae"):
        yield f"DiffusionLoss-{kind}", Contract(functools.partial(CleanLatentLoss, kind=kind), 4, False, step)
    for kind in KINDS:
        curriculum = {"curriculum": kind, "total_steps": TOTAL_STEPS}
        yield f"MILOLoss-{kind}", Contract(functools.partial(MILOLoss, "mini", **curriculum), options=step)
        yield f"LatentMILOLoss-{kind}", Contract(functools.partial(LatentMILOLoss, "mini", **curriculum), 4, True, step)
        yield f"DiffusionLoss-{kind}", Contract(functools.partial(CleanLatentLoss, curriculum=kind), 4, True, step)
    for name, more in {"through": {"mask_gradient": True}, "normalized": {"normalize": True, "anchor": 0.5}}.items():
        yield f"MILOLoss-{name}", Contract(functools.partial(MILOLoss, "mini", **more), options=step)


METRICS = {cls.__name__: metric_of(cls) for base in (MaskedMetric, EMetric) for cls in concrete(base)}
LOSSES = dict(losses())
ALL = METRICS | LOSSES


@functools.cache
def built(name):
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.filterwarnings("ignore", message=".*follow MILO's official ones roughly")
        torch.manual_seed(1)
        return ALL[name].build()


def value(name, prediction, target, module=None):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*knows the tiny world's latents only")
        call = module or built(name)
        return call(prediction, target, **ALL[name].options) if name in LOSSES else call(prediction, reference=target)


def test_every_class_is_under_the_contract():
    assert {
        "MILO",
        "LatentMILO",
        "EMAE",
        "EMSE",
        "EPSNR",
        "ESSIM",
        "EVGG",
        "ELPIPS",
        "EDISTS",
        "VGG",
        "DeepWSD",
    } == set(METRICS)
    tested = {name.split("-")[0] for name in LOSSES}
    assert tested == {"DiffusionLoss", *(cls.__name__ for cls in concrete(RestorationLoss))}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("sides", [(33, 47), (40, 33)])
def test_odd_sizes(name, sides):
    found = value(name, *ALL[name].tensors(2, *sides))
    assert found.shape == (() if name in LOSSES else (2,))
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert (found > 0).all()


@pytest.mark.parametrize("name", ALL)
def test_a_batch_is_its_images(name):
    prediction, target = ALL[name].tensors(3)
    alone = torch.stack([value(name, *pair) for pair in zip(prediction.split(1), target.split(1))])
    expected = alone.mean() if name in LOSSES else alone[:, 0]
    torch.testing.assert_close(value(name, prediction, target), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", [name for name, contract in ALL.items() if contract.channels == 3])
def test_grey_is_its_rgb(name):
    grey = [tensor[:, :1] for tensor in ALL[name].tensors()]
    rgb = [tensor.expand(-1, 3, -1, -1) for tensor in grey]
    torch.testing.assert_close(value(name, *grey), value(name, *rgb), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_any_floating_dtype_counts_as_the_float32_that_it_is(name, dtype):
    pair = [tensor.to(dtype) for tensor in ALL[name].tensors()]
    prediction = pair[0].requires_grad_()
    found = value(name, prediction, pair[1])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, value(name, *(tensor.detach().float() for tensor in pair)), rtol=1e-6, atol=0)
    found.sum().backward()
    assert prediction.grad.dtype == dtype
    assert prediction.grad.isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_autocast_changes_nothing(name):
    pair = ALL[name].tensors()
    with torch.autocast("cpu", torch.bfloat16):
        found = value(name, *pair)
    assert torch.equal(found, value(name, *pair))


@pytest.mark.parametrize("name", ALL)
def test_the_gradient_reaches_the_image_and_is_finite_without_error(name):
    distorted, target = ALL[name].tensors()
    for prediction, has_error in ((distorted.requires_grad_(), True), (target.clone().requires_grad_(), False)):
        found = value(name, prediction, target).sum()
        found.backward()
        assert prediction.grad.isfinite().all()
        assert bool(prediction.grad.any()) or not has_error


@pytest.mark.parametrize("name", ALL)
def test_it_trains_nothing_and_leaves_nothing_in_a_state_dict(name):
    model = nn.Module()
    model.network, model.criterion = nn.Linear(2, 2), built(name)
    assert {key for key, _ in model.named_parameters()} == {"network.weight", "network.bias"}
    assert set(model.state_dict()) == {"network.weight", "network.bias"}
    assert not any(buffer.requires_grad for buffer in model.buffers())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_is_refused_or_comes_out(name, bad):
    contract = ALL[name]
    prediction, target = contract.tensors()
    prediction[1, 0, 2, 2] = bad
    if name in METRICS:
        with pytest.raises(DataError, match="image: holds NaN or infinite values"):
            value(name, prediction, target)
    else:  # a diverged network is the training loop's to catch
        assert not value(name, prediction, target).isfinite()
    prediction, target = contract.tensors()
    target[1, 0, 2, 2] = bad
    if contract.refuses_nan:
        with pytest.raises(DataError, match="holds NaN or infinite values"):
            value(name, prediction, target)
    else:
        assert not value(name, prediction, target).isfinite()


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_broadcast(name):
    prediction, target = ALL[name].tensors()
    for other in (target[:1], target[:, :1], target[..., :32]):
        with pytest.raises(DataError, match=r"differ|expected \d channels"):
            value(name, prediction, other)


@pytest.mark.parametrize("name", ALL)
def test_random_numbers_are_left_alone(name):
    before = random_states()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # An E-metric built directly is random: that is what it is for. Loaded ones are above, by their names.
        module = built(name) if isinstance(built(name), EMetric) else ALL[name].build()
    assert random_states() == before
    prediction, target = ALL[name].tensors()
    before = random_states()
    value(name, prediction.requires_grad_(), target, module).sum().backward()
    assert random_states() == before


@pytest.mark.parametrize("name", ALL)
def test_no_tensor_stays_behind_on_another_device(name):
    """On a GPU that needs not be there: fake tensors have a device and no values, and refuse to mix two devices."""
    pair = ALL[name].tensors()
    value(name, *pair)  # accelerators read the first batch's values; these have none
    module, fake = copy.deepcopy(built(name)), FakeTensorMode(allow_non_fake_inputs=True)
    module._apply(fake.from_tensor)
    with fake:
        prediction, target = (fake.from_tensor(tensor).to("cuda") for tensor in pair)
        for grad in (False, True):  # which take two ways through the mask network
            found = value(name, prediction.requires_grad_(grad), target, module.to("cuda"))
            assert found.device.type == "cuda"
            assert found.requires_grad == grad
