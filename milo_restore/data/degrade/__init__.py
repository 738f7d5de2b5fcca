"""Degradations that make training pairs out of clean images, with the published values of DiffBIR as defaults.

Each is a frozen dataclass of settings and a function of (image, settings, generator). What a sample becomes depends on
its generator alone, see `milo_restore.data.keys.keyed_rng`: the global generators are neither read nor moved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from milo_restore.data.degrade.arrays import Floats, check_image
from milo_restore.data.degrade.codeformer import CodeFormerSettings, FaceSettings, degrade_codeformer
from milo_restore.data.degrade.noise import BlindNoiseSettings, degrade_noise
from milo_restore.data.degrade.realesrgan import RealESRGANSettings, degrade_realesrgan
from milo_restore.errors import ConfigError

__all__ = [
    "DEGRADATIONS",
    "BlindNoiseSettings",
    "CodeFormerSettings",
    "Degradation",
    "FaceSettings",
    "RealESRGANSettings",
    "build_degradation",
]

Settings = CodeFormerSettings | RealESRGANSettings | BlindNoiseSettings

DEGRADATIONS: dict[str, type[Settings]] = {
    "codeformer": CodeFormerSettings,  # DiffBIR v2
    "realesrgan": RealESRGANSettings,  # DiffBIR v2.1
    "face": FaceSettings,  # DiffBIR v1, faces
    "noise": BlindNoiseSettings,  # blind denoising
}
"""The settings of each degradation, by name. Without arguments they hold the published values."""

_FUNCTIONS: dict[str, Callable[..., tuple[Floats, Floats]]] = {
    "codeformer": degrade_codeformer,
    "realesrgan": degrade_realesrgan,
    "face": degrade_codeformer,
    "noise": degrade_noise,
}


@dataclass(frozen=True)
class Degradation:
    """A degradation with its settings; its ``repr`` names all values, so that a cache can be keyed by it.

    Attributes:
        name: one of `DEGRADATIONS`.
        settings: an instance of the class that stands there.
    """

    name: str
    settings: Any

    def __call__(self, image: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """Degrade an image.

        Args:
            image: (H, W, 3) float32 RGB in [0, 1]; not changed.
            rng: the sample's own generator.

        Returns:
            The degraded image and the target, both (H, W, 3) float32. The degraded one lies in [0, 1], except for
            Gaussian noise, which is not clipped. The target is ``image`` itself unless the settings sharpen it.

        Raises:
            DataError: another shape or type.
        """
        check_image(image)
        return _FUNCTIONS[self.name](image, self.settings, rng)


def build_degradation(name: str, settings: Settings | None = None, **changes: Any) -> Degradation:
    """A degradation by name.

    Args:
        name: one of `DEGRADATIONS`: ``codeformer``, ``realesrgan``, ``face`` or ``noise``.
        settings: of that degradation's class; None: the published values.
        changes: single settings in place of those, such as ``sigma=(25, 25)``.

    Raises:
        ConfigError: no such degradation or setting, settings of another one, or a value out of its range.
    """
    if name not in DEGRADATIONS:
        raise ConfigError(f"no degradation {name!r}", where="degradation", mend=f"Known: {', '.join(DEGRADATIONS)}")
    kind = DEGRADATIONS[name]
    settings = kind() if settings is None else settings
    if not isinstance(settings, kind):
        raise ConfigError(f"{name} takes {kind.__name__}, got {type(settings).__name__}", where="degradation")
    try:
        return Degradation(name, replace(settings, **changes))
    except (TypeError, ValueError) as error:
        raise ConfigError(" ".join(str(error).split()), where=f"degradation {name}") from error
