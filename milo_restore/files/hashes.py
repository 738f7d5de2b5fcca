"""One hash per kind of thing: files, tensors, images, text. Importing this loads neither torch nor NumPy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from milo_restore.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

_BLOCK = 1 << 20


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, as hexadecimal digits.

    Raises:
        DataError: the file cannot be read.
    """
    return _of_file(path, hashlib.sha256())


def git_blob_of(path: Path) -> str:
    """The name that ``git hash-object`` gives a file's content: SHA-1 of its length and its bytes.

    Raises:
        DataError: the file cannot be read.
    """
    size = path.stat().st_size if path.is_file() else 0
    return _of_file(path, hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False))


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """A hash of names, types, shapes and values of tensors, wherever they are; their order does not matter."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        data = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {data.dtype} {tuple(data.shape)}\0".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def module_sha256(module: nn.Module) -> str:
    """`tensors_sha256` of a module's parameters and buffers."""
    return tensors_sha256(module.state_dict())


def images_sha256(images: Sequence[tuple[str, NDArray[np.uint8]]]) -> str:
    """A hash of all pixels of a set of images (name, (H, W, C)), in its order; their names do not matter."""
    import numpy as np

    digest = hashlib.sha256()
    for _, image in images:
        digest.update(json.dumps(image.shape).encode() + np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


def text_sha256(text: str) -> str:
    """The sha256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def _of_file(path: Path, digest: hashlib._Hash) -> str:
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", where=path) from error
    return digest.hexdigest()
