"""Captions of training images: which of an image's a sample shows, and which samples show none."""

from __future__ import annotations

from dataclasses import dataclass

from milo_restore.data.keys import keyed_rng


@dataclass(frozen=True)
class TextSettings:
    """Shares of what is drawn for each sample.

    DiffBIR v2 empties half of its captions; v2.1 shows the long caption to 20 % and empties 20 % (configs/train of its
    repository, commit 3f8b530).
    """

    empty: float = 0.0  # share of samples whose text is ""
    long: float = 0.0  # share that shows the long caption, where an image has two

    def __post_init__(self) -> None:
        if not (0 <= self.empty <= 1 and 0 <= self.long <= 1):
            raise ValueError(f"empty and long are shares from 0 to 1, got {self.empty} and {self.long}")


def text_of(texts: tuple[str, ...], settings: TextSettings, seed: int, step: int, index: int) -> str:
    """A sample's text: one of its image's captions or "", drawn by the sample's key.

    Args:
        texts: the image's: none, one, or a short and a long one.
        settings: the shares.
        seed: the run's.
        step: of the sample's key,
        index: and its place in the batch.
    """
    first, second = keyed_rng(seed, "text", step, index).random(2)
    if not texts or second < settings.empty:
        return ""
    return texts[-1] if first < settings.long else texts[0]
