"""The benchmark runs and its numbers make sense; the yardstick it measures against is upstream's metric."""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from milo_restore import MILO, MILOLoss, bench
from milo_restore.bench import BenchSettings, add_arguments, restormer, timing
from milo_restore.bench import losses as losses_room
from milo_restore.bench.plain import PlainMILO
from milo_restore.data import training_photographs, write_png
from milo_restore.errors import MiloRestoreError
from milo_restore.processes import native_bfloat16

ROWS = ["plain MILO", "MILO float32", "MILO bfloat16", "MILO float32, constant mask", "MILO bfloat16, constant mask",
        "LPIPS-AlexNet", "LPIPS-VGG"]  # fmt: skip
GOLDEN = [(3, "MILO.pth", "milo_image.npz", i) for i in range(5)]
GOLDEN += [(4, "MILO_latent.pth", "milo_latent.npz", i) for i in range(4)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_file(MILO.untrained().state_dict(), path)
    return str(path)


def options(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(list(words))


def test_quick_run_measures_every_row(weights, tmp_path, capsys):
    threads = torch.get_num_threads()
    file = tmp_path / "bench.json"
    assert bench.main(options("--quick", "--threads", "1", "--weights", weights, "--json", str(file))) == 0
    assert torch.get_num_threads() == threads
    report, printed = json.loads(file.read_text()), capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [file]

    assert [row["name"] for row in report["losses"]] == ROWS
    for row in report["losses"]:
        numbers = [row["ms"], row["vs_plain"], row["vs_vgg"], row["peak_mib"]]
        assert all(math.isfinite(n) and n > 0 for n in numbers), row
    assert report["losses"][0]["vs_plain"] == 1
    assert report["losses"][-1]["vs_vgg"] == 1

    exact, bfloat16 = (
        report["agreement"][k] for k in ("MILO float32 and plain MILO", "MILO bfloat16 and MILO float32")
    )
    assert exact["loss"] < 1e-5
    assert exact["cosine"] > 1 - 1e-6
    assert 0 < bfloat16["loss"] < 0.01
    assert 0.999 < bfloat16["cosine"] < 1

    memory = report["memory"]
    assert list(memory) == ["64x64", "512x768"]
    assert 0 < memory["512x768"] < memory["64x64"]

    step = report["restormer"]
    assert step["milo_over_mae"] == pytest.approx(
        (step["model_ms"] + step["milo_ms"]) / (step["model_ms"] + step["mae_ms"])
    )
    assert all(math.isfinite(v) and v > 0 for v in step.values())

    lines = printed.splitlines()
    assert all(any(line.startswith(row) for line in lines) for row in ROWS)
    assert f"torch {torch.__version__}" in lines[0]
    assert sum("bfloat16 is" in line or "cannot tell" in line for line in lines) == 1


def test_memory_of_the_loss_is_no_higher_than_the_plain_ones(weights):
    settings = BenchSettings(128, 96, weights=weights)
    losses, _ = losses_room._losses(settings, torch.device("cpu"))
    image, reference = losses_room._pair(settings, torch.device("cpu"))
    peaks = {
        name: timing.peak_mib(losses_room._step(losses[name], image, reference), torch.device("cpu"))
        for name in ROWS[:4]
    }
    image_mib = image.numel() * 4 / 2**20
    assert peaks["plain MILO"] > 144 / 3 * image_mib  # the 32 + 64 + 32 + 16 activations that backward needs
    assert peaks["MILO float32"] <= peaks["plain MILO"]
    if native_bfloat16(torch.device("cpu")):  # elsewhere oneDNN converts to float32 and back
        assert peaks["MILO bfloat16"] < 0.7 * peaks["MILO float32"]
    assert peaks["MILO float32, constant mask"] < 0.7 * peaks["MILO float32"]


def test_memory_per_pixel_does_not_grow_with_the_image(weights):
    loss, peaks = MILOLoss(weights, mask_gradient=False), {}
    for side in ((512, 384), (1024, 768)):
        image, reference = losses_room._pair(BenchSettings(*side), torch.device("cpu"))
        peaks[side] = timing.peak_mib(losses_room._step(loss, image, reference), torch.device("cpu"))
    assert peaks[512, 384] < 100
    assert peaks[1024, 768] <= 4 * peaks[512, 384]


def test_peak_counts_what_lives_at_once():
    def step():
        a = torch.zeros(2**20)  # 4 MiB
        b = a + 1  # 8
        del a
        return b + b  # 8: one gone, one new

    assert timing.peak_mib(step, torch.device("cpu")) == pytest.approx(8, abs=0.01)


def test_the_training_bench_measures(weights, capsys, tmp_path):
    file = tmp_path / "bench.json"
    words = ("--threads", "1", "--repeats", "1", "--weights", weights, "--json", str(file))
    assert bench.main(options("--quick", "--training", *words)) == 0
    report = json.loads(file.read_text())
    assert report["supply"] == pytest.approx(report["synthesis_per_s"] / report["training_per_s"])
    assert report["training_per_s"] == pytest.approx(8 / report["step_ms"] * 1e3, rel=1e-6)
    assert 0.3 < report["overhead"] < 3
    assert set(report["settings"]) == {"plain", "channels_last"}  # quick: nothing is compiled
    assert report["settings"]["plain"]["vs_plain"] == 1
    assert report["settings"]["channels_last"]["vs_plain"] > 0
    programs = report["programs"]
    assert programs["ratio"] == pytest.approx(programs["recipe_ms"] / programs["basicsr_ms"])  # of its one round
    lines = capsys.readouterr().out.splitlines()
    assert f"torch {torch.__version__}" in lines[0]
    said = ["distortions", "the", "a", "forward", "Restormer", "Restormer's", "Restormer's", "compile", "a", "the"]
    assert [line.split()[0] for line in lines[1:]] == said


def test_the_two_programs_train_the_same_network_on_the_same_sizes(weights, tmp_path, monkeypatch):
    """And each leaves the directory, the logging and the streams as they were."""
    trained = []
    step = torch.optim.AdamW.step

    def noting(self, *arguments, **options):
        trained.append(([tuple(p.shape) for group in self.param_groups for p in group["params"]], seen[-1]))
        return step(self, *arguments, **options)

    seen = []
    forward = restormer.Restormer.forward
    monkeypatch.setattr(torch.optim.AdamW, "step", noting)
    monkeypatch.setattr(restormer.Restormer, "forward", lambda self, x: seen.append(tuple(x.shape)) or forward(self, x))
    for name, image in training_photographs():
        write_png(tmp_path / "images" / f"{Path(name).stem}.png", image)
    before = Path.cwd(), sys.stderr, list(logging.getLogger("basicsr").handlers)
    restormer._recipe(training_photographs(), weights, 2, (2, 32), tmp_path)
    recipe, trained[:] = list(trained), []
    restormer._basicsr(weights, 2, (2, 32), tmp_path)
    assert len(recipe) == 2
    assert recipe == trained
    assert recipe[0][1] == (2, 3, 32, 32)
    assert (Path.cwd(), sys.stderr, list(logging.getLogger("basicsr").handlers)) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


def test_ratio_is_taken_within_rounds():
    # The machine was ten times slower in the second round, for both.
    assert timing.ratio([2.0, 20.0, 2.2], [1.0, 10.0, 1.1]) == pytest.approx(2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "512"], "512x384"),
        (["--size", "32x32"], "at least 64"),
        (["--threads", "0"], "at least 1"),
        (["--device", "warp"], "--device warp"),
        (["--json", f"{__file__}/bench.json"], "is a file"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(weights, words, said):
    with pytest.raises(MiloRestoreError) as error:
        bench.main(options("--quick", "--weights", weights, *words))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("bf16", "amx", "native"), [(False, False, False), (True, False, True), (False, True, True)])
def test_native_bfloat16_is_what_the_cpu_says(monkeypatch, bf16, amx, native):
    monkeypatch.setattr(timing.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert native_bfloat16(torch.device("cpu")) is native
    monkeypatch.setattr(timing.platform, "machine", lambda: "aarch64")
    assert native_bfloat16(torch.device("cpu")) is None


@pytest.mark.golden
@pytest.mark.parametrize(("channels", "checkpoint", "file", "case"), GOLDEN)
def test_the_yardstick_equals_upstream(shared, channels, checkpoint, file, case):
    state = torch.load(shared / "weights" / "milo" / checkpoint, weights_only=True)
    plain = PlainMILO(channels).load(state, "mask_finder_1.netBasic.")
    golden = np.load(shared / "golden" / file)
    image = torch.from_numpy(golden[f"{case}.dist"]).requires_grad_()
    reference = torch.from_numpy(golden[f"{case}.ref"])
    expected = golden[f"{case}.grad_dist"]
    loss = plain(image, reference)
    assert loss.item() == pytest.approx(golden[f"{case}.score"].mean(), rel=1e-5, abs=1e-6)
    loss.backward()
    gradient = image.grad.numpy() * len(image)  # golden gradients are of the scores' sum
    assert np.abs(gradient - expected).max() <= 1e-5 * np.abs(expected).max()
    mask = plain.mask(image, reference).detach().numpy()
    # 1e-5 of its range (0, 4): four sigmoids, each of sums that every CPU takes in an order of its own
    assert np.abs(mask - golden[f"{case}.mask"]).max() <= 4e-5
    assert all(p.grad is not None for p in plain.net.parameters())  # as upstream: the weights are trained along


def test_the_doors_cost_is_measured_and_undone(capsys, tmp_path):
    from basicsr.models.base_model import BaseModel
    from diffusers import DDPMScheduler

    import milo_restore.basicsr  # noqa: F401  (hooks of its own, which stay)
    from milo_restore.doors.ledger import LEDGER

    before = BaseModel.update_learning_rate, DDPMScheduler.add_noise, torch.nn.functional.mse_loss, list(LEDGER.entries)
    file = tmp_path / "doors.json"
    assert bench.main(options("--doors", "--quick", "--threads", "1", "--json", str(file))) == 0
    after = BaseModel.update_learning_rate, DDPMScheduler.add_noise, torch.nn.functional.mse_loss, list(LEDGER.entries)
    assert after == before
    printed, programs = capsys.readouterr().out, json.loads(file.read_text())["programs"]
    assert [row["name"] for row in programs] == ["SwinIR-light in BasicSR", "train_controlnet, tiny world"]
    for row in programs:
        assert row["name"] in printed
        assert row["bare_ms"] > 0
        assert row["ratio"] > 0
        assert row["share"] == pytest.approx(row["own_us"] / 1e3 / row["bare_ms"])
