"""The table of the 25 distortions, and the functions that apply them.

Levels and operations are those of the authors' generator, distributed with KADIS-700k, as its published functions have
them. Each distortion's docstring says what cannot be known of it without MATLAB, and what stands in its place. Which
release of MATLAB made the data set's images is not known either.
"""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from milo_restore.data.kadid import blurs, brightness, colour, compression, noise, sharpness, spatial
from milo_restore.data.kadid.arrays import Values, stretch, to_bytes, to_bytes_up, to_floats
from milo_restore.data.kadid.clipped import CHANGED
from milo_restore.data.kadid.method import Draw, Method
from milo_restore.data.keys import keyed_rng
from milo_restore.errors import ConfigError, DataError, NumericsError

GeneratorName = Literal["published", "clipped"]
"""``published``: the authors' functions. ``clipped``: this project's former reading of them, see `kadid.clipped`."""

GENERATORS: tuple[GeneratorName, ...] = get_args(GeneratorName)
LEVELS = 5
SMALLEST = 16


@dataclass(frozen=True)
class Distortion:
    """One of KADID's types.

    Attributes:
        number: 1 to 25, KADID's own.
        name: KADID's name.
        group: blurs, colour, compression, noise, brightness, spatial, or sharpness and contrast.
        parameter: what the levels say.
        unit: the parameter's unit, empty for plain factors.
        levels: the parameter at levels 1 to 5.
        apply: the published operation, see `Method`.
        draw: the numbers that it draws at random; None if it draws none.
        ordered: the distortion grows from level 1 to 5; not so in types 18 and 25, whose parameter changes its sign.
    """

    number: int
    name: str
    group: str
    parameter: str
    unit: str
    levels: tuple[float, float, float, float, float]
    apply: Callable[..., Values] = field(repr=False)
    draw: Draw | None = field(default=None, repr=False)
    ordered: bool = True

    @property
    def random(self) -> bool:
        """It draws random numbers, so that it depends on the seed; in both generators."""
        return self.draw is not None

    def __str__(self) -> str:
        """Number, name, parameter and unit, such as ``01 gaussian blur, sigma (pixels)``."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.number:02d} {self.name}, {self.parameter}{unit}"


_BLUR, _COLOUR, _CODEC, _NOISE = "blurs", "colour", "compression", "noise"
_BRIGHT, _SPACE, _SHARP = "brightness", "spatial", "sharpness and contrast"
_VALUE, _PIXELS = "values in [0, 1]", "pixels"

# fmt: off
DISTORTIONS: tuple[Distortion, ...] = (
    Distortion(1, "gaussian blur", _BLUR, "sigma", _PIXELS, (0.1, 0.5, 1, 2, 5), blurs.gaussian_blur),
    Distortion(2, "lens blur", _BLUR, "radius", _PIXELS, (1, 2, 4, 6, 8), blurs.lens_blur),
    Distortion(3, "motion blur", _BLUR, "length", _PIXELS, (1, 2, 4, 6, 10), blurs.motion_blur, blurs.draw_angle),
    Distortion(4, "color diffusion", _COLOUR, "factor", "", (1, 3, 6, 8, 12), colour.colour_diffusion),
    Distortion(5, "color shift", _COLOUR, "distance", _PIXELS, (1, 3, 6, 8, 12),
               colour.colour_shift, colour.draw_direction),
    Distortion(6, "color quantization", _COLOUR, "colours", "", (64, 48, 32, 16, 8), colour.colour_quantisation),
    Distortion(7, "color saturation 1", _COLOUR, "factor", "", (0.4, 0.2, 0.1, 0, -0.4), colour.colour_saturation_hsv),
    Distortion(8, "color saturation 2", _COLOUR, "factor", "", (1, 2, 3, 6, 9), colour.colour_saturation_lab),
    Distortion(9, "jpeg2000", _CODEC, "compression ratio", "", (16, 32, 45, 120, 400), compression.jpeg2000),
    Distortion(10, "jpeg", _CODEC, "quality", "", (43, 36, 24, 7, 4), compression.jpeg),
    Distortion(11, "white noise", _NOISE, "variance", _VALUE, (0.001, 0.002, 0.003, 0.005, 0.01),
               noise.white_noise, noise.draw_normal),
    Distortion(12, "white noise in color component", _NOISE, "variance", _VALUE, (0.0001, 0.0005, 0.001, 0.002, 0.003),
               noise.white_noise_ycbcr, noise.draw_normal),
    Distortion(13, "impulse noise", _NOISE, "density", "share of values", (0.001, 0.005, 0.01, 0.02, 0.03),
               noise.impulse_noise, noise.draw_uniform),
    Distortion(14, "multiplicative noise", _NOISE, "variance", "", (0.001, 0.005, 0.01, 0.02, 0.05),
               noise.multiplicative_noise, noise.draw_uniform),
    Distortion(15, "denoise", _NOISE, "variance", _VALUE, (0.01, 0.03, 0.05, 0.1, 0.15),
               noise.denoise, noise.draw_normal),
    Distortion(16, "brighten", _BRIGHT, "amount", "", (0.1, 0.2, 0.4, 0.7, 1.1), brightness.brighten),
    Distortion(17, "darken", _BRIGHT, "amount", "", (0.05, 0.1, 0.2, 0.4, 0.8), brightness.darken),
    Distortion(18, "mean shift", _BRIGHT, "shift", _VALUE, (0.15, 0.08, 0, -0.08, -0.15), brightness.mean_shift,
               ordered=False),
    Distortion(19, "jitter", _SPACE, "standard deviation", _PIXELS, (0.05, 0.1, 0.2, 0.5, 1),
               spatial.jitter, spatial.draw_shifts),
    Distortion(20, "non-eccentricity patch", _SPACE, "patches", "", (20, 40, 60, 80, 100),
               spatial.non_eccentricity_patch, spatial.draw_patches),
    Distortion(21, "pixelate", _SPACE, "strength", "", (0.01, 0.05, 0.1, 0.2, 0.5), spatial.pixelate),
    Distortion(22, "quantization", _SPACE, "thresholds", "", (20, 16, 13, 10, 7), spatial.quantisation),
    Distortion(23, "color block", _SPACE, "blocks", "", (2, 4, 6, 8, 10), spatial.colour_block, spatial.draw_blocks),
    Distortion(24, "high sharpen", _SHARP, "amount", "", (1, 2, 3, 6, 12), sharpness.high_sharpen),
    Distortion(25, "contrast change", _SHARP, "amount", "", (0.3, 0.15, 0, -0.4, -0.6), sharpness.contrast_change,
               ordered=False),
)
# fmt: on


def distort(
    image: NDArray[np.uint8], number: int, level: int, *, seed: int = 0, generator: GeneratorName = "published"
) -> NDArray[np.uint8]:
    """Apply one distortion. A pure function of its arguments: random draws belong to the image's content and the rest.

    Args:
        image: (H, W, 3) uint8 RGB, both sides at least 16. It is not changed. Its extremes matter, see `kadid.arrays`:
            the data set's own images were distorted whole.
        number: 1 to 25, see `DISTORTIONS`.
        level: 1 to 5.
        seed: a whole number of at most 64 bits; only the types marked ``random`` depend on it.
        generator: one of `GENERATORS`.

    Returns:
        (H, W, 3) uint8 RGB of the same size, a new array.

    Raises:
        ConfigError: no such distortion, level or generator, or a seed of more than 64 bits.
        DataError: another shape or type, or a side below 16.
        NumericsError: a distortion gave NaN or another size; that would be a bug here.
    """
    kind = DISTORTIONS[_whole(number, len(DISTORTIONS), "distortion") - 1]
    value = kind.levels[_whole(level, LEVELS, "level") - 1]
    if not -(2**63) <= seed < 2**63:
        raise ConfigError(f"must be a whole number of 64 bits, got {seed}", where="seed")
    check_generator(generator)
    image = _checked(image)
    method = Method(kind.apply, kind.draw)
    if generator == "clipped":
        method = CHANGED.get(kind.number, method)
    drawn: tuple[Any, ...] = ()
    if method.draw is not None:
        rng = keyed_rng(seed, "kadid", kind.number, int(level), zlib.crc32(image.data))
        drawn = (method.draw(rng, (image.shape[0], image.shape[1]), value),)
    if generator == "clipped":
        return to_bytes(_sound(method.apply(to_floats(image), value, *drawn), image, kind, level))
    return _published(image, kind, level, *drawn)


def distort_with(image: NDArray[np.uint8], number: int, level: int, numbers: Any) -> NDArray[np.uint8]:
    """Apply one of the published generator's random distortions with given numbers in place of drawn ones.

    Args:
        image: (H, W, 3) uint8 RGB, both sides at least 16.
        number: 1 to 25, one that is ``random``.
        level: 1 to 5.
        numbers: what the type's ``draw`` gives. 03: an angle in degrees; 05: two uniform numbers, down and right; 11,
            12 and 15: normal numbers, (H, W, 3); 13 and 14: uniform ones, (H, W, 3); 19: normal ones, (5, H, W, 2); 20:
            uniform ones, (patches, 4), column, row, target's column and row; 23: (blocks, 5), colour, column, row.

    Raises:
        ConfigError: no such distortion or level, or one that draws nothing.
        DataError: an image that `distort` refuses, or numbers of another shape.
        NumericsError: see `distort`.
    """
    kind = DISTORTIONS[_whole(number, len(DISTORTIONS), "distortion") - 1]
    value = kind.levels[_whole(level, LEVELS, "level") - 1]
    if kind.draw is None:
        raise ConfigError("draws no random numbers", where=f"distortion {number}", mend="Use distort")
    image = _checked(image)
    wanted = np.shape(kind.draw(np.random.default_rng(0), (image.shape[0], image.shape[1]), value))
    if np.shape(numbers) != wanted:
        raise DataError(f"takes numbers of shape {wanted}, got {np.shape(numbers)}", where=f"distortion {number}")
    return _published(image, kind, level, numbers)


def check_generator(name: str) -> None:
    """Refuse what is none of `GENERATORS`.

    Raises:
        ConfigError: another name.
    """
    if name not in GENERATORS:
        raise ConfigError(f"no generator {name!r}", where="generator", mend=f"There are {' and '.join(GENERATORS)}")


def find_distortion(text: str | int) -> Distortion:
    """A distortion by number or name; capitals, hyphens and underscores in names do not matter.

    Raises:
        ConfigError: there is none such; the nearest name is told.
    """
    plain = str(text).strip().lower().replace("_", " ")
    if plain.isdecimal() and 1 <= int(plain) <= len(DISTORTIONS):
        return DISTORTIONS[int(plain) - 1]
    names = {kind.name.replace("-", " "): kind for kind in DISTORTIONS}
    wanted = plain.replace("-", " ").replace("colour", "color").replace("isation", "ization")
    if wanted in names:
        return names[wanted]
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.5)
    mend = f"Did you mean {names[close[0]].name!r}?" if close else "'milo-restore levels' lists them"
    raise ConfigError(f"no distortion {str(text)!r} (numbers are 1 to {len(DISTORTIONS)})", mend=mend)


def _whole(value: int, last: int, what: str) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or not 1 <= value <= last:
        raise ConfigError(f"must be a whole number from 1 to {last}, got {value!r}", where=what)
    return int(value)


def _checked(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        found = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise DataError(f"expected an (H, W, 3) uint8 array, got {found}")
    if min(image.shape[:2]) < SMALLEST:
        size = f"{image.shape[1]}x{image.shape[0]}"
        raise DataError(f"images must be at least {SMALLEST}x{SMALLEST} pixels, got {size} (width x height)")
    return np.ascontiguousarray(image)


def _published(image: NDArray[np.uint8], kind: Distortion, level: int, *drawn: Any) -> NDArray[np.uint8]:
    """Stretched, distorted, stretched again, 8 bits."""
    values = stretch(image) if image.min() < image.max() else image / 255
    return to_bytes_up(stretch(_sound(kind.apply(values, kind.levels[level - 1], *drawn), image, kind, level)))


def _sound(result: Values, image: NDArray[np.uint8], kind: Distortion, level: int) -> Values:
    if result.shape != image.shape or not np.isfinite(result).all():
        where = f"distortion {kind.number}, level {level}"
        raise NumericsError(f"gave {result.shape} or NaN for {image.shape}", where=where)
    return result
