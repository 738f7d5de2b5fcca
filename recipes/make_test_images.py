r"""Write the test images of a DiffBIR configuration to files: degraded ones to input/, what they were made of to ref/.

    python recipes/make_test_images.py --set test=[CBSD68] degradation=noise test_sigmas=[25] --output images/sigma25
    python recipes/make_test_images.py --config recipes/configs/diffbir_sr_tiny.yaml --output images/sr
    python recipes/make_test_images.py --as-they-are --set test=[Real47] test_side=128 --limit 12 --output images/real

Settings are those of a configuration's ``data``. Images of several sets get the set's name in front of their own.
Degradations are fixed: the same image in the same place of its set is degraded the same way each time. Inputs are
rounded to 8 bits, so noise is clipped; ``milo-restore denoise --add-noise`` adds noise that is not.
With ``--as-they-are`` there are inputs only. A finished folder is left as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from diffbir_data import Data, centre, collection, held_out
from tqdm import tqdm

from milo_restore.config import as_dict, load_config, read_yaml
from milo_restore.data import to_uint8, write_png
from milo_restore.errors import ConfigError, DataError, MiloRestoreError
from milo_restore.output import write_text

RECORD = "images.json"


def images_of(data: Data, *, as_they_are: bool) -> list[tuple[str, Any, Any]]:
    """Name, input and reference (or None) of every test image, as (H, W, 3) uint8 arrays."""
    if as_they_are:
        sets = {name: [(f, centre(i, data.test_side), None) for f, i in collection(name, data)] for name in data.test}
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


def write(data: Data, output: Path, *, as_they_are: bool, limit: int | None) -> int:
    """Write the images, and last of all the record of what they are.

    Raises:
        ConfigError: the folder holds other images.
        DataError: images cannot be read or written, or two would get one name.
    """
    settings = {"data": as_dict(data), "as_they_are": as_they_are, "limit": limit}
    record = output / RECORD
    if record.is_file():
        if json.loads(record.read_text(encoding="utf-8"))["settings"] != settings:
            raise ConfigError("holds images made with other settings", where=output, mend="Name another --output")
        print(f"nothing to do: {output}")
        return 0
    images = images_of(data, as_they_are=as_they_are)[:limit]
    names = [name for name, _, _ in images]
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"two images are called {sorted(twice)[0]}", where="test", mend="Rename one, or leave it out")
    for name, image, reference in tqdm(images, desc="writing", unit="image", leave=False, disable=None):
        write_png(output / "input" / f"{name}.png", image)
        if reference is not None:
            write_png(output / "ref" / f"{name}.png", reference)
    write_text(record, json.dumps({"settings": settings, "images": names}, indent=1) + "\n")
    print(f"{len(images)} images: {output}")
    return 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="a DiffBIR configuration, whose data section counts")
    parser.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", nargs="+", default=[])
    parser.add_argument("--as-they-are", action="store_true", help="real photographs: nothing is degraded")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N images only")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    arguments = parser.parse_args()
    try:
        section = read_yaml(arguments.config).get("data", {}) if arguments.config else {}
        settings = [f"{key}={json.dumps(value)}" for key, value in section.items()]
        data = load_config(Data, None, [*settings, *(item for group in arguments.overrides for item in group)])
        return write(data, arguments.output, as_they_are=arguments.as_they_are, limit=arguments.limit)
    except MiloRestoreError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
