"""Options of the commands that compute MILO, loading it, and reading the pair that it compares.

Importing this is cheap; torch comes with the first call.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from milo_restore.errors import ConfigError, DataError, WeightsError
from milo_restore.processes import choose_device

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from milo_restore.metric import MaskedMetric

T = TypeVar("T")


class _ListMetrics(argparse.Action):
    """Prints every metric's name, and what those of the paper lack, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        from milo_restore.measure.metrics.states import states_table
        from milo_restore.measure.metrics.table import help_text

        print(help_text())
        print("\nThe full-reference metrics of the paper (supplement, 2.1) on this machine:\n")
        print(states_table())
        parser.exit()


LATENT_SUFFIXES = (".npy", ".safetensors", ".pt", ".pth")


def add_metric_arguments(parser: argparse.ArgumentParser) -> None:
    """``--weights``, ``--latent`` and ``--device``."""
    parser.add_argument(
        "--weights",
        default="official",
        metavar="official|mini|PATH",
        help="the authors' weights (downloaded once), the small ones shipped with the package, or a file of your own "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--latent",
        action="store_true",
        help="compare latents (C, h, w) of the VAE that the weights are for (official: Stable Diffusion 1/2; "
        "flux2-taef2), already shifted and scaled, from " + ", ".join(LATENT_SUFFIXES) + " files",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one, else cpu)")


def add_list_metrics(parser: argparse.ArgumentParser) -> None:
    """``--list-metrics``: every name that ``--metrics`` takes. Torch comes only where it is asked for."""
    parser.add_argument(
        "--list-metrics",
        action=_ListMetrics,
        nargs=0,
        help="print every name for --metrics, what those of the paper lack here, and end",
    )


def add_pairing(parser: argparse.ArgumentParser) -> None:
    """``--recursive`` and ``--only-present``, of the commands that pair folders."""
    parser.add_argument(
        "--recursive", action="store_true", help="take subfolders, too: sub/a.png is paired with sub/a.jpg"
    )
    parser.add_argument(
        "--only-present", action="store_true", help="leave out references (and inputs) that have no restored image"
    )


def add_modcrop(parser: argparse.ArgumentParser) -> None:
    """``--modcrop``, of the commands that compute MILO alone; ``evaluate`` has it with its protocols."""
    parser.add_argument(
        "--modcrop",
        type=int,
        default=1,
        metavar="SCALE",
        help="cut both images to multiples of this at the right and at the bottom, as evaluate does",
    )


def load_milo(weights: str, *, latent: bool, device: str | None) -> tuple[MaskedMetric, torch.device]:
    """The frozen metric on its device.

    Raises:
        ConfigError: no such device here.
        WeightsError: the weights are missing or damaged; where ``mini`` would do, the error says so.
    """
    from milo_restore.metric import MILO, LatentMILO

    place = choose_device(device)
    metric: MaskedMetric = (LatentMILO if latent else MILO)(weights)
    return metric.to(place), place


def read_pair(reference: Path, distorted: Path, *, latent: bool, modcrop: int = 1) -> tuple[Tensor, Tensor]:
    """Two images as (1, 3, H, W) in [0, 1], or two latents as (1, C, h, w).

    Args:
        reference: the undistorted one.
        distorted: the other one.
        latent: they are latents.
        modcrop: images are cut to multiples of this, as `milo_restore.measure.metrics.Protocol` cuts.

    Returns:
        The distorted one, then the reference.

    Raises:
        DataError: a file cannot be read, or the two differ in size; the files are named.
        ConfigError: ``modcrop`` is below 1, or latents were to be cut.
    """
    if latent and modcrop != 1:
        raise ConfigError("cuts images, not latents", where="--modcrop")
    first, second = (_read(path, latent=latent, modcrop=modcrop) for path in (reference, distorted))
    if first.shape != second.shape:
        sizes = [f"{path} is {tensor.shape[-1]}x{tensor.shape[-2]}" for path, tensor in
                 ((reference, first), (distorted, second))]  # fmt: skip
        mend = "Give pairs of one size" + ("" if latent else "; --modcrop SCALE cuts both to multiples of it")
        raise DataError(f"sizes differ: {sizes[0]}, {sizes[1]} (width x height)", mend=mend)
    return second, first


def matched_pairs(arguments: argparse.Namespace) -> list[tuple[str, Path, Path]]:
    """Name, reference and distorted file of each pair of ``reference`` and ``distorted``, files or folders.

    Raises:
        DataError: something is missing, or has no counterpart.
    """
    from milo_restore.measure.folders import find_pairs

    return find_pairs(
        arguments.reference, arguments.distorted, LATENT_SUFFIXES if arguments.latent else None,
        recursive=arguments.recursive, only_present=arguments.only_present,
    )  # fmt: skip


def of_pair(
    compute: Callable[[Tensor, Tensor], T],
    reference: Path,
    distorted: Path,
    device: torch.device,
    arguments: argparse.Namespace,
) -> T:
    """A metric's answer about two files; its complaints about tensors name the files that these came from.

    Args:
        compute: of the distorted image and the reference, without gradients.
        reference: the undistorted one.
        distorted: the other one.
        device: where it computes.
        arguments: with ``latent`` and ``modcrop``.

    Raises:
        DataError: a file cannot be read, the two differ in size, or the metric refuses them.
        ConfigError: see `read_pair`.
    """
    import torch

    pair = read_pair(reference, distorted, latent=arguments.latent, modcrop=arguments.modcrop)
    try:
        with torch.no_grad():
            return compute(*(tensor.to(device) for tensor in pair))
    except DataError as error:
        what = error.what if error.where is None else f"{error.where} {error.what}"
        raise DataError(what, where=f"{distorted} against {reference}", mend=error.mend) from error


def _read(path: Path, *, latent: bool, modcrop: int) -> Tensor:
    if latent:
        return _read_latent(path)
    from milo_restore.data.images import read_image, to_tensor
    from milo_restore.measure.metrics import Protocol

    if path.suffix.lower() in LATENT_SUFFIXES:
        raise DataError("is no image", where=path, mend="For latents use --latent")
    return to_tensor(Protocol(modcrop=modcrop).cut(read_image(path)))[None]


def _read_latent(path: Path) -> Tensor:
    if not path.is_file():
        raise DataError("no such file", where=path)
    if path.suffix not in LATENT_SUFFIXES:
        mend = f"Latents are read from {', '.join(LATENT_SUFFIXES)} files; for images leave out --latent"
        raise DataError(f"unknown suffix {path.suffix!r}", where=path, mend=mend)
    content = _load_tensor(path)
    if content.ndim == 3:
        content = content[None]
    if content.ndim != 4 or content.shape[0] != 1 or not content.is_floating_point():
        raise DataError(f"expected a float latent (C, h, w), got {tuple(content.shape)} {content.dtype}", where=path)
    return content.float()


def _load_tensor(path: Path) -> Tensor:
    """The one array or tensor that a file holds, alone or as the only entry of a dictionary."""
    import numpy as np
    import torch

    from milo_restore.files.state import read_content

    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False))
        content, _ = read_content(path)
    except WeightsError as error:
        raise DataError(error.what, where=path) from error
    except (OSError, EOFError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"unreadable ({reason})", where=path) from error
    if isinstance(content, dict) and len(content) == 1:
        content = next(iter(content.values()))
    if not isinstance(content, torch.Tensor):
        raise DataError("holds no single tensor", where=path, mend="Save one latent (C, h, w) per file")
    return content
