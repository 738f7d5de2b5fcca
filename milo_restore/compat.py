"""The one place that makes PyPI's basicsr importable beside today's torchvision, and knows the other one of its name.

basicsr 1.4.2 (its newest release) imports ``rgb_to_grayscale`` from ``torchvision.transforms.functional_tensor``
in ``basicsr/data/degradations.py``. torchvision removed that private module in 0.17, so ``import basicsr`` fails.
The function itself lives on in ``torchvision.transforms.functional``; this module puts a stand-in of one function
where basicsr looks for it. Whoever imports basicsr in this project imports this first.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

from milo_restore.errors import ConfigError

_GONE = "torchvision.transforms.functional_tensor"


def make_basicsr_importable() -> None:
    """Provide ``torchvision.transforms.functional_tensor.rgb_to_grayscale`` where torchvision no longer does.

    Harmless to call twice, and where torchvision still has the module.
    """
    if _GONE in sys.modules or importlib.util.find_spec(_GONE) is not None:
        return
    from torchvision.transforms.functional import rgb_to_grayscale

    module = types.ModuleType(_GONE, "Stand-in made by milo_restore.compat for basicsr 1.4.2.")
    module.rgb_to_grayscale = rgb_to_grayscale  # type: ignore[attr-defined]
    sys.modules[_GONE] = module


def is_restormer_fork(package: Path) -> bool:
    """True if a folder ``basicsr`` is the fork inside the Restormer repository: only that has ``models/losses``."""
    return (package / "models" / "losses").is_dir()


def forks_on_path() -> list[Path]:
    """The folders ``basicsr`` on Python's path that are Restormer's fork, in use or not."""
    packages = [Path(entry or ".") / "basicsr" for entry in sys.path]
    return [package for package in packages if is_restormer_fork(package)]


def refuse_restormer_fork() -> None:
    """Stop where ``import basicsr`` would give Restormer's fork, or nothing.

    Raises:
        ConfigError: saying which, and what to do.
    """
    spec = importlib.util.find_spec("basicsr")
    if spec is None:
        raise ConfigError("no basicsr can be imported", mend="pip install basicsr==1.4.2")
    for place in spec.submodule_search_locations or []:
        if is_restormer_fork(Path(place)):
            mend = "Take Restormer's folder off PYTHONPATH, or use another environment, and pip install basicsr==1.4.2"
            raise ConfigError("is Restormer's fork of basicsr, not PyPI's", where=place, mend=mend)


make_basicsr_importable()
