"""Pictures of results: images side by side under titles, and heat maps of masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from milo_restore.errors import DataError

_GAP = 4
_TITLE_HEIGHT = 24
_FONT_SIZE = 15
_BAR_WIDTH = 20


def comparison_grid(columns: Mapping[str, Sequence[NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    """Images side by side on white: one column per entry, under its title, and one row per image.

    Args:
        columns: title -> (H, W, 3) uint8 RGB arrays; all columns of one length. Images of different sizes keep
            their pixels: a cell is as large as the largest image of its row and column.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        DataError: no column, no row, columns of different lengths, or something that is not such an array.
    """
    lengths = {len(images) for images in columns.values()}
    if not columns or lengths == {0}:
        raise DataError("a grid needs at least one column and one row")
    if len(lengths) > 1:
        counts = ", ".join(f"{title!r} has {len(images)}" for title, images in columns.items())
        raise DataError(f"a grid's columns must be equally long: {counts}")
    for title, images in columns.items():
        for image in images:
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise DataError(f"expected (H, W, 3) uint8 arrays, got {image.shape} {image.dtype}", where=title)
    font = ImageFont.load_default(_FONT_SIZE)
    rows = list(zip(*columns.values()))
    # A title wider than its images widens the column rather than running into the next one.
    widths = [
        max(int(np.ceil(font.getlength(title))) + 4, *(image.shape[1] for image in images))
        for title, images in columns.items()
    ]
    heights = [max(image.shape[0] for image in row) for row in rows]
    size = (sum(widths) + _GAP * (len(widths) - 1), _TITLE_HEIGHT + sum(heights) + _GAP * (len(heights) - 1))
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    x = 0
    for column, (title, width) in enumerate(zip(columns, widths)):
        draw.text((x + width / 2, _TITLE_HEIGHT / 2), title, fill="black", font=font, anchor="mm")
        y = _TITLE_HEIGHT
        for row, height in zip(rows, heights):
            canvas.paste(Image.fromarray(row[column]), (x, y))
            y += height + _GAP
        x += width + _GAP
    return np.array(canvas)


def heat_map(values: Tensor, top: float) -> NDArray[np.uint8]:
    """Colours for a map: black for 0, through purple and orange, to pale yellow for ``top`` and above (magma).

    Magma is perceptually uniform and reads the same in grey and for colour-blind eyes.

    Args:
        values: (H, W), not negative, such as a MILO mask in (0, 4).
        top: the value that gets the brightest colour. The scale is linear and never chosen by the data.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        DataError: another shape, or ``top`` is not positive.
    """
    if values.ndim != 2:
        raise DataError(f"a heat map takes (H, W), got {tuple(values.shape)}")
    if not top > 0:
        raise DataError(f"the top of a heat map's scale must be positive, got {top}")
    levels = (values.detach().float().cpu() / top).clamp(0, 1).mul(255).round().byte().numpy()
    return _magma(levels)


def with_colour_bar(picture: NDArray[np.uint8], top: float, title: str) -> NDArray[np.uint8]:
    """A heat map with its scale on the right, from 0 to ``top``, under a title.

    Args:
        picture: from `heat_map`, (H, W, 3) uint8 RGB.
        top: as given to `heat_map`.
        title: what is shown.

    Returns:
        (H', W', 3) uint8 RGB: the picture's own pixels at row 24, column 0.
    """
    height, width = picture.shape[:2]
    font = ImageFont.load_default(_FONT_SIZE)
    labels = [f"{top * share:.3g}" for share in (1.0, 0.5, 0.0)]
    bar_height = max(height, 4 * _FONT_SIZE)  # the three labels must not overlap
    margin = _GAP * 2 + _BAR_WIDTH + int(max(font.getlength(label) for label in labels)) + _GAP * 2
    total = max(width + margin, int(font.getlength(title)) + 2 * _GAP)
    canvas = Image.new("RGB", (total, _TITLE_HEIGHT + bar_height + _GAP), "white")
    canvas.paste(Image.fromarray(picture), (0, _TITLE_HEIGHT))
    ramp = np.linspace(255, 0, bar_height).round().astype(np.uint8)[:, None].repeat(_BAR_WIDTH, axis=1)
    left = width + 2 * _GAP
    canvas.paste(Image.fromarray(_magma(ramp)), (left, _TITLE_HEIGHT))
    draw = ImageDraw.Draw(canvas)
    draw.text((_GAP, _TITLE_HEIGHT / 2), title, fill="black", font=font, anchor="lm")
    for label, share, anchor in zip(labels, (0.0, 0.5, 1.0), ("lt", "lm", "lb")):
        place = (left + _BAR_WIDTH + _GAP, _TITLE_HEIGHT + share * (bar_height - 1))
        draw.text(place, label, fill="black", font=font, anchor=anchor)
    return np.array(canvas)


def _magma(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    import cv2  # comes with basicsr

    return np.ascontiguousarray(cv2.applyColorMap(levels, cv2.COLORMAP_MAGMA)[..., ::-1])
