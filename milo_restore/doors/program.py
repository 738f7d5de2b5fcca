"""A program that someone else wrote, executed in this process as Python itself would."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from milo_restore.doors.script import VARIABLE, make_room
from milo_restore.errors import ConfigError

__all__ = ["execute"]

_WORKER = "milo_restore.doors.spawned"
Compile = Callable[[str, str], CodeType]


def execute(program: Sequence[str], compiled: Compile, names: Mapping[str, Any]) -> None:
    """Execute ``script.py arguments...`` or ``-m module arguments...`` as ``__main__``.

    Args:
        program: its command line, without ``python``.
        compiled: turns the source and its file's name into code.
        names: what that code uses beside the program's own names.

    Raises:
        ConfigError: there is no such script or module.
    """
    name = program[1] if program[0] == "-m" and len(program) > 1 else program[0]
    if program[0] == "-m":
        sys.path[0] = os.getcwd()
        path = _module_file(name)
        sys.argv = [str(path), *program[2:]]
    else:
        path = Path(name)
        if not path.is_file():
            mend = "Name it after --, as in: milo-restore run --loss milo-cosine -- train.py -opt FILE.yml"
            raise ConfigError("there is no such script", where=name, mend=mend)
        sys.argv = [name, *program[1:]]
        make_room(path)
        os.environ[VARIABLE] = str(path.resolve())
    main = ModuleType("__main__")
    main.__file__, main.__dict__["__builtins__"] = str(path), __builtins__
    if program[0] == "-m":
        main.__spec__, main.__package__ = importlib.util.find_spec(name), name.rpartition(".")[0]
    else:  # a spawned data worker imports what this names, which opens the doors before it runs the script
        main.__spec__ = importlib.util.find_spec(_WORKER)
    main.__dict__.update(names)
    sys.modules["__main__"] = main
    source = importlib.util.decode_source(path.read_bytes())  # a mark of byte order, or a coding line, as Python does
    exec(compiled(source, str(path)), main.__dict__)  # noqa: S102  (what a launcher does)


def _module_file(name: str) -> Path:
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise ConfigError("there is no such module", where=f"-m {name}", mend="Put its folder on PYTHONPATH")
    return Path(spec.origin)
