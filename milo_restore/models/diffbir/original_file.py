"""Reading checkpoints in the original latent-diffusion format, and telling their parts apart.

Formats met: DiffBIR's control network alone (v2, v2.1, ``v1_general.pth``, ``v1_face.pth``, and what its training
writes), DiffBIR v1's whole model (``general_full_v1.ckpt``), and Stable Diffusion in one file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from milo_restore.errors import WeightsError
from milo_restore.files.state import State, read_state, shortened

_PREFIXES = {
    "control_model.": "control",
    "model.diffusion_model.": "unet",
    "first_stage_model.": "vae",
    "cond_stage_model.model.": "text_encoder",
    "cond_encoder.": "condition_encoder",
    "preprocess_model.": "cleaner",
}
# What a latent-diffusion model stores beside its networks: the noise schedule, which we make from its parameters, and
# a running average of the UNet, which DiffBIR does not read.
_SCHEDULE = {
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights", "logvar",
}  # fmt: skip


@dataclass
class Parts:
    """The networks of one checkpoint, each with its keys as the network itself names them.

    Attributes:
        path: the file.
        networks: by name: ``control``, ``unet``, ``vae``, ``text_encoder``, ``condition_encoder`` (v1's copy of the
            VAE's encoder) and ``cleaner`` (v1's SwinIR).
        left_out: the keys that no network has a use for.
    """

    path: Path
    networks: dict[str, State] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def read_parts(path: Path) -> Parts:
    """Read a checkpoint and split it.

    Raises:
        WeightsError: the file is missing or unreadable, or has keys that belong to none of the known parts.
    """
    state = read_state(path, prefer=("state_dict",), mapped=True).tensors  # a whole model's averages are keys of it
    if "input_blocks.0.0.weight" in state:  # the control network alone
        return Parts(path, {"control": state})
    parts, strange = Parts(path), []
    for key, value in state.items():
        prefix = next((prefix for prefix in _PREFIXES if key.startswith(prefix)), None)
        if prefix is not None:
            parts.networks.setdefault(_PREFIXES[prefix], {})[key[len(prefix) :]] = value
        elif key in _SCHEDULE or key.startswith("model_ema.") or key.endswith(".position_ids"):
            parts.left_out.append(key)
        else:
            strange.append(key)
    if strange or not parts.networks:
        mend = "Expected DiffBIR's or Stable Diffusion 2.1's, in the original format"
        raise WeightsError(f"{len(strange)} keys of no known network: {shortened(strange)}", where=path, mend=mend)
    return parts
