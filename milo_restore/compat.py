"""The one place that makes PyPI's basicsr importable beside today's torchvision.

basicsr 1.4.2 (its newest release) imports ``rgb_to_grayscale`` from ``torchvision.transforms.functional_tensor``
in ``basicsr/data/degradations.py``. torchvision removed that private module in 0.17, so ``import basicsr`` fails.
The function itself lives on in ``torchvision.transforms.functional``; this module puts a stand-in of one function
where basicsr looks for it. Whoever imports basicsr in this project imports this first.
"""

from __future__ import annotations

import importlib.util
import sys
import types

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


make_basicsr_importable()
