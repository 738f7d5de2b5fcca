"""``milo-restore basicsr``: the swap of the loss, and what is refused before anything is written."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from milo_restore import cli

import milo_restore.basicsr  # noqa: F401  # isort: skip
from basicsr.models.base_model import BaseModel
from basicsr.utils import get_root_logger
from basicsr.utils import logger as basicsr_logger
from basicsr.utils.registry import DATASET_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

from milo_restore import MILO, compat
from milo_restore.basicsr import checks, launch
from milo_restore.basicsr.checks import images
from milo_restore.basicsr.options import LOSSES, forced, swap_loss
from milo_restore.errors import ConfigError, WeightsError
from milo_restore.files import known

OPTIONS = yaml.safe_load("""
name: tiny
model_type: SRModel
scale: 4
num_gpu: 0
manual_seed: 0
datasets:
  train:
    name: four
    type: PairedImageDataset
    dataroot_gt: gt
    dataroot_lq: lq
    filename_tmpl: '{}'
    io_backend: {type: disk}
    gt_size: 64
    use_hflip: true
    use_rot: true
    num_worker_per_gpu: 0
    batch_size_per_gpu: 2
    dataset_enlarge_ratio: 1
network_g: {type: MSRResNet, num_in_ch: 3, num_out_ch: 3, num_feat: 4, num_block: 1, upscale: 4}
path: {pretrain_network_g: null, resume_state: null}
train:
  optim_g: {type: Adam, lr: 0.0002}
  scheduler: {type: MultiStepLR, milestones: [2], gamma: 0.5}
  total_iter: 4
  pixel_opt: {type: CharbonnierLoss, loss_weight: 0.5, eps: 1.0e-12}
logger: {print_freq: 1, save_checkpoint_freq: 2, use_tb_logger: false}
""")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MILO_RESTORE_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for name, side in (("gt", 96), ("lq", 24)):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(tmp_path / name / f"{number}.png")
    return tmp_path


def changed(path, value):
    """The options with one value changed (None: removed), named as in ``--force_yml``."""
    options = copy.deepcopy(OPTIONS)
    *branches, leaf = path.split(":")
    node = options
    for branch in branches:
        node = node[branch]
    if value is None:
        del node[leaf]
    else:
        node[leaf] = value
    return options


def start(folder, options, *arguments):
    text = options if isinstance(options, str) else yaml.safe_dump(options)
    (folder / "options.yml").write_text(text)
    return cli.main(["basicsr", "-opt", "options.yml", *arguments])


# ---------------------------------------------------------------------------------------------- the swap


@pytest.mark.parametrize("name", LOSSES)
def test_a_swap_keeps_the_weight_and_says_what_it_drops(name, tmp_path):
    options = copy.deepcopy(OPTIONS)
    line = swap_loss(options, name, "mini" if name.startswith("milo") else None, tmp_path)
    pixel = options["train"]["pixel_opt"]
    assert pixel.pop("loss_weight") == 0.5
    assert pixel == {**LOSSES[name], **({"weights": "mini"} if name.startswith("milo") else {})}
    assert line.startswith("train.pixel_opt: {type: CharbonnierLoss, loss_weight: 0.5, eps: 1.0e-12} -> {type: ")
    assert line.endswith(f"(dropped, as {pixel['type']} does not take it: eps)")


def test_milo_for_milo_keeps_the_other_keys(tmp_path):
    pixel = {"type": "MILOLoss", "weights": "mini", "curriculum": "linear", "mask_gradient": False}
    options = {"train": {"pixel_opt": dict(pixel)}}
    swap_loss(options, "milo", None, tmp_path)
    assert options["train"]["pixel_opt"] == {"type": "MILOLoss", "weights": "mini", "mask_gradient": False}
    swap_loss(options, "milo-cosine", "official", tmp_path)
    assert options["train"]["pixel_opt"] == {
        "type": "MILOLoss", "curriculum": "cosine", "weights": "official", "mask_gradient": False,
    }  # fmt: skip


def test_a_run_with_another_loss_leaves_the_file_alone_and_keeps_what_ran(folder, capfd):
    assert start(folder, OPTIONS, "--loss", "milo", "--weights", "mini", "--force_yml", "train:total_iter=1") == 0
    assert yaml.safe_load((folder / "options.yml").read_text()) == OPTIONS
    kept = (folder / "experiments" / "tiny" / "options.yml").read_text()
    assert yaml.safe_load(kept)["train"]["pixel_opt"] == {"type": "MILOLoss", "weights": "mini", "loss_weight": 0.5}
    assert "with --loss milo" in kept
    assert "-> {type: MILOLoss, weights: mini, loss_weight: 0.5}" in capfd.readouterr().out
    assert (folder / "experiments" / "tiny" / "models" / "net_g_latest.pth").is_file()


# ---------------------------------------------------------------------------------------------- refusals

WRONG = {
    "model_typ": (changed("model_type", None), "missing key 'model_type'"),
    "no train set": (changed("datasets:train", None), "missing key 'datasets.train'"),
    "network": (changed("network_g:type", "MSRRestNet"), "knows no 'MSRRestNet'. Did you mean 'MSRResNet'?"),
    "model": (changed("model_type", "SRModell"), "Did you mean 'SRModel'?"),
    "loss": (changed("train:pixel_opt:type", "L1Los"), "key 'train.pixel_opt.type': BasicSR knows no 'L1Los'"),
    "optimizer": (
        changed("train:optim_g:type", "AdamW"),
        "key 'train.optim_g.type': the installed basicsr knows no 'AdamW'",
    ),
    "scheduler": (changed("train:scheduler:type", "StepLR"), "Did you mean 'MultiStepLR'?"),
    "number": (changed("train:optim_g:lr", "2e-4"), "key 'train.optim_g.lr': YAML reads 2e-4 as text"),
    "data": (changed("datasets:train:dataroot_gt", "nowhere"), "key 'datasets.train.dataroot_gt': no such folder"),
    "list": (changed("datasets:train:meta_info_file", "nowhere"), "meta_info_file': no such file: nowhere"),
    "checkpoint": (changed("path:pretrain_network_g", "no.pth"), "key 'path.pretrain_network_g': no such file"),
    "batch": (changed("datasets:train:batch_size_per_gpu", 5), "nothing to train on. Set dataset_enlarge_ratio to 125"),
    "crop": (changed("datasets:train:gt_size", 128), "is 96x96, smaller than gt_size 128"),
    "pair": (changed("scale", 2), "is 96x96, not 2 times lq/"),
    "no scale": (changed("scale", None), "missing key 'scale'"),
    "no crop": (changed("datasets:train:gt_size", None), "missing key 'gt_size'"),
    "no batch": (changed("datasets:train:batch_size_per_gpu", None), "missing key 'datasets.train.batch_size_per_gpu'"),
    "no images": (changed("datasets:train:batch_size_per_gpu", 0), "0 is no whole number from 1 on"),
    "no pair": (changed("datasets:train:dataroot_lq", None), "cannot be made: missing key 'dataroot_lq'"),
    "no end": (changed("train:total_iter", "many"), "key 'train.total_iter': 'many' is not a positive number"),
    "no loss at all": (changed("train:pixel_opt", None), "neither train.pixel_opt nor train.perceptual_opt"),
    "no logger": (changed("logger:print_freq", None), "missing key 'logger.print_freq'"),
    "phase": (changed("datasets:valid", {"name": "v"}), "key 'datasets.valid': BasicSR knows no such phase"),
    "network's key": (changed("network_g:num_feet", 4), "MSRResNet takes no key 'num_feet'. Did you mean 'num_feat'?"),
    "loss's key": (changed("train:pixel_opt:epss", 1.0), "CharbonnierLoss takes no key 'epss'. Did you mean 'eps'?"),
    "optimizer's key": (changed("train:optim_g:betta", 1.0), "Adam takes no key 'betta'. Did you mean 'betas'?"),
    "optimizer's value": (changed("train:optim_g:lr", -1.0), "Adam refuses {'lr': -1.0}"),
    "scheduler's key": (changed("train:scheduler:gama", 1.0), "takes no key 'gama'. Did you mean 'gamma'?"),
    "curriculum": (
        changed("train:pixel_opt", {"type": "MILOLoss", "weights": "mini", "curriculum": "linear", "start_iter": 4}),
        "key 'train.pixel_opt': curriculum, steps 4 to 4: the end must come after the start",
    ),
    "metric's key": (
        changed("val", {"val_freq": 2, "save_img": False, "metrics": {"psnr": {"type": "calculate_psnr"}}}),
        "key 'val.metrics.psnr': calculate_psnr needs the key 'crop_border'",
    ),
    "prefetch": (changed("datasets:train:prefetch_mode", "gpu"), "'gpu' is neither cpu nor cuda"),
    "gpus": (changed("num_gpu", "two"), "'two' is neither a number of GPUs nor auto"),
    "yaml": ("name: [tiny", "is not valid YAML"),
    "no mapping": ("tiny", "must hold a mapping"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_refused_in_one_line_before_anything_is_written(case, folder, capfd):
    options, message = WRONG[case]
    assert start(folder, options) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("milo-restore: error: ")
    assert message in error
    assert not (folder / "experiments").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--weights", "mini"), "means nothing without --loss"),
        (("--loss", "l1", "--weights", "mini"), "l1 takes no weights"),
        (("--force_yml", "train:ema:decay=0.9"), "there is no branch 'train:ema'"),
        (("--force_yml", "num_gpu"), "not of the form"),
        (("--loss", "milo", "--weights", "none.pth"), "none.pth"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments, message, folder, capfd):
    assert start(folder, OPTIONS, *arguments) == 2
    assert message in capfd.readouterr().err
    assert not (folder / "experiments").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpus_that_are_not_there_are_named(folder, capfd):
    assert start(folder, changed("num_gpu", 1)) == 2
    assert "Add --force_yml num_gpu=0" in capfd.readouterr().err
    checks.check_options(forced(changed("num_gpu", 1), ["num_gpu=0"]), folder, 1)


@pytest.mark.parametrize("damage", ["cut", "flipped", "text"])
def test_a_damaged_image_is_named(damage, folder, capfd):
    path = folder / "gt" / "2.png"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2] ^= 255
    else:
        content = bytearray(b"no image")
    path.write_bytes(content)
    assert start(folder, OPTIONS) == 2
    assert "2.png: is damaged or no image" in capfd.readouterr().err
    assert not (folder / "experiments").exists()


def broken_pair(folder):
    Image.new("RGB", (30, 30)).save(folder / "lq" / "2.png")
    return {}


def missing_partner(folder):
    (folder / "lq" / "2.png").unlink()
    return {}


def listed_only(folder):
    (folder / "list.txt").write_text("0.png (96,96,3)\n9.png (96,96,3)\n")
    return {"datasets:train:meta_info_file": "list.txt"}


def empty_list(folder):
    (folder / "list.txt").write_text("")
    return {"datasets:train:meta_info_file": "list.txt"}


def damaged_checkpoint(folder):
    (folder / "net.pth").write_bytes(b"no checkpoint")
    return {"path:pretrain_network_g": "net.pth"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (broken_pair, "gt/2.png: is 96x96, not 4 times lq/2.png, 30x30"),
        (missing_partner, "lq and gt datasets have different number of images: 3, 4"),
        (listed_only, "gt/9.png: no such image"),
        (empty_list, "key 'datasets.train': there are no images"),
        (damaged_checkpoint, "key 'path.pretrain_network_g': net.pth is no readable checkpoint"),
    ],
)
def test_files_that_do_not_fit_are_named(spoil, message, folder, capfd):
    options = copy.deepcopy(OPTIONS)
    for path, value in spoil(folder).items():
        options = changed(path, value)
    assert start(folder, options) == 2
    assert message in capfd.readouterr().err
    assert not (folder / "experiments").exists()


def test_the_checks_leave_basicsrs_logger_alone(folder):
    """Some data sets log while they are made, which would set the logger up without its file, or twice."""
    handlers = list(logging.getLogger("basicsr").handlers)
    known = dict(basicsr_logger.initialized_logger)
    basicsr_logger.initialized_logger.clear()
    noisy = type("Noisy", (), {"__init__": lambda *_: get_root_logger().info("made"), "__len__": lambda _: 4})
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(DATASET_REGISTRY._obj_map, "Noisy", noisy)
            checks.check_options(changed("datasets:train:type", "Noisy"), folder, 1)
        assert basicsr_logger.initialized_logger == {}
        assert logging.getLogger("basicsr").handlers == handlers
    finally:
        basicsr_logger.initialized_logger.update(known)


def test_a_run_that_would_end_early_is_told(folder):
    options = changed("datasets:train:batch_size_per_gpu", 3)
    options["train"]["total_iter"] = 100  # counted as 2 iterations per epoch, one is done: 51 epochs
    assert checks.check_options(options, folder, 1) == [
        "4 images x dataset_enlarge_ratio 1 make 1 whole batches of 3 per epoch, so BasicSR will end at iteration 51, "
        "not 100. Set dataset_enlarge_ratio to 75 or more"
    ]
    options["datasets"]["train"]["dataset_enlarge_ratio"] = 75
    assert checks.check_options(options, folder, 1) == []


def test_a_model_of_ones_own_may_know_more(folder, monkeypatch):
    own = type("Own", (MODEL_REGISTRY.get("SRModel"),), {"get_optimizer": lambda *a, **k: None})
    monkeypatch.setattr(MODEL_REGISTRY, "_obj_map", {**MODEL_REGISTRY._obj_map, "Own": own})
    options = {**changed("train:optim_g:type", "AdamW"), "model_type": "Own"}
    assert checks.check_options(options, folder, 1) == []


# ---------------------------------------------------------------------------------------------- around BasicSR


def test_a_damaged_training_state_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    states = tmp_path / "experiments" / "tiny" / "training_states"
    states.mkdir(parents=True)
    options = {"auto_resume": True, "name": "tiny", "path": {"resume_state": None}}
    assert launch._load_resume_state(options) is None
    torch.save({"iter": 8, "epoch": 0}, states / "8.state")
    (states / "10.state").write_bytes(b"cut")
    with pytest.raises(WeightsError, match="10.state: is no readable training state"):
        launch._load_resume_state(options)
    (states / "10.state").unlink()
    assert launch._load_resume_state({**options, "is_train": True}) == {"iter": 8, "epoch": 0}


def test_torchrun_is_recognised(monkeypatch):
    def arguments(*line):
        parser = launch.argparse.ArgumentParser()
        launch_options.add_options(parser)
        return parser.parse_args(["-opt", "x.yml", *line])

    from milo_restore.basicsr import options as launch_options

    assert launch._launcher(arguments("--local-rank=1")) == "none"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert launch._launcher(arguments()) == "pytorch"
    assert launch._launcher(arguments("--launcher", "none")) == "none"
    assert (launch._processes("pytorch"), launch._rank()) == (2, 1)


def test_accelerate_on_the_cpu_is_refused_where_it_drops_processes(folder, monkeypatch, capfd):
    """It then sets these two, and neither rank nor number of processes."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert start(folder, changed("num_gpu", "two")) == 2
    assert "num_gpu" in capfd.readouterr().err  # one process, as asked for: on to the next check
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert start(folder, OPTIONS) == 2
    assert "accelerate launch: on the CPU it starts one process however many are asked for" in capfd.readouterr().err
    assert not (folder / "experiments").exists()
    assert start(folder, changed("num_gpu", "two"), "--launcher", "none") == 2
    assert "num_gpu" in capfd.readouterr().err


def test_slurm_counts_its_tasks(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert (launch._processes("slurm"), launch._rank()) == (8, 3)
    assert launch._processes("none") == 1


def test_a_basicsr_of_restormers_kind_is_told_its_door(tmp_path, monkeypatch):
    fork = tmp_path / "basicsr"
    (fork / "models" / "losses").mkdir(parents=True)
    found = SimpleNamespace(submodule_search_locations=[str(fork)])
    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: found)
    with pytest.raises(ConfigError, match=f"milo-restore run --loss milo-cosine -- {fork / 'train.py'}"):
        compat.require_basicsr()
    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="no basicsr can be imported"):
        compat.require_basicsr()


def test_forced_values_are_read_as_basicsr_reads_them():
    options = forced(OPTIONS, ["num_gpu=2", "train:ema_decay=0.9", "datasets:train:use_rot=false", "name=other"])
    assert (options["num_gpu"], options["train"]["ema_decay"], options["name"]) == (2, 0.9, "other")
    assert options["datasets"]["train"]["use_rot"] is False
    assert OPTIONS["num_gpu"] == 0
    with pytest.raises(ConfigError, match="there is no branch"):
        forced(OPTIONS, ["no:such=1"])


# ---------------------------------------------------------------------------------------------- forks, and own classes


def check(options):
    return checks.check_options(options, "options.yml", 1)


def test_whatever_optimizer_the_installed_basicsr_knows_is_accepted(folder, monkeypatch):
    options = changed("train:optim_g", {"type": "AdamW", "lr": 0.0002, "weight_decay": 0.01})
    with pytest.raises(ConfigError, match="the installed basicsr knows no 'AdamW'"):
        check(options)
    original = BaseModel.get_optimizer

    def masters(self, kind, params, lr, **more):
        return torch.optim.AdamW(params, lr, **more) if kind == "AdamW" else original(self, kind, params, lr, **more)

    monkeypatch.setattr(BaseModel, "get_optimizer", masters)
    check(options)


@pytest.mark.parametrize("periods", [[2], [1, 1]])
def test_a_schedule_that_ends_before_the_run_is_refused(periods, folder):
    scheduler = {"type": "CosineAnnealingRestartLR", "periods": periods, "restart_weights": [1] * len(periods)}
    with pytest.raises(ConfigError, match="no rate for iteration 4, the last of train.total_iter"):
        check(changed("train:scheduler", {**scheduler, "eta_min": 1e-7}))
    check(changed("train:scheduler", {**scheduler, "periods": [4], "restart_weights": [1], "eta_min": 1e-7}))


def test_images_in_the_signed_range_are_found_out_before_the_start(folder):
    options = changed("datasets:train:mean", [0.5, 0.5, 0.5])
    options["datasets"]["train"]["std"] = [0.5, 0.5, 0.5]
    options["train"]["pixel_opt"] = {"type": "MILOLoss", "weights": "mini"}
    with pytest.raises(ConfigError, match=r"train.pixel_opt': mean and std of 0.5 .* Add range_norm: true"):
        check(options)
    swap_loss(options, "milo", "mini", "options.yml")
    assert options["train"]["pixel_opt"]["range_norm"] is True
    check(options)


def test_range_norm_maps_the_images():
    first, second = torch.rand(2, 1, 3, 32, 32)
    plain = LOSS_REGISTRY.get("MILOLoss")(weights="mini")
    signed = LOSS_REGISTRY.get("MILOLoss")(weights="mini", range_norm=True)
    assert torch.allclose(signed(2 * first - 1, 2 * second - 1), plain(first, second), rtol=1e-5)


def test_a_class_of_ones_own_is_no_misspelt_one(folder):
    with pytest.raises(ConfigError, match="BasicSR knows no 'HATModel'. If it is a class of your own, .*--import"):
        check(changed("model_type", "HATModel"))


def test_import_brings_classes_of_ones_own(folder, capfd):
    (folder / "own_archs.py").write_text(
        "from basicsr.archs.srresnet_arch import MSRResNet\n"
        "from basicsr.utils.registry import ARCH_REGISTRY\n"
        "@ARCH_REGISTRY.register()\n"
        "class OwnNet(MSRResNet):\n    pass\n"
    )
    options = changed("network_g:type", "OwnNet")
    options["train"]["total_iter"] = 1
    assert start(folder, options, "--import", "own_archs") == 0
    assert start(folder, options, "--import", "no_such_archs") == 2
    assert "--import no_such_archs: cannot be imported" in capfd.readouterr().err


def test_what_was_read_is_not_read_again(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(known, "RACY_NS", -(10**18))  # the files are seconds old
    read = []
    size = images._size
    monkeypatch.setattr(images, "_size", lambda path: read.append(path.name) or size(path))
    checks.check_images(OPTIONS)
    assert len(read) == 8
    del read[:]
    Image.fromarray(np.zeros((96, 96, 3), np.uint8)).save(folder / "gt" / "2.png")
    checks.check_images(OPTIONS)
    assert read == ["2.png"]
    (folder / "list.txt").write_text("1.png (96,96,3)\n")
    (tmp_path / "cache" / "images.json").unlink()
    del read[:]
    checks.check_images(changed("datasets:train:meta_info_file", "list.txt"))
    assert read == ["1.png", "1.png"]  # the target and its input


def test_a_gpu_is_asked_for_in_vain_and_not_missed():
    with launch._without_gpu():
        assert torch.nn.Linear(1, 1).cuda().weight.device.type == "cpu"
        assert torch.zeros(1).cuda().device.type == "cpu"
    assert torch.nn.Module.cuda.__module__ == "torch.nn.modules.module"


# ---------------------------------------------------------------------------------------------- the metric


def test_calculate_milo_is_the_metric():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 256, (2, 48, 40, 3), np.uint8)
    tensors = [torch.from_numpy(each[..., ::-1].copy()).permute(2, 0, 1)[None] / 255 for each in (first, second)]
    expected = float(MILO("mini")(*tensors))
    calculate_milo = METRIC_REGISTRY.get("calculate_milo")
    assert calculate_milo(first, second, 0, weights="mini", test_y_channel=False) == pytest.approx(expected, rel=1e-6)
    assert type(calculate_milo(img1=first, img2=second, weights="mini")) is float  # states load with weights_only
    assert calculate_milo(*tensors, weights="mini").item() == pytest.approx(expected, rel=1e-6)
    chw = [each.transpose(2, 0, 1) for each in (first, second)]
    assert calculate_milo(*chw, input_order="CHW", weights="mini") == pytest.approx(expected, rel=1e-6)
    inner = [each[..., 4:-4, 4:-4] for each in tensors]
    assert calculate_milo(first, second, 4, weights="mini") == pytest.approx(float(MILO("mini")(*inner)), rel=1e-6)
    with pytest.raises(ConfigError, match="an image is missing"):
        calculate_milo(first)
