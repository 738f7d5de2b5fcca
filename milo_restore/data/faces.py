"""Faces in a photograph: aligned to FFHQ's template by five landmarks, and pasted back under a soft round mask.

Coordinates are (x, y) in pixels, whole numbers at the pixels' centres. A matrix (2, 3) takes a photograph's coordinates
to those of an aligned face.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["FACE_SIDE", "TEMPLATE", "aligned_face", "alignment", "eye_distance", "paste_faces"]

Array = NDArray[np.float64]
Pixels = NDArray[np.uint8]

FACE_SIDE = 512
"""Pixels along a side of an aligned face, unless another size is asked for."""
TEMPLATE: Array = np.array(
    [[192.98138, 239.94708], [318.90277, 240.1936], [256.63416, 314.01935], [201.26117, 371.41043],
     [313.08905, 371.15118]]
)  # fmt: skip
"""Eyes, nose and corners of the mouth, the picture's left ones first, of FFHQ's faces (5, 2). Source: facexlib."""

_RIM = 10 / 512  # of a face's side: what an image network makes of its borders is left out, as DiffBIR's program does
_FEATHER = 0.2  # of the mask's radius, from its edge
_SHARPNESS = 4  # where faces overlap: of the weights, so that one point shows one face
_MARGIN = 4  # pixels that cubic interpolation may look at


def eye_distance(landmarks: Array) -> float:
    """The distance of the eyes of (5, 2) landmarks."""
    return float(np.linalg.norm(landmarks[1] - landmarks[0]))


def alignment(landmarks: Array, side: int = FACE_SIDE) -> Array | None:
    """The similarity transform that brings five landmarks closest to the template's, in the median.

    Args:
        landmarks: (5, 2), in the template's order.
        side: of the aligned face, in pixels.

    Returns:
        (2, 3); None where the landmarks are no face's, such as all in one point.

    Source: facexlib's ``FaceRestoreHelper.align_warp_face``, which DiffBIR's program calls.
    """
    target = (TEMPLATE + 0.5) * (side / FACE_SIDE) - 0.5
    matrix = cv2.estimateAffinePartial2D(np.asarray(landmarks, np.float64), target, method=cv2.LMEDS)[0]
    if matrix is None or not np.isfinite(matrix).all() or not 0 < _scale(matrix) < np.inf:
        return None
    return np.asarray(matrix, np.float64)


def aligned_face(image: Pixels, matrix: Array, side: int = FACE_SIDE) -> Pixels:
    """A face of a photograph, aligned.

    What lies beyond the photograph is mirrored, as in FFHQ's own alignment; facexlib has grey there. A face that is
    larger than ``side`` is reduced with a filter, not by leaving out pixels.

    Args:
        image: (H, W, 3).
        matrix: from `alignment`.
        side: that was given there.

    Returns:
        (side, side, 3).
    """
    corners = _mapped(_inverse(matrix), np.array([[0, 0], [side, 0], [0, side], [side, side]]) - 0.5)
    low, high = _box(corners.min(0) - _MARGIN / _scale(matrix), corners.max(0) + _MARGIN / _scale(matrix), image)
    part = image[low[1] : high[1], low[0] : high[0]]
    return _warped(part, _after_shift(matrix, low), (side, side))


def paste_faces(
    background: Pixels, faces: Sequence[Pixels], matrices: Sequence[Array], size: tuple[int, int]
) -> Pixels:
    """A photograph with faces in their places.

    Every face fades out towards the circle in its square. Where several overlap, a point shows the one in whose middle
    it lies; their order does not matter.

    Args:
        background: (H', W', 3), the photograph, possibly enlarged.
        faces: (S, S, 3) each, aligned.
        matrices: from `alignment`, one for each.
        size: height and width of the photograph that the matrices are for.

    Returns:
        (H', W', 3); outside of the circles it is the background, bit for bit.
    """
    zoom = np.array([background.shape[1] / size[1], background.shape[0] / size[0]])
    ways = [_before_zoom(matrix, zoom) for matrix in matrices]
    boxes = [_circle_box(way, len(face), background) for way, face in zip(ways, faces)]
    if not boxes:
        return background
    low, high = np.min([box[0] for box in boxes], 0), np.max([box[1] for box in boxes], 0)
    window = (slice(low[1], high[1]), slice(low[0], high[0]))
    shown = np.zeros((*background[window].shape[:2], 1), np.float32)
    total, colours = np.zeros_like(shown), np.zeros(background[window].shape, np.float32)
    for face, way, (first, last) in zip(faces, ways, boxes):
        if (last <= first).any():
            continue
        place = (slice(first[1] - low[1], last[1] - low[1]), slice(first[0] - low[0], last[0] - low[0]))
        local, extent = _after_shift(way, first), (int(last[0] - first[0]), int(last[1] - first[1]))
        nearness = _nearness(local, len(face), extent)
        weight = nearness**_SHARPNESS
        shown[place] = np.maximum(shown[place], _faded(nearness))
        total[place] += weight
        colours[place] += weight * _warped(face, _inverse(local), extent)
    result, under = background.copy(), background[window].astype(np.float32)
    over = np.divide(colours, total, out=under.copy(), where=total > 0)
    result[window] = np.rint(under + shown * (over - under)).clip(0, 255).astype(np.uint8)
    return result


def _warped(image: Pixels, matrix: Array, extent: tuple[int, int]) -> Pixels:
    """An image where a matrix puts it, (width, height) pixels, mirrored at its borders.

    What becomes smaller is first drawn finer by a whole number, then reduced by that: with a filter, in one place.
    """
    finer = max(int(np.ceil(1 / _scale(matrix) - 1e-6)), 1)
    matrix = _inverse(_before_zoom(_inverse(matrix), np.array([finer, finer])))
    large = (extent[0] * finer, extent[1] * finer)
    warped = cv2.warpAffine(image, matrix, large, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
    if finer > 1:
        warped = np.asarray(Image.fromarray(warped).resize(extent, Image.Resampling.LANCZOS))
    return np.asarray(warped, np.uint8)


def _nearness(way: Array, side: int, extent: tuple[int, int]) -> NDArray[np.float32]:
    """From 1 in the middle of a face to 0 at its circle, (H, W, 1)."""
    x, y = np.meshgrid(np.arange(extent[0], dtype=np.float32), np.arange(extent[1], dtype=np.float32))
    middle, radius = (side - 1) / 2, side * (0.5 - _RIM)
    away = np.hypot(
        way[0, 0] * x + way[0, 1] * y + way[0, 2] - middle, way[1, 0] * x + way[1, 1] * y + way[1, 2] - middle
    )
    return np.maximum(1 - away / radius, 0, dtype=np.float32)[..., None]


def _faded(nearness: NDArray[np.float32]) -> NDArray[np.float32]:
    """Share of a face that is shown: a smooth step."""
    step = np.minimum(nearness / np.float32(_FEATHER), 1)
    return np.asarray(step * step * (3 - 2 * step), np.float32)


def _circle_box(way: Array, side: int, image: Pixels) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    middle = _mapped(_inverse(way), np.array([[(side - 1) / 2, (side - 1) / 2]]))[0]
    radius = side * (0.5 - _RIM) / _scale(way)
    return _box(middle - radius, middle + radius, image)


def _box(low: Array, high: Array, image: Pixels) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First pixel and the one after the last, within the image; at least one pixel where the image is."""
    last = np.array(image.shape[1::-1]) - 1
    first = np.clip(np.floor(low), 0, last).astype(np.int64)
    return first, np.clip(np.ceil(high), first, last).astype(np.int64) + 1


def _before_zoom(matrix: Array, zoom: Array) -> Array:
    """A matrix for the coordinates of an image that was resized by (x, y) factors."""
    return np.column_stack([matrix[:, :2] / zoom, matrix[:, 2] + matrix[:, :2] @ (0.5 / zoom - 0.5)])


def _after_shift(matrix: Array, origin: NDArray[np.int64]) -> Array:
    """A matrix for the coordinates of a window that begins at ``origin``."""
    return np.column_stack([matrix[:, :2], matrix[:, 2] + matrix[:, :2] @ origin])


def _inverse(matrix: Array) -> Array:
    turn = np.linalg.inv(matrix[:, :2])
    return np.column_stack([turn, -turn @ matrix[:, 2]])


def _mapped(matrix: Array, points: Array) -> Array:
    return np.asarray(points @ matrix[:, :2].T + matrix[:, 2])


def _scale(matrix: Array) -> float:
    return float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
