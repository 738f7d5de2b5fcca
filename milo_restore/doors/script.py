"""Import path of a program's script and of the workers that it spawns."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import milo_restore

VARIABLE = "MILO_RESTORE_PROGRAM"
"""Names the script to the workers that it spawns."""


def make_room(script: Path) -> None:
    """Let a script import what it would on its own: what lies beside it, first; and the basicsr that it belongs to.

    ``basicsr/train.py`` of a fork means that fork, even where another basicsr is installed, which would come first
    before a folder without ``__init__.py`` (Restormer, NAFNet and their kind).
    """
    folder = script.resolve().parent
    home = str(Path(milo_restore.__file__).resolve().parents[1])
    if home not in sys.path:
        sys.path.append(home)
    sys.path[0] = str(folder)
    package = next((place for place in (folder, *folder.parents) if place.name == "basicsr"), None)
    if package is None:
        return
    sys.path.insert(1, str(package.parent))
    if not (package / "__init__.py").exists() and "basicsr" not in sys.modules:
        module = ModuleType("basicsr")
        module.__path__ = [str(package)]
        module.__spec__ = importlib.util.spec_from_loader("basicsr", None, is_package=True)
        sys.modules["basicsr"] = module
