"""A distortion's operation, apart from what it draws at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from milo_restore.data.kadid.arrays import Values

Draw = Callable[[np.random.Generator, tuple[int, int], float], Any]
"""A generator, (height, width) and the parameter -> the numbers that an operation wants."""


class Method(NamedTuple):
    """Recipe of one distortion type.

    Attributes:
        apply: (H, W, 3) RGB in [0, 1], the parameter and, if something is drawn, these numbers -> the same shape.
        draw: makes the numbers; None where nothing is random.
    """

    apply: Callable[..., Values]
    draw: Draw | None = None
