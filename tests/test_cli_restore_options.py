"""``milo-restore restore``: prompts, captions, samplers, samples, batches, precision, tiles when memory asks."""

from __future__ import annotations

import argparse
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from milo_restore.cli import main
from milo_restore.cli.restore import add_arguments
from milo_restore.cli.restore_run import load_pipeline
from milo_restore.data import read_image
from milo_restore.models.diffbir import DiffBIRPipeline, memory
from milo_restore.models.diffbir.prompts import NEGATIVE_PROMPT, PRESETS
from milo_restore.models.tiny import tiny_world


@pytest.fixture
def images(tmp_path):
    """Two photographs of one size, and one of another."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for number in range(2):
        Image.fromarray(astronaut()[40 * number :][:40, 200:232]).save(folder / f"{number}.png")
    Image.fromarray(astronaut()[100:132, 200:250]).save(folder / "sub" / "two.jpg", quality=95)
    return folder


@pytest.fixture
def calls(monkeypatch):
    """What the pipeline is called with, in place of its work."""
    seen = []

    def call(self, images, **options):
        seen.append({"images": images, "scheduler": type(self.scheduler).__name__, **options})
        size = [round(side * options["upscale"]) for side in images.shape[-2:]]
        return argparse.Namespace(images=torch.zeros(len(images), 3, *size))

    monkeypatch.setattr(DiffBIRPipeline, "__call__", call)
    return seen


def restore(images, out, *arguments, task="denoise"):
    return main(
        ["restore", "--task", task, *map(str, ("--input", images, "--output", out, "--device", "cpu", *arguments))]
    )


def fails(capsys, *arguments):
    assert restore(*arguments) == 2
    return capsys.readouterr().err.splitlines()[-1]


def made(out):
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))


def test_every_option_reaches_the_sampler(images, calls, tmp_path):
    out = tmp_path / "out"
    arguments = [
        "--prompt", "a photograph", "--negative-prompt", "a drawing", "--strength", 0.6, "--noise-aug", 90, "--sampler",
        "dpm++_2m", "--rescale-cfg", "--guidance", 6, "--padding", "zeros", "--tile", 64, "--start", "condition",
    ]  # fmt: skip
    assert restore(images, out, *arguments) == 0
    first = calls[0]
    assert first["prompt"] == ["a photograph"]
    assert first["negative_prompt"] == "a drawing"
    assert (first["control_scale"], first["noise_augmentation"], first["guidance_scale"]) == (0.6, 90, 6)
    assert first["rescale_guidance"] is True
    assert (first["padding"], first["tile"], first["start"]) == ("zeros", 64, "condition")
    assert (first["scheduler"], first["steps"]) == ("DPMSolverMultistepScheduler", 10)
    record = json.loads((out / "restore.json").read_text())
    assert record["sampler"] == "dpm++_2m"
    assert record["prompt"] == "a photograph"
    assert record["dtype"] == "float32"


def test_without_options_it_is_diffbir_v2(images, calls, tmp_path):
    assert restore(images, tmp_path / "out") == 0
    first = calls[0]
    assert (first["prompt"], first["negative_prompt"], first["guidance_scale"]) == ([""], NEGATIVE_PROMPT, 4)
    assert (first["scheduler"], first["steps"], first["tile"]) == ("DDPMScheduler", 50, None)
    assert first["rescale_guidance"] is False
    assert (first["control_scale"], first["noise_augmentation"], first["padding"]) == (1, 0, "mirror")
    assert len(calls) == 3  # one by one


def test_v2_1_has_its_own_prompts_and_guidance(images, calls, tmp_path):
    base = shutil.copytree(tiny_world(), tmp_path / "base")
    path = base / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace('"epsilon"', '"v_prediction"'))
    assert restore(images, tmp_path / "out", "--model", base, "--cleaner", "none") == 0
    preset = PRESETS["v2.1"]
    assert calls[0]["prompt"] == [preset.prompt]
    assert preset.prompt.startswith("Cinematic, High Contrast")
    assert calls[0]["negative_prompt"] == preset.negative_prompt
    assert calls[0]["guidance_scale"] == 8


def test_captions_stand_before_the_prompt(images, calls, tmp_path):
    lines, table = tmp_path / "captions.txt", tmp_path / "captions.json"
    lines.write_text("a woman\n\na shuttle\n")
    table.write_text(json.dumps({"sub/two.jpg": "a shuttle", "1.png": "", "0.png": "a woman", "more.png": "a cat"}))
    for path in (lines, table):
        calls.clear()
        assert restore(images, tmp_path / path.suffix, "--captions", path, "--prompt", "sharp") == 0
        assert [call["prompt"] for call in calls] == [["a woman, sharp"], ["sharp"], ["a shuttle, sharp"]]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("captions.txt", "one\ntwo\n", "has 2 captions for 3 images"),
        ("captions.txt", "1\n2\n3\n4\n", "has 4 captions for 3 images"),
        ("captions.json", '{"0.png": "a"}', "lacks captions of 2 of 3 images: 1.png; sub/two.jpg"),
        ("captions.json", "{", "is no JSON"),
        ("captions.json", "[1]", "is no table of captions"),
        ("captions.txt", b"\xff\xfe", "it is no UTF-8"),
        ("captions.txt", None, "cannot be read (No such file"),
    ],
)
def test_captions_that_do_not_fit(images, tmp_path, capsys, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = fails(capsys, images, tmp_path / "out", "--captions", path, "--model", tmp_path / "never-read")
    assert words in line
    assert str(path) in line
    assert not (tmp_path / "out").exists()


def test_samples_and_batches(images, tmp_path):
    """Three samples of each image, two at a time, are what each is alone."""
    common = ("--steps", 1, "--guidance", 1, "--seed", 7)
    assert restore(images, tmp_path / "both", *common, "--samples", 3, "--batch-size", 2) == 0
    assert made(tmp_path / "both") == [
        *(f"{name}_{number}.png" for name in (0, 1) for number in range(3)), *(f"sub/two_{n}.png" for n in range(3))
    ]  # fmt: skip
    assert restore(images, tmp_path / "one", "--steps", 1, "--guidance", 1, "--seed", 8) == 0
    for name in ("0", "1", "sub/two"):
        alone, sample, other = (
            read_image(tmp_path / path).astype(int)
            for path in (f"one/{name}.png", f"both/{name}_1.png", f"both/{name}_0.png")
        )
        assert np.abs(alone - sample).max() <= 1
        assert np.abs(alone - other).max() > 3


def test_batches_are_of_one_size_and_prompts_their_own(images, calls, tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("first\nsecond\nthird\n")
    assert restore(images, tmp_path / "out", "--batch-size", 8, "--captions", path, "--seed", 5) == 0
    assert [call["images"].shape for call in calls] == [(2, 3, 40, 32), (1, 3, 32, 50)]
    assert [call["prompt"] for call in calls] == [["first", "second"], ["third"]]
    assert [call["seed"] for call in calls] == [[5, 5], [5]]


def test_resuming_makes_the_samples_that_are_missing(images, calls, tmp_path, capsys):
    out = tmp_path / "out"
    assert restore(images, out, "--samples", 2) == 0
    (out / "1_1.png").unlink()
    calls.clear()
    assert "5 of 6 results are there already" in fails(capsys, images, out, "--samples", 2)
    assert restore(images, out, "--samples", 2, "--resume") == 0
    assert [call["seed"] for call in calls] == [[232]]
    (out / "1_1.png").unlink()
    path = tmp_path / "captions.txt"
    path.write_text("\n\n\n")
    assert "captions was None" in fails(capsys, images, out, "--samples", 2, "--resume", "--captions", path)


def test_tiles_when_memory_asks_for_them(images, calls, tmp_path, capsys, monkeypatch):
    Image.new("RGB", (520, 40)).save(images / "wide.png")
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**6)
    assert restore(images, tmp_path / "out") == 0
    assert [call["tile"] for call in calls] == [None, None, None, 512]  # only what is larger than a tile
    line = next(line for line in capsys.readouterr().err.splitlines() if "wide.png" in line)
    assert "1664x128 pixels take some" in line
    assert "in tiles of 512 (--tile 0 tries without)" in line
    calls.clear()
    assert restore(images, tmp_path / "out", "--tile", 0, "--overwrite") == 0
    assert {call["tile"] for call in calls} == {None}
    calls.clear()
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**12)
    assert restore(images, tmp_path / "out", "--overwrite") == 0
    assert {call["tile"] for call in calls} == {None}


def test_a_gpu_whose_memory_ends(images, calls, tmp_path, capsys, monkeypatch):
    Image.new("RGB", (520, 40)).save(images / "wide.png")
    work = DiffBIRPipeline.__call__

    def small(self, images, **options):
        if options["tile"] is None and images.shape[-1] > 500:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return work(self, images, **options)

    monkeypatch.setattr(DiffBIRPipeline, "__call__", small)
    assert restore(images, tmp_path / "out") == 0
    assert calls[-1]["tile"] == 512
    assert "wide.png: the GPU's memory is too small for the whole: in tiles of 512" in capsys.readouterr().err
    line = fails(capsys, images, tmp_path / "out", "--tile", 0, "--overwrite")
    assert "wide.png: the GPU's memory is too small" in line
    assert "Take a smaller --tile" in line


@pytest.mark.parametrize(
    ("device", "asked", "expected"),
    [
        ("cpu", None, "float32"),
        ("cpu", "bfloat16", "bfloat16"),
        ("cuda", None, "float16"),
        ("cuda", "float32", "float32"),
    ],
)
def test_half_precision_on_a_gpu(device, asked, expected, monkeypatch):
    """There is no GPU here: the networks stay where they are, in what was chosen for it."""
    from milo_restore import processes
    from milo_restore.models.diffbir import components

    load, asked_for = components.load_components, []
    monkeypatch.setattr(processes, "choose_device", lambda name: torch.device(name))
    monkeypatch.setattr(
        components, "load_components", lambda base, device, dtype: asked_for.append(dtype) or load(base, dtype=dtype)
    )
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *arguments: self)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = [] if asked is None else ["--dtype", asked]
    pipeline, settings = load_pipeline(
        parser.parse_args(["--task", "denoise", "--input", "i", "--output", "o", "--device", device, *given])
    )
    assert settings["dtype"] == expected
    assert asked_for == [getattr(torch, expected)]
    assert pipeline.vae.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--samples", 0), "--samples: is 0"),
        (("--batch-size", -1), "--batch-size: is -1"),
        (("--sampler", "magic"), "no sampler 'magic'"),
        (("--noise-aug", 1000), "noise_augmentation: is 1000"),
    ],
)
def test_options_out_of_their_range(images, tmp_path, capsys, arguments, words):
    assert words in fails(capsys, images, tmp_path / "out", *arguments)
    assert made(tmp_path / "out") == []


def test_the_tiny_world_takes_every_option(images, tmp_path):
    """Nothing is replaced here; every sampler, few steps."""
    path = tmp_path / "captions.txt"
    path.write_text("a woman\na face\na shuttle\n")
    common = (
        "--captions",
        path,
        "--prompt",
        "sharp",
        "--negative-prompt",
        "dull",
        "--strength",
        0.8,
        "--noise-aug",
        50,
    )
    for sampler in ("spaced", "ddim", "dpm++_2m", "UniPCMultistepScheduler"):
        out = tmp_path / sampler
        arguments = (*common, "--sampler", sampler, "--steps", 3, "--rescale-cfg", "--dtype", "bfloat16")
        assert restore(images, out, *arguments, "--batch-size", 2) == 0
        assert made(out) == ["0.png", "1.png", "sub/two.png"]
        difference = read_image(out / "0.png").astype(float) - read_image(images / "0.png")
        assert 0.5 < np.sqrt(np.square(difference).mean()) < 60  # it is the photograph, and was worked on
