"""Reading and writing 8-bit images. What is read is verified and decoded in full, or refused by name."""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps
from torch import Tensor
from tqdm import tqdm

from milo_restore.errors import DataError, MiloRestoreError, NumericsError, printable
from milo_restore.files.datasets import SUFFIXES
from milo_restore.files.manifest import check_sealed, check_sealed_listing
from milo_restore.files.quarantine import Quarantine
from milo_restore.files.write import replacing

_TO_RGB = "Convert it to 8-bit RGB first"
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "GIF")
"""Those that are read, whatever a file is called. Of others it is not sure that Pillow gives all bits, or the right
ones: it reads 16 bits of JPEG 2000, and 10 of AVIF, as 8."""
_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _IMAGE_DEPTH = 258, 339, 32997  # tags of TIFF
_PLAIN = {"RGB", "L", "1", "P"}
_WITH_ALPHA = {"RGBA", "LA", "PA", "La", "RGBa"}
_PIXELS_AT_ONCE = 2**20


def list_images(folder: str | Path) -> list[Path]:
    """The image files of a folder, sorted by name. Hidden files and subfolders are left out.

    Raises:
        DataError: the folder is missing or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "is a file, not a folder" if folder.exists() else "no such folder"
        raise DataError(found, where=folder, mend="Name an existing folder of images")
    try:
        with os.scandir(folder) as entries:  # which knows what is a file without asking for each
            paths = [folder / name for name in sorted(entry.name for entry in entries if _is_image(entry))]
    except OSError as error:
        raise DataError(f"cannot be listed ({error.strerror or error})", where=folder) from error
    _check_names(paths)
    check_sealed_listing(folder, paths, below=False)
    if not paths:
        raise DataError("holds no images", where=folder, mend=f"Expected files ending in {', '.join(SUFFIXES)}")
    return paths


def list_images_below(folder: str | Path) -> list[Path]:
    """The image files of a folder and of the folders below it, as ImageNet's classes are stored, sorted by path.

    Raises:
        DataError: the folder is missing or holds no image.
    """
    if not Path(folder).is_dir():
        raise DataError("no such folder", where=folder, mend="Name a folder of images, such as ImageNet's train")
    paths = sorted(path for path in files_below(folder) if path.suffix.lower() in SUFFIXES)
    _check_names(paths)
    check_sealed_listing(Path(folder), paths, below=True)
    if not paths:
        raise DataError("holds 0 images", where=folder, mend=f"Expected files ending in {', '.join(SUFFIXES)}")
    return paths


def files_below(folder: str | Path) -> Iterator[Path]:
    """Every file of a folder and of the folders below it, but for hidden ones and what links to folders lead to."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def by_stem(paths: Sequence[Path], folder: Path) -> dict[str, Path]:
    """Files by their names without suffix, those of subfolders by their paths below the folder, for pairing.

    Raises:
        DataError: two files have one name.
    """
    found: dict[str, Path] = {}
    for path in paths:
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            what = f"{found[stem].name} and {path.name} have one name"
            raise DataError(what, where=folder, mend="Files are paired by name without suffix: keep one of them")
        found[stem] = path
    return found


def _check_names(paths: Sequence[Path]) -> None:
    """Refuse names that no table, results file or terminal could show: before the work, not after it."""
    for path in paths:
        if printable(path.name) != path.name:
            what = "its name is not UTF-8 or holds control characters"
            raise DataError(what, where=path, mend="Rename it, or leave it out")


def _is_image(entry: os.DirEntry[str]) -> bool:
    return Path(entry.name).suffix.lower() in SUFFIXES and not entry.name.startswith(".") and entry.is_file()


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read an image as RGB, verified and decoded in full.

    Grey images are repeated to three channels, EXIF orientation is applied (as OpenCV and BasicSR do), and colour
    profiles are ignored.

    Returns:
        (H, W, 3) uint8, contiguous.

    Raises:
        DataError: naming the file, where it is missing, truncated, damaged, not what it was when it was sealed, not an
            image of a format in `FORMATS`, animated, transparent, deeper than 8 bits, or in another colour space than
            RGB or grey. None of these is converted silently. Damage shows by checksums (PNG) and by what libjpeg
            reports (JPEG of the usual chroma subsamplings); BMP, PPM, TIFF and WebP have neither, and want a seal.
    """
    path = Path(path)
    try:
        content = path.read_bytes()  # once: what is checked is what is decoded
    except FileNotFoundError as error:
        raise DataError("no such image", where=path) from error
    except OSError as error:
        mend = "See that it is a file, that it can be reached, and that you may read it"
        raise DataError(f"cannot be read as an image ({error.strerror or error})", where=path, mend=mend) from error
    check_sealed(path, content)
    return decode_image(content, path)


def decode_image(content: bytes, where: str | Path) -> NDArray[np.uint8]:
    """Decode the bytes of an image file as `read_image` does.

    Args:
        content: the file's.
        where: it is from, for errors.

    Returns:
        (H, W, 3) uint8, contiguous.

    Raises:
        DataError: as of `read_image`.
    """
    try:
        with _no_truncated_images():
            with _opened(content) as image:
                image.verify()  # PNG: the checksums of all chunks. Leaves the object unusable.
            with _opened(content) as image:
                pixels = _decode(image, where)
                if image.format in ("JPEG", "MPO"):
                    check_jpeg(content)
                return pixels
    except MiloRestoreError:
        raise
    except Exception as error:  # damaged files make Pillow's plugins raise nearly anything
        reason = reason_of(error)
        mend = "It may be truncated, damaged or no image: replace it or remove it"
        raise DataError(f"cannot be read as an image ({reason})", where=where, mend=mend) from error


def _opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content), formats=FORMATS)


def reason_of(error: Exception) -> str:
    """Pillow's words about a file, on one line; of a file in memory it gives the address."""
    said = re.sub(r" ?<_io.BytesIO object at \w+>", "", " ".join(str(error).split()))
    kinds = f"it is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} that can be read"
    return said.replace("cannot identify image file", kinds)[:160] or type(error).__name__


def check_jpeg(content: bytes) -> None:
    """Decode once more, for what libjpeg reports: Pillow goes on, with grey or shifted blocks, and says nothing.

    Raises:
        ValueError: libjpeg's words.
    """
    import simplejpeg

    try:
        simplejpeg.decode_jpeg(content, "GRAY", strict=True)
    except ValueError as error:
        if "subsampling" not in str(error):  # TurboJPEG takes the usual ones only
            raise


def _decode(image: Image.Image, path: str | Path) -> NDArray[np.uint8]:
    volume = image.format == "TIFF" and image.tag_v2.get(_IMAGE_DEPTH, 1) > 1  # type: ignore[attr-defined]
    if volume or (image.format != "MPO" and getattr(image, "n_frames", 1) > 1):
        raise DataError("holds several frames", where=path, mend="Save the one that is meant as a file of its own")
    if _deeper_than_8_bits(image):
        raise DataError(f"holds more than 8 bits per channel (mode {image.mode})", where=path, mend=_TO_RGB)
    if image.format == "TIFF" and set(image.tag_v2.get(_SAMPLE_FORMAT, (1,))) != {1}:  # type: ignore[attr-defined]
        raise DataError("holds signed or floating-point samples", where=path, mend=_TO_RGB)
    if image.mode not in _PLAIN | _WITH_ALPHA:
        raise DataError(f"colour mode {image.mode} is neither RGB nor grey", where=path, mend=_TO_RGB)
    image.load()
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() != (255, 255):
            mend = "Flatten it onto the background that you mean, and save it without alpha"
            raise DataError("has transparent pixels", where=path, mend=mend)
        image = _orient(image, rgba)
    else:
        image = _orient(image, image)
    return _array(image)


def _array(image: Image.Image) -> NDArray[np.uint8]:
    """A decoded image as RGB, some rows at once: as a whole Pillow would copy it four times on the way."""
    width, height = image.size
    array = np.empty((height, width, 3), np.uint8)
    rows = max(1, _PIXELS_AT_ONCE // width)
    for top in range(0, height, rows):
        part = image.crop((0, top, width, min(top + rows, height))) if rows < height else image
        array[top : top + rows] = np.asarray(part if part.mode == "RGB" else part.convert("RGB"))
    return array


def _orient(original: Image.Image, image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image) if original.getexif().get(0x0112, 1) != 1 else image


def _deeper_than_8_bits(image: Image.Image) -> bool:
    """Pillow has no deep RGB: it drops the low bytes silently, and only the decoder's raw mode tells."""
    if image.mode[0] in "IF":
        return True
    if image.format == "TIFF":
        return any(bits > 8 for bits in image.tag_v2.get(_BITS_PER_SAMPLE, (1,)))  # type: ignore[attr-defined]
    for tile in getattr(image, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if any(isinstance(argument, str) and ";16" in argument for argument in arguments):
            return True
        if image.format == "PPM" and any(isinstance(argument, int) and argument > 255 for argument in arguments[1:]):
            return True
    return False


_flag = threading.Lock()


@contextmanager
def _no_truncated_images() -> Iterator[None]:
    """Some libraries tell Pillow, for the whole process, to fill truncated images with grey. Not here."""
    if not ImageFile.LOAD_TRUNCATED_IMAGES:
        yield
        return
    with _flag:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = True


def load_images(
    paths: Iterable[str | Path], *, progress: bool | None = None, quarantine: Quarantine | None = None
) -> list[tuple[str, NDArray[np.uint8]]]:
    """Decode images once, for keeping in memory. 400 images of 481x321 take 185 MB.

    Args:
        paths: the files.
        progress: show a tqdm bar; by default from 100 files on, on a terminal.
        quarantine: what cannot be read goes there, and is left out; None: it is an error.

    Returns:
        File name and (H, W, 3) uint8 array of each, in the same order.

    Raises:
        DataError: naming the first file that cannot be read; with a quarantine, where none can be.
    """
    files = [Path(path) for path in paths]
    hidden = (True if len(files) < 100 else None) if progress is None else not progress  # None: on terminals only
    bar = tqdm(files, desc="reading images", unit="image", disable=hidden, leave=False)
    if quarantine is None:
        return [(path.name, read_image(path)) for path in bar]
    found = []
    for path in bar:
        if not quarantine.holds(str(path)):
            try:
                found.append((path.name, read_image(path)))
            except DataError as error:
                quarantine.add(str(path), error)
    quarantine.files += len(files) - len(found)  # the others are counted by what shows them
    quarantine.looked_at += len(files)
    if files and not found:
        raise DataError(f"none of {len(files)} images can be read", where=files[0].parent)
    return found


def to_tensor(image: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) uint8 to (3, H, W) float32 in [0, 1].

    Raises:
        DataError: another shape or type.
    """
    _check_rgb(image)
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(255)


def to_uint8(image: Tensor) -> NDArray[np.uint8]:
    """(3, H, W) float to (H, W, 3) uint8: clamped to [0, 1], times 255, rounded to nearest (ties to even).

    The rounding is that of basicsr's ``tensor2img`` and scikit-image's ``img_as_ubyte``.

    Raises:
        DataError: another shape.
        NumericsError: a value is NaN or infinite.
    """
    if image.ndim != 3 or image.shape[0] != 3:
        raise DataError(f"expected a (3, H, W) tensor, got {tuple(image.shape)}")
    image = image.detach().float()
    if not torch.isfinite(image).all():
        raise NumericsError("an image holds NaN or infinite values")
    levels = image.clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.ascontiguousarray(levels.permute(1, 2, 0).cpu().numpy())


def write_png(path: str | Path, image: NDArray[np.uint8]) -> None:
    """Write a PNG in one piece: another process sees the old file or the new one, never half of it.

    Args:
        path: ends in ``.png``; folders on the way are made.
        image: (H, W, 3) uint8 RGB.

    Raises:
        DataError: another shape or type, another suffix, or a file that cannot be written.
    """
    path = Path(path)
    _check_rgb(image)
    if path.suffix.lower() != ".png":
        raise DataError("images are written as PNG", where=path, mend="Use a name that ends in .png")
    with replacing(path) as temporary:
        Image.fromarray(np.ascontiguousarray(image)).save(temporary, format="PNG")


def _check_rgb(image: NDArray[np.uint8]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise DataError(f"expected an (H, W, 3) uint8 array, got {image.shape} {image.dtype}")
