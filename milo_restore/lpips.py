"""MILO in the shape of ``lpips.LPIPS``, for training programs that have ``lpips.LPIPS(net="vgg")`` in them.

``from milo_restore.lpips import LPIPS`` in place of ``from lpips import LPIPS``. Two things differ, and are not hidden:

- MILO is smaller. It is a share of the mean absolute error, so a weight that was tuned for LPIPS has to be tuned again.
- MILO is not symmetric. The reference is the second image unless ``reference="first"`` says otherwise; where gradients
  show that it is the other one, the call is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from milo_restore import metric
from milo_restore.errors import ConfigError
from milo_restore.loss.per_image import PerImage

__all__ = ["LPIPS"]


class LPIPS(nn.Module):
    """MILO with the arguments, ranges and shapes of ``lpips.LPIPS``; nothing of it is trained.

    Args:
        pretrained: of lpips; False, an untrained network, is refused.
        net: of lpips; without effect, as ``version``, ``use_dropout``, ``eval_mode`` and ``verbose``.
        version: of lpips.
        lpips: of lpips; False, its baseline, is refused.
        spatial: give a map (N, 1, H, W), whose mean is the number, in place of it.
        pnet_rand: of lpips; True is refused.
        pnet_tune: of lpips; True is refused.
        use_dropout: of lpips.
        model_path: of lpips; anything but None is refused.
        eval_mode: of lpips.
        verbose: of lpips.
        weights: as in `milo_restore.MILO`.
        reference: which of the two images is the undistorted one.
        mask_gradient: let gradients flow through the mask too; see `milo_restore.MILOLoss` for what that did.
        compute_dtype: as in `milo_restore.MILO`.

    Raises:
        WeightsError: the weights can neither be found nor downloaded, or are damaged.
        ConfigError: an argument asks for what only lpips has.
    """

    def __init__(
        self,
        pretrained: bool = True,
        net: str = "alex",
        version: str = "0.1",
        lpips: bool = True,
        spatial: bool = False,
        pnet_rand: bool = False,
        pnet_tune: bool = False,
        use_dropout: bool = True,
        model_path: str | None = None,
        eval_mode: bool = True,
        verbose: bool = True,
        *,
        weights: str | Path = "official",
        reference: Literal["first", "second"] = "second",
        mask_gradient: bool = False,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        asked = {"pretrained": not pretrained, "lpips": not lpips, "pnet_rand": pnet_rand, "pnet_tune": pnet_tune}
        asked["model_path"] = model_path is not None
        if refused := [name for name, is_asked in asked.items() if is_asked]:
            mend = "Leave it out; MILO's own weights are the argument weights"
            raise ConfigError("asks for a network of lpips', of which MILO has none", where=refused[0], mend=mend)
        if reference not in ("first", "second"):
            raise ConfigError(f"{reference!r} is neither 'first' nor 'second'", where="reference")
        super().__init__()
        self.spatial, self.reference = spatial, reference
        self.milo = PerImage(metric.MILO(weights, compute_dtype=compute_dtype), mask_gradient=mask_gradient)

    def forward(self, in0: Tensor, in1: Tensor, retPerLayer: bool = False, normalize: bool = False) -> Tensor:
        """MILO of two batches.

        Args:
            in0: (N, 3, H, W) or grey (N, 1, H, W) in [-1, 1]; the distorted images, unless ``reference`` is ``first``.
            in1: the references, same shape; an image that is trained may leave the range, a reference a little.
            retPerLayer: refused: MILO has no layers to tell apart.
            normalize: the images are in [0, 1].

        Returns:
            (N, 1, 1, 1), float32, or with ``spatial`` (N, 1, H, W).

        Raises:
            DataError: wrong rank, channels, size (below 16), device or value range.
            ConfigError: ``retPerLayer``; or the reference is trained and the image is not.
        """
        if retPerLayer:
            raise ConfigError("MILO has no layers", where="retPerLayer", mend="Leave it out")
        image, reference = (in0, in1) if self.reference == "second" else (in1, in0)
        if torch.is_grad_enabled() and reference.requires_grad and not image.requires_grad:
            other = "first" if self.reference == "second" else "second"
            what = f"the {self.reference} image should be the reference, and it is the one that is trained"
            raise ConfigError(what, where="LPIPS", mend=f"Make it with reference={other!r}, or swap the two")
        if not normalize:
            image, reference = (image + 1) / 2, (reference + 1) / 2
        errors = self.milo.errors(image, reference)
        return errors.mean(1, keepdim=True) if self.spatial else errors.mean((1, 2, 3), keepdim=True)

    def extra_repr(self) -> str:
        """Arguments that it was made with."""
        return f"weights: {self.milo.metric.weights}, spatial={self.spatial}, reference={self.reference!r}"
