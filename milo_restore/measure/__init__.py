"""Measuring restored images: PSNR, SSIM, MILO, and sample grids to look at."""

from __future__ import annotations

from milo_restore.measure.denoising import (
    DenoisingScores,
    ImageScores,
    denoise,
    denoising_samples,
    evaluate_denoiser,
    summary_table,
)
from milo_restore.measure.metrics import psnr, ssim
from milo_restore.show.grid import comparison_grid, heat_map, with_colour_bar

__all__ = [
    "DenoisingScores",
    "ImageScores",
    "comparison_grid",
    "denoise",
    "denoising_samples",
    "evaluate_denoiser",
    "heat_map",
    "psnr",
    "ssim",
    "summary_table",
    "with_colour_bar",
]
