"""Small measured runs for tests of the report."""

from __future__ import annotations

import argparse

import numpy as np

from milo_restore.cli import evaluate
from milo_restore.data import held_out_photographs, write_png


def measured_runs(folder, names=("0", "1", "2"), methods=(("strong", 6), ("weak", 18)), size=(40, 56), ref=True):
    """Photographs with noise of two strengths, measured: one run folder per method."""
    photograph = held_out_photographs()[0][1]
    height, width = size
    runs = []
    for number, name in enumerate(names):
        clean = photograph[20 * number % 90 :][:height, :width]
        noise = np.random.default_rng(number).normal(0, 1, clean.shape)
        write_png(folder / "ref" / f"{name}.png", clean)
        write_png(folder / "lq" / f"{name}.png", np.clip(clean + 30 * noise, 0, 255).astype(np.uint8)[::2, ::2])
        for method, sigma in methods:
            array = np.clip(clean + (sigma + 3 * number) * noise, 0, 255).astype(np.uint8)
            write_png(folder / method / "restored" / f"{name}.png", array)
    for method, _ in methods:
        place = folder / method
        words = ["--pred", place / "restored", "--input", folder / "lq", "--out", place / "results.json"]
        words += ["--ref", folder / "ref"] if ref else []
        metrics = ["psnr", "milo:mini", "ens"] if ref else ["niqe-basicsr"]
        words += ["--metrics", *metrics, "--skip-unavailable", "--cache", folder / "cache", "--device", "cpu"]
        parser = argparse.ArgumentParser()
        evaluate.add_arguments(parser)
        assert evaluate.main(parser.parse_args([str(word) for word in words])) == 0
        runs.append(place)
    return runs
