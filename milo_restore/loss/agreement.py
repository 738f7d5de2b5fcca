"""Warning about weights that are not close enough to the official ones to be called MILO in a loss."""

from __future__ import annotations

import warnings

from milo_restore.metric import WeightsInfo

GOAL = {"gradient_cosine": 0.9, "mask_correlation": 0.8}
"""Goal for weights that stand in for the official ones in a loss."""

_told: set[str] = set()  # hashes, for one process


def warn_below_goal(weights: WeightsInfo | None, *, stacklevel: int = 3) -> None:
    """Warn, once per process and file, of weights whose recorded agreement with the official ones is below `GOAL`.

    Nothing is known of a file without a record; ``mini`` has to have one.

    Args:
        weights: which a loss is built from; None for an untrained metric.
        stacklevel: as in `warnings.warn`, so that the line points to who builds the loss.
    """
    if weights is None or weights.sha256 in _told:
        return
    found = {name: getattr(weights.agreement, name) for name in GOAL}
    short = [
        f"{name.replace('_', ' ')} {value:.2f}, goal {GOAL[name]:g}"
        for name, value in found.items()
        if value is not None and value < GOAL[name]
    ]
    if weights.name == "mini" and None in found.values():
        short.append("not all of it is recorded")
    if short:
        _told.add(weights.sha256)
        warnings.warn(
            f"The weights {weights} follow MILO's official ones roughly ({'; '.join(short)}): what this loss trains is "
            "not what the official weights train",
            stacklevel=stacklevel,
        )
