"""``milo-restore restore --faces in-photo``: photographs with faces, on the tiny world, with fixed landmarks."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut
from test_faces import LANDMARKS

from milo_restore.cli import main
from milo_restore.data import read_image
from milo_restore.models.diffbir import detector

CORNER = np.array([120, 20])  # of a part of the photograph with the face
PART = astronaut()[20:220, 120:340]
FAST = ("--steps", 1, "--guidance", 1, "--device", "cpu")


@pytest.fixture
def photographs(tmp_path):
    """One photograph, upright; and the same in a subfolder, turned, with the orientation in its EXIF data."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(PART).save(folder / "one.png")
    turned, exif = Image.fromarray(PART).rotate(90, expand=True), Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "sub" / "two.tiff", exif=exif)
    return folder


@pytest.fixture
def landmarks(monkeypatch):
    """What the detector finds, which a test may change."""
    found = [LANDMARKS - CORNER]
    monkeypatch.setattr(detector, "check_detector", lambda: None)
    monkeypatch.setattr(detector, "load_detector", lambda device: lambda image: np.array(found).reshape(-1, 5, 2))
    return found


def restore(*arguments, task="face"):
    return main(["restore", "--task", task, "--faces", "in-photo", *map(str, (*arguments, *FAST))])


def fails(capsys, *arguments, **options):
    assert restore(*arguments, **options) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_faces_are_restored_in_their_places(photographs, landmarks, tmp_path, capsys):
    out, faces = tmp_path / "out", tmp_path / "faces"
    common = ("--input", photographs, "--output", out)
    assert restore(*common, "--background", "resized", "--save-faces", faces) == 0
    assert capsys.readouterr().out == f"2 images restored, with 2 faces: {out}\n"
    one, two = read_image(out / "one.png"), read_image(out / "sub" / "two.png")
    assert (one == two).all()  # EXIF's orientation is applied
    changed = (one != PART).any(-1)
    x, y = np.rint(LANDMARKS - CORNER).astype(int).T
    assert 0.2 < changed.mean() < 0.6
    assert changed[y, x].mean() > 0.7
    assert not changed[180:].any()  # below the circle, bit for bit
    names = sorted(path.relative_to(faces).as_posix() for path in faces.rglob("*.png"))
    assert names == [f"{kind}/{name}_face0.png" for kind in ("input", "restored") for name in ("one", "sub/two")]
    assert read_image(faces / "input" / "one_face0.png").shape == (128, 128, 3)  # what the tiny UNet knows
    record = json.loads((out / "restore.json").read_text())
    assert (record["faces"], record["background"], record["cleaner"]) == ("in-photo", "resized", "tiny:face")
    assert "faces was in-photo, is None" in fails_aligned(capsys, *common, "--resume")


def fails_aligned(capsys, *arguments):
    (arguments[3] / "one.png").unlink()
    assert main(["restore", "--task", "face", *map(str, (*arguments, *FAST))]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_the_background_is_restored_and_samples_share_a_face(photographs, landmarks, tmp_path, capsys):
    alone, out = tmp_path / "alone", tmp_path / "out"
    common = ("--input", photographs / "one.png", "--upscale", 2, "--samples", 2)
    landmarks.append(landmarks[0] + (20, 10))
    assert restore(*common, "--output", out, "--batch-size", 2) == 0
    captured = capsys.readouterr()
    assert captured.out == f"1 image restored, with 2 faces: {out}\n"
    assert "background tiny:sr" in captured.err
    landmarks.clear()
    assert restore(*common, "--output", alone) == 0
    captured = capsys.readouterr()
    assert captured.err.count("no face found: the background alone") == 1
    assert captured.out == f"1 image restored, with 0 faces: {alone}\n"
    for name in ("one_0.png", "one_1.png"):
        with_faces, without = read_image(out / name), read_image(alone / name)
        assert with_faces.shape == without.shape == (400, 440, 3)
        changed = (with_faces != without).any(-1)
        assert 0.2 < changed.mean() < 0.8
        assert not changed[385:].any()
    assert (read_image(out / "one_0.png") != read_image(out / "one_1.png")).any()


def test_faces_too_small_to_restore(photographs, landmarks, tmp_path, capsys):
    landmarks[:] = [landmarks[0] / 20]
    common = ("--input", photographs / "one.png", "--background", "resized")
    assert restore(*common, "--output", tmp_path / "small") == 0
    assert "one.png: the 1 in it are too small: the background alone" in capsys.readouterr().err
    assert (read_image(tmp_path / "small" / "one.png") == PART).all()
    assert restore(*common, "--output", tmp_path / "large", "--upscale", 4) == 0  # of the result's pixels
    assert "with 1 face:" in capsys.readouterr().out


def test_arguments_that_do_not_fit(photographs, landmarks, tmp_path, capsys):
    common = ("--input", photographs, "--output", tmp_path / "out")
    assert "--faces in-photo: is for --task face" in fails(capsys, *common, task="sr")
    for folder in (tmp_path / "out", photographs / "faces"):
        assert "holds the images or their results" in fails(capsys, *common, "--save-faces", folder)
    assert "no such cleaner" in fails(capsys, *common, "--background", "windex")
    assert "take v2 or v2.1, or --background resized" in fails(capsys, *common, "--version", "v1").lower()
    assert main(["restore", "--task", "face", *map(str, (*common, "--background", "resized"))]) == 2
    assert "--background: is for photographs with faces. Add --faces in-photo" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_a_detector_nothing_begins(photographs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(tmp_path))
    monkeypatch.setenv("MILO_RESTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("milo_restore.extras.is_installed", lambda name: True)
    (photographs / "bad.png").write_bytes(b"")
    common = ("--input", photographs, "--output", tmp_path / "out", "--model", tmp_path / "never-read")
    assert "Run 'milo-restore assets fetch retinaface'" in fails(capsys, *common)
    monkeypatch.setattr("milo_restore.extras.is_installed", lambda name: name != "facexlib")
    line = fails(capsys, *common)
    assert line.startswith("milo-restore: error: finding faces: facexlib is not installed. Run pip install")
    assert not (tmp_path / "out").exists()
