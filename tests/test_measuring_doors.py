"""MILO inside pyiqa, torchmetrics and deepinv, and in the shape of lpips: against the real packages."""

from __future__ import annotations

import ast
import copy
import inspect
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import save_file
from torch import nn

from milo_restore import MILO, LatentMILO, MILOLoss
from milo_restore.data.images import read_image, to_tensor, to_uint8, write_png
from milo_restore.errors import ConfigError, DataError
from milo_restore.loss.per_image import PerImage
from milo_restore.processes import leave

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture(scope="module")
def milo():
    return MILO("mini")


@pytest.fixture
def pair():
    reference = torch.rand(3, 3, 40, 52)
    return (reference + 0.1 * torch.randn_like(reference)).clamp(0, 1), reference


def gradient(score, image):
    leaf = image.clone().requires_grad_()
    score(leaf).backward()
    return leaf.grad


def loss_gradient(image, reference, **options):
    return gradient(lambda leaf: MILOLoss("mini", **options)(leaf, reference), image)


# --- What all of them compute -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 40, 52), (2, 1, 40, 52), (2, 2, 3, 32, 32)])
def test_per_image_is_the_metric(milo, shape):
    image, reference = torch.rand(shape), torch.rand(shape)
    torch.testing.assert_close(PerImage(milo)(image, reference), milo(image, reference))
    torch.testing.assert_close(PerImage(milo)(image.requires_grad_(), reference), milo(image.detach(), reference))


def test_per_image_latents():
    image, reference = torch.randn(2, 4, 16, 20), torch.randn(2, 4, 16, 20)
    latent = LatentMILO("mini")
    torch.testing.assert_close(PerImage(latent)(image, reference), latent(image, reference))


@pytest.mark.parametrize("through", [False, True])
def test_per_image_has_the_losss_gradient(milo, pair, through):
    score = PerImage(milo, mask_gradient=through)
    got = gradient(lambda leaf: score(leaf, pair[1]).mean(), pair[0])
    torch.testing.assert_close(got, loss_gradient(*pair, mask_gradient=through), rtol=1e-5, atol=1e-9)
    other = loss_gradient(*pair, mask_gradient=not through)
    assert (got - other).abs().max() > 1e-2 * other.abs().max()  # the two gradients can be told apart


def test_per_image_lets_a_training_diverge_and_refuses_bad_images(milo, pair):
    image, reference = pair
    broken = torch.full_like(image, torch.nan)
    with pytest.raises(DataError, match="image: holds NaN"):
        PerImage(milo)(broken, reference)
    assert PerImage(milo)(broken.requires_grad_(), reference).isnan().all()
    with pytest.raises(DataError, match="reference: values reach"):
        PerImage(milo)(image.requires_grad_(), 255 * reference)


# --- pyiqa ------------------------------------------------------------------------------------------------------------


def pyiqa_milo(**options):
    pyiqa = pytest.importorskip("pyiqa")
    import milo_restore.pyiqa  # noqa: F401

    return pyiqa.create_metric("milo", device=torch.device("cpu"), **options)


def test_pyiqa_gives_our_score(milo, pair):
    metric = pyiqa_milo(weights="mini")
    torch.testing.assert_close(metric(*pair), milo(*pair))
    assert not metric(pair[0].clone().requires_grad_(), pair[1]).requires_grad
    assert (metric.lower_better, metric.metric_mode) == (True, "FR")
    import pyiqa

    assert "milo" in pyiqa.list_models(metric_mode="FR")


@pytest.mark.golden
def test_pyiqas_default_is_the_official_milo(shared, pair):
    torch.testing.assert_close(pyiqa_milo()(*pair), MILO()(*pair))


@pytest.mark.parametrize("through", [False, True])
def test_pyiqa_as_loss(milo, pair, through):
    image, reference = pair
    loss = pyiqa_milo(weights="mini", as_loss=True, mask_gradient=through)
    torch.testing.assert_close(loss(*pair), milo(*pair).mean())
    got = gradient(lambda leaf: loss(leaf, reference), image)
    torch.testing.assert_close(got, loss_gradient(*pair, mask_gradient=through), rtol=1e-5, atol=1e-9)
    each = pyiqa_milo(weights="mini", as_loss=True, loss_reduction="none")
    torch.testing.assert_close(each(*pair), milo(*pair))
    # pyiqa adds an empty parameter of its own; ours are none.
    assert sum(parameter.numel() for parameter in loss.parameters()) == 0


def test_pyiqa_takes_latents_as_a_network_only(pair):
    """Should pyiqa one day take four channels, ``milo-latent`` belongs into its list of metrics: then this fails."""
    metric, archs = pyiqa_milo(weights="mini", check_input_range=False), pytest.importorskip("pyiqa.archs")
    image, reference = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16)
    with pytest.raises(AssertionError, match="RGB or gray"):
        metric(image, reference)
    network = archs.build_network({"type": "LatentMILO", "weights": "mini"})
    torch.testing.assert_close(network(image, reference), LatentMILO("mini")(image, reference))


def test_a_milo_of_pyiqas_own_is_not_replaced(monkeypatch):
    pytest.importorskip("pyiqa")
    from milo_restore import pyiqa as door

    before = dict(door.DEFAULT_CONFIGS)
    door.register()  # a second time: nothing
    assert dict(door.DEFAULT_CONFIGS) == before
    monkeypatch.setitem(door.DEFAULT_CONFIGS, "milo", {"metric_opts": {"type": "TheirMILO"}})
    with pytest.raises(ConfigError, match="pyiqa: this pyiqa has a 'milo' of its own.*Use milo_restore.MILO"):
        door.register()


@pytest.fixture
def installed(tmp_path):
    """An environment in which milo-restore is installed with the entry points of pyproject.toml."""
    pytest.importorskip("pyiqa")
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = tmp_path / "site" / "milo_restore-99.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: milo-restore\nVersion: 99.0\n")
    points = settings["entry-points"]["pyiqa.archs"]
    (info / "entry_points.txt").write_text("[pyiqa.archs]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
    path = os.pathsep.join([str(info.parent), str(REPOSITORY)])
    return {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def files(pair, tmp_path):
    """A PNG of an image and one of its reference, and both as tensors (1, 3, H, W)."""
    paths = [tmp_path / "image.png", tmp_path / "reference.png"]
    for path, tensor in zip(paths, pair):
        write_png(path, to_uint8(tensor[0]))
    return paths, [to_tensor(read_image(path)).reshape(1, 3, 40, 52) for path in paths]


def command(arguments, environment, files):
    images = ["-t", str(files[0]), "-r", str(files[1]), "--device", "cpu"]
    line = [sys.executable, "-m", *arguments, *images]
    return subprocess.run(line, capture_output=True, text=True, env=environment, check=False)


def printed(output):
    """The mean that pyiqa's command prints for milo."""
    found = re.search(r"'milo': (\{[^}]*\})", re.sub(r"np\.float64\(([^)]*)\)", r"\1", output))
    assert found, output
    return ast.literal_eval(found.group(1))["mean"]


@pytest.mark.golden
def test_pyiqas_command(shared, installed, files):
    """The entry point is enough beside another metric, and ours in every case; alone it is not, in pyiqa 0.1.16."""
    paths, tensors = files
    expected = float(MILO()(*tensors))
    assert expected > 0
    beside = command(["pyiqa.pyiqa_cmd", "psnr", "milo"], installed, paths)
    assert printed(beside.stdout) == pytest.approx(expected, rel=1e-5)
    ours = command(["milo_restore.pyiqa", "milo"], installed, paths)
    assert printed(ours.stdout) == pytest.approx(expected, rel=1e-5)
    alone = command(["pyiqa.pyiqa_cmd", "milo"], installed, paths)
    assert "Metric milo not implemented yet" in alone.stderr  # if it is one day, README and docstring say too little


# --- torchmetrics -----------------------------------------------------------------------------------------------------


def torchmetrics_milo(**options):
    pytest.importorskip("torchmetrics")
    from milo_restore import torchmetrics as door

    return door.MILO("mini", **options)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_torchmetrics_over_batches(milo, pair, reduction):
    metric = torchmetrics_milo(reduction=reduction)
    expected = milo(*pair)
    first = metric(pair[0][:2], pair[1][:2])
    metric.update(pair[0][2:], pair[1][2:])
    some, wanted = (s if reduction == "none" else getattr(s, reduction)() for s in (expected[:2], expected))
    torch.testing.assert_close(first, some, rtol=1e-6, atol=0)
    torch.testing.assert_close(metric.compute(), wanted, rtol=1e-6, atol=0)
    metric.reset()
    metric.update(*pair)
    torch.testing.assert_close(metric.compute(), wanted)
    assert metric.higher_is_better is MILO.higher_is_better
    assert list(metric.parameters()) == []
    assert metric.state_dict() == {}


def test_torchmetrics_is_differentiable(pair):
    metric = torchmetrics_milo()
    assert metric.is_differentiable
    got = gradient(lambda leaf: metric(leaf, pair[1]), pair[0])
    torch.testing.assert_close(got, loss_gradient(*pair), rtol=1e-5, atol=1e-9)


def collection():
    torchmetrics = pytest.importorskip("torchmetrics")
    members = {"mean": torchmetrics_milo(), "sum": torchmetrics_milo(reduction="sum")}
    return torchmetrics.MetricCollection({**members, "mse": torchmetrics.MeanSquaredError()})


def assert_all_seen(found, scores):
    assert set(found) == {"mean", "sum", "mse"}
    torch.testing.assert_close(found["mean"], scores.mean(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found["sum"], scores.sum(), rtol=1e-6, atol=0)


def test_torchmetrics_collection(milo, pair):
    metrics = collection()
    for index in range(3):  # twice after torchmetrics has found out which of them share a state
        metrics.update(pair[0][index : index + 1], pair[1][index : index + 1])
    assert_all_seen(metrics.compute(), milo(*pair))
    assert_all_seen(copy.deepcopy(metrics).compute(), milo(*pair))


def test_torchmetrics_collection_of_two_milos(milo, pair, tmp_path):
    """A first batch of identical images, 0 for both, must not make torchmetrics take one for the other."""
    torchmetrics = pytest.importorskip("torchmetrics")
    from milo_restore import torchmetrics as door

    save_file(MILO.untrained().state_dict(), tmp_path / "other.safetensors")
    metrics = torchmetrics.MetricCollection({"a": door.MILO("mini"), "b": door.MILO(tmp_path / "other.safetensors")})
    metrics.update(pair[1], pair[1])
    metrics.update(*pair)
    other = MILO(tmp_path / "other.safetensors")
    found = metrics.compute()
    torch.testing.assert_close(found["a"], milo(*pair).mean() / 2, rtol=1e-6, atol=0)
    torch.testing.assert_close(found["b"], other(*pair).mean() / 2, rtol=1e-6, atol=0)


SHARES = [(2, 1), (3, 0)]
"""Images on each of two processes: not as many each, and none at all on one of them."""


def _process(rank, folder, metrics):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    image, reference = torch.load(folder / "pair.pt", weights_only=True)
    found = []
    for share in SHARES:
        metrics.reset()
        for index in range(sum(share[:rank]), sum(share[: rank + 1])):
            metrics.update(image[index : index + 1], reference[index : index + 1])
        found.append({name: metrics[name].compute() for name in ("mean", "sum")})
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.barrier()  # a process that leaves first takes the other's connection with it
    leave()


def test_torchmetrics_pickled_and_over_two_processes(milo, pair, tmp_path, monkeypatch):
    """The collection comes to both as a pickle; the mean is over the images of both, on both."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.save(pair, tmp_path / "pair.pt")
    metrics = collection()
    metrics.update(*pair)
    torch.multiprocessing.spawn(_process, (tmp_path, metrics), nprocs=2)
    for rank in range(2):
        for found in torch.load(tmp_path / f"{rank}.pt", weights_only=True):
            assert_all_seen({**found, "mse": None}, milo(*pair))


# --- deepinv ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def deepinv():
    return pytest.importorskip("deepinv", reason="deepinv is not installed: pip install deepinv")


def deepinv_milo(**options):
    from milo_restore import deepinv as door

    return door.MILO("mini", **options)


def test_deepinvs_metric(deepinv, milo, pair):
    image, reference = pair
    metric = deepinv_milo()
    assert isinstance(metric, deepinv.metric.Metric)
    assert metric.lower_better
    torch.testing.assert_close(metric(*pair), milo(*pair))
    torch.testing.assert_close(metric(x_net=image, x=reference), milo(*pair))
    for reduction in ("mean", "sum"):
        expected = getattr(milo(*pair), reduction)()
        torch.testing.assert_close(deepinv_milo(reduction=reduction)(*pair), expected)
        torch.testing.assert_close(
            deepinv_milo(reduction=reduction, train_loss=True)(*pair), expected
        )  # lower is better
    inner, without_border = (slice(None), slice(None), slice(4, -4), slice(10, -10)), [t[..., 4:-4, 4:-4] for t in pair]
    torch.testing.assert_close(deepinv_milo(center_crop=32)(*pair), milo(image[inner], reference[inner]))
    torch.testing.assert_close(deepinv_milo(center_crop=-4)(*pair), milo(*without_border))
    wide = 3 * image - 1
    torch.testing.assert_close(deepinv_milo(norm_inputs="clip")(wide, reference), milo(wide.clamp(0, 1), reference))
    summed = (metric + deepinv.metric.MAE())(*pair)
    torch.testing.assert_close(summed, milo(*pair) + (image - reference).abs().mean((1, 2, 3)))
    with pytest.raises(DataError, match="reference: values reach"):
        metric(255 * image, 255 * reference)


def test_deepinvs_supervised_loss(deepinv, pair):
    loss = deepinv.loss.SupLoss(metric=deepinv_milo(reduction="mean"))
    got = gradient(lambda leaf: loss(x_net=leaf, x=pair[1], y=None, physics=None, model=None), pair[0])
    torch.testing.assert_close(got, loss_gradient(*pair), rtol=1e-5, atol=1e-9)


def test_deepinvs_trainer(deepinv, tmp_path):
    """One epoch with MILO as its loss and as its metric, to the end."""
    images = torch.rand(4, 3, 32, 32)
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
    data = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images, physics(images)), batch_size=2, shuffle=False
    )
    model = deepinv.models.ArtifactRemoval(Residual(), mode="direct")
    before = [parameter.clone() for parameter in model.parameters()]
    trainer = deepinv.Trainer(
        model, physics, torch.optim.SGD(model.parameters(), 1.0), data, epochs=1, eval_dataloader=data,
        losses=deepinv.loss.SupLoss(metric=deepinv_milo()), metrics=[deepinv_milo()],
        save_path=str(tmp_path), verbose=False, show_progress_bar=False,
    )  # fmt: skip
    trained = trainer.train()
    assert any(not torch.equal(old, new) for old, new in zip(before, trained.parameters()))
    (value,) = trainer.eval_metrics_history["MILO"]
    with torch.no_grad():
        batches = [MILO("mini")(trained(y, physics), x).mean() for x, y in data]
    assert value == pytest.approx(float(torch.stack(batches).mean()), rel=1e-4)


class Residual(nn.Module):
    """The smallest denoiser."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, y, sigma=None, **_):
        return y + self.convolution(y)


# --- lpips ------------------------------------------------------------------------------------------------------------


def shaped(**options):
    from milo_restore.lpips import LPIPS

    return LPIPS(weights="mini", **options)


def test_lpips_signature():
    """Whatever can be given to lpips.LPIPS can be given here, by name and by position."""
    import lpips

    from milo_restore.lpips import LPIPS

    for method in ("__init__", "forward"):
        theirs = inspect.signature(getattr(lpips.LPIPS, method)).parameters
        ours = inspect.signature(getattr(LPIPS, method)).parameters
        assert list(ours)[: len(theirs)] == list(theirs)
        assert [p.default for p in list(ours.values())[: len(theirs)]] == [p.default for p in theirs.values()]


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("channels", [3, 1])
def test_lpips_shapes_and_range(milo, pair, spatial, channels):
    import lpips

    theirs = lpips.LPIPS(net="squeeze", pnet_rand=True, spatial=spatial, verbose=False)
    ours = shaped(net="squeeze", spatial=spatial, verbose=False)
    image, reference = (tensor[:, :channels] for tensor in pair)
    with torch.no_grad():
        expected = theirs(2 * image - 1, 2 * reference - 1)
    got = ours(2 * image - 1, 2 * reference - 1)
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    scores = milo((2 * image - 1 + 1) / 2, (2 * reference - 1 + 1) / 2)
    assert_scores = got.mean((1, 2, 3)) if spatial else got.flatten()
    torch.testing.assert_close(assert_scores, scores, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours(image, reference, normalize=True).mean((1, 2, 3)), milo(image, reference))
    assert ours(reference, reference, normalize=True).abs().max() == 0


def test_lpips_is_a_loss(pair):
    image, reference = 2 * pair[0] - 1, 2 * pair[1] - 1
    loss = shaped().requires_grad_(False)  # as training programs do
    assert list(loss.parameters()) == []
    assert loss.state_dict() == {}
    got = gradient(lambda leaf: loss(leaf, reference).mean(), image)
    torch.testing.assert_close(got, loss_gradient(*pair) / 2, rtol=1e-4, atol=1e-8)
    swapped = shaped(reference="first")
    torch.testing.assert_close(gradient(lambda leaf: swapped(reference, leaf).mean(), image), got)
    assert torch.isfinite(loss((5 * image).requires_grad_(), reference)).all()  # an output may leave the range


def test_lpips_refuses_what_it_cannot_mean(pair):
    image, reference = 2 * pair[0] - 1, 2 * pair[1] - 1
    with pytest.raises(ConfigError, match="LPIPS: the second image should be the reference.*reference='first'"):
        shaped()(reference, image.requires_grad_())
    with pytest.raises(ConfigError, match="the first image should be the reference.*reference='second'"):
        shaped(reference="first")(image, reference)
    with pytest.raises(ConfigError, match="retPerLayer: MILO has no layers"):
        shaped()(image, reference, retPerLayer=True)
    for options in ({"pretrained": False}, {"lpips": False}, {"pnet_rand": True}, {"model_path": "x.pth"}):
        with pytest.raises(ConfigError, match=f"{next(iter(options))}: asks for a network of lpips'"):
            shaped(**options)
    with pytest.raises(ConfigError, match="'third' is neither"):
        shaped(reference="third")
    with pytest.raises(DataError, match=r"reference: values go down to -0.75"):
        shaped()(image.detach(), torch.full_like(reference, -2.5))


# --- README -----------------------------------------------------------------------------------------------------------


@pytest.mark.golden
def test_readmes_one_liners(shared, deepinv, pair):
    pytest.importorskip("pyiqa")
    pytest.importorskip("torchmetrics")
    section = (REPOSITORY / "README.md").read_text(encoding="utf-8").split("## Where you measure already")[1]
    code = section.split("```python\n")[1].split("```")[0]
    names = dict(zip(("image", "reference"), pair))
    exec(compile(code, "README.md", "exec"), names)
    expected = MILO()(*pair)
    torch.testing.assert_close(names["score"].cpu(), expected)
    torch.testing.assert_close(names["metrics"](*pair)["MILO"], expected.mean())
    torch.testing.assert_close(names["loss"](*pair), expected.mean())
    torch.testing.assert_close(names["distance"].flatten(), expected, rtol=1e-5, atol=0)
