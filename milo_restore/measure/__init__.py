"""Measuring restored images: one kind of metric, one record, in training, after it, and on folders."""

from __future__ import annotations

from milo_restore.data.restoration_pairs import Restore
from milo_restore.measure.metrics import psnr, ssim
from milo_restore.measure.restorer import comparison_table, evaluate_restorers, score_restorer
from milo_restore.measure.samples import sample_picture

__all__ = [
    "Restore",
    "comparison_table",
    "evaluate_restorers",
    "psnr",
    "sample_picture",
    "score_restorer",
    "ssim",
]
