"""Blur kernels: drawn from the sample's own generator, computed by basicsr's deterministic functions.

basicsr's own random functions draw from the global generators of NumPy and `random`, which belong to the process and
not to the sample. Only its functions without chance are used here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Range = tuple[float, float]
"""Lowest and highest value of a uniform draw."""


class Kernel(NamedTuple):
    """All that decides a blur kernel.

    Attributes:
        kind: ``iso``, ``aniso``, ``generalized_iso``, ``generalized_aniso``, ``plateau_iso``, ``plateau_aniso`` as
            basicsr names them, or ``sinc``.
        size: side in pixels, odd.
        sigma_x: width along the first axis of the ellipse, in pixels; the only one of the round kinds.
        sigma_y: width along the second axis.
        angle: of the ellipse, in radians.
        beta: shape of the generalised and plateau kinds; 1 is the plain Gaussian of the former.
        cutoff: frequency where ``sinc`` ends, in radians per pixel; pi is the highest that pixels can hold.
    """

    kind: str
    size: int
    sigma_x: float = 0.0
    sigma_y: float = 0.0
    angle: float = 0.0
    beta: float = 1.0
    cutoff: float = math.pi

    def array(self) -> NDArray[np.float32]:
        """(size, size) float32, point-symmetric, sum 1."""
        basicsr = load_degradations()
        if self.kind == "sinc":
            with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 at the centre, which basicsr then fills
                return np.asarray(basicsr.circular_lowpass_kernel(self.cutoff, self.size), dtype=np.float32)
        shape: dict[str, Any] = {"isotropic": self.kind.endswith("iso") and not self.kind.endswith("aniso")}
        place = (self.size, self.sigma_x, self.sigma_y, self.angle)
        if self.kind.startswith("generalized"):
            kernel = basicsr.bivariate_generalized_Gaussian(*place, self.beta, **shape)
        elif self.kind.startswith("plateau"):
            kernel = basicsr.bivariate_plateau(*place, self.beta, **shape)
        else:
            kernel = basicsr.bivariate_Gaussian(*place, **shape)
        return np.asarray(kernel, dtype=np.float32)


@functools.cache
def load_degradations() -> ModuleType:
    """``basicsr.data.degradations``, imported when first needed: it brings all of basicsr's data sets along."""
    with np.errstate():  # the module switches NumPy's warnings off for the whole process; this puts them back
        import basicsr.data.degradations as degradations
    return degradations


def draw_gaussian_kernel(
    rng: np.random.Generator,
    kinds: Sequence[str],
    shares: Sequence[float],
    size: int,
    sigma: Range,
    *,
    beta_generalized: Range = (1.0, 1.0),
    beta_plateau: Range = (1.0, 1.0),
) -> Kernel:
    """One kernel of a mixture, as basicsr's ``random_mixed_kernels`` draws it.

    Args:
        rng: the sample's own generator.
        kinds: see `Kernel`.
        shares: how often each kind comes; they are scaled to a sum of 1.
        size: side in pixels, odd.
        sigma: range of both widths, in pixels.
        beta_generalized: range of the shape of generalised kernels. Half of them come from below 1, half from above.
        beta_plateau: the same of plateau kernels; a range that starts at 1 gives exactly 1 half of the time.
    """
    kind = str(rng.choice(list(kinds), p=np.asarray(shares, dtype=float) / sum(shares)))
    sigma_x = sigma_y = float(rng.uniform(*sigma))
    angle, beta = 0.0, 1.0
    if kind.endswith("aniso"):
        sigma_y, angle = float(rng.uniform(*sigma)), float(rng.uniform(-math.pi, math.pi))
    if kind.startswith(("generalized", "plateau")):
        low, high = beta_generalized if kind.startswith("generalized") else beta_plateau
        beta = float(rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high))
    return Kernel(kind, size, sigma_x, sigma_y, angle, beta)


def draw_sinc_kernel(rng: np.random.Generator, size: int, lowest: float) -> Kernel:
    """A sinc filter, which rings, with its cutoff uniform from ``lowest`` to pi (radians per pixel)."""
    return Kernel("sinc", size, cutoff=float(rng.uniform(lowest, math.pi)))
