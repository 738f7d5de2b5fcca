"""The report's pictures: cropped and compressed so that all of them fit into one page of a given size."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from milo_restore.data.images import read_image, to_tensor
from milo_restore.errors import DataError
from milo_restore.files.hashes import sha256_of
from milo_restore.measure.metrics import Protocol
from milo_restore.metric import MILO
from milo_restore.report.collect import Group, Run
from milo_restore.show.grid import heat_map

MAP_TOP = 0.5
"""Error that gets a map's brightest colour, of MILO's 0 to 0.869: what is above it is plainly visible."""
RUNGS = (
    (4096, 90), (4096, 80), (1024, 80), (768, 80), (512, 80), (384, 80), (320, 76), (256, 72), (192, 70), (128, 70),
)  # fmt: skip
"""Sides of the squares that are shown, in pixels, and WebP qualities, from the best."""
_TRIED = 12  # images from which the size of all is estimated
_MARGIN = 0.9
_MAP_QUALITY = 60

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Pictures:
    """The pictures of one image.

    Attributes:
        number: of the image in its group.
        shown: role (``input``, ``ref`` or the place of a run) to a data URI; ``map`` and a place to its MILO map.
        missing: role to why there is no picture.
        note: what part of the image is shown; empty where all of it is.
        size: width and height of what is shown, in pixels.
    """

    number: int
    shown: dict[str, str]
    missing: dict[str, str]
    note: str
    size: tuple[int, int]


def make_pictures(
    groups: Sequence[tuple[Group, Sequence[int]]], budget: int, *, maps: bool, progress: bool | None = None
) -> tuple[list[list[Pictures]], int]:
    """Read, crop and compress pictures.

    Args:
        groups: each with the numbers of the images that are shown.
        budget: bytes that all data URIs may take together.
        maps: draw MILO's maps where there are references and a run measured with MILO.
        progress: show bars; by default on terminals.

    Returns:
        For each group its images' pictures, and the place in `RUNGS` that was needed.

    Raises:
        DataError: an image is not the one that was measured, cannot be read, or even the smallest pictures do not fit.
    """
    hidden = None if progress is None else not progress
    metrics = [_metric(group) if maps else None for group, _ in groups]
    total = sum(len(numbers) * _roles(group, metric) for (group, numbers), metric in zip(groups, metrics))
    first = _estimate(groups, budget, total)
    for rung in range(first, len(RUNGS)):
        made: list[list[Pictures]] = []
        with tqdm(total=sum(len(n) for _, n in groups), desc="pictures", unit="image", disable=hidden) as bar:
            for (group, numbers), metric in zip(groups, metrics):
                made.append([])
                for number in numbers:
                    made[-1].append(_pictures(group, number, metric, rung))
                    bar.update()
        if sum(len(uri) for part in made for pictures in part for uri in pictures.shown.values()) <= budget:
            return made, rung
    raise DataError(
        f"{total} pictures do not fit into {budget / 1e6:.1f} MB",
        where="--max-mb",
        mend="Allow more, or show --images N",
    )


def _roles(group: Group, metric: MILO | None) -> int:
    return len(group.runs) * (1 if metric is None else 2) + 2


def _metric(group: Group) -> MILO | None:
    """The MILO that measured all of the group's runs; None where none did or there are no references.

    Raises:
        DataError: its weights are other ones now.
    """
    name = group.milo
    if name is None:
        return None
    metric = MILO.from_pretrained(name.partition(":")[2] or "official")
    for run in group.runs:
        if metric.weights is not None and run.results["metrics"][name]["weights_sha256"] != metric.weights.sha256:
            mend = "Measure again, or leave the maps out (--no-maps)"
            raise DataError(f"was measured with other weights than {metric.weights}", where=run.file, mend=mend)
    return metric


def _estimate(groups: Sequence[tuple[Group, Sequence[int]]], budget: int, total: int) -> int:
    """The first rung whose pictures should fit, judged by a few of them: a wrong guess costs a whole pass."""
    everything = [(group, number) for group, numbers in groups for number in numbers]
    few = everything[:: len(everything) // _TRIED + 1]
    sample = [_read(group.runs[0], role, number) for group, number in few for role in ("pred", "ref", "input")]
    arrays = [pixels for pixels in sample if isinstance(pixels, np.ndarray)]
    for rung, (side, quality) in enumerate(RUNGS):
        cuts = [_cut(pixels, _window(pixels.shape[:2], side, None), pixels.shape[:2]) for pixels in arrays]
        if not cuts or total * np.mean([len(_encode(cut, quality)) for cut in cuts]) <= budget * _MARGIN:
            return rung
    return len(RUNGS) - 1


def _pictures(group: Group, number: int, metric: MILO | None, rung: int) -> Pictures:
    """All pictures of one image, all cut alike."""
    side, quality = RUNGS[rung]
    first = group.runs[0]
    found: dict[str, Pixels | str | None] = {
        "input": None if group.source is None else _read(group.source, "input", number),
        "ref": _read(first, "ref", number),
        **{str(place): _read(run, "pred", number) for place, run in enumerate(group.runs)},
    }
    arrays = {role: pixels for role, pixels in found.items() if isinstance(pixels, np.ndarray)}
    missing = {role: reason for role, reason in found.items() if isinstance(reason, str)}
    whole = next((arrays[role].shape[:2] for role in ("ref", "0") if role in arrays), (1, 1))
    maps = _maps(metric, arrays, len(group.runs))
    window = _window(whole, side, sum(maps.values()) if maps else None)
    shown = {role: _uri(_encode(_cut(pixels, window, whole), quality)) for role, pixels in arrays.items()}
    for place, values in maps.items():
        shown[f"map{place}"] = _uri(_encode(_cut(heat_map(values, MAP_TOP), window, whole), _MAP_QUALITY))
    top, left, height, width = window
    part = (
        "" if (height, width) == whole else f"{width} x {height} of {whole[1]} x {whole[0]} pixels, from {left}, {top}"
    )
    return Pictures(number, shown, missing, part, (width, height))


def _read(run: Run, role: str, number: int) -> Pixels | str | None:
    """An image, the reason why it is not there, or None where there is none.

    Raises:
        DataError: it is not the one that was measured, or damaged.
    """
    image = run.results["images"][number]
    path = run.picture(role, image)
    if path is None:
        return None
    if not path.is_file():
        return f"{path} is not there any more"
    expected = image["sha256"].get(role)
    if expected is not None and sha256_of(path) != expected:
        mend = "Measure it again (milo-restore evaluate), so that the page's numbers belong to its pictures"
        raise DataError(f"has changed since {run.file} was written", where=path, mend=mend)
    pixels = read_image(path)
    # As the protocol cut what it measured, so that references larger by a row lie where the restored images do.
    return pixels if role == "input" else Protocol(modcrop=run.results["protocol"].get("modcrop", 1)).cut(pixels)


def _maps(metric: MILO | None, arrays: dict[str, Pixels], runs: int) -> dict[int, Any]:
    """MILO's maps (H, W), by the place of the run."""
    if metric is None or "ref" not in arrays:
        return {}
    reference = to_tensor(arrays["ref"])[None]
    with torch.no_grad():
        return {
            place: metric.map(to_tensor(arrays[str(place)])[None], reference=reference)[0, 0]
            for place in range(runs)
            if str(place) in arrays and arrays[str(place)].shape == arrays["ref"].shape
        }


def _window(whole: tuple[int, ...], side: int, values: Any) -> tuple[int, int, int, int]:
    """Top, left, height and width of what is shown: where all runs' errors together are most visible, or the centre."""
    height, width = (min(length, side) for length in whole)
    if (height, width) == tuple(whole) or values is None:
        return (whole[0] - height) // 2, (whole[1] - width) // 2, height, width
    sums = torch.nn.functional.avg_pool2d(values[None, None], (height, width), stride=8)[0, 0]
    place = int(sums.argmax())
    return 8 * (place // sums.shape[1]), 8 * (place % sums.shape[1]), height, width


def _cut(pixels: Pixels, window: tuple[int, ...], whole: tuple[int, ...]) -> Pixels:
    """The same part of an image of another size, such as a small input."""
    scale = pixels.shape[0] / whole[0], pixels.shape[1] / whole[1]
    top, left, height, width = (round(length * scale[place % 2]) for place, length in enumerate(window))
    return np.ascontiguousarray(pixels[top : top + max(height, 1), left : left + max(width, 1)])


def _encode(pixels: Pixels, quality: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "WEBP", quality=quality, method=4)
    return base64.b64encode(stream.getvalue())


def _uri(data: bytes) -> str:
    return f"data:image/webp;base64,{data.decode('ascii')}"
