"""Which autoencoder's latents a metric knows, as its weights file says, and the check against what it is given."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from milo_restore.errors import ConfigError, WeightsError

PREFIX = "latent_"
"""Of the keys in a .safetensors' metadata."""


@dataclass(frozen=True)
class LatentSpace:
    """A space of latents (z - shift) * scaling, z being what the autoencoder's encoder gives.

    Attributes:
        channels: of a latent.
        scaling: one number, or one per channel; empty where it is not known.
        shift: the same.
        vae: sha256 of the autoencoder's weights, where they are known; of several files, joined by spaces.
        name: what it is called in messages.
    """

    channels: int
    scaling: tuple[float, ...] = ()
    shift: tuple[float, ...] = ()
    vae: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        for what in ("scaling", "shift"):
            numbers = getattr(self, what)
            if len(numbers) not in (0, 1, self.channels) or not all(map(math.isfinite, numbers)):
                mend = f"Give one number, or {self.channels}"
                raise ConfigError(f"no {what} of {self.channels} channels: {list(numbers)}", where="latents", mend=mend)

    def to_metadata(self) -> dict[str, str]:
        """Metadata of a .safetensors for the space; `from_metadata` reads it."""
        said: dict[str, str] = {"channels": str(self.channels), "vae": self.vae, "name": self.name}
        said |= {what: json.dumps(list(getattr(self, what))) for what in ("scaling", "shift") if getattr(self, what)}
        return {PREFIX + key: value for key, value in said.items() if value}

    @classmethod
    def from_metadata(cls, said: Mapping[str, str], path: Path) -> LatentSpace:
        """The space that a file states; four channels, of which nothing else is known, where it says nothing.

        Args:
            said: the metadata of a .safetensors, or nothing.
            path: the file, for the error.

        Raises:
            WeightsError: what it says is unreadable.
        """
        try:
            scaling, shift = (
                tuple(map(float, json.loads(said.get(PREFIX + key, "[]")))) for key in ("scaling", "shift")
            )
            channels = int(said.get(PREFIX + "channels", ANY_OF_FOUR.channels))
            return cls(channels, scaling, shift, said.get(PREFIX + "vae", ""), said.get(PREFIX + "name", ""))
        except (ValueError, TypeError, ConfigError) as error:
            raise WeightsError(f"what it says of its latents is unreadable ({error})", where=path) from error

    def differs(self, other: LatentSpace) -> str | None:
        """Difference that tells another space apart for certain, in words; None where nothing tells them apart."""
        if self.channels != other.channels:
            return f"{other.channels} channels, not {self.channels}"
        for what, word in (("scaling", "a scaling factor of"), ("shift", "a shift of")):
            own, theirs = _per_channel(getattr(self, what), self), _per_channel(getattr(other, what), self)
            if own and theirs and not all(math.isclose(*pair, rel_tol=1e-4, abs_tol=1e-6) for pair in zip(own, theirs)):
                return f"{word} {_short(getattr(other, what))}, not {_short(getattr(self, what))}"
        if self.vae and other.vae and self.vae != other.vae:
            return f"a VAE of sha256 {other.vae[:12]}, not {self.vae[:12]}"
        return None

    def refuse_unless(self, other: LatentSpace, where: str) -> None:
        """Refuse the latents of another space, where it can be told.

        Args:
            other: what is to be compared, or trained.
            where: what holds ``other``, for the error.

        Raises:
            ConfigError: naming what differs.
        """
        if (found := self.differs(other)) is not None:
            what = f"its latents have {found}: these weights are for {self}"
            raise ConfigError(
                what, where=where, mend="Train a LatentMILO for it: recipes/train_milo.py, domain: latent"
            )

    def __str__(self) -> str:
        return self.name or f"latents of {self.channels} channels"


def _per_channel(numbers: tuple[float, ...], space: LatentSpace) -> tuple[float, ...]:
    return numbers * space.channels if len(numbers) == 1 else numbers


def _short(numbers: tuple[float, ...]) -> str:
    return f"{numbers[0]:g}" if len(numbers) == 1 else f"{numbers[0]:g}, {numbers[1]:g}, ..."


STABLE_DIFFUSION = LatentSpace(4, (0.18215,), (0.0,), name="Stable Diffusion 1 and 2")
TINY_WORLD = LatentSpace(4, (0.88466,), (0.0,), name="the tiny world")
ANY_OF_FOUR = LatentSpace(4)
"""Four channels, of which nothing else is known."""
