"""Faces in photographs: aligned, pasted back, found."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from milo_restore.data.faces import TEMPLATE, aligned_face, alignment, paste_faces
from milo_restore.errors import MissingPackage, WeightsError
from milo_restore.models.diffbir import detector

# Of scikit-image's astronaut, by eye: eyes, nose, corners of the mouth.
LANDMARKS = np.array([(203.0, 100.6), (246.6, 102.8), (226.6, 125.6), (204.6, 140.6), (242.2, 141.6)])
SIZE = (512, 512)


def resized(image, factor):
    size = tuple(round(side * factor) for side in image.shape[1::-1])
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def plain(colour, side=128):
    return np.full((side, side, 3), colour, np.uint8)


@pytest.mark.parametrize(("factor", "rms"), [(1, 3), (2, 2)])
def test_a_face_pasted_back_is_the_photograph(factor, rms):
    """On the way there are two interpolations; a shift by half a pixel would make 10 and 5 of the rms."""
    photograph, matrix = astronaut(), alignment(LANDMARKS)
    background = resized(photograph, factor)
    face = aligned_face(photograph, matrix)
    result = paste_faces(background, [face], [matrix], SIZE)
    covered = (paste_faces(background, [plain((0, 255, 0), 512)], [matrix], SIZE) != background).any(-1)
    assert (result[~covered] == background[~covered]).all()
    difference = result[covered].astype(float) - background[covered]
    assert np.sqrt((difference**2).mean()) < rms
    assert abs(difference.mean()) < 0.1
    rows, columns = np.nonzero(covered)
    radius, middle = 246 / np.linalg.norm(matrix[:, 0]), (226, 105)  # of the photograph's pixels
    assert np.ptp(columns) == pytest.approx(2 * radius * factor, abs=8 * factor)
    assert np.abs(np.mean([columns, rows], 1) - np.array(middle) * factor).max() < 4 * factor
    for x, y in np.rint(LANDMARKS * factor).astype(int):
        assert covered[y, x]


@pytest.mark.parametrize("side", [512, 128])
def test_landmarks_come_to_the_templates(side):
    matrix = alignment(LANDMARKS, side)
    there = (LANDMARKS @ matrix[:, :2].T + matrix[:, 2] + 0.5) * 512 / side - 0.5
    assert np.linalg.norm(there - TEMPLATE, axis=1).max() < 16
    assert matrix[0, 0] == pytest.approx(matrix[1, 1])
    assert matrix[0, 1] == pytest.approx(-matrix[1, 0])


def test_aligned_as_facexlib_does():
    helper_of = pytest.importorskip("facexlib.utils.face_restoration_helper")
    helper = object.__new__(helper_of.FaceRestoreHelper)  # without its networks
    helper.all_landmarks_5, helper.face_template, helper.face_size = [LANDMARKS], TEMPLATE, (512, 512)
    helper.pad_blur, helper.input_img, helper.affine_matrices, helper.cropped_faces = False, astronaut(), [], []
    helper.align_warp_face()
    matrix = alignment(LANDMARKS)
    assert np.allclose(helper.affine_matrices[0], matrix)
    assert np.abs(aligned_face(astronaut(), matrix).astype(int) - helper.cropped_faces[0]).mean() < 2


def test_a_large_face_is_reduced_with_a_filter():
    large, points = resized(astronaut(), 4), (LANDMARKS + 0.5) * 4 - 0.5
    small, expected = (aligned_face(large, alignment(points, 128), 128), aligned_face(large, alignment(points), 512))
    assert np.abs(resized(expected, 0.25).astype(int) - small).mean() < 1


def test_overlapping_faces_show_their_own_middles_in_any_order():
    background = plain((10, 20, 30), 512)
    other = LANDMARKS + (50, 10)
    matrices = [alignment(points, 128) for points in (LANDMARKS, other)]
    faces = [plain((255, 0, 0)), plain((0, 0, 255))]
    result = paste_faces(background, faces, matrices, SIZE)
    again = paste_faces(background, faces[::-1], matrices[::-1], SIZE)
    assert np.abs(result.astype(int) - again).max() <= 1
    for points, colour in ((LANDMARKS, (255, 0, 0)), (other, (0, 0, 255))):
        (x, y) = np.rint(points[2]).astype(int)
        assert np.abs(result[y, x].astype(int) - colour).max() < 25
    steps = np.abs(np.diff(result.astype(int), axis=1)).max()
    assert steps < 60  # no seam: neither between the two nor to the background


@pytest.mark.parametrize("points", [LANDMARKS - (200, 95), LANDMARKS + (300, 400), LANDMARKS / 20, LANDMARKS * 3 - 300])
def test_faces_at_borders_small_and_large(points):
    """Also of a face whose middle is the corner of the photograph, and of one of 10 pixels."""
    image = astronaut()
    matrix = alignment(points)
    face = aligned_face(image, matrix)
    assert face.shape == (512, 512, 3)
    result = paste_faces(image, [face], [matrix], SIZE)
    changed = np.abs(result.astype(int) - image)
    assert changed.mean() < 1
    assert (paste_faces(image, [255 - face], [matrix], SIZE) != image).any()


def test_what_is_no_face():
    assert alignment(np.zeros((5, 2))) is None
    image = astronaut()
    assert (paste_faces(image, [], [], SIZE) == image).all()


def test_the_detector_looks_at_640_pixels_and_answers_in_the_photographs():
    seen = []

    class Network:
        def detect_faces(self, image, confidence):
            seen.append((image, confidence))
            return np.concatenate([[1, 2, 3, 4, 0.99], 3 * LANDMARKS.ravel() + 1])[None]

    image = np.zeros((640 // 3 + 1, 427, 3), np.uint8)  # 214x427
    image[..., 0] = 200
    found = detector.RetinaFaceDetector(Network())(image)
    assert seen[0][0].shape[0] == 640
    assert (seen[0][0][300, 600] == (0, 0, 200)).all()  # BGR
    assert seen[0][1] == 0.97
    assert found.shape == (1, 5, 2)
    assert np.abs(found[0] - LANDMARKS).max() < 1


def test_retinaface_takes_a_files_weights(monkeypatch, tmp_path):
    pytest.importorskip("facexlib")
    state = {key: value.clone() for key, value in detector._network(torch.device("cpu")).state_dict().items()}
    state["ClassHead.0.conv1x1.bias"] += 1
    monkeypatch.setattr(detector, "present_weights", lambda name: tmp_path / name)
    monkeypatch.setattr(detector, "read_state", lambda path: argparse.Namespace(tensors=state))
    found = detector.load_detector()
    assert torch.equal(found.network.ClassHead[0].conv1x1.bias, state["ClassHead.0.conv1x1.bias"])
    assert found(astronaut()[:100, :120]).shape[1:] == (5, 2)
    del state["ClassHead.0.conv1x1.bias"]
    with pytest.raises(WeightsError, match="ClassHead.0.conv1x1.bias"):
        detector.load_detector()


def test_a_detector_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(tmp_path))
    monkeypatch.setenv("MILO_RESTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("milo_restore.extras.is_installed", lambda name: True)
    with pytest.raises(
        WeightsError, match="detection_Resnet50_Final.pth: is not there. Run 'milo-restore assets fetch r"
    ):
        detector.check_detector()
    (tmp_path / "detection_Resnet50_Final.pth").write_bytes(b"x")
    with pytest.raises(WeightsError, match="detection_Resnet50_Final.pth"):
        detector.check_detector()
    monkeypatch.setattr("milo_restore.extras.is_installed", lambda name: name != "facexlib")
    with pytest.raises(MissingPackage, match=r'facexlib is not installed. Run pip install "milo-restore\[faces\]"'):
        detector.check_detector()
