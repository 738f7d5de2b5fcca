"""Checks of a metric's input, which turn a silent wrong score into one clear line."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from milo_restore.errors import DataError

SMALLEST_SIDE = 16
"""Pixels (or latent cells): below this the coarsest pyramid level has fewer than two rows or columns."""

LARGEST_LATENTS = 3.0
"""The largest root mean square of latents that count as multiplied by the scaling factor."""
LARGEST_TINY_MEAN = 0.6
"""The largest mean of the tiny world's last latent channel, in size, that is taken for its own."""


def check_pair(image: Tensor, reference: Tensor, channels: int, *, eight_bit: bool = False) -> None:
    """Refuse tensors that are not two batches, floating-point or else uint8, of one shape, device and size.

    Raises:
        DataError: naming what was given and what is expected.
    """
    expected = f"(N, {channels}, H, W)"
    _refuse_grey_against_colour(image, reference)
    for name, tensor in (("image", image), ("reference", reference)):
        if not isinstance(tensor, Tensor):
            raise DataError(f"expected a torch tensor {expected}, got {type(tensor).__name__}", where=name)
        if tensor.ndim != 4:
            mend = f"Add the batch dimension: {name}[None]" if tensor.ndim == 3 else None
            raise DataError(f"expected {expected}, got shape {tuple(tensor.shape)}", where=name, mend=mend)
        if tensor.dtype != torch.uint8 if eight_bit else not tensor.is_floating_point():
            mend = None if eight_bit else "For uint8: x.float() / 255"
            raise DataError(
                f"expected {'uint8' if eight_bit else 'floating point'}, got {tensor.dtype}", where=name, mend=mend
            )
        if tensor.shape[1] != channels:
            raise DataError(f"expected {channels} channels {expected}, got shape {tuple(tensor.shape)}", where=name)
    if image.shape != reference.shape:
        raise DataError(
            f"shapes differ: image {tuple(image.shape)}, reference {tuple(reference.shape)}",
            mend="Give pairs of one size",
        )
    if image.device != reference.device:
        raise DataError(f"devices differ: image {image.device}, reference {reference.device}")
    if image.shape[0] == 0:
        raise DataError("the batch is empty")
    if min(image.shape[2:]) < SMALLEST_SIDE:
        raise DataError(f"sides must be at least {SMALLEST_SIDE}, got {image.shape[2]}x{image.shape[3]}")


def check_image_values(image: Tensor, reference: Tensor) -> None:
    """Refuse NaN, infinities, 0-255 and [-1, 1] images; a restored or noisy image may leave [0, 1] a little.

    Raises:
        DataError: naming the range found and the conversion that mends it.
    """
    for name, tensor, allowed in (("reference", reference, 1.5), ("image", image, 16.0)):
        low, high = _range(name, tensor)
        if high > allowed:
            mend = "Images are in [0, 1]: divide 8-bit values by 255"
            raise DataError(f"values reach {high:.4g}", where=name, mend=mend)
        if name == "reference" and low < -0.5:
            mend = "Images are in [0, 1]: for [-1, 1] use (x + 1) / 2"
            raise DataError(f"values go down to {low:.4g}", where=name, mend=mend)


def check_latent_values(image: Tensor, reference: Tensor, scaling: Sequence[float] = ()) -> None:
    """Refuse NaN, infinities and latents that were not multiplied by the VAE's scaling factor.

    Multiplied, latents have a root mean square near 1: 0.2 to 2.3 in 1,248 pieces of 16x16 of the tiny world's, 0.6 to
    1.3 in those of a photograph by Stable Diffusion 1; the latter not multiplied 3.4 to 7.0.

    Args:
        image: distorted latents, (N, C, h, w).
        reference: what they should be.
        scaling: the VAE's scaling factor, where it is known and one number, for the message.

    Raises:
        DataError: naming the size found and the conversion that mends it.
    """
    _range("image", image)
    _range("reference", reference)
    size = float(reference.detach().float().square().mean().sqrt())
    if size > LARGEST_LATENTS:
        known = f"{scaling[0]:g}" if len(scaling) == 1 else "0.18215 for Stable Diffusion 1 and 2"
        mend = f"Multiply by vae.config.scaling_factor ({known})"
        raise DataError(f"latents have a root mean square of {size:.3g}, not near 1", where="reference", mend=mend)


def strange_to_the_tiny_world(reference: Tensor) -> str | None:
    """Evidence that latents are not the tiny world's, or None; None proves nothing.

    Its VAE keeps the mean of the last channel near 0: within 0.16 over 320x320 images (154 of BSDS500's, Kodak's and
    faces), within 0.5 over each of 1,248 pieces of 16x16.
    """
    mean = float(reference.detach()[:, 3].float().mean((1, 2)).abs().max())
    if mean <= LARGEST_TINY_MEAN:
        return None
    return f"their last channel has a mean of {mean:.2f} in size, the tiny world's at most {LARGEST_TINY_MEAN}"


def image_channels(image: Tensor) -> int:
    """The channels that an image should have: 1 for a grey one, else 3."""
    return 1 if isinstance(image, Tensor) and image.ndim == 4 and image.shape[1] == 1 else 3


def as_rgb(image: Tensor) -> Tensor:
    """Grey (N, 1, H, W) repeated to three channels; anything else as it is, to be checked."""
    if isinstance(image, Tensor) and image.ndim == 4 and image.shape[1] == 1:
        return image.expand(-1, 3, -1, -1)
    return image


def fold_video(image: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Videos (N, T, C, H, W) as batches (N T, C, H, W), and (N, T); anything else as it is, and ().

    Raises:
        DataError: two videos of different shapes.
    """
    if not all(isinstance(tensor, Tensor) and tensor.ndim == 5 for tensor in (image, reference)):
        return image, reference, ()
    if image.shape[:2] != reference.shape[:2]:
        what = f"shapes differ: image {tuple(image.shape)}, reference {tuple(reference.shape)}"
        raise DataError(what, mend="Give pairs of one size")
    return image.flatten(0, 1), reference.flatten(0, 1), tuple(image.shape[:2])


def _refuse_grey_against_colour(image: Tensor, reference: Tensor) -> None:
    if not all(isinstance(tensor, Tensor) and tensor.ndim == 4 for tensor in (image, reference)):
        return
    pair = {"image": image.shape[1], "reference": reference.shape[1]}
    if set(pair.values()) == {1, 3}:
        grey = min(pair, key=lambda name: pair[name])
        mend = f"Give two of one kind: grey is colour as {grey}.expand(-1, 3, -1, -1)"
        raise DataError(f"channels differ: image {pair['image']}, reference {pair['reference']}", mend=mend)


def _range(name: str, tensor: Tensor) -> tuple[float, float]:
    low, high = torch.stack(torch.aminmax(tensor.detach())).tolist()
    if not (abs(low) < float("inf") and abs(high) < float("inf")):
        raise DataError("holds NaN or infinite values", where=name)
    return low, high
