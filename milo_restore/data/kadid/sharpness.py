"""Sharpness and contrast: types 24 and 25."""

from __future__ import annotations

from milo_restore.data.kadid.arrays import Floats, from_lab, gaussian, to_lab, tone_curve


def high_sharpen(image: Floats, amount: float) -> Floats:
    """24: unsharp mask; the parameter (no unit) multiplies the difference to the image blurred with 3 pixels.

    It acts on Lab's lightness, as MATLAB's ``imsharpen`` does (the description names no colour space).
    """
    lab = to_lab(image)
    lightness = lab[..., 0].copy()
    lab[..., 0] += amount * (lightness - gaussian(lightness, 3.0))
    return from_lab(lab)


def contrast_change(image: Floats, amount: float) -> Floats:
    """25: a tone curve on RGB; the parameter (no unit) moves (0.25, 0.25) down and (0.75, 0.75) up by a quarter of it.

    Positive ones raise the contrast. Between the points the curve is a cubic spline. Level 3 is the reference itself,
    so that the levels are not ordered.
    """
    return tone_curve(image, [0.25, 0.75], [0.25 - amount / 4, 0.75 + amount / 4])
