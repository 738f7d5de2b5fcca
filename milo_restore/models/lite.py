"""The small denoisers that ship: two Restormers of 0.9 M parameters that differ in the loss that trained them."""

from __future__ import annotations

from pathlib import Path

from milo_restore.errors import WeightsError
from milo_restore.files.manifest import verify_file

LITE = {"lite": "restormer_lite_milo.safetensors", "lite-mae": "restormer_lite_mae.safetensors"}
"""By name: trained with MILO as ``recipes/configs/restormer_bsd400_lite.yaml`` recommends it, and with MAE."""


def lite_weights(name: str) -> Path:
    """The weight file behind a name of `LITE`, for `Restormer.from_checkpoint`.

    Both remove white noise of sigma 25 in 8-bit units; the card is ``milo_restore/weights/README.md``.

    Raises:
        WeightsError: no such name, or the file is not there.
    """
    if name not in LITE:
        raise WeightsError("no such shipped denoiser", where=repr(name), mend=f"Known names: {', '.join(LITE)}")
    path = Path(__file__).resolve().parent.parent / "weights" / LITE[name]
    if not path.is_file():
        raise WeightsError("is not here", where=path, mend="Install milo-restore again")
    verify_file(path, needed=True)
    return path
