"""DiffBIR's control network as a diffusers ControlNet, and the prediction of the UNet that it steers.

Source: Lin, He, Chen, Lyu, Dai, Yu, Qiao, Ouyang, Dong: "DiffBIR: Toward Blind Image Restoration with Generative
Diffusion Prior", ECCV 2024. There the first convolution sees the noisy and the condition latent side by side, in eight
channels. A convolution of two stacked inputs is the sum of one convolution of each, and diffusers' ControlNet already
adds its conditioning embedding to ``conv_in``'s output. So a second convolution as that embedding is exactly DiffBIR's
network, and diffusers' forward pass, checkpointing and file format stay as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffusers import ControlNetModel
from torch import Tensor, nn

from milo_restore.errors import DataError

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

__all__ = ["IRControlNet", "predict"]


class IRControlNet(ControlNetModel):
    """A ``ControlNetModel`` whose condition is a latent of the size of the noisy one, not an image.

    The arguments are ``ControlNetModel``'s; ``conditioning_channels`` is 4 unless given, and
    ``conditioning_embedding_out_channels`` means nothing here. ``controlnet_cond_embedding`` is a 3x3 convolution
    without bias. It and the thirteen output convolutions start from zero, so that an untrained control changes nothing.

    Example:
        >>> from milo_restore import IRControlNet
        >>> from milo_restore.models.tiny import tiny_unet
        >>> control = IRControlNet.from_unet(tiny_unet())  # Stable Diffusion's UNet2DConditionModel in earnest
        >>> control.controlnet_cond_embedding.weight.abs().max().item()
        0.0
    """

    @functools.wraps(ControlNetModel.__init__)  # type: ignore[misc]  # diffusers reads the parent's signature here
    def __init__(self, *arguments: Any, **options: Any) -> None:
        # Handed on by name: the parent writes into the configuration what it is given, and its own default is 3.
        options.setdefault("conditioning_channels", 4)
        super().__init__(*arguments, **options)
        channels = self.config.conditioning_channels
        self.controlnet_cond_embedding = nn.Conv2d(channels, self.conv_in.out_channels, 3, padding=1, bias=False)
        nn.init.zeros_(self.controlnet_cond_embedding.weight)

    @classmethod
    def from_unet(cls, unet: UNet2DConditionModel) -> IRControlNet:
        """A control initialised as DiffBIR's: encoder and middle block copied from the UNet, all that is new zero.

        Args:
            unet: Stable Diffusion's; it is not changed.

        Returns:
            The control on the CPU, in float32 whatever the UNet's precision.
        """
        control: IRControlNet = super().from_unet(unet, conditioning_channels=unet.config.in_channels)
        return control

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        *arguments: Any,
        **options: Any,
    ) -> Any:
        """``ControlNetModel.forward``, after a look at the condition's shape.

        Args:
            sample: noisy latent (N, 4, h, w).
            timestep: one for all, or (N,).
            encoder_hidden_states: text embedding (N, L, D).
            controlnet_cond: condition latent (N, 4, h, w), times the VAE's scaling factor.
            *arguments: ``ControlNetModel.forward``'s further ones.
            **options: the same by name, such as ``return_dict=False``.

        Returns:
            What ``ControlNetModel.forward`` does: the residuals of the skip connections and of the middle block.

        Raises:
            DataError: the condition is not of the shape that ``sample`` has; unchecked, one of another size would be
                repeated over the latent without a word.
        """
        expected = (sample.shape[0], self.config.conditioning_channels, *sample.shape[2:])
        if tuple(controlnet_cond.shape) != expected:
            what = f"the condition latent is {tuple(controlnet_cond.shape)}, the noisy latent asks for {expected}"
            raise DataError(what, mend="Encode the cleaned image with the VAE; give no image here")
        return super().forward(sample, timestep, encoder_hidden_states, controlnet_cond, *arguments, **options)


def predict(
    unet: UNet2DConditionModel,
    control: nn.Module,
    z_t: Tensor,
    timesteps: Tensor,
    context: Tensor,
    condition: Tensor,
    scales: float | Sequence[float] = 1.0,
) -> Tensor:
    """The UNet's prediction (noise or velocity, whichever it was trained for) under control.

    Args:
        unet: Stable Diffusion's, frozen or not; computes in its own precision.
        control: an `IRControlNet`, possibly wrapped for several processes.
        z_t: noisy latent (N, 4, h, w).
        timesteps: (N,), or one for all.
        context: text embedding (N, L, D), or (1, L, D) for all.
        condition: condition latent (N, 4, h, w), times the VAE's scaling factor.
        scales: strength of the control: one number, or one for each residual, the middle block's last.

    Returns:
        (N, 4, h, w), in the UNet's precision.

    Raises:
        DataError: the shapes of ``condition`` and ``z_t`` differ, or there are not as many scales as residuals.
    """
    context = context.expand(len(z_t), -1, -1)
    down, middle = control(z_t, timesteps, encoder_hidden_states=context, controlnet_cond=condition, return_dict=False)
    residuals = [residual.to(unet.dtype) for residual in (*down, middle)]
    if isinstance(scales, Sequence):
        if len(scales) != len(residuals):
            raise DataError(f"{len(scales)} control scales for {len(residuals)} residuals")
        residuals = [residual * scale for residual, scale in zip(residuals, scales)]
    elif scales != 1.0:
        residuals = [residual * scales for residual in residuals]
    prediction: Tensor = unet(
        z_t.to(unet.dtype),
        timesteps,
        encoder_hidden_states=context.to(unet.dtype),
        down_block_additional_residuals=residuals[:-1],
        mid_block_additional_residual=residuals[-1],
        return_dict=False,
    )[0]
    return prediction
