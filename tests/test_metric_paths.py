"""One metric by several roads: in tiles without gradients, compiled, exported, in ONNX; all give the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.export import Dim, export

from milo_restore import MILO, LatentMILO
from milo_restore.errors import DataError
from milo_restore.metric import masked, network, pyramid, tiles

SIZES = [(2, 37, 50), (1, 64, 64), (3, 53, 71)]
"""Odd sides too: halving them drops a row or a column."""


@pytest.fixture(scope="module")
def mini():
    return MILO("mini")


def pair(count, height, width, channels=3):
    return torch.rand(count, channels, height, width), torch.rand(count, channels, height, width)


def exact_mask(metric, image, reference):
    """The path that gradients need."""
    return metric.predict_mask(image.clone().requires_grad_(), reference).detach()


def dynamic():
    names = {0: Dim("n", min=1, max=64), 2: Dim("h", min=16, max=8192), 3: Dim("w", min=16, max=8192)}
    return {"image": names, "reference": names}


@pytest.mark.golden
@pytest.mark.parametrize(
    ("cls", "file", "case"),
    [(MILO, "milo_image.npz", i) for i in range(5)] + [(LatentMILO, "milo_latent.npz", i) for i in range(4)],
)
def test_without_gradients_it_equals_upstream(shared, cls, file, case):
    golden = {k: torch.from_numpy(v) for k, v in np.load(shared / "golden" / file).items() if k.startswith(f"{case}.")}
    image, reference, metric = golden[f"{case}.dist"], golden[f"{case}.ref"], cls()
    torch.testing.assert_close(metric(image, reference), golden[f"{case}.score"], atol=1e-6, rtol=0)
    difference = (metric.mask(image, reference) - golden[f"{case}.mask"]).abs()
    # Where the network is steep, rounding is magnified: upstream's own is as far from exact arithmetic.
    assert difference.max() < 4e-5
    assert difference.mean() < 1e-6


@pytest.mark.parametrize("kept", [0, 2**20])
@pytest.mark.parametrize("pixels", [1, 20 * 24, 3 * 128 * 16, 2**17])
@pytest.mark.parametrize("shape", [(1, 150, 24), (5, 20, 24), (2, 133, 128)])
def test_tiles_are_seamless(mini, monkeypatch, shape, pixels, kept):
    image, reference = pair(*shape)
    expected = exact_mask(mini, image, reference)
    monkeypatch.setattr(tiles, "TILE_PIXELS", max(pixels, shape[2] // 2 * 7))
    monkeypatch.setattr(tiles, "TILE_WIDTH", 40)
    monkeypatch.setattr(tiles, "KEPT_PIXELS", kept)
    got = mini.predict_mask(image, reference)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)
    assert (got - expected).abs().mean() < 1e-6
    exact = (expected * (image - reference).abs()).mean((1, 2, 3))
    assert (mini(image, reference) - exact).abs().max() < 1e-6


def test_a_seam_would_be_seen(mini, monkeypatch):
    image, reference = pair(1, 150, 24)
    expected = exact_mask(mini, image, reference)
    monkeypatch.setattr(tiles, "TILE_PIXELS", 7 * 24)
    monkeypatch.setattr(tiles, "HALO", 1)
    assert (mini.predict_mask(image, reference) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("sides", [(2, 3), (19, 16), (150, 75)])
@pytest.mark.parametrize("odd", [0, 1])
def test_part_of_a_mask_is_doubled_as_the_whole(sides, odd):
    """At each place, the last one that an odd side repeats included."""
    mask = torch.rand(2, 1, *sides)
    height, width = (2 * side + odd for side in sides)
    whole = pyramid.double(mask, torch.empty(2, 1, height, width))
    for top, left in ((0, 0), (1, 2), (height // 2, width // 2), (height - 1, width - 1)):
        places = [tiles._places_in(slice(*part), side) for part, side in zip(((top, height), (left, width)), sides)]
        part = tiles._doubled(mask[:, :, places[0].cells, places[1].cells], *places)
        torch.testing.assert_close(part, whole[:, :, top:, left:], atol=3e-7, rtol=0)


def test_scores_do_not_depend_on_the_tiles(mini, monkeypatch):
    image, reference = pair(2, 133, 90)
    exact = mini(image.clone().requires_grad_(), reference).detach()
    quality = mini.map(image.clone().requires_grad_(), reference).detach().mean((1, 2, 3))
    monkeypatch.setattr(tiles, "TILE_PIXELS", 2000)
    monkeypatch.setattr(tiles, "TILE_WIDTH", 33)
    monkeypatch.setattr(tiles, "KEPT_PIXELS", 0)
    for raw in (mini(image, reference), mini.scores(image, reference).raw_error):
        torch.testing.assert_close(raw, exact, atol=1e-6, rtol=0)
    for found in (mini.quality(image, reference), mini.map(image, reference).mean((1, 2, 3))):
        torch.testing.assert_close(found, quality, atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kept", [0, 2**20])
def test_of_8_bit_images(mini, monkeypatch, channels, kept):
    monkeypatch.setattr(tiles, "TILE_PIXELS", 2000)
    monkeypatch.setattr(tiles, "KEPT_PIXELS", kept)
    image, reference = torch.randint(0, 256, (2, 2, 101, 51, channels), dtype=torch.uint8).movedim(-1, 2)
    expected = mini(image / 255, reference / 255)
    torch.testing.assert_close(mini.raw_error_8bit(image, reference), expected, atol=1e-6, rtol=0)
    assert mini.raw_error_8bit(image, image).tolist() == [0, 0]
    with pytest.raises(DataError, match="image: expected uint8, got torch.float32"):
        mini.raw_error_8bit(image / 255, reference)
    with pytest.raises(DataError, match="at least 16, got 15x51"):
        mini.raw_error_8bit(image[:, :, :15], reference[:, :, :15])


def test_who_wants_a_gradient_gets_the_exact_path(mini, monkeypatch):
    for module in (masked, network):
        monkeypatch.setattr(module, "mask_tiles", None)
    image, reference = pair(1, 20, 24)
    mini(image.clone().requires_grad_(), reference).sum().backward()
    mini(image, reference.clone().requires_grad_()).sum().backward()
    MILO.untrained()(image, reference).sum().backward()
    for method in (mini, mini.mask):
        with pytest.raises(TypeError), torch.no_grad():
            method(image.requires_grad_(), reference)


def test_compiled_in_one_graph(mini):
    compiled = torch.compile(mini, fullgraph=True, backend="eager")
    for size in SIZES:
        image, reference = pair(*size)
        torch.testing.assert_close(compiled(image, reference), mini(image, reference), atol=1e-6, rtol=0)
    leaf = image.clone().requires_grad_()
    compiled(leaf, reference).sum().backward()
    expected = image.clone().requires_grad_()
    mini(expected, reference).sum().backward()
    assert torch.cosine_similarity(leaf.grad.flatten(), expected.grad.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("cls", [MILO, LatentMILO])
def test_exported_for_all_sizes(cls):
    metric = cls("mini")
    program = export(metric, pair(*SIZES[0], cls.channels), dynamic_shapes=dynamic()).module()
    for size in SIZES:
        images = pair(*size, cls.channels)
        torch.testing.assert_close(program(*images), metric(*images), atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:.*The axis name:UserWarning")
def test_onnx_for_all_sizes(mini, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    program = torch.onnx.export(mini, pair(*SIZES[0]), dynamo=True, dynamic_shapes=dynamic(), verbose=False)
    program.save(tmp_path / "milo.onnx")
    session = runtime.InferenceSession(tmp_path / "milo.onnx", providers=["CPUExecutionProvider"])
    for size in SIZES:
        image, reference = pair(*size)
        (scores,) = session.run(None, {"image": image.numpy(), "reference": reference.numpy()})
        torch.testing.assert_close(torch.from_numpy(scores), mini(image, reference), atol=1e-5, rtol=0)
