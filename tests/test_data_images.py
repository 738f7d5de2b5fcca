"""Reading and writing images, and the photographs that are always at hand."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from milo_restore.data import (
    held_out_photographs,
    image_sets,
    list_images,
    read_image,
    to_tensor,
    to_uint8,
    training_photographs,
    write_png,
)
from milo_restore.data.images import load_images
from milo_restore.errors import DataError, NumericsError


@pytest.fixture
def picture():
    ramp = np.arange(40 * 50 * 3, dtype=np.uint32) * 2654435761 % 251
    return ramp.astype(np.uint8).reshape(40, 50, 3)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# Reading


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm"])
def test_reads_what_was_stored(tmp_path, picture, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture).save(path)
    image = read_image(str(path))
    assert image.dtype == np.uint8
    assert image.flags["C_CONTIGUOUS"]
    assert image.flags["WRITEABLE"]
    np.testing.assert_array_equal(image, picture)


def test_grey_palette_and_opaque_alpha(tmp_path, picture):
    grey = picture[:, :, 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.stack([grey] * 3, axis=2))
    Image.fromarray(grey > 100).save(tmp_path / "bilevel.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bilevel.png")[:, :, 1], (grey > 100) * np.uint8(255))
    palette = Image.fromarray(picture).quantize(64)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), np.array(palette.convert("RGB")))
    opaque = np.dstack([picture, np.full_like(grey, 255)])
    Image.fromarray(opaque).save(tmp_path / "opaque.png")
    np.testing.assert_array_equal(read_image(tmp_path / "opaque.png"), picture)


def test_exif_orientation_is_applied(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), np.rot90(picture, -1))


def _refused(folder: Path, picture: np.ndarray) -> dict[str, str]:
    """Files that are refused, and what is said of them."""
    rgba = np.dstack([picture, picture[:, :, 0]])
    deep = picture[:, :, 0].astype(np.uint16) * 256
    Image.fromarray(rgba).save(folder / "alpha.png")
    Image.fromarray(picture).quantize(64).save(folder / "palette_alpha.png", transparency=0)
    Image.fromarray(picture).save(folder / "key_alpha.png", transparency=tuple(int(v) for v in picture[3, 3]))
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(deep).save(folder / "deep.tif")
    Image.fromarray(picture[:, :, 0].astype(np.float32)).save(folder / "float.tif")
    Image.fromarray(picture).convert("CMYK").save(folder / "cmyk.jpg")
    frames = [Image.fromarray(np.roll(picture, shift)) for shift in (0, 7)]
    frames[0].save(folder / "frames.tif", save_all=True, append_images=frames[1:])
    body = b"P6 50 40 65535\n" + picture.astype(">u2").tobytes()
    (folder / "deep.ppm").write_bytes(body)
    (folder / "deep_rgb.png").write_bytes(_png_16_bit(picture))
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    (folder / "folder.png").mkdir()
    alpha, deep_text = "has transparent pixels", "more than 8 bits"
    return {
        "alpha.png": alpha,
        "palette_alpha.png": alpha,
        "key_alpha.png": alpha,
        "deep.png": deep_text,
        "deep.tif": deep_text,
        "deep.ppm": deep_text,
        "deep_rgb.png": deep_text,
        "float.tif": deep_text,
        "cmyk.jpg": "neither RGB nor grey",
        "frames.tif": "several frames",
        "empty.png": "cannot be read as an image",
        "text.png": "cannot be read as an image",
        "folder.png": "cannot be read as an image",
        "absent.png": "no such image",
    }


def _png_16_bit(picture: np.ndarray) -> bytes:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = picture.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in picture)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_refused_by_name_with_the_reason(tmp_path, picture):
    for name, reason in _refused(tmp_path, picture).items():
        with pytest.raises(DataError, match=reason) as caught:
            read_image(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: "), name
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP"])
def test_truncated_images(tmp_path, picture, kind, lenient, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)  # as some libraries set it for the whole process
    content = encoded(Image.fromarray(picture), kind)
    for share in (0.3, 0.7, 0.95):
        path = tmp_path / "cut.img"
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(DataError, match="cut.img"):
            read_image(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "GIF", "WEBP"])
def test_mutated_images_are_read_or_refused(tmp_path, kind, picture):
    content = encoded(Image.fromarray(picture), kind)
    rng = np.random.default_rng(1)
    path = tmp_path / "mutated.img"
    refused = 0
    for number in range(200):
        mutated = bytearray(content)
        near = len(content) if number % 2 else min(len(content), 200)  # every other one in the header
        for place in rng.integers(0, near, size=1 + number % 4):
            mutated[place] ^= int(rng.integers(1, 256))
        path.write_bytes(mutated)
        try:
            image = read_image(path)
            assert image.dtype == np.uint8
            assert image.ndim == 3
            assert image.shape[2] == 3
        except DataError as error:
            refused += str(error).startswith(str(path))
    assert refused >= (190 if kind == "PNG" else 10)  # PNG has checksums


def test_a_png_with_a_wrong_checksum_is_refused(tmp_path, picture):
    content = bytearray(encoded(Image.fromarray(picture), "PNG"))
    content[-13] ^= 1  # the last byte of the pixel data's checksum: the pixels themselves are intact
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match="checksum"):
        read_image(tmp_path / "a.png")


def test_list_images(tmp_path, picture):
    for name in ("b.PNG", "a.jpg", "c.tiff", ".hidden.png", "notes.txt"):
        Image.fromarray(picture).save(tmp_path / name, format="PNG")
    (tmp_path / "sub.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.PNG", "c.tiff"]
    (tmp_path / "empty").mkdir()
    for folder, reason in (("empty", "holds no images"), ("absent", "no such folder"), ("notes.txt", "is a file")):
        with pytest.raises(DataError, match=f"{folder}: {reason}"):
            list_images(tmp_path / folder)


def test_load_images(tmp_path, picture):
    for number in range(3):
        write_png(tmp_path / f"{number}.png", np.roll(picture, number))
    loaded = load_images(list_images(tmp_path), progress=True)
    assert [name for name, _ in loaded] == ["0.png", "1.png", "2.png"]
    np.testing.assert_array_equal(loaded[2][1], np.roll(picture, 2))


# Converting and writing


def test_to_tensor_and_back(picture):
    tensor = to_tensor(picture)
    assert tensor.shape == (3, 40, 50)
    assert tensor.dtype == torch.float32
    assert torch.equal(tensor[2], torch.from_numpy(picture[:, :, 2].astype(np.float32)) / 255)
    np.testing.assert_array_equal(to_uint8(tensor), picture)
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    np.testing.assert_array_equal(to_uint8(to_tensor(every)), every)


def test_to_uint8_clamps_and_rounds():
    values = torch.tensor([-0.4, 0.0, 0.4999 / 255, 0.5001 / 255, 254.6 / 255, 1.0, 7.0])
    assert to_uint8(values.repeat(3, 1, 1))[0, :, 0].tolist() == [0, 0, 0, 1, 255, 255, 255]
    with pytest.raises(NumericsError, match="NaN"):
        to_uint8(torch.full((3, 2, 2), float("nan")))
    with pytest.raises(DataError, match=r"\(1, 3, 2, 2\)"):
        to_uint8(torch.zeros(1, 3, 2, 2))
    with pytest.raises(DataError, match="float64"):
        to_tensor(np.zeros((2, 2, 3)))


def test_write_png(tmp_path, picture):
    path = tmp_path / "new" / "a.png"
    write_png(path, picture)
    write_png(path, picture[::-1])
    np.testing.assert_array_equal(read_image(path), picture[::-1])
    assert [entry.name for entry in path.parent.iterdir()] == ["a.png"]


def test_a_failed_write_leaves_the_old_file(tmp_path, picture, monkeypatch):
    path = tmp_path / "a.png"
    write_png(path, picture)

    def full(self, target, **options):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(DataError, match="No space left on device") as caught:
        write_png(path, picture[::-1])
    assert str(caught.value).startswith(str(path))
    np.testing.assert_array_equal(read_image(path), picture)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(DataError, match=r"ends in \.png"):
        write_png(tmp_path / "a.jpg", picture)
    with pytest.raises(DataError, match="cannot be written"):
        write_png(path / "below_a_file.png", picture)


# Photographs


def test_photographs_are_disjoint_and_in_colour():
    training, held_out = training_photographs(), held_out_photographs()
    assert [name for name, _ in training] == ["astronaut.png", "coffee.png", "motorcycle_left.png"]
    assert [name for name, _ in held_out] == ["chelsea.png", "rocket.jpg"]
    for name, image in training + held_out:
        assert min(image.shape[:2]) >= 300, name
        assert np.ptp(image.astype(int), axis=2).mean() > 10, name  # not grey
    assert min(min(image.shape[:2]) for _, image in training) == 400


def test_photographs_need_no_download_and_name_what_is_missing(monkeypatch):
    monkeypatch.setattr(image_sets, "TRAINING", ("absent.png",))
    with pytest.raises(DataError, match=r"absent\.png: the installed scikit-image ships no such photograph"):
        training_photographs()
