"""``milo-restore denoise`` and the recipe that writes test images."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from PIL import Image
from safetensors.torch import save_file
from skimage.data import astronaut

from milo_restore import Restormer
from milo_restore.cli import main
from milo_restore.data import evaluation_input, read_image, to_tensor, to_uint8
from milo_restore.errors import WeightsError
from milo_restore.files.hashes import sha256_of
from milo_restore.measure.metrics import psnr
from milo_restore.models.denoise import denoise
from milo_restore.models.lite import LITE, lite_weights

NETWORK = {"dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "heads": [1, 1, 1, 1]}


@pytest.fixture
def run_folder(tmp_path):
    """A run folder with a Restormer that nobody trained, and its network."""
    torch.manual_seed(0)
    model = Restormer(**NETWORK)
    (tmp_path / "run" / "final").mkdir(parents=True)
    save_file(model.state_dict(), tmp_path / "run" / "final" / "model.safetensors")
    return tmp_path / "run", model.eval()


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(astronaut()[:40, 200:232]).save(folder / "one.png")
    Image.fromarray(astronaut()[100:130, 200:250]).save(folder / "two.jpg", quality=95)
    return folder


def command(*arguments):
    return main(["denoise", "--device", "cpu", *map(str, arguments)])


@pytest.mark.parametrize("sigma", [None, 25.0])
def test_it_denoises_as_the_evaluation_does(run_folder, images, tmp_path, sigma):
    folder, model = run_folder
    out = tmp_path / "out"
    noise = [] if sigma is None else ["--add-noise", sigma]
    assert command("--model", folder, "--input", images, "--output", out, *noise) == 0
    for name in ("one.png", "two.jpg"):
        image = read_image(images / name)
        noisy = to_tensor(image) if sigma is None else evaluation_input(image, sigma)
        difference = read_image(out / f"{name[:3]}.png").astype(int) - denoise(model, noisy)
        assert np.abs(difference).max() <= 1  # a value between two levels may go either way
    assert json.loads((out / "denoise.json").read_text())["add_noise"] == sigma


def test_it_goes_on_with_the_same_network_only(run_folder, images, tmp_path, capsys):
    folder, model = run_folder
    out = tmp_path / "out"
    common = ("--model", folder, "--input", images, "--output", out)
    assert command(*common) == 0
    (out / "two.png").unlink()
    before = (out / "one.png").stat().st_mtime_ns
    assert command(*common) == 2
    assert "1 of 2 results are there already: one.png" in capsys.readouterr().err
    assert command(*common, "--resume") == 0
    assert (out / "one.png").stat().st_mtime_ns == before
    assert (out / "two.png").is_file()
    (out / "two.png").unlink()
    with torch.no_grad():
        model.output.weight.add_(0.01)
    save_file(model.state_dict(), folder / "final" / "model.safetensors")
    assert command(*common, "--resume") == 2
    assert "the results are of another run: sha256 was" in capsys.readouterr().err


def test_of_several_networks_the_averaged_one_is_taken_or_the_one_asked_for(run_folder, images, tmp_path, capsys):
    folder, model = run_folder
    averaged = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        model.output.weight.add_(0.05)
    torch.save({"params": model.state_dict(), "params_ema": averaged}, tmp_path / "net.pth")
    common = ("--input", images, "--output")
    assert command("--model", folder, *common, tmp_path / "averaged") == 0
    capsys.readouterr()
    assert command("--model", tmp_path / "net.pth", *common, tmp_path / "default") == 0
    assert "net.pth holds params_ema, params: params_ema is taken" in capsys.readouterr().err
    assert command("--model", tmp_path / "net.pth", *common, tmp_path / "plain", "--entry", "params") == 0
    results = {name: read_image(tmp_path / name / "one.png") for name in ("averaged", "default", "plain")}
    assert np.array_equal(results["averaged"], results["default"])
    assert not np.array_equal(results["plain"], results["default"])
    assert json.loads((tmp_path / "plain" / "denoise.json").read_text())["entry"] == "params"


def test_an_unfinished_run_and_small_images_are_named(run_folder, images, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert command("--model", tmp_path / "empty", "--input", images, "--output", tmp_path / "out") == 2
    assert "holds no trained network. Finish the run with --resume latest" in capsys.readouterr().err
    Image.new("RGB", (8, 40)).save(images / "small.png")
    assert command("--model", run_folder[0], "--input", images, "--output", tmp_path / "out") == 2
    assert "small.png: is 8x40 pixels. 16 along each side are the least" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", sorted(LITE))
def test_the_shipped_denoisers_denoise(name, tmp_path):
    """Offline; the card names the very file."""
    clean, out = astronaut()[:96, 200:296], tmp_path / "out"
    Image.fromarray(clean).save(tmp_path / "one.png")
    assert command("--model", name, "--input", tmp_path / "one.png", "--output", out, "--add-noise", 25) == 0
    noisy = to_uint8(evaluation_input(clean, 25))
    assert psnr(read_image(out / "one.png"), clean) > psnr(noisy, clean) + 7
    digest = sha256_of(lite_weights(name))
    assert json.loads((out / "denoise.json").read_text())["sha256"] == digest
    assert digest in (lite_weights(name).parent / "README.md").read_text(encoding="utf-8")


def test_a_name_that_is_nothing_is_refused(images, tmp_path, capsys):
    assert command("--model", "Lite", "--input", images, "--output", tmp_path / "out") == 2
    assert "Lite: neither a shipped denoiser nor a path. Give lite, lite-mae, a run folder" in capsys.readouterr().err


def test_other_shipped_names_are_refused():
    with pytest.raises(WeightsError, match=r"no such shipped denoiser.*lite, lite-mae"):
        lite_weights("huge")


def make(*arguments, code=0):
    words = [sys.executable, str(REPOSITORY / "recipes" / "make_test_images.py"), *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return (done.stdout if code == 0 else done.stderr).strip().splitlines()[-1]


def test_test_images_are_the_configurations(images, tmp_path):
    out = tmp_path / "images"
    settings = ("--set", f"test=[{images}]", "degradation=noise", "test_sigmas=[25]", "test_side=32", "--output", out)
    assert make(*settings) == f"2 images: {out}"
    clean = read_image(images / "two.jpg")[:, 9:41]
    assert np.array_equal(read_image(out / "ref" / "two.png"), clean)
    assert np.array_equal(read_image(out / "input" / "two.png"), to_uint8(evaluation_input(clean, 25)))
    assert make(*settings) == f"nothing to do: {out}"
    assert "holds images made with other settings" in make(*settings, "--limit", 1, code=2)


def test_images_of_several_sets_and_real_ones(images, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Image.fromarray(astronaut()[:40, :40]).save(other / "one.png")
    out = tmp_path / "images"
    assert make("--as-they-are", "--set", f"test=[{images},{other}]", "--output", out) == f"3 images: {out}"
    assert sorted(path.name for path in (out / "input").iterdir()) == ["in_one.png", "in_two.png", "other_one.png"]
    assert np.array_equal(read_image(out / "input" / "other_one.png"), astronaut()[:40, :40])
    assert not (out / "ref").exists()
    assert "several noise levels" in make("--set", "degradation=noise", "--output", tmp_path / "x", code=2)
