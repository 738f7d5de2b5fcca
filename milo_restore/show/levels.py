"""MILO against KADID's distortion levels: predicted scores, the supplement's Figure 1, and a sheet of all levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from milo_restore.data import to_tensor
from milo_restore.data.kadid import DISTORTIONS, LEVELS, Distortion, GeneratorName, distort
from milo_restore.metric import MaskedMetric

Picture = NDArray[np.uint8]

_SCENE = (240, 160)  # what the sheet distorts, and the centre of it that a cell shows: width, height
_CELL = (94, 64)
_GAP = 4
_CHARTS_ACROSS = 5
_LABEL_WIDTH = 224
_LINE = 15  # height of a line of text


class Prediction(NamedTuple):
    """MILO's predicted mean opinion score of one image at one level; level 0 is the undistorted image."""

    image: str
    level: int
    value: float | None
    mos: float


def predictions(
    metric: MaskedMetric, device: torch.device | str, name: str, steps: Sequence[Picture], kind: Distortion
) -> list[Prediction]:
    """MILO's predicted MOS of an image and its distorted versions.

    Args:
        metric: on ``device``.
        device: where to compute.
        name: the image's name.
        steps: (H, W, 3) uint8: the image, then levels 1 to 5.
        kind: the distortion.
    """
    reference = to_tensor(steps[0])[None].to(device)
    with torch.no_grad():
        scores = [float(metric.mos(to_tensor(step)[None].to(device), reference=reference)) for step in steps]
    return [Prediction(name, level, value, mos) for level, (value, mos) in enumerate(zip((None, *kind.levels), scores))]


def draw_figure(lines: Sequence[Sequence[Prediction]], steps: Sequence[Sequence[Picture]], kind: Distortion) -> Picture:
    """Predicted MOS against level, one line per image, with the images' centres under their levels.

    Args:
        lines: the `predictions` of each image.
        steps: each image and its levels 1 to 5.
        kind: the distortion.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot: that would keep figures and settings for the whole process

    heights = [3.6, *[1.22] * len(steps)]  # inches
    figure = Figure(figsize=(7.2, sum(heights)), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    chart, *rows = figure.subplots(len(heights), 1, height_ratios=heights)
    for line in lines:
        chart.plot([row.level for row in line], [row.mos for row in line], marker="o", label=line[0].image)
    chart.set_xticks(range(6), ["0\nreference", *(f"{n}\n{value:g}" for n, value in enumerate(kind.levels, 1))])
    chart.set(xlim=(-0.5, 5.5), ylabel="predicted MOS (MILO)", xlabel=f"level; {kind}")
    chart.grid(alpha=0.3)
    chart.legend()
    for axes, images in zip(rows, steps):
        for level, image in enumerate(images):
            place = (level - 0.48, level + 0.48, -0.48, 0.48)
            axes.imshow(_centre(image, (132, 132)), extent=place, aspect="auto")  # equal would leave the levels above
        axes.set(xlim=(-0.5, 5.5), ylim=(-0.5, 0.5))
        axes.axis("off")
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def draw_all(found: Sequence[tuple[Distortion, Sequence[Sequence[Prediction]]]]) -> Picture:
    """Predicted MOS against level of several distortions, a small chart each, on one scale; one line per image.

    Args:
        found: distortions with the `predictions` of each image.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(len(found), _CHARTS_ACROSS)
    down = -(-len(found) // across)
    figure = Figure(figsize=(2.4 * across, 1.9 * down + 0.6), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    charts = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for chart, (kind, lines) in zip(charts, found):
        for line in lines:
            chart.plot([row.level for row in line], [row.mos for row in line], marker="o", ms=3, label=line[0].image)
        chart.set_title(f"{kind.number:02d} {kind.name}", fontsize=8)
        chart.set_xticks(range(LEVELS + 1))
        chart.grid(alpha=0.3)
    for chart in charts[len(found) :]:
        chart.axis("off")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8)
    figure.supxlabel("level; 0 is the image itself", fontsize=9)
    figure.supylabel("predicted MOS (MILO)", fontsize=9)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def draw_sheet(image: Picture, *, seed: int = 0, generator: GeneratorName = "published") -> Picture:
    """A contact sheet: one row per distortion, one column per level, the parameter's value under each cell.

    The image is shrunk (or enlarged) to cover 240x160 pixels before it is distorted, so that blocks and patches show;
    a cell is the middle of that, pixel by pixel.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    scene = np.asarray(ImageOps.fit(Image.fromarray(image), _SCENE, Image.Resampling.LANCZOS))
    large, small = ImageFont.load_default(13), ImageFont.load_default(11)
    across, down = _CELL[0] + _GAP, _CELL[1] + _LINE + _GAP
    top = _LINE + 2 * _GAP
    sheet = Image.new("RGB", (_LABEL_WIDTH + LEVELS * across, top + len(DISTORTIONS) * down), "white")
    draw = ImageDraw.Draw(sheet)
    for level in range(1, LEVELS + 1):
        middle = _LABEL_WIDTH + (level - 1) * across + _CELL[0] / 2
        draw.text((middle, _GAP + _LINE / 2), f"level {level}", fill="black", font=large, anchor="mm")
        for row, kind in enumerate(DISTORTIONS):
            distorted = distort(scene, kind.number, level, seed=seed, generator=generator)
            cell = Image.fromarray(_centre(distorted, _CELL))
            sheet.paste(cell, (round(middle - _CELL[0] / 2), top + row * down))
            place = (middle, top + row * down + _CELL[1] + _LINE / 2)
            draw.text(place, f"{kind.levels[level - 1]:g}", fill="black", font=small, anchor="mm")
    for row, kind in enumerate(DISTORTIONS):
        y = top + row * down + _CELL[1] / 2
        draw.text((_GAP, y - 9), f"{kind.number:02d} {kind.name}", fill="black", font=large, anchor="lm")
        detail = f"{kind.parameter}, {kind.unit}" if kind.unit else kind.parameter
        draw.text((_GAP, y + 9), detail, fill="dimgray", font=small, anchor="lm")
    return np.array(sheet)


def _centre(image: Picture, size: tuple[int, int]) -> Picture:
    """The middle of an image, at most ``size`` (width, height)."""
    width, height = min(size[0], image.shape[1]), min(size[1], image.shape[0])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]
