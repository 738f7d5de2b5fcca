"""Brightness changes: types 16 to 18."""

from __future__ import annotations

from milo_restore.data.kadid.arrays import Values, from_lab, to_lab, tone_curve


def brighten(image: Values, amount: float) -> Values:
    """16: a tone curve lifts the middle; the parameter (no unit) moves (0.5, 0.5) up by half of it.

    The curve, a parabola, acts on RGB and, apart from that, on Lab's lightness; the result is (2 RGB + Lab) / 3.
    """
    points = [0.5], [0.5 + amount / 2]
    lab = to_lab(image)
    lab[..., 0] = 100 * tone_curve(lab[..., 0] / 100, *points)
    return (2 * tone_curve(image, *points) + from_lab(lab)) / 3


def darken(image: Values, amount: float) -> Values:
    """17: the same curve on RGB alone, with the middle moved down by half the parameter (no unit)."""
    return tone_curve(image, [0.5], [0.5 - amount / 2])


def mean_shift(image: Values, shift: float) -> Values:
    """18: a constant added to all channels; the parameter is that constant (values in [0, 1]).

    What leaves [0, 1] is cut off, and the stretch that follows undoes the shift, not the cut: highlights or shadows are
    lost and contrast rises. Level 3 changes nothing, so that the levels are not ordered.
    """
    return (image + shift).clip(0, 1)
