"""Faces in photographs: what a detector is, and RetinaFace of the package facexlib, DiffBIR's."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from milo_restore.extras import require
from milo_restore.files import present_weights
from milo_restore.files.state import fill, read_state

__all__ = ["WEIGHTS", "FaceDetector", "RetinaFaceDetector", "check_detector", "load_detector"]

WEIGHTS = "retinaface"
"""The detector's name among the weights of ``assets``."""
_PACKAGE = "facexlib"
_SHORT_SIDE = 640  # pixels at which photographs are looked at, whatever their size
_CONFIDENCE = 0.97


class FaceDetector(Protocol):
    """Finder of faces."""

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float64]:
        """The landmarks of all faces, in the order of `milo_restore.data.faces.TEMPLATE`.

        Args:
            image: (H, W, 3), RGB.

        Returns:
            (N, 5, 2), x and y in pixels, whole numbers at their centres.
        """
        ...


class RetinaFaceDetector:
    """A `FaceDetector` with RetinaFace: photographs are looked at with a short side of 640 pixels.

    Faces of which it is not sure to 0.97 are left out.

    Args:
        network: facexlib's ``RetinaFace``.

    Source: DiffBIR's program, ``unaligned_face``.
    """

    def __init__(self, network: Any) -> None:
        self.network = network

    @torch.no_grad()
    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float64]:
        """The landmarks of all faces in an image (H, W, 3), (N, 5, 2)."""
        height, width = image.shape[:2]
        factor = _SHORT_SIDE / min(height, width)
        size = max(int(width * factor), _SHORT_SIDE), max(int(height * factor), _SHORT_SIDE)
        seen = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LANCZOS4)
        found = self.network.detect_faces(np.ascontiguousarray(seen[..., ::-1]), _CONFIDENCE)  # it takes BGR
        zoom = np.array([size[0] / width, size[1] / height])
        return (np.asarray(found, np.float64).reshape(-1, 15)[:, 5:].reshape(-1, 5, 2) + 0.5) / zoom - 0.5


def check_detector() -> Path:
    """The file of RetinaFace's weights; stops where it cannot be had, before any work.

    Raises:
        MissingPackage: facexlib is not installed.
        WeightsError: its weights are not there, or not what they should be.
    """
    require(_PACKAGE, "finding faces")
    return present_weights(WEIGHTS)


def load_detector(device: torch.device | str = "cpu") -> FaceDetector:
    """RetinaFace with its published weights.

    Raises:
        MissingPackage: facexlib is not installed.
        WeightsError: its weights are not there, damaged, or do not fit.
    """
    path = check_detector()
    return RetinaFaceDetector(fill(_network(torch.device(device)), read_state(path).tensors, path))


def _network(device: torch.device) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision about an argument of facexlib's
        from facexlib.detection.retinaface import RetinaFace

        return RetinaFace("resnet50", device=device).eval().requires_grad_(False)
