"""Images, named data sets, noise, and training patches."""

from __future__ import annotations

from milo_restore.data.image_sets import held_out_photographs, load_collection, training_photographs
from milo_restore.data.images import list_images, load_images, read_image, to_tensor, to_uint8, write_png
from milo_restore.data.keys import SampleKey, keyed_rng
from milo_restore.data.noise import evaluation_input, evaluation_noise
from milo_restore.data.noisy_patches import NoisyPatches
from milo_restore.files import DATASETS, find_dataset

__all__ = [
    "DATASETS",
    "NoisyPatches",
    "SampleKey",
    "evaluation_input",
    "evaluation_noise",
    "find_dataset",
    "held_out_photographs",
    "keyed_rng",
    "list_images",
    "load_collection",
    "load_images",
    "read_image",
    "to_tensor",
    "to_uint8",
    "training_photographs",
    "write_png",
]
