"""A tiny network and synthetic keyed data for the training tests."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from milo_restore.train import Stage, TrainSettings


class Tiny(nn.Module):
    """Two convolutions with dropout between, so that the random state inside a step matters."""

    def __init__(self, seed: int = 0, dropout: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.GELU(), nn.Dropout(dropout), nn.Conv2d(6, 3, 3, padding=1)
        )

    def forward(self, x):
        return x + self.net(x)


class Patches:
    """Noise on a ramp; every sample is a pure function of its key."""

    def __init__(self, bad: dict | None = None) -> None:
        self.bad = bad or {}  # position -> a value to put into the input

    def __getitem__(self, key):
        step, index, position, patch = key
        random = np.random.default_rng([step, index, position])
        target = torch.from_numpy(random.random((3, patch, patch), dtype=np.float32))
        noise = torch.from_numpy(random.normal(size=(3, patch, patch)).astype(np.float32))
        noisy = target + 0.2 * noise
        if position in self.bad:
            noisy[0, 0, 0] = self.bad[position]
        return {"input": noisy, "target": target, "name": f"image-{position}"}


def l1(model, batch, number):
    return (model(batch["input"]) - batch["target"]).abs().mean()


def settings(**changes) -> TrainSettings:
    chosen = {
        "stages": (Stage(6, 12, 4), Stage(6, 16, 5)),
        "learning_rate": 1e-2,
        "final_learning_rate": 1e-4,
        "constant_steps": 4,
        "clip_norm": 1.0,
        "ema_decay": 0.9,
        "workers": 0,
        "log_every": 1,
        "checkpoint_every": 100,
        "trackers": (),
    }
    return TrainSettings(**{**chosen, **changes})
