"""Hashes that runs, caches and result files record: their formats stay as they are."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from torch import nn

from milo_restore.errors import DataError
from milo_restore.files.hashes import git_blob_of, images_sha256, module_sha256, sha256_of, tensors_sha256, text_sha256


def test_files_and_texts(tmp_path):
    content = bytes(range(256)) * 9000  # more than one block
    (tmp_path / "a").write_bytes(content)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    assert text_sha256("ä\n") == hashlib.sha256(b"\xc3\xa4\n").hexdigest()
    for of in (sha256_of, git_blob_of):
        with pytest.raises(DataError, match="none: cannot be read"):
            of(tmp_path / "none")


def test_tensors_are_names_types_shapes_and_values():
    state = {"b": torch.arange(3, dtype=torch.int16), "a": torch.tensor([[1.0, -2.0]])}
    parts = [
        b"a torch.float32 (1, 2)\0",
        np.float32([1, -2]).tobytes(),
        b"b torch.int16 (3,)\0",
        np.int16([0, 1, 2]).tobytes(),
    ]
    assert tensors_sha256(state) == hashlib.sha256(b"".join(parts)).hexdigest()
    assert tensors_sha256(dict(reversed(state.items()))) == tensors_sha256(state)
    for other in (
        {**state, "a": state["a"].T},
        {**state, "a": state["a"].double()},
        {"c": state["b"], "a": state["a"]},
    ):
        assert tensors_sha256(other) != tensors_sha256(state)
    transposed = {"a": torch.rand(3, 2).T}
    assert tensors_sha256(transposed) == tensors_sha256({"a": transposed["a"].contiguous()})
    layer = nn.BatchNorm2d(2).bfloat16()
    assert module_sha256(layer) == tensors_sha256(layer.state_dict())


def test_images_are_shapes_and_pixels():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    expected = hashlib.sha256(json.dumps([2, 4, 3]).encode() + image.tobytes()).hexdigest()
    assert images_sha256([("any name", image)]) == expected
