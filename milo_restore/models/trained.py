"""A trained Restormer by name: one that ships, a run's, or any weight file, published ones included."""

from __future__ import annotations

from pathlib import Path

from milo_restore.errors import WeightsError
from milo_restore.files.manifest import verify_file
from milo_restore.models.lite import LITE, lite_weights
from milo_restore.models.restormer import Restormer

TRAINED = Path("final") / "model.safetensors"  # of a run folder of recipes/restormer_denoise.py


def load_trained(name: str | Path, entry: str | None = None) -> tuple[Restormer, Path]:
    """A trained Restormer in eval mode, and its weight file.

    Args:
        name: one of `milo_restore.models.lite.LITE`, a run folder, or a weight file.
        entry: of a weight file that holds several networks, see `Restormer.from_checkpoint`.

    Raises:
        WeightsError: the run has not finished, or the file is missing, damaged or another network's.
    """
    path = lite_weights(str(name)) if name in LITE else Path(name)
    if not path.exists():
        mend = f"Give {', '.join(LITE)}, a run folder or a weight file"
        raise WeightsError("neither a shipped denoiser nor a path", where=path, mend=mend)
    weights = path / TRAINED if path.is_dir() else path
    if path.is_dir() and not weights.is_file():
        mend = "Finish the run with --resume latest, or name a weight file"
        raise WeightsError("holds no trained network", where=path, mend=mend)
    if (path / "env.json").is_file():
        verify_file(weights, needed=True)  # a run always writes a manifest, which reading looks at where there is one
    return Restormer.from_checkpoint(weights, entry=entry).eval(), weights
