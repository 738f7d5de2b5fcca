"""The packages that the core does not bring: which extra each comes with, and what is said where one is missing.

``import milo_restore`` puts a finder behind all others. It is asked only for what nobody has, and where an import
statement of this project did ask, it raises `MissingPackage`, which names the command that brings the package. Imports
of all other programs, and ``importlib.util.find_spec``, go on as if it were not there.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

from milo_restore.errors import MissingPackage

BROUGHT_BY = {
    "recipes": (
        "torchvision", "accelerate", "PIL", "simplejpeg", "skimage", "scipy", "cv2", "einops", "tqdm", "matplotlib",
        "jinja2", "tensorboard", "lpips", "huggingface_hub",
    ),
    "basicsr": ("basicsr",),
    "diffusion": ("diffusers", "transformers", "spandrel", "peft"),
    "faces": ("facexlib",),
    "eval": ("pyiqa", "stlpips_pytorch", "flip_evaluator"),
    "data": ("webdataset", "pyarrow"),
}  # fmt: skip
"""The extras of pyproject.toml, and what each brings, by the names that Python imports."""

_NO_EXTRA = {"torchmetrics", "deepinv", "pytorch_optimizer", "bitsandbytes"}  # whoever asks for MILO in them has them


class Advisor(MetaPathFinder):
    """Finds nothing, and says how to install what this project imports and nobody has."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """Refuse a missing package.

        Raises:
            MissingPackage: an import statement in a module of this project asks for one.
        """
        if name not in _NO_EXTRA and not any(name in brought for brought in BROUGHT_BY.values()):
            return
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename.startswith("<frozen importlib._bootstrap"):
            frame = frame.f_back
        asks = str(frame.f_globals.get("__name__"))
        if asks.partition(".")[0] == "milo_restore":
            raise _missing(name, asks)


def install() -> None:
    """Let the advisor come last in the search for modules. Harmless to call twice."""
    if not any(isinstance(finder, Advisor) for finder in sys.meta_path):
        sys.meta_path.append(Advisor())


def is_installed(package: str) -> bool:
    """Whether Python finds a package of this name; it is not imported."""
    return sys.modules.get(package) is not None or importlib.util.find_spec(package) is not None


def require(package: str, where: str) -> None:
    """Stop where a package is not installed, before an import asks for one that a smaller extra brings.

    Args:
        package: by the name that Python imports.
        where: the module that needs it.

    Raises:
        MissingPackage: it is not installed.
    """
    if not is_installed(package):
        raise _missing(package, where)


def _missing(package: str, where: str) -> MissingPackage:
    error = MissingPackage(f"{package} is not installed", where=where, mend=how_to_install([package]))
    error.name = package
    return error


def how_to_install(packages: Iterable[str]) -> str:
    """The one command that brings packages, given by the names that Python imports."""
    packages = list(packages)
    if "basicsr" in packages and sys.version_info >= (3, 13):
        return "PyPI's basicsr cannot be installed on Python 3.13 and later: use Python 3.10, 3.11 or 3.12"
    extras = [extra for extra, brought in BROUGHT_BY.items() if set(brought) & set(packages)]
    ours = [f'"milo-restore[{",".join(extras)}]"'] if extras else []
    return f"Run pip install {' '.join((*ours, *sorted(_NO_EXTRA & set(packages))))}"
