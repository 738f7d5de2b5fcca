"""Random numbers that belong to a sample, not to a process: what a run draws does not depend on how it is split."""

from __future__ import annotations

import functools
import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class SampleKey(NamedTuple):
    """Names one training sample. Any tuple of these four numbers will do.

    Attributes:
        step: the optimisation step, from 1.
        index: the sample's number within that step's effective batch, from 0.
        position: how many samples were drawn before it in the whole run; decides which image it comes from.
        patch: side of the crop, in pixels.
    """

    step: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    position: int
    patch: int


def keyed_rng(seed: int, stream: str, *key: int) -> np.random.Generator:
    """A generator that is a pure function of its arguments; other arguments give an independent one.

    Args:
        seed: the run's seed.
        stream: what the numbers are for, such as ``"noise"``: streams do not share numbers.
        key: whole numbers from -2^63 to 2^63 - 1, in a fixed order.

    Raises:
        OverflowError: a number does not fit in 64 bits.
    """
    # SeedSequence pads short entropy with zeros and joins whole numbers without their lengths, so that (1,) and
    # (1, 0) would be one seed. A digest over fixed-width words keeps all keys apart.
    words = [number.to_bytes(8, "little", signed=True) for number in (seed, *key)]
    digest = hashlib.sha256(stream.encode() + b"\0" + b"".join(words)).digest()
    entropy = np.frombuffer(digest, dtype="<u4").astype(np.uint32)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy.tolist())))


@functools.lru_cache(maxsize=2)  # a step may straddle two epochs; a large set's order takes tens of megabytes
def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The order in which an epoch visits ``count`` samples: a permutation of 0 to count - 1. Not to be written to."""
    return keyed_rng(seed, "epoch", epoch).permutation(count)
