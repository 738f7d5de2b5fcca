"""``milo-restore run``: programs that others wrote, with MILO in place of their loss; each in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from door_programs import ITERATIONS, options, plain_run, write

from milo_restore import MILOLoss
from milo_restore.doors.diffusers import Door, _hook_vae
from milo_restore.doors.latent_loss import LatentLoss, Noised, flow_schedule, interpolated
from milo_restore.doors.layouts import layout_of
from milo_restore.doors.local_rank import accept_local_rank
from milo_restore.doors.lpips import PerceptualLoss
from milo_restore.doors.source import DOOR, compiled
from milo_restore.doors.wish import Wish, read_options
from milo_restore.errors import ConfigError
from milo_restore.loss import clean_latent

COSINE = ("--loss", "milo-cosine", "--weights", "mini")
STEPS = range(1, ITERATIONS + 1)


def python(folder, *command, path=()):
    """Python in a folder, with more folders on its path."""
    places = os.pathsep.join(map(str, (*path, REPOSITORY)))
    environment = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=240)


def result(done):
    """What a program printed at its end."""
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def through(folder, script, arguments, *program):
    return python(folder, "-m", "milo_restore.run", *arguments, "--", script, *program)


def cosine(total=ITERATIONS):
    """A loss for `plain_run`, half as heavy."""
    loss = MILOLoss("mini", curriculum="cosine", total_steps=total, loss_weight=0.5)
    return lambda prediction, target, step: loss(prediction, target, step=step)


# ------------------------------------------------------------------------------------------------ programs of images


@pytest.mark.parametrize("kind", ["suffix", "plain", "getattr"])
def test_a_basicsr_of_any_kind_trains_with_milo(kind, tmp_path):
    script = write(kind, tmp_path)
    done = through(tmp_path, script, COSINE, "-opt", options(tmp_path))
    found = result(done)
    expected = plain_run(cosine(), STEPS)
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-6)
    assert found["weights"] == pytest.approx(expected["weights"], rel=1e-6)
    assert "L1Loss, loss_weight: 0.5} -> {type: MILOLoss" in done.stderr
    assert done.stderr.rstrip().endswith(f"called {ITERATIONS} times")


def test_a_resumed_program_goes_on_in_the_curriculum(tmp_path):
    script = write("plain", tmp_path)
    found = result(through(tmp_path, script, COSINE, "-opt", options(tmp_path, start=2)))
    assert found["losses"] == pytest.approx(plain_run(cosine(), STEPS[2:])["losses"], rel=1e-6)


@pytest.mark.parametrize("kind", ["suffix", "plain"])
def test_an_import_on_top_is_a_door_too(kind, tmp_path):
    script = write(kind, tmp_path)
    script.write_text(f"import milo_restore.basicsr\n{script.read_text()}")
    pixel = {"type": "MILOLoss", "weights": "mini", "curriculum": "cosine", "loss_weight": 0.5}
    path = options(tmp_path, train={"total_iter": ITERATIONS, "pixel_opt": pixel})
    found = result(python(tmp_path, script, "-opt", path, "--local-rank=0", path=[tmp_path]))
    assert found["losses"] == pytest.approx(plain_run(cosine(), STEPS)["losses"], rel=1e-6)


@pytest.mark.parametrize("loss", ["l1", "mse"])
def test_the_programs_own_losses_are_bit_for_bit(loss, tmp_path):
    script = write("plain", tmp_path)
    pixel = {"type": {"l1": "L1Loss", "mse": "MSELoss"}[loss], "loss_weight": 0.5}
    path = options(tmp_path, train={"total_iter": ITERATIONS, "pixel_opt": pixel})
    bare = python(tmp_path, script, "-opt", path, path=[tmp_path])
    done = through(tmp_path, script, ("--loss", loss), "-opt", path)
    assert result(done) == result(bare)
    assert f"called {ITERATIONS} times" in done.stderr


def test_l1_becomes_mse(tmp_path):
    script = write("suffix", tmp_path)
    found = result(through(tmp_path, script, ("--loss", "mse"), "-opt", options(tmp_path)))
    expected = plain_run(lambda p, t, step: 0.5 * torch.nn.functional.mse_loss(p, t), STEPS)
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-6)


def test_redux_multiplies_by_the_weight_once_and_counts_steps(tmp_path):
    pixel = {"type": "L1Loss", "loss_weight": 0.5}
    path = options(tmp_path, train={"total_iter": 2, "accumulate": 2, "losses": [pixel]})
    done = through(tmp_path, write("redux", tmp_path), COSINE, path)
    expected = plain_run(cosine(2), STEPS, accumulate=2)
    assert result(done)["losses"] == pytest.approx(expected["losses"], rel=1e-6)
    assert "traiNNer-redux: L1Loss -> milo-cosine" in done.stderr


def test_neosr_counts_steps_not_batches(tmp_path):
    path = options(tmp_path, datasets={"train": {"accumulate": 2}}, logger={"total_iter": 2})
    found = result(through(tmp_path, write("neosr", tmp_path), COSINE, path))
    expected = plain_run(cosine(2), STEPS, accumulate=2)
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-6)


def test_images_in_the_signed_range_are_told_by_their_options(tmp_path):
    half = [0.5, 0.5, 0.5]
    path = options(tmp_path, datasets={"train": {"mean": half, "std": half}})
    done = through(tmp_path, write("plain", tmp_path), ("--loss", "milo", "--weights", "mini"), "-opt", path)
    assert "range_norm: true" in done.stderr
    loss = MILOLoss("mini", loss_weight=0.5)
    expected = plain_run(lambda p, t, step: loss((p + 1) / 2, (t + 1) / 2), STEPS)
    assert result(done)["losses"] == pytest.approx(expected["losses"], rel=1e-6)


def test_an_option_reaches_the_loss(tmp_path):
    arguments = ("--loss", "milo", "--weights", "mini", "--option", "normalize=true", "--option", "anchor=0.5")
    found = result(through(tmp_path, write("redux", tmp_path), arguments, options(tmp_path)))
    loss = MILOLoss("mini", normalize=True, anchor=0.5, loss_weight=0.5)
    expected = plain_run(lambda p, t, step: loss(p, t), STEPS)
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-6)


# ------------------------------------------------------------------------------------------------ nothing replaced


def test_a_program_without_a_known_loss_ends_with_an_error(tmp_path):
    done = through(tmp_path, write("none", tmp_path), COSINE)
    assert done.returncode == 2
    assert "nothing was replaced: the program imported none of the libraries" in done.stderr.splitlines()[-1]


def test_options_without_a_pixel_loss_are_told(tmp_path):
    path = options(tmp_path, train={"total_iter": 1, "perceptual_opt": {"type": "PerceptualLoss"}})
    done = through(tmp_path, write("plain", tmp_path), COSINE, "-opt", path)
    assert done.returncode == 2
    assert "name no train.pixel_opt (losses: perceptual_opt)" in done.stderr.splitlines()[-1]


def test_a_programs_exit_code_is_kept(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("raise SystemExit(7)")
    assert through(tmp_path, script, COSINE).returncode == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--", "missing.py"), "replaces nothing without --loss or --lpips"),
        (("--loss", "milo", "--", "missing.py"), "missing.py: there is no such script"),
        (("--loss", "milo"), "no program is named"),
        (("--loss", "l1", "--weights", "mini", "--", "missing.py"), "--weights: l1 takes none"),
        (("--loss", "milo", "--", "-m", "no.such.module"), "-m no.such.module: there is no such module"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, message, tmp_path):
    done = python(tmp_path, "-m", "milo_restore.cli", "run", *arguments)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


def test_option_entries():
    assert read_options(["normalize=true", "anchor=0.1"]) == {"normalize": True, "anchor": 0.1}
    with pytest.raises(ConfigError, match="not of the form KEY=VALUE"):
        read_options(["normalize"])


# ------------------------------------------------------------------------------------------------ launchers


@pytest.mark.parametrize("spelling", ["--local-rank=0", "--local_rank=0"])
def test_the_launchers_rank_reaches_a_program(spelling, tmp_path):
    script = write("plain", tmp_path)
    path = options(tmp_path)
    done = python(tmp_path, "-m", "milo_restore.run", spelling, "--loss", "l1", "--", script, "-opt", path)
    assert result(done)["rank"] == 0


def test_a_parser_gets_the_spelling_that_it_knows():
    accept_local_rank()
    for spelling in ("--local_rank", "--local-rank"):
        parser = argparse.ArgumentParser()
        parser.add_argument(spelling, type=int)
        for given in (["--local-rank=3"], ["--local_rank", "3"]):
            assert parser.parse_args(given).local_rank == 3
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    assert parser.parse_args(["--local-rank", "3", "x"]).name == "x"


def test_torchrun_trains_on_two(tmp_path):
    script = write("plain", tmp_path)
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "milo_restore.run")
    done = python(tmp_path, *command, *COSINE, "--", script, "-opt", options(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("milo-restore run: BasicSR") == 1  # one process speaks


def test_a_spawned_worker_finds_what_the_program_found(tmp_path):
    write("getattr", tmp_path)
    script = tmp_path / "basicsr" / "spawning.py"
    script.write_text(
        "import multiprocessing\n"
        "import basicsr.data\n"  # this folder's, where another basicsr is installed
        "from torchvision.transforms.functional_tensor import rgb_to_grayscale\n"
        "def told(queue):\n"
        "    queue.put(basicsr.data.__file__)\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    queue = context.Queue()\n"
        "    worker = context.Process(target=told, args=(queue,))\n"
        "    worker.start()\n"
        "    print(queue.get(timeout=120))\n"
        "    worker.join()\n"
    )
    done = through(tmp_path, script, COSINE)
    assert done.stdout.strip() == str(tmp_path / "basicsr" / "data.py"), done.stderr[-2000:]


# ------------------------------------------------------------------------------------------------ diffusion


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_diffusers_script_trains_with_latent_milo(prediction, tmp_path):
    script = write("ddpm", tmp_path)
    bare = result(python(tmp_path, script, prediction))
    assert result(through(tmp_path, script, ("--loss", "mse"), prediction)) == bare
    done = through(tmp_path, script, COSINE, prediction)
    found = result(done)
    assert f"F.mse_loss -> latent milo-cosine; called {ITERATIONS} times" in done.stderr  # not the unrelated ones
    assert found["losses"] == pytest.approx(latent_losses(prediction), rel=1e-5)


def test_a_loss_that_the_script_reduces_itself(tmp_path):
    found = result(through(tmp_path, write("ddpm", tmp_path), COSINE, "epsilon", "weighted"))
    assert found["losses"] == pytest.approx(latent_losses("epsilon"), rel=1e-5)


def test_which_targets_are_the_noisings():
    clean, noise = torch.randn(2, 4, 4, 16, 16)
    sigma = torch.rand(4, 1, 1, 1)
    noised = Noised(clean, noise, (1 - sigma) * clean + sigma * noise, None, None, sigma)
    for target, kind in ((noise - clean, "velocity"), (clean - noise, "reverse"), (clean, "clean")):
        part, found = noised.matched(target.bfloat16())
        assert found == kind
        said = -target if kind == "reverse" else target
        assert torch.allclose(clean_latent(flow_schedule(kind), said, part.noisy, part.times()), clean, atol=1e-5)
    part, found = noised.matched((noise - clean)[2:])  # DreamBooth compares its halves one by one
    assert (found, len(part.clean)) == ("velocity", 2)
    assert torch.equal(part.sigma, sigma[2:])
    for other in (noise, torch.randn_like(clean), clean[:, :3], clean[:3]):
        assert noised.matched(other) is None


def latent_losses(prediction):
    """The losses that the script ought to have, by `DiffusionLoss` itself."""
    from diffusers import DDPMScheduler

    from milo_restore import DiffusionLoss, DiffusionLossSettings

    scheduler = DDPMScheduler(prediction_type=prediction)
    loss = DiffusionLoss(DiffusionLossSettings(weights="mini", curriculum="cosine"), scheduler, ITERATIONS)
    torch.manual_seed(0)
    net = torch.nn.Conv2d(4, 4, 3, padding=1)
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=0.1), []
    for step in STEPS:
        latents = torch.randn(2, 4, 16, 16)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (2,))
        noisy = scheduler.add_noise(latents, noise, timesteps)
        value = loss(net(noisy), noisy, latents, noise, timesteps, step=step)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    return losses


def test_a_flow_matching_script_trains_with_latent_milo(tmp_path):
    script = write("flow", tmp_path)
    bare = result(python(tmp_path, script))
    assert result(through(tmp_path, script, ("--loss", "mse"))) == bare
    done = through(tmp_path, script, COSINE)
    assert "(prediction - target) ** 2 -> latent milo-cosine; called 4 times" in done.stderr
    assert result(done)["losses"] == pytest.approx(flow_losses(), rel=1e-5)


def test_preconditioned_outputs_under_sigma_sqrt_are_the_velocitys_loss(tmp_path):
    found = result(through(tmp_path, write("flow", tmp_path), COSINE, "preconditioned"))
    assert found["losses"] == pytest.approx(flow_losses(), rel=1e-4)


def test_flux_noises_tokens(tmp_path):
    done = through(tmp_path, write("tokens", tmp_path), COSINE)
    assert "F.mse_loss -> latent milo-cosine; called 4 times" in done.stderr
    assert result(done)["losses"] == pytest.approx(token_losses(), rel=1e-5)


def token_losses():
    """The losses of the program of tokens, by `DiffusionLoss` on what diffusers' own functions unpack."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    from milo_restore import DiffusionLoss, DiffusionLossSettings

    settings = DiffusionLossSettings(weights="mini", curriculum="cosine")
    loss = DiffusionLoss(settings, FlowMatchEulerDiscreteScheduler(), ITERATIONS)
    torch.manual_seed(0)
    net = torch.nn.Linear(16, 16)
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=0.1), []
    for step in STEPS:
        clean = torch.randn(2, 4, 16, 24)
        tokens = FluxPipeline._pack_latents(clean, 2, 4, 16, 24)
        noise = torch.randn_like(tokens)
        sigma = torch.rand(2, 1, 1)
        noisy = (1 - sigma) * tokens + sigma * noise
        pictures = [FluxPipeline._unpack_latents(t, 128, 192, 8) for t in (net(noisy), noisy, tokens, noise)]
        value = loss(*pictures, 1000 * sigma.flatten(), step=step)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    return losses


def test_layouts_are_diffusers_own():
    from diffusers import Flux2Pipeline, FluxPipeline

    latents = torch.randn(2, 32, 6, 10)
    patches, tokens = Flux2Pipeline._patchify_latents(latents), FluxPipeline._pack_latents(latents, 2, 32, 6, 10)
    packed = {(15, 128): (6, 10)}
    for laid_out in (latents, patches, tokens):
        layout = layout_of(laid_out, 32, packed)
        assert torch.equal(layout.pictures(laid_out), latents)
        assert torch.equal(layout.back(latents), laid_out)
    frames = torch.randn(2, 16, 3, 4, 6)
    layout = layout_of(frames, 16, {})
    assert layout.frames == 3
    assert torch.equal(layout.pictures(frames)[4], frames[1, :, 1])
    assert torch.equal(layout.back(layout.pictures(frames)), frames)
    for unknown, channels, why in (
        (tokens, 32, "no _pack_latents of diffusers' FLUX pipelines made"),
        (patches, 4, r"LatentMILO is for \(N, 4, h, w\) with these weights"),
        (torch.randn(2, 16, 6, 10), 4, "Name --weights for their VAE"),  # SD 3's are no patches of SD 1's
    ):
        with pytest.raises(ConfigError, match=why):
            layout_of(unknown, channels, {})


def test_the_vae_that_encoded_last_tells_the_space(monkeypatch):
    from diffusers import AutoencoderKL
    from diffusers.models.autoencoders import autoencoder_kl

    monkeypatch.setattr(AutoencoderKL, "encode", AutoencoderKL.encode)
    door = Door(Wish("milo", "mini"))
    _hook_vae(autoencoder_kl, door=door)
    clean, noise = torch.randn(2, 2, 4, 16, 16)
    noised = interpolated(clean, noise, torch.full((2, 1, 1, 1), 0.5))
    for factor, refused in ((0.88466, False), (0.13025, True)):
        vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=4, scaling_factor=factor)  # of SDXL, the second
        assert vae.encode(torch.zeros(1, 3, 8, 8)).latent_dist.mean.shape == (1, 4, 8, 8)
        loss = LatentLoss(door.wish, 1, door.seen)
        if refused:
            with pytest.raises(ConfigError, match="the program's VAE: its latents have a scaling factor of 0.13025"):
                loss(noise, noise - clean, noised, "velocity", None)
        else:
            assert loss(noise, noise - clean, noised, "velocity", None).shape == clean.shape


def flow_losses():
    """The losses of flow matching under the mask on (z_t - sigma v, z_0), written out."""
    from milo_restore import LatentMILO
    from milo_restore.loss import Curriculum

    metric, curriculum = LatentMILO("mini"), Curriculum("cosine", ITERATIONS)
    torch.manual_seed(0)
    net = torch.nn.Conv2d(4, 4, 3, padding=1)
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=0.1), []
    for step in STEPS:
        clean = torch.randn(2, 4, 16, 16)
        noise = torch.randn_like(clean)
        sigma = torch.rand(2, 1, 1, 1)
        noisy = (1 - sigma) * clean + sigma * noise
        said = net(noisy)
        with torch.no_grad():
            mask = metric.predict_mask(noisy - sigma * said, clean) / metric.n_scales
        value = (curriculum.weights(mask, step) * (said - (noise - clean)) ** 2).mean()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    return losses


def test_latents_of_other_vaes_are_refused(tmp_path):
    script = write("flow", tmp_path)
    script.write_text(script.read_text().replace("2, 4, 16, 16", "2, 16, 16, 16").replace("(4, 4, 3", "(16, 16, 3"))
    done = through(tmp_path, script, COSINE)
    assert done.returncode == 2
    assert "LatentMILO is for (N, 4, h, w)" in done.stderr.splitlines()[-1]


def test_only_lines_of_flow_matching_are_rewritten():
    class Recorder:
        def interpolated(self, noisy, share, first, second, noise_first):
            return noisy + 1000 * noise_first

        def squared(self, prediction, target):
            return -1

    flow = "x = (1.0 - s) * a + s * noise\ny = (p - t) ** 2\nz = (1 - s) * noise + s * a\nw = (p + t) ** 2\n"
    names = {DOOR: Recorder(), "s": 0.5, "a": 2.0, "noise": 4.0, "p": 3, "t": 1}
    exec(compiled(flow, "flow.py"), names)
    assert (names["x"], names["y"], names["z"], names["w"]) == (3.0, -1, 1003.0, 16)
    other = {"p": 3, "t": 1}
    exec(compiled("y = (p - t) ** 2", "other.py"), other)  # and none where nothing is noised
    assert other["y"] == 4


# ------------------------------------------------------------------------------------------------ lpips


def test_an_lpips_script_trains_with_milo(tmp_path):
    done = through(tmp_path, write("lpips", tmp_path), ("--lpips", "milo", "--weights", "mini"))
    loss = MILOLoss("mini")
    torch.manual_seed(0)
    net = torch.nn.Conv2d(3, 3, 3, padding=1)
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=0.1), []
    for _ in STEPS:
        target = 2 * torch.rand(2, 3, 32, 32) - 1
        value = 2 * loss((net(target) + 1) / 2, (target + 1) / 2)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    assert result(done)["losses"] == pytest.approx(losses, rel=1e-5)
    assert "lpips: lpips.LPIPS(net='vgg') -> milo" in done.stderr
    assert done.stderr.rstrip().endswith("called 4 times")


def test_only_lpips_is_touched_and_told_where_it_only_measures(tmp_path):
    (tmp_path / "measure.py").write_text(
        "import argparse, lpips, torch\n"
        "argparse.ArgumentParser().parse_args()\n"  # knows no --local-rank
        "sigmas, latents, noise = torch.rand(3)\n"
        "noisy = (1.0 - sigmas) * latents + sigmas * noise\n"  # --loss would lead this past a door
        "distance = lpips.LPIPS(net='alex')\n"
        "with torch.no_grad():\n"
        "    distance(torch.zeros(1, 3, 32, 32, requires_grad=True), in1=torch.zeros(1, 3, 32, 32))\n",
        encoding="utf-8-sig",
    )
    done = through(tmp_path, "measure.py", ("--local-rank=0", "--lpips", "milo", "--weights", "mini"))
    assert done.returncode == 0, done.stderr
    assert "called 1 times, never with a gradient" in done.stderr


def test_a_module_is_a_program_too(tmp_path):
    write("lpips", tmp_path)
    done = python(
        tmp_path, "-m", "milo_restore.cli", "run", "--lpips", "milo", "--weights", "mini", "--", "-m", "train"
    )
    assert len(result(done)["losses"]) == ITERATIONS
    assert "called 4 times" in done.stderr


def test_the_shape_of_lpips():
    wish = Wish("milo", "mini")
    first, second = 2 * torch.rand(2, 2, 3, 32, 32) - 1
    number, image = PerceptualLoss(wish)(first, second), PerceptualLoss(wish, spatial=True)(first, second)
    assert (number.shape, image.shape) == ((2, 1, 1, 1), (2, 1, 32, 32))
    assert torch.allclose(image.mean((2, 3), keepdim=True), number)
    trained = (3 * first).requires_grad_()  # leaves the range, and comes second
    assert torch.equal(PerceptualLoss(wish)(second, trained), PerceptualLoss(wish)(trained, second))
    assert torch.allclose(
        PerceptualLoss(wish)((first + 1) / 2, (second + 1) / 2, normalize=True), number, rtol=1e-4, atol=1e-7
    )
    with pytest.raises(ConfigError, match="no layers"):
        PerceptualLoss(wish)(first, second, retPerLayer=True)
