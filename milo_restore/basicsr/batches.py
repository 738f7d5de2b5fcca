"""Restormer's progressive patch sizes and mixup, done to a batch before the network sees it.

Both are functions of the iteration and of a random generator keyed by it, so a resumed run meets the same stage,
windows and mixtures as an uninterrupted one.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from milo_restore.errors import ConfigError, DataError

_KEYS = ("iters", "mini_batch_sizes", "gt_sizes")


class Stage(NamedTuple):
    """One stage of progressive training."""

    last: int  # its last iteration, counted from 1
    batch: int  # samples per process and iteration
    patch: int  # side of the square patches, in pixels


def read_stages(opt: Mapping[str, Any]) -> tuple[Stage, ...]:
    """The stages that a BasicSR configuration asks for; none where it names none.

    ``datasets.train`` holds ``iters`` (the stages' lengths), ``mini_batch_sizes`` (samples per GPU) and ``gt_sizes``
    (patch sides); the loader gives ``batch_size_per_gpu`` patches of side ``gt_size``, from which they are taken.

    Raises:
        ConfigError: one of the keys is missing, the lists do not fit together or ask for more than the loader gives,
            or the stages end before the training.
    """
    data = opt.get("datasets", {}).get("train", {})
    given = [key for key in _KEYS if data.get(key) is not None]
    if not given:
        return ()
    for key in (*_KEYS, "batch_size_per_gpu", "gt_size"):
        if data.get(key) is None:
            where = f"datasets.train.{key}"
            raise ConfigError("is missing beside " + given[0], where=where, mend=f"Give all of {', '.join(_KEYS)}")
    lists = {key: _counts(data[key], key) for key in _KEYS}
    if len({len(values) for values in lists.values()}) != 1:
        lengths = ", ".join(f"{key} {len(values)}" for key, values in lists.items())
        raise ConfigError(f"lists of different lengths ({lengths})", where="datasets.train")
    for key, limit in (("mini_batch_sizes", "batch_size_per_gpu"), ("gt_sizes", "gt_size")):
        if max(lists[key]) > data[limit]:
            what = f"{max(lists[key])} is more than {limit}, {data[limit]}"
            raise ConfigError(what, where=f"datasets.train.{key}", mend=f"Raise {limit} to the largest of {key}")
    ends = list(itertools.accumulate(lists["iters"]))
    total = int(float(opt["train"]["total_iter"]))
    if ends[-1] < total:
        what = f"the stages end at iteration {ends[-1]}, the training at {total}"
        raise ConfigError(what, where="datasets.train.iters", mend="Let iters sum to train.total_iter")
    return tuple(Stage(*each) for each in zip(ends, lists["mini_batch_sizes"], lists["gt_sizes"]))


def stage_at(stages: tuple[Stage, ...], iteration: int) -> Stage:
    """The stage of an iteration (from 1); the last one beyond the end."""
    return next((stage for stage in stages if iteration <= stage.last), stages[-1])


def shrink(lq: Tensor, gt: Tensor, *, batch: int, patch: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Cut a loader's batch down to a stage: its first samples, and one random window for all of them.

    Args:
        lq: (N, C, H, W), N >= batch; the loader shuffles, so the first samples are as random as any.
        gt: the same shape but for C.
        batch: samples to keep.
        patch: side of the window, in pixels, at most H and W.
        rng: draws the window.

    Raises:
        DataError: the pair differs in size, or is smaller than the stage.
    """
    height, width = gt.shape[-2:]
    if lq.shape[-2:] != gt.shape[-2:] or len(lq) != len(gt):
        raise DataError(f"input {tuple(lq.shape)} and target {tuple(gt.shape)} differ in size", where="datasets.train")
    if len(gt) < batch or min(height, width) < patch:
        what = f"the loader gives {len(gt)} patches of {height}x{width}, the stage needs {batch} of {patch}x{patch}"
        raise DataError(what, where="datasets.train", mend="See batch_size_per_gpu and gt_size")
    top, left = int(rng.integers(height - patch + 1)), int(rng.integers(width - patch + 1))
    window = (slice(0, batch), slice(None), slice(top, top + patch), slice(left, left + patch))
    return lq[window], gt[window]


class Mixup(NamedTuple):
    """Mixup (Zhang et al. 2018) of whole pairs within a batch, as Restormer's denoising configurations switch it on."""

    beta: float  # both parameters of the Beta distribution
    use_identity: bool  # leave every second batch (at random) as it is

    def __call__(self, lq: Tensor, gt: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Mix every sample with another of the batch, or with itself, by one share for the whole batch.

        Args:
            lq: (N, C, H, W).
            gt: (N, C, H, W).
            rng: draws whether to mix, the share and the partners.
        """
        if self.use_identity and rng.random() < 0.5:
            return lq, gt
        share = float(rng.beta(self.beta, self.beta))
        partners = torch.from_numpy(rng.permutation(len(lq))).to(lq.device)
        return share * lq + (1 - share) * lq[partners], share * gt + (1 - share) * gt[partners]


def read_mixup(opt: Mapping[str, Any]) -> Mixup | None:
    """The mixup that ``train.mixing_augs`` asks for; None where it is off or absent.

    Raises:
        ConfigError: ``mixup_beta`` is missing or not a positive number.
    """
    augs = opt["train"].get("mixing_augs") or {}
    if not augs.get("mixup", False):
        return None
    try:
        beta = float(augs["mixup_beta"])
    except (KeyError, TypeError, ValueError):
        beta = float("nan")
    if not 0 < beta < float("inf"):
        what = f"{augs.get('mixup_beta')!r} is not a positive number"
        raise ConfigError(what, where="train.mixing_augs.mixup_beta", mend="Restormer's configurations have 1.2")
    return Mixup(beta, bool(augs.get("use_identity", False)))


def _counts(values: Any, key: str) -> list[int]:
    where = f"datasets.train.{key}"
    fits = isinstance(values, list) and values and all(type(value) is int and value >= 1 for value in values)
    if not fits:
        raise ConfigError(f"{values!r} is not a list of positive whole numbers", where=where)
    return list(values)
