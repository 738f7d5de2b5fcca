"""Acting on a module of somebody else's right after it was imported, without importing it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["when_imported"]

Act = Callable[[ModuleType], None]


def when_imported(name: str, act: Act) -> None:
    """Call ``act(module)`` as soon as the module is there: now, or right after its code has run.

    ``from module import thing`` of the program then finds what ``act`` has put in the place of ``thing``.

    Args:
        name: dotted name of the module.
        act: called once, with the module.
    """
    module = sys.modules.get(name)
    if module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False):
        act(module)
        return
    _finder().acts.setdefault(name, []).append(act)


class _Watcher(MetaPathFinder):
    """Comes first, finds nothing itself, and wraps the loaders of the modules that are waited for."""

    def __init__(self) -> None:
        self.acts: dict[str, list[Act]] = {}
        self.asking: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.acts or fullname in self.asking:
            return None
        self.asking.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.asking.discard(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Acting(spec.loader, self.acts.pop(fullname))
        return spec


class _Acting(Loader):
    """Another loader, after which acts follow."""

    def __init__(self, loader: Loader, acts: list[Act]) -> None:
        self.loader, self.acts = loader, acts

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        for act in self.acts:
            act(module)


def _finder() -> _Watcher:
    for finder in sys.meta_path:
        if isinstance(finder, _Watcher):
            return finder
    watcher = _Watcher()
    sys.meta_path.insert(0, watcher)
    return watcher
