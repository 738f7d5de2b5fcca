r"""Measure what the list of very many training images costs: seconds and memory, to make it and in each process.

    python recipes/images_at_scale.py                      # 15 million names, none of which is a file
    python recipes/images_at_scale.py --images 1000000 --caption 80

The names are those of LAION as img2dataset writes it, 10,000 to a folder. What a file server takes to list its folders
comes on top. Each number is of a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from milo_restore.data.index import Row, build_index, read_index, write_index
from milo_restore.data.keys import SampleKey
from milo_restore.data.listed import Listed
from milo_restore.errors import run_program

PER_FOLDER = 10_000
DRAWN = 20_000  # samples whose image is looked up


def rows(count: int, caption: int) -> Iterator[Row]:
    """Names of images that are not there, with captions of so many characters."""
    texts = ("x" * caption,) if caption else ()
    for number in range(count):
        yield Row(f"{number // PER_FOLDER:05d}/{number:09d}.jpg", texts=texts)


def make(folder: Path, count: int, caption: int) -> None:
    """Work of the main process at the start of a run."""
    write_index(build_index([("datasets/laion", "", rows(count, caption))]), folder, {})


def draw(folder: Path, count: int, caption: int) -> None:
    """Work of every process and every worker: open the list, and look up what the first steps show."""
    images = Listed(read_index(folder))
    for position in range(DRAWN):
        key = SampleKey(1, position, position, 512)
        images.path(images.number_at(0, key.position))


def memory() -> dict[str, float]:
    """Peak of this process in GB, and what of its present memory is its own rather than mapped from files."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(status[key].split()[0]) / 1e6 for name, key in (("peak", "VmHWM"), ("own", "RssAnon"))}


def measured(pipe: Any, act: Callable[..., None], *arguments: Any) -> None:
    """In a process of its own: act, and send seconds and memory."""
    before, began = memory(), time.perf_counter()
    act(*arguments)
    pipe.send({"seconds": time.perf_counter() - began, "before": before["peak"], **memory()})


def apart(act: Callable[..., None], *arguments: Any) -> dict[str, float]:
    """`measured` in a new process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=measured, args=(theirs, act, *arguments))
    process.start()
    found: dict[str, float] = ours.recv()
    process.join()
    return found


def main() -> int:
    """Make the list, use it, print what both took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=15_000_000, help="how many (default: %(default)s)")
    parser.add_argument("--caption", type=int, default=0, help="characters of each one's caption (default: none)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "images"
        print(f"{options.images:,} images" + (f", captions of {options.caption} characters" if options.caption else ""))
        for name, act in (("listed and written", make), (f"opened, {DRAWN:,} drawn", draw)):
            found = apart(act, folder, options.images, options.caption)
            print(f"{name:24}{found['seconds']:7.1f} s   peak {found['peak']:.2f} GB, "
                  f"of them {found['before']:.2f} before; {found['own']:.2f} GB its own at the end")  # fmt: skip
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"on disk {size / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(run_program("images_at_scale", main))
