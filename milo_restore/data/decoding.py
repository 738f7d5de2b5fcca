"""All training images decoded once, before a run needs them: every file that cannot be trained on, at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from tqdm import tqdm

from milo_restore.errors import DataError
from milo_restore.files.quarantine import Quarantine

_AT_ONCE = 4096


def decode_all(count: int, look: Callable[[int], object], known: Quarantine | None = None) -> str:
    """Look at every image, in threads; print a line for each that cannot be trained on.

    Args:
        count: how many there are.
        look: reads the one of a number, and raises where it cannot be trained on.
        known: what reading images into memory has found already.

    Returns:
        What to say where all can.

    Raises:
        DataError: some cannot.
    """
    bad = [f"{path}: {reason}" for path, reason in (known.drain() if known is not None else [])]
    total = count + len(bad)

    def fault(number: int) -> str | None:
        try:
            look(number)
        except DataError as error:
            return str(error)
        return None

    numbers = iter(range(count))
    bar = tqdm(total=count, desc="decoding", unit="image", disable=None, leave=False)
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside of Python's lock
        while part := list(islice(numbers, _AT_ONCE)):  # a future for each of millions would not fit into memory
            bad += [found for found in pool.map(fault, part) if found is not None]
            bar.update(len(part))
    for line in bad:
        print(line)
    if bad:
        mend = "Mend or remove them; a run passes over up to training.max_bad_files of them"
        raise DataError(f"{len(bad):,} of {total:,} images cannot be trained on, listed above", mend=mend)
    return f"all {total:,} images can be decoded"
