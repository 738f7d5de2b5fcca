"""PyPI's basicsr beside today's torchvision, and the other package of its name.

basicsr 1.4.2 (its newest release) and most of its forks import ``rgb_to_grayscale`` from
``torchvision.transforms.functional_tensor``. torchvision removed that private module in 0.17, so ``import basicsr``
fails. The function itself lives on in ``torchvision.transforms.functional``. `install`, which ``import milo_restore``
calls, puts a finder behind all others that gives a module of this one function where nobody else has one of that name.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from milo_restore.errors import ConfigError
from milo_restore.extras import how_to_install

GONE = "torchvision.transforms.functional_tensor"


class StandIn(MetaPathFinder, Loader):
    """Finder and loader of the module that torchvision no longer has."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """A module for `GONE`; nothing for all other names."""
        return ModuleSpec(name, self) if name == GONE else None

    def exec_module(self, module: ModuleType) -> None:
        """Put torchvision's public function of that name into it."""
        from torchvision.transforms.functional import rgb_to_grayscale

        vars(module)["rgb_to_grayscale"] = rgb_to_grayscale


def install() -> None:
    """Make basicsr importable from here on. Harmless to call twice, and where torchvision still has the module."""
    if not any(isinstance(finder, StandIn) for finder in sys.meta_path):
        sys.meta_path.append(StandIn())


def is_restormer_fork(package: Path) -> bool:
    """Whether a folder ``basicsr`` is of the kind inside Restormer, NAFNet, MIRNetv2 and Retinexformer.

    Only that kind has ``models/losses``, and it has no ``__init__.py``, so an installed basicsr comes before it.
    """
    return (package / "models" / "losses").is_dir()


def forks_on_path() -> list[Path]:
    """The folders ``basicsr`` on Python's path that are of Restormer's kind, in use or not."""
    packages = [Path(entry or ".") / "basicsr" for entry in sys.path]
    return [package for package in packages if is_restormer_fork(package)]


def require_basicsr() -> None:
    """Stop where ``import basicsr`` would give nothing, or a fork without BasicSR's ``train_pipeline``.

    Raises:
        ConfigError: saying which, and what to do.
    """
    spec = importlib.util.find_spec("basicsr")
    if spec is None:
        mend = f"{how_to_install(['basicsr'])}; or run a fork's own program by milo-restore run"
        raise ConfigError("no basicsr can be imported", mend=mend)
    for place in map(Path, spec.submodule_search_locations or []):
        if is_restormer_fork(place):
            what = "is of Restormer's kind, which this command does not know"
            mend = f"Train with it: milo-restore run --loss milo-cosine -- {place / 'train.py'} -opt FILE.yml"
            raise ConfigError(what, where=place, mend=mend)
