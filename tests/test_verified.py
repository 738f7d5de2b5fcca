"""Every byte is verified where it is read: images, sealed folders, published and shipped weights."""

from __future__ import annotations

import io
import random
import shutil

import numpy as np
import pytest
import simplejpeg
import tifffile
import torch
from PIL import Image
from safetensors.torch import save_file
from skimage.data import astronaut

from milo_restore import MILO, Restormer
from milo_restore.cli import main
from milo_restore.data import list_images, read_image
from milo_restore.errors import DataError, WeightsError
from milo_restore.files.manifest import MANIFEST, forget_seals, manifest_of
from milo_restore.files.write import publish
from milo_restore.measure.folders import image_size
from milo_restore.metric import weights as metric_weights
from milo_restore.models.diffbir import IRControlNet
from milo_restore.models.diffbir.components import load_control
from milo_restore.models.lite import LITE, lite_weights
from milo_restore.models.tiny import tiny_unet
from milo_restore.models.trained import load_trained

PHOTOGRAPH = astronaut()[:72, 180:276]


# --- JPEG (D4)


def jpeg(**options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PHOTOGRAPH).save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 2}])
@pytest.mark.parametrize("damage", ["zeros", "deleted", "inserted", "cut"])
def test_a_damaged_jpeg_is_refused(tmp_path, options, damage):
    content = jpeg(**options)
    (tmp_path / "a.jpg").write_bytes(content)
    assert read_image(tmp_path / "a.jpg").shape == PHOTOGRAPH.shape
    middle = len(content) // 2
    changed = {
        "zeros": content[:middle] + bytes(len(content) - middle),  # the usual end of a power cut
        "deleted": content[:middle] + content[middle + 40 :],
        "inserted": content[:middle] + bytes(range(1, 200)) + content[middle:],
        "cut": content[:middle],
    }[damage]
    (tmp_path / "a.jpg").write_bytes(changed)
    with pytest.raises(DataError, match=r"a.jpg: cannot be read as an image \(.+\)\. It may be truncated, damaged"):
        read_image(tmp_path / "a.jpg")


def test_what_libjpeg_reports_is_never_accepted(tmp_path):
    """200 random damages: what is read is free of any mark that a decoder sees."""
    content, chance = jpeg(), random.Random(2)
    refused = 0
    for number in range(200):
        damaged, at = bytearray(content), chance.randrange(len(content))
        if number % 2:
            damaged[at] ^= 1 << chance.randrange(8)
        else:
            del damaged[at : at + chance.randrange(1, 9)]
        path = tmp_path / "a.jpg"
        path.write_bytes(damaged)
        try:
            read_image(path)
        except DataError:
            refused += 1
            continue
        simplejpeg.decode_jpeg(bytes(damaged), "GRAY", strict=True)  # raises where libjpeg reports something
    assert refused > 60


# --- TIFF and misnamed files (D8, D9)


def tiffs():
    """Options of tifffile, the samples' type, and whether the pixels can be had in 8 bits."""
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "float16", "float32"):
        for layout in ({"photometric": "rgb", "planarconfig": "contig"},
                       {"photometric": "rgb", "planarconfig": "separate"},
                       {"photometric": "minisblack"}, {"photometric": "miniswhite"}):  # fmt: skip
            for compression in (None, "zlib"):
                for byteorder in "<>":
                    for tile in (None, (16, 16)):
                        more = {"compression": compression, "byteorder": byteorder, "tile": tile}
                        yield kind, {**layout, **more}


def test_every_kind_of_tiff_gives_the_right_pixels_or_is_refused(tmp_path):
    path, right = tmp_path / "a.tif", 0
    for kind, options in tiffs():
        colour = options["photometric"] == "rgb"
        stored = PHOTOGRAPH if colour else PHOTOGRAPH[..., 0]
        expected = stored if colour else np.stack([stored] * 3, axis=2)
        samples = np.moveaxis(stored, -1, 0) if options.get("planarconfig") == "separate" else stored
        tifffile.imwrite(path, samples.astype(kind), **options)
        if kind == "uint8":
            shown = 255 - expected if options["photometric"] == "miniswhite" else expected
            np.testing.assert_array_equal(read_image(path), shown, str(options))
            right += 1
        else:
            with pytest.raises(DataError, match="more than 8 bits|signed or floating|it is no PNG"):
                read_image(path)
    assert right == 32


def test_rotated_tiffs_have_their_own_size(tmp_path):
    turned = {1: PHOTOGRAPH, 3: PHOTOGRAPH[::-1, ::-1], 6: np.rot90(PHOTOGRAPH, -1), 8: np.rot90(PHOTOGRAPH)}
    for number, expected in turned.items():
        path = tmp_path / f"{number}.tif"
        tifffile.imwrite(path, PHOTOGRAPH, photometric="rgb", extratags=[(274, "H", 1, number, True)])
        np.testing.assert_array_equal(read_image(path), expected)
        assert image_size(path) == expected.shape[1::-1]


def test_volumes_and_other_formats_under_a_known_name_are_refused(tmp_path):
    grey = PHOTOGRAPH[..., 0]
    tifffile.imwrite(tmp_path / "volume.tif", np.stack([grey, grey]), photometric="minisblack", volumetric=True,
                     tile=(1, 16, 16))  # fmt: skip
    with pytest.raises(DataError, match="several frames"):
        read_image(tmp_path / "volume.tif")
    for kind in ("JPEG2000", "TGA", "PCX"):
        Image.fromarray(PHOTOGRAPH).save(tmp_path / "a.png", kind)
        with pytest.raises(DataError, match="it is no PNG, JPEG, BMP, TIFF, WEBP, PPM or GIF that can be read"):
            read_image(tmp_path / "a.png")


# --- seals


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.bmp", "b.bmp", "sub/c.bmp"):
        Image.fromarray(PHOTOGRAPH).save(folder / name)
    (folder / "notes.txt").write_text("mine")
    return folder


def test_sealed_images_are_checked_wherever_they_are_read(photos, tmp_path, capsys):
    assert main(["assets", "seal", str(photos)]) == 0
    assert "3 images sealed" in capsys.readouterr().out
    assert [read_image(path).shape for path in list_images(photos)] == [PHOTOGRAPH.shape] * 2
    content = bytearray((photos / "sub/c.bmp").read_bytes())
    content[-300] ^= 4  # a BMP has no checksum
    (photos / "sub/c.bmp").write_bytes(content)
    with pytest.raises(DataError, match=r"c.bmp: is not what it was when it was sealed .*assets seal .*photos --again"):
        read_image(photos / "sub/c.bmp")
    shutil.copytree(photos / "sub", tmp_path / "pred")  # elsewhere nothing is known of it
    ref = str(photos / "sub")
    assert main(
        [
            "evaluate",
            "--pred",
            str(tmp_path / "pred"),
            "--ref",
            ref,
            "--metrics",
            "psnr",
            "--output",
            str(tmp_path / "r"),
        ]
    )
    assert "c.bmp: is not what it was when it was sealed" in capsys.readouterr().err
    Image.fromarray(PHOTOGRAPH).save(photos / "new.bmp")
    with pytest.raises(DataError, match=r"new.bmp: is not among the images that"):
        read_image(photos / "new.bmp")
    (photos / "a.bmp").unlink()
    with pytest.raises(DataError, match=r"a.bmp: is gone, which"):
        list_images(photos)


def test_a_seal_is_replaced_on_demand_only(photos, capsys):
    assert main(["assets", "seal", str(photos)]) == 0
    (photos / "a.bmp").unlink()
    Image.fromarray(PHOTOGRAPH[:40]).save(photos / "b.bmp")
    Image.fromarray(PHOTOGRAPH).save(photos / "d.bmp")
    assert main(["assets", "seal", str(photos)]) == 2
    assert "1 images differ since, 1 are new, 1 are gone. Where the images were meant" in capsys.readouterr().err
    assert main(["assets", "seal", str(photos), "--again"]) == 0
    assert len(list_images(photos)) == 2
    text = (photos / "seal.json").read_text()
    (photos / "seal.json").write_text(text.replace('"bytes": ', '"bytes": 1', 1))
    forget_seals()  # as in another process
    with pytest.raises(DataError, match=r"seal.json: is damaged"):
        list_images(photos)


# --- weights (D5)


def damages(content: bytes):
    """A flipped bit, zeros, and a cut, in the second half, where the tensors are."""
    at = len(content) * 3 // 4
    yield content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    yield content[:at] + bytes(64) + content[at + 64 :]
    yield content[:-1]


def test_damaged_final_weights_are_not_used(tmp_path):
    network = Restormer(dim=8, num_blocks=[1] * 4, num_refinement_blocks=1, heads=[1] * 4)
    run = tmp_path / "run"
    run.mkdir()
    (run / "env.json").write_text("{}")
    publish(run / "final", lambda folder: save_file(network.state_dict(), folder / "model.safetensors"))
    load_trained(run)
    for name in ("model.safetensors", "manifest.json"):
        path = run / "final" / name
        intact = path.read_bytes()
        for damaged in damages(intact):
            path.write_bytes(damaged)
            for given in (run, run / "final" / "model.safetensors"):
                with pytest.raises(WeightsError, match=name):
                    load_trained(given)
        path.write_bytes(intact)
    (run / "final" / "manifest.json").write_text('{"name": "another program\'s"}')
    load_trained(run / "final" / "model.safetensors")  # as a bare file: nothing is known of it
    (run / "final" / "manifest.json").unlink()
    with pytest.raises(WeightsError, match=r"manifest.json: is missing"):
        load_trained(run)


def test_a_damaged_control_is_not_used(tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "controlnet"
    publish(folder, IRControlNet.from_unet(tiny_unet()).save_pretrained)
    load_control(folder)
    path = folder / "diffusion_pytorch_model.safetensors"
    intact = path.read_bytes()
    for damaged in damages(intact):
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match=path.name):
            load_control(folder)


def test_damaged_shipped_weights_are_not_used(tmp_path, monkeypatch):
    for name in ("milo_mini.safetensors", "manifest.json"):
        shutil.copy(metric_weights.SHIPPED / name, tmp_path / name)
    monkeypatch.setattr(metric_weights, "SHIPPED", tmp_path)
    MILO.from_pretrained("mini")
    intact = (tmp_path / "milo_mini.safetensors").read_bytes()
    for damaged in damages(intact):
        (tmp_path / "milo_mini.safetensors").write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"milo_mini.safetensors"):
            MILO.from_pretrained("mini")
    (tmp_path / "milo_mini.safetensors").write_bytes(intact)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(WeightsError, match=r"manifest.json: is missing"):
        MILO.from_pretrained("mini")


def test_the_shipped_weights_are_those_of_their_manifest():
    """After a change of them: see milo_restore/weights/README.md."""
    folder = metric_weights.SHIPPED
    names = [path.name for path in folder.glob("*.safetensors")]
    assert (folder / MANIFEST).read_text(encoding="utf-8") == manifest_of(folder, names)
    assert all(lite_weights(name).is_file() for name in LITE)
