"""The best weights of a run, by a number of its evaluation: best/, beside the checkpoints and as whole as they are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_model

from milo_restore.errors import ConfigError, WeightsError
from milo_restore.files.write import settle
from milo_restore.train import checkpoint
from milo_restore.train.state import TrainingState

RECORD = "evaluation.json"


def offer(folder: Path, state: TrainingState, evaluation: Mapping[str, float], *, lower: bool = False) -> bool:
    """Keep the present weights (the averaged ones, where they are kept) if they are better than those in ``folder``.

    Nothing else is remembered: after a resume the comparison goes on with what the folder says. Where a run was
    resumed from before its best step, it comes by that step again, finds its equal there, and leaves it.

    Args:
        folder: best/ of the run.
        state: of the training.
        evaluation: its numbers, by name.
        lower: less is better.

    Returns:
        Whether they were kept. Not a number is better than nothing.

    Raises:
        ConfigError: the evaluation has no such number.
        WeightsError: what is in the folder is damaged.
        MiloRestoreError: it cannot be written; what was there before is untouched.
    """
    name = state.fingerprint["keep_best"]
    if name not in evaluation:
        known = ", ".join(evaluation) or "nothing"
        raise ConfigError(f"the evaluation gives {known}, and no {name!r}", where="keep_best")
    value, before = evaluation[name], math.inf if lower else -math.inf
    if folder.exists():
        try:
            checkpoint.verify(folder)
        except WeightsError as error:
            mend = f"Delete {folder} and go on with --resume latest: the best from there on is kept"
            raise WeightsError(error.what, where=error.where, mend=mend) from error
        before = json.loads((folder / RECORD).read_text(encoding="utf-8"))["evaluation"][name]
    if not (value < before if lower else value > before):
        return False

    def write(temporary: Path) -> None:
        with state.averaged() as model:
            save_model(model, str(temporary / "model.safetensors"), {"format": "pt", "step": str(state.step)})
        settle(temporary / "model.safetensors")
        record = {"step": state.step, "best": name, "evaluation": dict(evaluation)}
        (temporary / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    checkpoint.publish(folder, write)
    return True
