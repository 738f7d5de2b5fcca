"""``milo-restore restore``: folders, names, bad images, what is never overwritten, full disks."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from PIL import Image
from skimage.data import astronaut

from milo_restore.cli import main
from milo_restore.data import read_image, to_tensor, to_uint8
from milo_restore.models.diffbir import DiffBIRPipeline, IRControlNet, noise_scheduler
from milo_restore.models.diffbir.cleaner import load_cleaner
from milo_restore.models.diffbir.components import load_components

FAST = ("--steps", 1, "--guidance", 1, "--device", "cpu")


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    """A control for the tiny world, which nobody trained."""
    folder = tmp_path_factory.mktemp("control") / "controlnet"
    torch.manual_seed(0)
    network = IRControlNet.from_unet(load_components("tiny").unet)
    with torch.no_grad():
        network.controlnet_mid_block.weight.normal_(0, 0.02)
    network.save_pretrained(folder)
    return folder


@pytest.fixture
def images(tmp_path):
    """Two photographs, one of them in a subfolder."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(astronaut()[:40, 200:232]).save(folder / "one.png")
    Image.fromarray(astronaut()[100:132, 200:250]).save(folder / "sub" / "two.jpg", quality=95)
    return folder


def restore(*arguments, task="denoise"):
    return main(["restore", "--task", task, *map(str, (*arguments, *FAST))])


def fails(capsys, *arguments, **options):
    """Run a command that must fail; its last line."""
    assert restore(*arguments, **options) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("milo-restore: error: ")
    return line


def test_a_folder_with_its_subfolders(images, control, tmp_path, capsys):
    out = tmp_path / "out"
    assert restore("--input", images, "--output", out, "--control", control, "--seed", 4) == 0
    captured = capsys.readouterr()
    assert "no statement about quality" in captured.err
    assert "cleaner tiny:denoise" in captured.err
    assert captured.out.splitlines()[-1] == f"2 images restored: {out}"
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*")) == [
        "one.png", "restore.json", "sub/two.png",
    ]  # fmt: skip
    parts = load_components("tiny")
    pipeline = DiffBIRPipeline(
        parts.vae, parts.unet, IRControlNet.from_pretrained(control), noise_scheduler("v2"),
        cleaner=load_cleaner("tiny:denoise"), prompts=parts.prompts,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    image = to_tensor(read_image(images / "sub" / "two.jpg"))[None]
    expected = pipeline(image, steps=1, guidance_scale=1, seed=4, minimum_side=128, output_type="pt").images[0]
    assert np.abs(read_image(out / "sub" / "two.png").astype(int) - to_uint8(expected)).max() <= 1
    record = json.loads((out / "restore.json").read_text())
    assert (record["seed"], record["steps"], record["version"], record["upscale"]) == (4, 1, "v2", 1)


def test_super_resolution_enlarges_one_file_four_times(images, control, tmp_path):
    out = tmp_path / "out"
    assert restore("--input", images / "one.png", "--output", out, "--control", control, task="sr") == 0
    assert [path.name for path in out.glob("*.png")] == ["one.png"]
    assert read_image(out / "one.png").shape == (160, 128, 3)


def test_nothing_is_overwritten_unasked(images, control, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    kept = Image.new("RGB", (9, 9), (1, 2, 3))
    kept.save(out / "sub" / "two.png")
    common = ("--input", images, "--output", out, "--control", control)
    assert "1 of 2 results are there already: two.png" in fails(capsys, *common)
    assert not (out / "one.png").exists()
    assert restore(*common, "--resume") == 0
    assert read_image(out / "sub" / "two.png").shape == (9, 9, 3)
    assert read_image(out / "one.png").shape == (40, 32, 3)
    (out / "one.png").unlink()
    line = fails(capsys, *common, "--resume", "--seed", 9)
    assert "another run: seed was 231, is 9" in line
    assert restore(*common, "--overwrite", "--seed", 9) == 0
    assert read_image(out / "sub" / "two.png").shape == (32, 50, 3)
    capsys.readouterr()
    assert restore(*common, "--resume", "--seed", 9) == 0
    assert capsys.readouterr().out == f"nothing to do: all results are in {out}\n"


def spoil(folder, kind):
    path = folder / f"bad_{kind}.png"
    if kind == "corrupt":
        data = bytearray((folder / "one.png").read_bytes())
        data[len(data) // 2] ^= 255
        path.write_bytes(data)
    elif kind == "truncated":
        path.write_bytes((folder / "one.png").read_bytes()[:200])
    elif kind == "pixel":
        Image.new("RGB", (1, 1)).save(path)
    elif kind == "rgba":
        Image.new("RGBA", (32, 32), (1, 2, 3, 100)).save(path)
    elif kind == "deep":
        Image.fromarray(np.zeros((32, 32), dtype=np.uint16)).save(path)
    elif kind == "cmyk":
        path = path.with_suffix(".jpg")
        Image.new("CMYK", (32, 32)).save(path)
    return path


KINDS = {
    "corrupt": "cannot be read as an image",
    "truncated": "cannot be read as an image",
    "pixel": "is 1x1 pixels",
    "rgba": "has transparent pixels",
    "deep": "more than 8 bits",
    "cmyk": "colour mode CMYK",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_image_stops_the_run_before_it_begins(images, tmp_path, capsys, kind):
    path = spoil(images, kind)
    line = fails(capsys, "--input", images, "--output", tmp_path / "out", "--model", tmp_path / "never-read")
    assert str(path) in line
    assert KINDS[kind] in line
    assert "Nothing was restored" in line
    assert not (tmp_path / "out").exists()


def test_bad_images_are_named_and_left_out_where_asked(images, control, tmp_path, capsys):
    paths = [spoil(images, kind) for kind in KINDS]
    out = tmp_path / "out"
    line = fails(capsys, "--input", images, "--output", out, "--control", control)
    assert "6 of 8 images cannot be used" in line
    assert all(str(path) in line for path in paths)
    assert restore("--input", images, "--output", out, "--control", control, "--skip-bad") == 0
    captured = capsys.readouterr()
    assert all(f"left out: {path}: " in captured.err for path in paths)
    assert captured.out == f"2 images restored: {out}\n"
    assert sorted(path.name for path in out.rglob("*.png")) == ["one.png", "two.png"]
    for path in (images / "one.png", images / "sub" / "two.jpg"):
        path.unlink()
    assert "none of the images can be used" in fails(capsys, "--input", images, "--output", out, "--skip-bad")


def test_folders_that_cannot_be_meant(images, control, tmp_path, capsys):
    assert "no such file or folder" in fails(capsys, "--input", tmp_path / "no", "--output", tmp_path / "out")
    assert "holds the images themselves" in fails(capsys, "--input", images, "--output", images)
    assert "is a file, not a folder" in fails(capsys, "--input", images, "--output", images / "one.png")
    (tmp_path / "empty").mkdir()
    assert "holds no images" in fails(capsys, "--input", tmp_path / "empty", "--output", tmp_path / "out")
    Image.new("RGB", (32, 32)).save(images / "one.bmp")
    line = fails(capsys, "--input", images, "--output", tmp_path / "out")
    assert "one.bmp and one.png would both become one.png" in line


def test_results_and_hidden_files_below_the_input_are_no_input(images, control, tmp_path):
    (images / ".cache").mkdir()
    (images / ".cache" / "broken.png").write_bytes(b"")
    common = ("--input", images, "--output", images / "restored", "--control", control)
    assert restore(*common) == 0
    assert restore(*common, "--overwrite") == 0
    assert sorted(path.name for path in (images / "restored").rglob("*.png")) == ["one.png", "two.png"]


def test_models_that_do_not_fit(images, tmp_path, capsys, monkeypatch, control):
    common = ("--input", images, "--output", tmp_path / "out")
    parts = load_components("tiny")
    if parts.controlnet is None:
        line = fails(capsys, *common)
        assert "has no control network" in line
        assert "recipes/diffbir_denoise.py" in line
        assert "--control runs/diffbir_denoise_tiny/controlnet" in line
    assert "no such" in fails(capsys, *common, "--control", tmp_path / "no")
    assert "v2.1 predicts v_prediction" in fails(capsys, *common, "--control", control, "--version", "v2.1")
    assert "no such cleaner" in fails(capsys, *common, "--control", control, "--cleaner", "windex")
    assert "tiles of 100 pixels" in fails(capsys, *common, "--control", control, "--tile", 100)
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_full_disk(images, control, tmp_path, capsys, monkeypatch):
    out, save, written = tmp_path / "out", Image.Image.save, []

    def full(self, path, *arguments, **options):
        if written:
            save(self, path, *arguments, **options)
            with open(path, "r+b") as file:
                file.truncate(50)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        save(self, path, *arguments, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    common = ("--input", images, "--output", out, "--control", control)
    line = fails(capsys, *common)
    assert "cannot be written (No space left on device)" in line
    assert "--resume goes on" in line
    assert sorted(path.name for path in out.rglob("*.*")) == ["one.png", "restore.json"]
    assert read_image(out / "one.png").shape == (40, 32, 3)
    monkeypatch.setattr(Image.Image, "save", save)
    assert restore(*common, "--resume") == 0
    assert capsys.readouterr().out == f"1 image restored: {out}\n"
    assert (out / "sub" / "two.png").is_file()


def test_help_is_cheap():
    code = (
        "import sys; from milo_restore.cli import main; main(['restore', '--help']); "
        "print(sorted({'torch', 'diffusers', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert "--task {sr,denoise,face}" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
