"""Shared fixtures: where the real images and upstream outputs lie, and what to do where they do not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import milo_restore  # noqa: F401  (basicsr can be imported from here on)

REPOSITORY = Path(__file__).resolve().parent.parent


def assert_near(found, expected, rounding=1e-5):
    """Of what is equal in exact arithmetic: within ``rounding`` of the largest value.

    The order in which a sum is taken, and so its last bits, depend on the CPU, on the threads and on where in memory
    the terms lie. Bitwise equality is for what is not computed twice (files, copies) and for runs that go on, where it
    is the promise.
    """
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding * float(expected.abs().max()))


def pytest_addoption(parser):
    parser.addoption("--no-golden-skips", action="store_true", help="fail where a golden test would be skipped")


@pytest.fixture(autouse=True)
def _deterministic():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared(request) -> Path:
    """The folder of upstream outputs, real images and official weights; skips (or fails, in CI) where there is none."""
    folder = os.environ.get("MILO_RESTORE_ASSETS")
    reason = None
    if not folder:
        reason = "MILO_RESTORE_ASSETS is not set: upstream outputs and real images are not at hand"
    elif not (Path(folder) / "golden").is_dir():
        reason = f"MILO_RESTORE_ASSETS={folder} holds no golden/ folder"
    if reason is None:
        return Path(folder).resolve()
    if request.config.getoption("--no-golden-skips"):
        pytest.fail(reason)
    pytest.skip(reason)
