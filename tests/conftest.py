"""Shared fixtures: where the real images and upstream outputs lie, and what to do where they do not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from milo_restore import LatentMILO  # basicsr can be imported from here on

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


@pytest.fixture(scope="session")
def latent_weights(tmp_path_factory) -> str:
    """A file of LatentMILO with random weights whose mask leaves 0.5 far enough to tell things apart."""
    torch.manual_seed(0)
    state = LatentMILO.untrained().state_dict()
    for key in ("mask_network.8.weight", "mask_network.0.weight"):
        state[key] *= 6
    path = tmp_path_factory.mktemp("weights") / "latent.safetensors"
    save_file(state, path)
    return str(path)


def run_two_processes(worker, folder):
    """Run ``worker FOLDER RANK PORT`` of the tests' folder twice, as two processes that find each other at the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    tests = REPOSITORY / "tests"
    paths = os.pathsep.join([str(REPOSITORY), str(tests), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, str(tests / worker), str(folder)]
    running = [
        subprocess.Popen([*command, str(rank), port], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    try:
        for process in running:
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in running:
            process.kill()
