"""The model class that Restormer's published configurations name, for PyPI's BasicSR: written from their keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from basicsr.models.sr_model import SRModel
from torch import Tensor, nn

from milo_restore.basicsr.batches import read_mixup, read_stages, shrink, stage_at
from milo_restore.basicsr.schedulers import CosineAnnealingRestartCyclicLR
from milo_restore.data.keys import keyed_rng
from milo_restore.errors import ConfigError, DataError, NumericsError

__all__ = ["ImageCleanModel"]

_CLIP_NORM = 0.01  # Restormer's; its configurations only switch clipping on


class ImageCleanModel(SRModel):
    """BasicSR's SRModel, at scale 1, with what Restormer's training adds.

    - Progressive patch and batch sizes, see `milo_restore.basicsr.batches.read_stages`. The stage follows from the
      iteration that BasicSR announces to ``update_learning_rate``, so it is right after a resume.
    - Mixup (``train.mixing_augs``), see `milo_restore.basicsr.batches.Mixup`. Windows and mixtures are keyed by
      (manual_seed, iteration, rank).
    - ``train.use_grad_clip``: clip the 2-norm of the whole gradient to ``train.grad_clip_norm`` (default 0.01).
    - ``train.optim_g.type: AdamW`` and ``train.scheduler.type: CosineAnnealingRestartCyclicLR`` beside BasicSR's own.
    - ``val.window_size``: pad by reflection to its multiples while testing.

    Losses, EMA, checkpoints and logging are SRModel's. So is validation: the output is clamped to [0, 1] and rounded
    to 8 bits, and the metrics see 8-bit images with a peak of 255, always. The key ``val.use_image`` is not read: false
    there asks for the float metric of the Restormer repository, which guesses its peak from the values.
    """

    iteration = 0  # the one being trained, from 1; 0 before the first
    _testing = False
    lq: Tensor  # (N, C, H, W), the network's input
    gt: Tensor  # the same size, what it should give
    output: Tensor  # what it gave

    def init_training_settings(self) -> None:
        """Read the options of the training, then set up as SRModel does."""
        self.stages = read_stages(self.opt)
        self.mixup = read_mixup(self.opt)
        super().init_training_settings()
        if self.opt["train"].get("use_grad_clip", False):
            norm = _positive(self.opt["train"].get("grad_clip_norm", _CLIP_NORM), "train.grad_clip_norm")
            # SRModel offers no place between the backward pass and the optimiser's step; the optimiser does.
            self.optimizer_g.register_step_pre_hook(lambda *_: self._clip(norm))

    def get_optimizer(self, optim_type: str, params: Iterable[nn.Parameter], lr: Any, **kwargs: Any) -> Any:
        """AdamW, or what BasicSR knows.

        Raises:
            ConfigError: ``lr`` or ``weight_decay`` is no number.
        """
        if optim_type != "AdamW":
            return super().get_optimizer(optim_type, params, lr, **kwargs)
        for name, value in {"lr": lr, **kwargs}.items():
            if isinstance(value, str):  # YAML reads 3e-4 as text
                kwargs[name] = _positive(value, f"train.optim_g.{name}")
        return torch.optim.AdamW(params, **{"lr": lr, **kwargs})

    def setup_schedulers(self) -> None:
        """CosineAnnealingRestartCyclicLR, or what BasicSR knows.

        Raises:
            ConfigError: the periods end before the training, or do not fit together.
        """
        options = dict(self.opt["train"]["scheduler"])
        if options.pop("type", None) != "CosineAnnealingRestartCyclicLR":
            super().setup_schedulers()
            return
        for optimizer in self.optimizers:
            scheduler = CosineAnnealingRestartCyclicLR(optimizer, **options)
            total = int(float(self.opt["train"]["total_iter"]))
            if scheduler.ends[-1] < total:
                what = f"the periods end at iteration {scheduler.ends[-1]}, the training at {total}"
                mend = "Let the periods sum to train.total_iter"
                raise ConfigError(what, where="train.scheduler.periods", mend=mend)
            self.schedulers.append(scheduler)

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """Take note of the iteration that BasicSR's loop is about to train, and set its learning rate."""
        self.iteration = current_iter
        super().update_learning_rate(current_iter, warmup_iter=warmup_iter)

    def resume_training(self, resume_state: Mapping[str, Any]) -> None:
        """Go on from a training state."""
        super().resume_training(resume_state)
        self.iteration = resume_state["iter"]

    def feed_data(self, data: Mapping[str, Any]) -> None:
        """Take a batch; while training, cut it to the stage's sizes and mix it.

        Args:
            data: ``lq`` (N, C, H, W) and, but for testing, ``gt``, of the same height and width.

        Raises:
            DataError: the batch is smaller than the stage asks for.
        """
        super().feed_data(data)
        if not self.is_train or self._testing:
            return
        if self.stages:
            stage = stage_at(self.stages, self.iteration)
            batch = stage.batch * self._gpus_per_process()
            rng = self._rng("basicsr-window")
            self.lq, self.gt = shrink(self.lq, self.gt, batch=batch, patch=stage.patch, rng=rng)
        if self.mixup is not None:
            self.lq, self.gt = self.mixup(self.lq, self.gt, self._rng("basicsr-mixup"))

    def nondist_validation(self, dataloader: Any, current_iter: int, tb_logger: Any, save_img: bool) -> None:
        """SRModel's validation, on whole and unmixed images."""
        self._testing = True
        try:
            super().nondist_validation(dataloader, current_iter, tb_logger, save_img)
        finally:
            self._testing = False

    def test(self) -> None:
        """Restore ``self.lq`` into ``self.output``, of the same height and width.

        Raises:
            DataError: the network changes the size.
            NumericsError: the output holds NaN or infinite values, of which a metric would make some number.
        """
        given = self.lq
        window = (self.opt.get("val") or {}).get("window_size")
        if window:
            self.lq = _pad(given, int(window))
        padded = tuple(self.lq.shape[-2:])
        super().test()
        self.lq = given
        if tuple(self.output.shape[-2:]) != padded:
            what = f"the network makes {tuple(self.output.shape[-2:])} of {padded}"
            raise DataError(what, where="ImageCleanModel", mend="It restores at scale 1; use SRModel")
        self.output = self.output[..., : given.shape[-2], : given.shape[-1]]
        if not torch.isfinite(self.output).all():
            raise NumericsError(f"the output of iteration {self.iteration} holds NaN or infinite values", where="val")

    def _clip(self, norm: float) -> None:
        total = nn.utils.clip_grad_norm_(self.net_g.parameters(), norm)
        if not torch.isfinite(total):  # stepping would turn all weights into NaN
            what = f"the gradient of iteration {self.iteration} is not finite"
            raise NumericsError(what, where="train", mend="Resume from the last checkpoint with a lower learning rate")

    def _gpus_per_process(self) -> int:
        """BasicSR multiplies the loader's batch by num_gpu where it is not distributed (DataParallel)."""
        return 1 if self.opt.get("dist") else max(int(self.opt["num_gpu"]), 1)

    def _rng(self, stream: str) -> Any:
        return keyed_rng(int(self.opt.get("manual_seed") or 0), stream, self.iteration, int(self.opt.get("rank", 0)))


def _pad(image: Tensor, window: int) -> Tensor:
    """Right and bottom to multiples of ``window``; by the edge's value where the image is too small to reflect."""
    for axis in (2, 3):
        missing = -image.shape[axis] % window
        mode = "reflect" if missing < image.shape[axis] else "replicate"
        if missing:
            image = F.pad(image, (0, 0, 0, missing) if axis == 2 else (0, missing, 0, 0), mode=mode)
    return image


def _positive(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0 < number < float("inf"):
        raise ConfigError(f"{value!r} is not a positive number", where=where)
    return number
