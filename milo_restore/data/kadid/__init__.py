"""KADID-10k's distortion model: 25 distortions of five levels each (Lin, Hosu and Saupe, QoMEX 2019)."""

from __future__ import annotations

from milo_restore.data.kadid.model import (
    DISTORTIONS,
    GENERATORS,
    LEVELS,
    Distortion,
    GeneratorName,
    check_generator,
    distort,
    distort_with,
    find_distortion,
)

__all__ = [
    "DISTORTIONS",
    "GENERATORS",
    "LEVELS",
    "Distortion",
    "GeneratorName",
    "check_generator",
    "distort",
    "distort_with",
    "find_distortion",
]
