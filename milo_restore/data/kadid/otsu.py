"""Thresholds for type 22, as MATLAB's ``multithresh`` finds them: Otsu's criterion by a simplex search."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

_NONE = np.inf


def thresholds(counts: NDArray[np.intp], number: int) -> Vector:
    """So many thresholds of a histogram of 256 bins, whole numbers in 0 to 255, rising.

    From even places the search ends in a local maximum of the variance between classes; the global one makes another
    picture. The histogram of an image with fewer values than classes keeps the even places, or some near them.
    """
    share = np.concatenate([[0.0], np.cumsum(counts / counts.sum())])
    first = np.concatenate([[0.0], np.cumsum(counts / counts.sum() * np.arange(256))])

    def cost(places: Vector) -> float:
        """The variance between classes, negative; what is no partition is worse than anything."""
        cuts = np.floor(places + 0.5)
        if cuts[0] < 1 or cuts[-1] > 254 or (np.diff(cuts) <= 0).any():
            return _NONE
        ends = np.concatenate([[0], cuts.astype(int) + 1, [256]])
        weight = np.diff(share[ends])
        if (weight <= 0).any():
            return _NONE
        return float(first[-1] ** 2 - (np.diff(first[ends]) ** 2 / weight).sum())

    even = 255 * np.arange(1, number + 1) / (number + 1)
    return np.sort(np.floor(_simplex(cost, even, width=1, depth=1e-4) + 0.5)).clip(0, 255)


def _simplex(cost: Callable[[Vector], float], start: Vector, width: float, depth: float) -> Vector:
    """The simplex of Nelder and Mead (1965) with the rules of MATLAB's ``fminsearch``, for costs that are steps.

    scipy's has the same rules, but sorts in an order that depends on the processor where costs are equal, as here they
    often are: other places are found, and another picture.

    Args:
        cost: of a place; infinite where there is none.
        start: not zero in any coordinate.
        width: the search ends where all corners are so near the best one,
        depth: and cost so little more; or after 200 steps or costs per coordinate.
    """
    count = len(start)
    corners = np.concatenate([start[None], start * (1 + 0.05 * np.eye(count))])
    costs = np.array([cost(corner) for corner in corners])
    asked, steps = count + 1, 1
    corners, costs = _sorted(corners, costs)
    while asked < 200 * count and steps < 200 * count:
        level = costs[-1] == costs[0] or costs[-1] - costs[0] <= depth
        if level and np.abs(corners[1:] - corners[0]).max() <= width:
            break
        middle, last = np.add.reduce(corners[:-1], 0) / count, corners[-1]
        tried = 2 * middle - last
        found = cost(tried)
        asked += 1
        if not costs[0] <= found < costs[-2]:
            far, limit = _second_try(costs, found)
            other = (1 - far) * middle + far * last
            value = cost(other)
            asked += 1
            if value < limit:
                tried, found = other, value
            elif found >= costs[0]:
                corners[1:] = corners[0] + 0.5 * (corners[1:] - corners[0])
                costs[1:] = [cost(corner) for corner in corners[1:]]
                asked += count
                tried, found = corners[-1], costs[-1]
        corners[-1], costs[-1] = tried, found
        corners, costs = _sorted(corners, costs)
        steps += 1
    return corners[0]


def _second_try(costs: Vector, found: float) -> tuple[float, float]:
    """Step from the middle to the worst corner to try next, and the cost below which it is taken."""
    if found < costs[0]:
        return -2, found  # expansion
    if found < costs[-1]:
        return -0.5, np.nextafter(found, np.inf)  # outer contraction, taken if no worse
    return 0.5, costs[-1]  # inner contraction


def _sorted(corners: Vector, costs: Vector) -> tuple[Vector, Vector]:
    order = np.argsort(costs, kind="stable")
    return corners[order], costs[order]
