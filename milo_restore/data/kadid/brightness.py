"""Brightness changes: types 16 to 18."""

from __future__ import annotations

import numpy as np

from milo_restore.data.kadid.arrays import Floats, from_lab, to_lab, tone_curve


def brighten(image: Floats, amount: float) -> Floats:
    """16: a tone curve lifts the middle; the parameter (no unit) moves (0.5, 0.5) up by half of it.

    The curve acts on RGB and, apart from that, on Lab's lightness; the result is (2 RGB + Lab) / 3. Between the points
    it is a cubic spline, here a parabola, clipped to [0, 1].
    """
    return _lift(image, 0.5 + amount / 2)


def darken(image: Floats, amount: float) -> Floats:
    """17: as type 16, with the middle moved down by half the parameter (no unit).

    The description leaves open whether Lab takes part; here it does, so that 16 and 17 mirror each other.
    """
    return _lift(image, 0.5 - amount / 2)


def mean_shift(image: Floats, shift: float) -> Floats:
    """18: a constant added to all channels; the parameter is that constant (values in [0, 1]).

    Level 3 is the reference itself, so that the levels are not ordered.
    """
    return image + np.float32(shift)


def _lift(image: Floats, middle: float) -> Floats:
    lab = to_lab(image)
    lab[..., 0] = 100 * tone_curve(lab[..., 0] / np.float32(100), [0.5], [middle])
    return np.float32(2 / 3) * tone_curve(image, [0.5], [middle]) + from_lab(lab) / np.float32(3)
