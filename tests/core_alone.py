"""Everything of milo-restore in a process that has only the packages of the core; what came of it, as JSON.

``tests/test_core.py`` runs it. Packages that are installed here beside the core's are hidden from Python's search.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.metadata
import io
import json
import pkgutil
import re
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

CORE = {"torch", "numpy", "pyyaml", "safetensors", "pooch", "tomli"}


def closure(wanted):
    """These distributions and all that they need themselves, without extras."""
    found, names = set(), set(wanted)
    while names:
        name = re.sub(r"[-_.]+", "-", names.pop()).lower()
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            needs = importlib.metadata.requires(name) or []
            found.add(name)
            plain = {re.match(r"[\w.-]+", line)[0] for line in needs if "extra ==" not in line}
            names |= {need for need in plain if re.sub(r"[-_.]+", "-", need).lower() not in found}
    return found


def hide_all_but_the_core():
    """Let Python's search find nothing of the packages beside the core's."""
    kept = closure(CORE)
    owners = importlib.metadata.packages_distributions().items()
    hidden = {name for name, by in owners if not {re.sub(r"[-_.]+", "-", one).lower() for one in by} & kept}
    hidden -= {"milo_restore"}
    search = importlib.machinery.PathFinder.find_spec

    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else search(name, path, target)

    importlib.machinery.PathFinder.find_spec = staticmethod(find_spec)
    for finder in [finder for finder in sys.meta_path if "editable" in str(finder).lower()]:
        sys.meta_path.remove(finder)
    assert "torch" not in hidden
    assert {"tqdm", "PIL", "einops", "basicsr"} <= hidden
    return sorted(hidden)


def modules():
    """Every module of the package imported alone: ``ok``, or the error's type and text."""
    import milo_restore

    found = {}
    for module in pkgutil.walk_packages(milo_restore.__path__, "milo_restore.", onerror=lambda name: None):
        if not module.name.endswith("__main__"):
            try:
                importlib.import_module(module.name)
                found[module.name] = "ok"
            except Exception as error:
                found[module.name] = f"{type(error).__name__}: {error}"
    return found


def commands(folder):
    """Every subcommand, with ``--help`` and as its user would call it: exit code and what it printed on stderr."""
    import numpy as np

    from milo_restore.cli import COMMANDS, main

    image, latent, script = folder / "a.png", folder / "a.npy", folder / "train.py"
    image.write_bytes(b"")
    np.save(latent, np.zeros((4, 16, 16), np.float32))
    script.write_text("import torch.nn.functional as F\n")
    (folder / "x.yml").write_text("name: x\n")
    results = str(folder / "results.json")
    calls = {
        "score": ["--weights", "mini", str(image), str(image)],
        "map": ["--weights", "mini", str(image), str(image), "--output", str(folder / "map.png")],
        "levels": ["--distortion", "11", "--plot", str(folder / "levels.png")],
        "correlate": ["--dataset", "tid2013", "--root", str(folder), "--metrics", "milo"],
        "evaluate": ["--pred", str(folder), "--ref", str(folder), "--metrics", "psnr", "--output", results],
        "compare": [str(folder), str(folder)],
        "tables": ["all", "--scale", "smoke"],
        "report": [str(folder), "--output", str(folder / "report.html")],
        "denoise": ["--model", "lite", "--input", str(folder), "--output", str(folder / "out")],
        "restore": ["--task", "denoise", "--input", str(folder), "--output", str(folder / "out"), "--model", "x"],
        "convert": ["diffbir", str(image), "--base", str(image), "--output", str(folder / "diffbir")],
        "basicsr": ["-opt", str(folder / "x.yml"), "--loss", "milo"],
        "run": ["--loss", "milo", "--", str(script)],
        "config": ["restormer_denoise"],
        "assets": ["list"],
        "doctor": [],
        "bench": ["--quick"],
    }
    assert set(calls) == set(COMMANDS)
    found = {}
    for name, words in calls.items():
        for arguments in ([name, "--help"], [name, *words]):
            errors, printed = io.StringIO(), io.StringIO()
            with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(printed):
                try:
                    code = main(arguments)
                except Exception as error:
                    code = f"{type(error).__name__}: {error}"
            found[f"{name} --help" if arguments[1:] == ["--help"] else name] = [code, errors.getvalue()]
    return found


def recipes():
    """Every recipe loaded as a module: ``ok``, or the error's type and text."""
    found = {}
    for path in sorted((Path(__file__).parent.parent / "recipes").glob("*.py")):
        sys.path[:0] = [str(path.parent)]
        try:
            importlib.import_module(path.stem)
            found[path.stem] = "ok"
        except Exception as error:
            found[path.stem] = f"{type(error).__name__}: {error}"
    return found


def library():
    """The metric, the losses and the diffusion loss, computed."""
    import torch

    from milo_restore import MILO, DiffusionLoss, L1Loss, LatentMILOLoss, MILOLoss
    from milo_restore.loss import DiffusionLossSettings
    from milo_restore.lpips import LPIPS

    config = SimpleNamespace(prediction_type="epsilon", num_train_timesteps=10, get={}.get)
    scheduler = SimpleNamespace(config=config, alphas_cumprod=torch.linspace(0.99, 0.01, 10))
    torch.manual_seed(0)
    image, reference = torch.rand(2, 1, 3, 64, 64)
    latents = torch.randn(4, 1, 4, 16, 16)
    diffusion = DiffusionLoss(DiffusionLossSettings(kind="milo", weights="mini"), scheduler, 10)
    values = {
        "MILO": MILO("mini")(image, reference),
        "MILOLoss": MILOLoss("mini", curriculum="cosine", total_steps=10)(image, reference, step=3),
        "LatentMILOLoss": LatentMILOLoss("mini")(latents[0], latents[1]),
        "L1Loss": L1Loss()(image, reference),
        "LPIPS": LPIPS(weights="mini")(image, reference, normalize=True),
        "DiffusionLoss": diffusion(*latents, torch.tensor([3]), step=3),
    }
    return {name: float(value.mean()) for name, value in values.items()}


if __name__ == "__main__":
    hide_all_but_the_core()
    with tempfile.TemporaryDirectory() as folder:
        report = {"library": library(), "commands": commands(Path(folder)), "modules": modules(), "recipes": recipes()}
    print(json.dumps(report))
