"""Small training programs of our own, one for each kind that the doors know, as they would lie in a user's folder.

Each trains a convolution of 3 to 3 channels for a few iterations, always on the same numbers, and prints one line of
JSON at its end: the losses, and the weights. `plain_run` is the same training without a program.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

ITERATIONS = 4
ROUNDED = "{'losses': losses, 'weights': [w.double().sum().item() for w in net.parameters()]}"

_DATA = """
import torch
from torch import nn

def network():
    torch.manual_seed(0)
    return nn.Conv2d(3, 3, 3, padding=1)

def batch(iteration):
    numbers = torch.Generator().manual_seed(iteration)
    gt = torch.rand(2, 3, 32, 32, generator=numbers)
    return (gt + 0.1 * torch.randn(gt.shape, generator=numbers)), gt
"""

_REGISTRY = """
class Registry:
    def __init__(self):
        self._obj_map = {}
    def register(self, obj=None%(suffix)s):
        name = obj.__name__%(use)s
        assert name not in self._obj_map
        self._obj_map[name] = obj
    def get(self, name, suffix="basicsr"):
        return self._obj_map[name if name in self._obj_map else f"{name}_{suffix}"]
    def __contains__(self, name):
        return name in self._obj_map
    def __iter__(self):
        return iter(self._obj_map.items())
LOSS_REGISTRY, METRIC_REGISTRY = Registry(), Registry()
ARCH_REGISTRY, DATASET_REGISTRY, MODEL_REGISTRY = Registry(), Registry(), Registry()
"""

_LOSSES = """
from torch import nn
class L1Loss(nn.Module):
    def __init__(self, loss_weight=1.0, reduction="mean"):
        super().__init__()
        self.loss_weight = loss_weight
    def forward(self, pred, target, weight=None):
        return self.loss_weight * nn.functional.l1_loss(pred, target)
class MSELoss(L1Loss):
    def forward(self, pred, target, weight=None):
        return self.loss_weight * nn.functional.mse_loss(pred, target)
"""

_BUILD = """
from copy import deepcopy
from {package}.utils.registry import LOSS_REGISTRY
LOSS_REGISTRY.register(L1Loss)
LOSS_REGISTRY.register(MSELoss)
def build_loss(opt):
    opt = deepcopy(opt)
    return LOSS_REGISTRY.get(opt.pop("type"))(**opt)
"""

_BASE = """
class BaseModel:
    def __init__(self, opt):
        self.opt = opt
    def reduce_loss_dict(self, loss_dict):
        return {name: value.item() for name, value in loss_dict.items()}
    def update_learning_rate(self, current_iter, warmup_iter=-1):
        pass
"""

_MODEL = """
import torch
from basicsr.data import network
from basicsr.models.base_model import BaseModel
%(imports)s
class SRModel(BaseModel):
    def __init__(self, opt):
        super().__init__(opt)
        self.net_g = network()
        train = self.opt["train"]
        self.cri_pix = %(build)s if train.get("pixel_opt") else None
        self.optimizer = torch.optim.SGD(self.net_g.parameters(), lr=0.1)
    def optimize_parameters(self, lq, gt):
        self.optimizer.zero_grad()
        loss = self.cri_pix(self.net_g(lq), gt) if self.cri_pix else (self.net_g(lq) - gt).abs().mean()
        loss.backward()
        self.optimizer.step()
        self.log = self.reduce_loss_dict({"l_pix": loss})
"""

_TRAIN = """
import argparse, json
import torch
from basicsr.data import batch
from basicsr.models.sr_model import SRModel
import basicsr.metrics
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-opt", required=True)
    parser.add_argument("--local_rank", type=int, default=0)
    arguments = parser.parse_args()
    opt = {**json.load(open(arguments.opt)), "is_train": True, "rank": arguments.local_rank}
    model, losses = SRModel(opt), []
    for iteration in range(opt.get("start", 0) + 1, opt["train"]["total_iter"] + 1):
        model.update_learning_rate(iteration, warmup_iter=-1)
        model.optimize_parameters(*batch(iteration))
        losses.append(model.log["l_pix"])
    net = model.net_g
    print(json.dumps({"rank": opt["rank"], **RESULT}))
if __name__ == "__main__":
    main()
"""

_REDUX_MODEL = """
import torch
from traiNNer.losses import build_loss
from traiNNer.models.base_model import BaseModel
from traiNNer.data import network
class SRModel(BaseModel):
    def __init__(self, opt):
        super().__init__(opt)
        self.net_g = network()
        self.accum_iters = opt.train.accumulate
        self.losses = {f"l_{each['type']}": build_loss(each) for each in opt.train.losses}
        self.optimizer = torch.optim.SGD(self.net_g.parameters(), lr=0.1)
    def optimize_parameters(self, current_iter, current_accum_iter, apply_gradient):
        lq, gt = self.batch
        total = sum(loss(self.net_g(lq), gt) * abs(loss.loss_weight) for loss in self.losses.values())
        (total / self.accum_iters).backward()
        if apply_gradient:
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.loss = total.item()
"""

_REDUX_TRAIN = """
import json, sys
from types import SimpleNamespace
from traiNNer.data import batch
from traiNNer.models.sr_model import SRModel
opt = json.load(open(sys.argv[1]), object_hook=lambda node: node if "type" in node else SimpleNamespace(**node))
model, losses = SRModel(opt), []
for number in range(1, opt.train.total_iter * model.accum_iters + 1):
    model.batch = batch(number)
    iteration, rest = divmod(number, model.accum_iters)
    model.optimize_parameters(iteration, rest, rest == 0)
    losses.append(model.loss)
net = model.net_g
print(json.dumps(RESULT))
"""

_NEOSR_MODEL = """
import torch
from neosr.losses import build_loss
from neosr.data import network
class image:
    def __init__(self, opt):
        self.opt, self.net_g = opt, network()
        self.cri_pix = build_loss(opt["train"]["pixel_opt"])
        self.optimizer = torch.optim.SGD(self.net_g.parameters(), lr=0.1)
        self.accumulate = opt["datasets"]["train"].get("accumulate", 1)
    def optimize_parameters(self, current_iter):
        from neosr.data import batch
        lq, gt = batch(current_iter)
        loss = self.cri_pix(self.net_g(lq), gt)
        (loss / self.accumulate).backward()
        if current_iter % self.accumulate == 0:
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.loss = loss.item()
"""

_NEOSR_TRAIN = """
import json, sys
from neosr.models.image import image
opt = json.load(open(sys.argv[1]))
model, losses = image(opt), []
for iteration in range(1, opt["logger"]["total_iter"] * opt["datasets"]["train"].get("accumulate", 1) + 1):
    model.optimize_parameters(iteration)
    losses.append(model.loss)
net = model.net_g
print(json.dumps(RESULT))
"""

_LATENTS = """
import json, sys
import torch
import torch.nn.functional as F
from torch import nn
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
torch.manual_seed(0)
net = nn.Conv2d(4, 4, 3, padding=1)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
lr_scheduler = get_scheduler("constant", optimizer=optimizer, num_warmup_steps=0, num_training_steps=4)
losses = []
"""

_DDPM = """
noise_scheduler = DDPMScheduler(prediction_type=sys.argv[1])
for iteration in range(4):
    latents = torch.randn(2, 4, 16, 16)
    noise = torch.randn_like(latents)
    timesteps = torch.randint(0, 1000, (2,))
    noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)
    model_pred = net(noisy_latents)
    target = noise if sys.argv[1] == "epsilon" else noise_scheduler.get_velocity(latents, noise, timesteps)
    unrelated = F.mse_loss(model_pred.detach(), latents)
    if len(sys.argv) > 2:  # weighted by sample, as with --snr_gamma
        loss = F.mse_loss(model_pred.float(), target.float(), reduction="none").mean(dim=[1, 2, 3]).mean()
    else:
        loss = F.mse_loss(model_pred.float(), target.float(), reduction="mean")
    loss.backward()
    optimizer.step()
    lr_scheduler.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print(json.dumps(RESULT))
"""

_FLOW = """
preconditioned = len(sys.argv) > 1  # as with --precondition_outputs
for iteration in range(4):
    model_input = torch.randn(2, 4, 16, 16)
    noise = torch.randn_like(model_input)
    sigmas = torch.rand(2, 1, 1, 1)
    noisy_model_input = (1.0 - sigmas) * model_input + sigmas * noise
    model_pred = net(noisy_model_input)
    if preconditioned:
        model_pred = model_pred * (-sigmas) + noisy_model_input
    weighting = sigmas**-2.0 if preconditioned else torch.ones_like(sigmas)
    target = model_input if preconditioned else noise - model_input
    loss = torch.mean((weighting.float() * (model_pred.float() - target.float()) ** 2).reshape(2, -1), 1).mean()
    loss.backward()
    optimizer.step()
    lr_scheduler.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print(json.dumps(RESULT))
"""

_TOKENS = """
from diffusers import FluxControlNetPipeline
for iteration in range(4):
    pixel_latents_tmp = torch.randn(2, 4, 16, 24)
    pixel_latents = FluxControlNetPipeline._pack_latents(pixel_latents_tmp, 2, 4, 16, 24)
    noise = torch.randn_like(pixel_latents)
    sigmas = torch.rand(2, 1, 1)
    noisy_model_input = (1.0 - sigmas) * pixel_latents + sigmas * noise
    noise_pred = net(noisy_model_input)
    loss = F.mse_loss(noise_pred.float(), (noise - pixel_latents).float(), reduction="mean")
    loss.backward()
    optimizer.step()
    lr_scheduler.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print(json.dumps(RESULT))
"""

_LPIPS = """
import json
import lpips
import torch
from torch import nn
torch.manual_seed(0)
net = nn.Conv2d(3, 3, 3, padding=1)
net_lpips = lpips.LPIPS(net="vgg")
net_lpips.requires_grad_(False)
optimizer, losses = torch.optim.SGD(net.parameters(), lr=0.1), []
for iteration in range(4):
    target = 2 * torch.rand(2, 3, 32, 32) - 1
    loss = net_lpips(net(target).float(), target.float()).mean() * 2.0
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print(json.dumps(RESULT))
"""


def _basicsr(suffix: bool | None) -> dict[str, str]:
    """A basicsr whose registry knows a suffix, or none, or (None) which finds its losses by getattr."""
    files = {
        "basicsr/data.py": _DATA,
        "basicsr/metrics.py": "",
        "basicsr/models/base_model.py": _BASE,
        "basicsr/train.py": _TRAIN,
    }
    if suffix is None:  # of 1.2: no registry, no __init__.py at the top
        build = "getattr(losses, train['pixel_opt'].pop('type'))(**train['pixel_opt'])"
        imports = "import importlib\nlosses = importlib.import_module('basicsr.models.losses')"
        more = {"basicsr/models/losses/__init__.py": _LOSSES}
    else:
        build, imports = "build_loss(train['pixel_opt'])", "from basicsr.losses import build_loss"
        use = "+ (f'_{suffix}' if suffix else '')" if suffix else ""
        registry = _REGISTRY % {"suffix": ", suffix=None" if suffix else "", "use": use}
        more = {
            "basicsr/__init__.py": "",
            "basicsr/utils/registry.py": registry,
            "basicsr/losses/__init__.py": _LOSSES + _BUILD.format(package="basicsr"),
        }
    return {**files, **more, "basicsr/models/sr_model.py": _MODEL % {"imports": imports, "build": build}}


def _other(package: str, model: str, train: str) -> dict[str, str]:
    registry = _REGISTRY % {"suffix": "", "use": ""}
    return {
        f"{package}/__init__.py": "",
        f"{package}/data.py": _DATA,
        f"{package}/utils/registry.py": registry,
        f"{package}/losses/__init__.py": _LOSSES + _BUILD.format(package=package),
        f"{package}/models/{'image' if package == 'neosr' else 'sr_model'}.py": model,
        "train.py": train,
    }


_REDUX_BASE = """
class BaseModel:
    def __init__(self, opt):
        self.opt, self.losses = opt, {}
"""

KINDS: dict[str, dict[str, str]] = {
    "suffix": _basicsr(True),
    "plain": _basicsr(False),
    "getattr": _basicsr(None),
    "redux": {**_other("traiNNer", _REDUX_MODEL, _REDUX_TRAIN), "traiNNer/models/base_model.py": _REDUX_BASE},
    "neosr": _other("neosr", _NEOSR_MODEL, _NEOSR_TRAIN),
    "ddpm": {"train.py": _LATENTS + _DDPM},
    "flow": {"train.py": _LATENTS + _FLOW},
    "tokens": {"train.py": _LATENTS.replace("nn.Conv2d(4, 4, 3, padding=1)", "nn.Linear(16, 16)") + _TOKENS},
    "lpips": {"train.py": _LPIPS},
    "none": {"train.py": "print('{}')"},
}
"""Files by path, by kind of program."""


def write(kind: str, folder: Path) -> Path:
    """Put a program into a folder; its script's path."""
    for name, source in KINDS[kind].items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source.replace("RESULT", ROUNDED), encoding="utf-8")
    return folder / ("basicsr/train.py" if "basicsr/train.py" in KINDS[kind] else "train.py")


def plain_run(
    loss: Callable[[Tensor, Tensor, int], Tensor], steps: range, accumulate: int = 1
) -> dict[str, list[float]]:
    """What a program of images prints where its loss is ``loss(prediction, target, step)``."""
    names: dict[str, Callable] = {}
    exec(_DATA, names)
    net: nn.Module = names["network"]()
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=0.1), []
    for iteration in steps:
        lq, gt = names["batch"](iteration)
        value = loss(net(lq), gt, -(-iteration // accumulate))
        (value / accumulate).backward()
        if iteration % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(value.item())
    return {"losses": losses, "weights": [w.double().sum().item() for w in net.parameters()]}


def options(folder: Path, **changes: object) -> Path:
    """A configuration that all programs of images read."""
    pixel = {"type": "L1Loss", "loss_weight": 0.5}
    content = {
        "train": {"total_iter": ITERATIONS, "accumulate": 1, "pixel_opt": pixel, "losses": [pixel]},
        "datasets": {"train": {}},
        "logger": {"total_iter": ITERATIONS},
        **changes,
    }
    path = folder / "options.json"
    path.write_text(json.dumps(content))
    return path
