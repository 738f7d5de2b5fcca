r"""Write the test images of a DiffBIR configuration to files: degraded ones to input/, what they were made of to ref/.

    python recipes/make_test_images.py --set test=[CBSD68] degradation=noise test_sigmas=[25] --output images/sigma25
    python recipes/make_test_images.py --config recipes/configs/diffbir_sr_tiny.yaml --output images/sr
    python recipes/make_test_images.py --as-they-are --set test=[Real47] test_side=128 --limit 12 --output images/real

Settings are those of a configuration's ``data``. Images of several sets get the set's name in front of their own.
Degradations are fixed: the same image in the same place of its set is degraded the same way each time. Inputs are
rounded to 8 bits, so noise is clipped; ``milo-restore denoise --add-noise`` adds noise that is not.
With ``--as-they-are`` nothing is degraded, and there are inputs only. A finished folder is left as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milo_restore.config import as_dict, load_config, read_yaml
from milo_restore.data import read_image, to_uint8, write_png
from milo_restore.data.degraded_sets import DegradedData, collection, held_out
from milo_restore.data.image_sets import centre_crop
from milo_restore.errors import ConfigError, DataError, run_program
from milo_restore.files import locate_dataset
from milo_restore.files.write import replace_file

RECORD = "images.json"


@dataclass(frozen=True)
class Making:
    """Settings of the images that are made, beside the configuration's data.

    Attributes:
        as_they_are: real photographs: nothing is degraded.
        references: with those, the references that lie beside the inputs of a named set, too.
        shrink: inputs become so many times smaller, by area.
        limit: of the number of images.
    """

    as_they_are: bool = False
    references: bool = False
    shrink: int = 1
    limit: int | None = None


def images_of(data: DegradedData, making: Making) -> list[tuple[str, Any, Any]]:
    """Name, input and reference (or None) of every test image, as (H, W, 3) uint8 arrays."""
    if making.as_they_are:
        sets = {name: real_images(name, data, references=making.references) for name in data.test}
    else:
        if data.degradation == "noise" and len(data.test_sigmas) > 1:
            raise ConfigError("several noise levels", where="test_sigmas", mend="Write one folder for each level")
        sets = {
            name.split(",")[0]: [(pair.name, to_uint8(pair.degraded), pair.target) for pair in pairs]
            for name, pairs in held_out(data).items()
        }
    several = len(sets) > 1
    return [
        (f"{Path(name).name}_{Path(file).stem}" if several else Path(file).stem, image, reference)
        for name, images in sets.items()
        for file, image, reference in images
    ]


def real_images(name: str, data: DegradedData, *, references: bool) -> list[tuple[str, Any, Any]]:
    """The centres of real photographs, and the same parts of their references.

    Raises:
        DataError: there are no references.
    """
    images = collection(name, data)
    if not references:
        return [(file, centre_crop(image, data.test_side), None) for file, image in images]
    there = locate_dataset(name, data.root).references
    if there is None:
        raise DataError("has no references", where=name, mend="Put them beside the inputs, or leave --references out")
    triples = []
    for (file, image), path in zip(images, there):
        reference = read_image(path)
        larger = reference.shape[0] // image.shape[0]
        side = None if data.test_side is None else larger * data.test_side
        triples.append((file, centre_crop(image, data.test_side), centre_crop(reference, side)))
    return triples


def write(data: DegradedData, output: Path, making: Making) -> int:
    """Write the images, and last of all the record of what they are.

    Raises:
        ConfigError: the folder holds other images.
        DataError: images cannot be read or written, or two would get one name.
    """
    settings = {"data": as_dict(data), **as_dict(making)}
    record = output / RECORD
    if record.is_file():
        if json.loads(record.read_text(encoding="utf-8"))["settings"] != settings:
            raise ConfigError("holds images made with other settings", where=output, mend="Name another --output")
        print(f"nothing to do: {output}")
        return 0
    images = images_of(data, making)[: making.limit]
    names = [name for name, _, _ in images]
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"two images are called {sorted(twice)[0]}", where="test", mend="Rename one, or leave it out")
    from tqdm import tqdm

    for name, image, reference in tqdm(images, desc="writing", unit="image", leave=False, disable=None):
        write_png(output / "input" / f"{name}.png", shrunk(image, making.shrink))
        if reference is not None:
            write_png(output / "ref" / f"{name}.png", reference)
    replace_file(record, json.dumps({"settings": settings, "images": names}, indent=1) + "\n")
    print(f"{len(images)} images: {output}")
    return 0


def shrunk(image: NDArray[np.uint8], times: int) -> NDArray[np.uint8]:
    """An (H, W, 3) array, so many times smaller, by area; what is left over at the right and below is cut off."""
    import cv2

    height, width = image.shape[0] // times, image.shape[1] // times
    whole = image[: height * times, : width * times]
    return whole if times == 1 else cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="a DiffBIR configuration, whose data section counts")
    parser.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", nargs="+", default=[])
    parser.add_argument("--as-they-are", action="store_true", help="real photographs: nothing is degraded")
    parser.add_argument("--references", action="store_true", help="with --as-they-are: their references, too")
    parser.add_argument("--shrink", type=int, default=1, metavar="N", help="inputs N times smaller than references")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N images only")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args()

    def act() -> int:
        section = read_yaml(arguments.config).get("data", {}) if arguments.config else {}
        settings = [f"{key}={json.dumps(value)}" for key, value in section.items()]
        data = load_config(DegradedData, None, [*settings, *(item for group in arguments.overrides for item in group)])
        making = Making(arguments.as_they_are, arguments.references, arguments.shrink, arguments.limit)
        return write(data, arguments.output, making)

    return run_program(parser.prog, act)


if __name__ == "__main__":
    sys.exit(main())
