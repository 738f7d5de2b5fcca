"""The loss section of a diffusion recipe's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from milo_restore.errors import ConfigError
from milo_restore.loss.curriculum import CurriculumKind
from milo_restore.metric import LatentMILO, LatentSpace

STABLE_DIFFUSION = 0.18215
"""Scaling factor of Stable Diffusion 1's and 2's VAE."""

_CHOICES: dict[str, tuple[str | int, ...]] = {
    "kind": ("mse", "mae", "milo"),
    "residual": ("prediction", "z0"),
    "power": (1, 2),
    "mask_pair": ("estimate", "condition"),
    "weighting_scheme": ("none", "sigma_sqrt", "cosmap"),
}


@dataclass(frozen=True)
class DiffusionLossSettings:
    """Which loss trains the diffusion model; the formulas are `DiffusionLoss`'s.

    Attributes:
        kind: ``mse`` (DiffBIR's own), ``mae``, or ``milo``: the residual under the latent mask.
        weights: LatentMILO's weights, ``official``, ``flux2-taef2``, ``mini`` or a path; ignored by the others.
        curriculum: ``constant``, ``linear`` or ``cosine`` over the run's steps.
        residual: where errors are counted: ``prediction``, or ``z0``, the clean latent that the prediction stands for.
        power: of MILO's residual: 1 or 2; ``mse`` is 2 and ``mae`` is 1.
        mask_pair: what the mask compares with z_0: ``estimate``, the model's z0_hat, or ``condition``, the latent of
            the degraded (cleaned) input, which says where that is visibly wrong.
        mask_gradient: let gradients flow through the mask too; see `DiffusionLoss`.
        contrast: exponent on the mask: above 1 the weights differ more from place to place.
        noise_blend: k > 0 blends MILO's weights towards one by sigma_t^k, sigma_t^2 = 1 - alpha_bar_t, or flow
            matching's sigma; None: never, see `DiffusionLoss`.
        snr_gamma: Min-SNR-gamma weighting of the timesteps, for every kind; the authors use 5; None: uniform.
        weighting_scheme: weighting of flow matching's timesteps, for every kind, as diffusers' SD 3 and FLUX scripts
            name it: ``none``, ``sigma_sqrt`` or ``cosmap``. Their other schemes draw timesteps and are ``none`` here.
        normalize: divide MILO's weights by their mean per image, so that it compares with ``mse`` at one learning rate;
            ignored by the others, as are ``power`` and ``bfloat16``.
        anchor: k > 0 trains with the plain MSE and k times LatentMILO's error of z0_hat beside it; None: the mask
            weighs the residual itself.
        anchor_timestep: that error counts below this timestep (flow matching: 1000 sigma) only, where z0_hat looks like
            a latent.
        bfloat16: compute the mask network in bfloat16.
        loss_weight: factor on the loss.

    Example:
        >>> from milo_restore import DiffusionLossSettings
        >>> DiffusionLossSettings(curriculum="cosine", normalize=True).label
        'milo-cosine-normalized'
    """

    kind: Literal["mse", "mae", "milo"] = "milo"
    weights: str = "official"
    curriculum: CurriculumKind = "constant"
    residual: Literal["prediction", "z0"] = "prediction"
    power: Literal[1, 2] = 2
    mask_pair: Literal["estimate", "condition"] = "estimate"
    mask_gradient: bool = False
    contrast: float = 1.0
    noise_blend: float | None = None
    snr_gamma: float | None = None
    weighting_scheme: Literal["none", "sigma_sqrt", "cosmap"] = "none"
    normalize: bool = False
    anchor: float | None = None
    anchor_timestep: int = 500
    bfloat16: bool = False
    loss_weight: float = 1.0

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(map(repr, known))}")
        for name in ("contrast", "noise_blend", "snr_gamma", "anchor"):
            value, null = getattr(self, name), "" if name == "contrast" else " or null"
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a number above 0{null}, got {value}")
        if self.anchor_timestep < 1:
            raise ValueError(f"anchor_timestep must be at least 1, got {self.anchor_timestep}")
        self._check_together()

    def _check_together(self) -> None:
        """Refuse a setting that another one would silence."""
        weighing = {
            "residual: z0": self.residual == "z0",
            "snr_gamma": self.snr_gamma is not None,
            "weighting_scheme": self.weighting_scheme != "none",
        }
        if sum(weighing.values()) > 1:
            both = " and ".join(name for name, is_set in weighing.items() if is_set)
            raise ValueError(f"{both} both weigh the timesteps: set one of them")
        if self.kind != "milo":
            if changed := self._changed(
                "curriculum", "mask_pair", "mask_gradient", "contrast", "noise_blend", "anchor"
            ):
                raise ValueError(f"{changed} needs MILO's mask: set kind to milo, not {self.kind}")
            return
        if self.mask_pair == "condition" and self.mask_gradient:
            raise ValueError("mask_gradient: the condition's mask does not depend on the model: set one of them")
        shapes = ("curriculum", "residual", "power", "mask_pair", "contrast", "noise_blend", "normalize")
        if self.anchor is not None and (changed := self._changed(*shapes)):
            raise ValueError(f"{changed} shapes the masked residual, which with an anchor is the plain MSE: set one")

    def check_latents_of(self, scaling_factor: float, base: str) -> None:
        """Refuse a LatentMILO that knows another VAE's latents.

        ``official`` knows Stable Diffusion's, ``mini`` the tiny world's, others what their file says.

        Args:
            scaling_factor: of the VAE.
            base: what the VAE is of, for the error.

        Raises:
            ConfigError: the loss has a mask from the one with the latents of the other.
        """
        if self.kind == "milo" and self.weights not in ("official", "mini"):
            known = LatentMILO.from_pretrained(self.weights)
            known.check_space(LatentSpace(known.channels, (scaling_factor,)), base)
        stable = abs(scaling_factor - STABLE_DIFFUSION) < 1e-5
        if self.kind != "milo" or self.weights not in ("official", "mini") or stable == (self.weights == "official"):
            return
        theirs, right = ("the tiny world's", "official") if stable else ("Stable Diffusion's", "mini")
        what = f"LatentMILO's {self.weights} weights know {theirs} latents, not those of {base}"
        raise ConfigError(what, where="loss.weights", mend=f"Set loss.weights to {right}, or base to what fits")

    def _changed(self, *names: str) -> str:
        """The first of the fields that is not as by default; empty where all are."""
        defaults: dict[str, Any] = {name: field.default for name, field in self.__dataclass_fields__.items()}
        return next((name for name in names if getattr(self, name) != defaults[name]), "")

    @property
    def label(self) -> str:
        """The name used in tables, such as mse, milo, milo-l1-cosine-contrast2-normalized, milo-anchor0.1-below500."""
        milo = self.kind == "milo"
        parts = [
            self.kind,
            "z0" if self.residual == "z0" else "",
            "l1" if milo and self.power == 1 else "",
            "" if self.curriculum == "constant" else self.curriculum,
            "condition" if self.mask_pair == "condition" else "",
            "through" if self.mask_gradient else "",
            "" if self.contrast == 1 else f"contrast{self.contrast:g}",
            "normalized" if milo and self.normalize else "",
            "" if self.noise_blend is None else f"blend{self.noise_blend:g}",
            "" if self.snr_gamma is None else f"minsnr{self.snr_gamma:g}",
            "" if self.weighting_scheme == "none" else self.weighting_scheme.replace("_", ""),
            "" if self.anchor is None else f"anchor{self.anchor:g}-below{self.anchor_timestep}",
        ]
        return "-".join(part for part in parts if part)
