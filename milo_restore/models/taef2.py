"""TAEF2, the tiny autoencoder of FLUX.2's latents (github.com/madebyollin/taesd, MIT), as a diffusers AutoencoderTiny.

1.34 M parameters in each half; images to 32 channels of an eighth of their size and back. diffusers 0.42 has all of the
architecture but the blocks of its coarsest level, which pool over the whole image by a group normalisation. Shapes are
the files'. They leave two things open, which were found by what decodes best: four groups, before the block's
convolutions (31.8 dB on a crop of scikit-image's astronaut; with another number or place at most 30.7).
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import Tensor, nn

from milo_restore.files import weights_path
from milo_restore.files.state import State, fill, read_state

__all__ = ["TAEF2", "load_taef2"]

CHANNELS, WIDTH, GROUPS = 32, 64, 4
_POOLED = {"encoder": (11, 12, 13), "decoder": (2, 3, 4)}  # layers of the coarsest level


class _PooledBlock(AutoencoderTinyBlock):
    """diffusers' block behind a residual of 1x1 convolutions around a group normalisation."""

    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH, "relu")
        wide = 4 * WIDTH
        into, out = nn.Conv2d(WIDTH, wide, 1, bias=False), nn.Conv2d(wide, WIDTH, 1, bias=False)
        self.pool = nn.Sequential(into, nn.GroupNorm(GROUPS, wide), nn.ReLU(), out)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, 64, h, w), and the same shape out."""
        return super().forward(x + self.pool(x))


class TAEF2(AutoencoderTiny):
    """An ``AutoencoderTiny`` of FLUX.2's latents with random weights; `load_taef2` fills it.

    As diffusers has it, ``encode(x).latents`` takes RGB (N, 3, H, W) in [-1, 1] and gives (N, 32, H / 8, W / 8), and
    ``decode(z).sample`` is its inverse; sides are multiples of 8, ``config.scaling_factor`` is 1, ``shift_factor`` 0.
    """

    def __init__(self) -> None:
        super().__init__(latent_channels=CHANNELS)
        for half, places in _POOLED.items():
            for place in places:
                getattr(self, half).layers[place] = _PooledBlock()


def load_taef2(
    encoder: str | Path | None = None,
    decoder: str | Path | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> TAEF2:
    """TAEF2 with its published weights, frozen, in evaluation mode.

    Args:
        encoder: ``taef2_encoder.pth``; by default found by name, or downloaded once, and checked by its sha256.
        decoder: the same of ``taef2_decoder.pth``.
        device: where it computes.
        dtype: what it computes in; the files hold float16.

    Raises:
        WeightsError: a file cannot be had, is damaged, or is of another architecture.
    """
    with torch.device("meta"):  # where initial values, which no one needs, cost neither time nor random numbers
        vae = TAEF2()
    paths = {"encoder": Path(encoder or weights_path("taef2-encoder"))}
    paths["decoder"] = Path(decoder or weights_path("taef2-decoder"))
    for half, path in paths.items():
        state = {key: value.to(dtype, copy=True) for key, value in read_state(path).tensors.items()}
        fill(getattr(vae, half).layers, _renumbered(state) if half == "decoder" else state, path,
             name=f"TAEF2's {half}", assign=True)  # fmt: skip
    return vae.to(device).eval().requires_grad_(False)


def _renumbered(state: State) -> State:
    """Keys of the decoder's layers as diffusers counts them: its clamp is no layer."""
    parts = {key: key.partition(".") for key in state}
    return {f"{int(head) - 1}.{rest}" if head.isdigit() else key: state[key] for key, (head, _, rest) in parts.items()}
