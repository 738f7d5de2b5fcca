"""Generated images and one clip, for training runs of BasicSR of seconds."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

FRAMES = 3


def make_images(folder: Path) -> Path:
    """One training image, validation images, one clip; each with its quarter-sized ``lq``; and their lists."""
    rng = np.random.default_rng(0)
    _pair(folder / "train", "0001.png", (144, 160), rng)
    _pair(folder / "val", "a.png", (64, 80), rng)
    _pair(folder / "val", "b.png", (72, 64), rng)
    _pair(folder / "val_2", "c.png", (208, 200), rng)  # NIQE wants two blocks of 96 pixels inside its border
    for frame in range(FRAMES):
        _pair(folder / "video", f"001/{frame:08d}.png", (144, 160), rng)
    (folder / "images.txt").write_text("0001.png (144,160,3)\n")
    (folder / "clips.txt").write_text("001 1 (144,160,3)\n")  # one starting frame
    return folder


def _pair(folder: Path, name: str, size: tuple[int, int], rng: np.random.Generator) -> None:
    """Random blobs of several sizes, and what bicubic resizing to a quarter makes of them."""
    height, width = size
    layers = [cv2.resize(rng.random((height // n + 1, width // n + 1, 3)), (width, height)) for n in (1, 4, 16)]
    image = np.uint8(255 * np.mean(layers, axis=0))
    small = cv2.resize(image, (width // 4, height // 4), interpolation=cv2.INTER_CUBIC)
    for kind, pixels in (("gt", image), ("lq", small)):
        path = folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), pixels)
