"""Sharpness and contrast: types 24 and 25."""

from __future__ import annotations

from milo_restore.data.kadid.arrays import Values, from_lab, gaussian, to_lab, tone_curve


def high_sharpen(image: Values, amount: float) -> Values:
    """24: unsharp mask; the parameter (no unit) multiplies the difference to the image blurred with 3 pixels.

    It acts on Lab's lightness, as MATLAB's ``imsharpen`` does, which may leave [0, 100] there.
    """
    lab = to_lab(image)
    lab[..., 0] += amount * (lab[..., 0] - gaussian(lab[..., 0].copy(), 3.0))
    return from_lab(lab)


def contrast_change(image: Values, amount: float) -> Values:
    """25: a tone curve on RGB through (0.3, 0.25 - v/4), (0.5, 0.5) and (0.7, 0.75 + v/4).

    The larger the parameter v (no unit) the higher the contrast. The curve would be the identity at -0.2, which is no
    level: level 3 (v = 0) raises contrast a little, and the levels are not ordered.
    """
    return tone_curve(image, [0.3, 0.5, 0.7], [0.25 - amount / 4, 0.5, 0.75 + amount / 4])
