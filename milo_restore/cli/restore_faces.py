"""Faces in photographs for ``milo-restore restore``: its arguments, and which pipeline restores what."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milo_restore.cli.jobs import say
from milo_restore.cli.restore_run import Make, Work, maker
from milo_restore.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from milo_restore.models.diffbir import DiffBIRPipeline

ALIGNED, PHOTO = "aligned", "in-photo"
RESIZED = "resized"
_LEAST_EYE_DISTANCE = 5  # pixels of the result, as DiffBIR's program has it


def add_faces(parser: argparse.ArgumentParser) -> None:
    """The arguments about photographs with faces."""
    parser.add_argument(
        "--faces",
        choices=(ALIGNED, PHOTO),
        default=ALIGNED,
        help="of --task face: images are aligned faces; or photographs, in which faces are found, restored and pasted "
        "back over a restored background (default: aligned)",
    )
    parser.add_argument(
        "--background",
        metavar="NAME|FILE",
        help="cleaner behind which the background is restored; 'resized': it is not restored, only brought to its size "
        "(default: DiffBIR's for sr)",
    )
    parser.add_argument(
        "--save-faces", type=Path, metavar="DIR", help="the faces by themselves, too: DIR/input/ and DIR/restored/"
    )


def check_faces(arguments: argparse.Namespace) -> None:
    """Stop where the arguments do not fit, or where there is no detector, before any work.

    Raises:
        ConfigError: an argument is for another task, or a folder cannot be meant.
        MissingPackage: the detector's package is not installed.
        WeightsError: the detector's weights are not there.
    """
    if arguments.faces != PHOTO:
        for name in ("background", "save_faces"):
            if getattr(arguments, name) is not None:
                where = f"--{name.replace('_', '-')}"
                raise ConfigError("is for photographs with faces", where=where, mend=f"Add --faces {PHOTO}")
        return
    if arguments.task != "face":
        raise ConfigError("is for --task face", where=f"--faces {PHOTO}", mend="Give --task face, or leave it out")
    if arguments.save_faces is not None:
        folder, root = arguments.save_faces.resolve(), arguments.input.resolve()
        if folder == arguments.output.resolve() or folder.is_relative_to(root):
            what = "holds the images or their results"
            raise ConfigError(what, where=f"--save-faces {arguments.save_faces}", mend="Name another folder")
    from milo_restore.models.diffbir.detector import check_detector

    check_detector()


def restore_background(pipeline: DiffBIRPipeline, arguments: argparse.Namespace, settings: dict[str, Any]) -> Make:
    """Maker of a photograph's background; its cleaner is added to the settings.

    Raises:
        ConfigError: DiffBIR v1, whose control is either for faces or for anything else.
        WeightsError: the cleaner is missing or damaged.
    """
    from milo_restore.data.images import to_uint8
    from milo_restore.models.diffbir import DiffBIRPipeline
    from milo_restore.models.diffbir.cleaner import load_cleaner, published_cleaner
    from milo_restore.models.diffbir.images import resized

    if arguments.background == RESIZED:
        settings["background"] = RESIZED
        factor = settings["upscale"]
        return lambda batch, images: [
            to_uint8(image) for image in resized(images, *(round(side * factor) for side in images.shape[-2:]))
        ]
    if settings["version"] == "v1":
        what = "of v1 there is one control for faces and one for all else: the background is not restored with it"
        raise ConfigError(what, where=f"--faces {PHOTO}", mend=f"Take v2 or v2.1, or --background {RESIZED}")
    default = "tiny:sr" if arguments.model == "tiny" else published_cleaner(settings["version"], "sr")
    settings["background"] = name = arguments.background or default
    other = DiffBIRPipeline(
        pipeline.vae, pipeline.unet, pipeline.controlnet, pipeline.scheduler, pipeline.text_encoder,
        pipeline.tokenizer, load_cleaner(name).to(pipeline.device), pipeline.prompts,
    )  # fmt: skip
    return maker(other, arguments.tile, settings)


class Photographs:
    """Photographs: faces are found, aligned, restored in batches, and pasted over the background.

    Args:
        pipeline: for faces.
        background: what makes the background.
        settings: of the run.
        arguments: of the command.

    Attributes:
        found: how many faces were restored so far, each once.
    """

    def __init__(
        self, pipeline: DiffBIRPipeline, background: Make, settings: dict[str, Any], arguments: argparse.Namespace
    ) -> None:
        from milo_restore.data.faces import FACE_SIDE
        from milo_restore.models.diffbir.detector import load_detector

        self.detect = load_detector(pipeline.device)
        self.restore, self.background = maker(pipeline, arguments.tile, {**settings, "upscale": 1.0}), background
        self.side = 8 * int(pipeline.unet.config.sample_size or 0) or FACE_SIDE  # what the UNet knows: 512 pixels
        self.upscale, self.batch_size = settings["upscale"], arguments.batch_size
        self.output, self.save = arguments.output, arguments.save_faces
        self.found = 0
        self._last: tuple[Any, list[Any]] = (None, [])

    def __call__(self, batch: list[Work], images: Tensor) -> list[NDArray[np.uint8]]:
        """The result of one work."""
        import torch

        from milo_restore.data.faces import aligned_face, paste_faces
        from milo_restore.data.images import to_tensor, to_uint8

        (work,) = batch
        image = to_uint8(images[0])
        matrices = self._matrices(work, image)
        crops = [aligned_face(image, matrix, self.side) for matrix in matrices]
        faces: list[NDArray[np.uint8]] = []
        for start in range(0, len(crops), self.batch_size):
            part = crops[start : start + self.batch_size]
            faces += self.restore([work] * len(part), torch.stack([to_tensor(crop) for crop in part]))
        (background,) = self.background(batch, images)
        self._save(work, crops, faces)
        return [paste_faces(background, faces, matrices, image.shape[:2])]

    def _matrices(self, work: Work, image: NDArray[np.uint8]) -> list[Any]:
        """Where the faces are; an image's samples share them."""
        from milo_restore.data.faces import alignment, eye_distance

        if self._last[0] == work.image:
            return self._last[1]
        every = self.detect(image)
        large = [points for points in every if eye_distance(points) * self.upscale >= _LEAST_EYE_DISTANCE]
        matrices = [matrix for points in large if (matrix := alignment(points, self.side)) is not None]
        if not matrices:
            small = f"the {len(every)} in it are too small" if len(every) else "no face found"
            say(f"{work.image.source}: {small}: the background alone")
        self._last, self.found = (work.image, matrices), self.found + len(matrices)
        return matrices

    def _save(self, work: Work, crops: list[Any], faces: list[Any]) -> None:
        from milo_restore.data.images import write_png

        if self.save is None:
            return
        name = work.job.target.relative_to(self.output)
        for number, pair in enumerate(zip(crops, faces)):
            for kind, pixels in zip(("input", "restored"), pair):
                write_png(self.save / kind / name.with_name(f"{name.stem}_face{number}.png"), pixels)
