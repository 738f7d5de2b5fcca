"""Compression: types 09 and 10, by Pillow's codecs (OpenJPEG, libjpeg-turbo)."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from milo_restore.data.kadid.arrays import Values, to_bytes_up


def jpeg2000(image: Values, ratio: float) -> Values:
    """09: JPEG 2000; the parameter is the compression ratio (bytes before / bytes after).

    MATLAB's encoder, which made the published images, is another one than OpenJPEG, so that pixels differ. The wavelet
    is the irreversible one. Headers count too: of an image of 240x160 pixels, ratio 400 leaves little but the mean
    colours, and images below about 170x170 pixels do not reach it, for a file has at least some 250 bytes.
    """
    options: dict[str, Any] = {"quality_mode": "rates", "quality_layers": [ratio], "irreversible": True}
    return _through(image, "JPEG2000", **options)


def jpeg(image: Values, quality: float) -> Values:
    """10: JPEG; the parameter is libjpeg's quality (no unit, 1 to 100). Chroma is subsampled 4:2:0, as usual."""
    return _through(image, "JPEG", quality=int(quality), subsampling="4:2:0")


def _through(image: Values, codec: str, **options: Any) -> Values:
    file = io.BytesIO()
    Image.fromarray(to_bytes_up(image)).save(file, format=codec, **options)
    with Image.open(file) as decoded:
        return np.asarray(decoded.convert("RGB")).astype(image.dtype) / 255
