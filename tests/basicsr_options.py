"""Six configurations that BasicSR publishes, by their published values, and how the tests shrink them.

The values are those of ``options/train/`` in XPixelGroup/BasicSR: ``SRResNet_SRGAN/train_MSRResNet_x4.yml``,
``EDSR/train_EDSR_Mx4.yml``, ``ESRGAN/train_RRDBNet_PSNR_x4.yml``, ``SwinIR/train_SwinIR_SRx4_scratch.yml``,
``SRResNet_SRGAN/train_MSRGAN_x4.yml`` and ``BasicVSR/train_BasicVSR_REDS.yml``.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml
from basicsr_images import FRAMES

COMMON = """
scale: 4
num_gpu: 1
manual_seed: 0
path: {pretrain_network_g: ~, strict_load_g: true, resume_state: ~}
train:
  ema_decay: 0.999
  optim_g: {type: Adam, lr: !!float 2e-4, weight_decay: 0, betas: [0.9, 0.99]}
  warmup_iter: -1
  pixel_opt: {type: L1Loss, loss_weight: 1.0, reduction: mean}
val:
  val_freq: !!float 5e3
  save_img: false
  metrics:
    psnr: {type: calculate_psnr, crop_border: 4, test_y_channel: false}
logger: {print_freq: 100, save_checkpoint_freq: !!float 5e3, use_tb_logger: true, wandb: {project: ~, resume_id: ~}}
dist_params: {backend: nccl, port: 29500}
"""

IMAGES = """
datasets:
  train:
    name: DIV2K
    type: PairedImageDataset
    dataroot_gt: datasets/DIV2K/DIV2K_train_HR_sub
    dataroot_lq: datasets/DIV2K/DIV2K_train_LR_bicubic/X4_sub
    filename_tmpl: '{}'
    io_backend: {type: disk}
    gt_size: 128
    use_hflip: true
    use_rot: true
    num_worker_per_gpu: 6
    batch_size_per_gpu: 16
    dataset_enlarge_ratio: 100
    prefetch_mode: ~
  val:
    name: Set5
    type: PairedImageDataset
    dataroot_gt: datasets/Set5/GTmod12
    dataroot_lq: datasets/Set5/LRbicx4
    io_backend: {type: disk}
"""

RESTARTS = """
train:
  scheduler:
    type: CosineAnnealingRestartLR
    periods: [250000, 250000, 250000, 250000]
    restart_weights: [1, 1, 1, 1]
    eta_min: !!float 1e-7
  total_iter: 1000000
"""

OWN = {
    "MSRResNet": """
name: 001_MSRResNet_x4_f64b16_DIV2K_1000k_B16G1_wandb
model_type: SRModel
datasets:
  train:
    dataroot_gt: datasets/DF2K/DIV2K_train_HR_sub
    dataroot_lq: datasets/DF2K/DIV2K_train_LR_bicubic_X4_sub
    meta_info_file: basicsr/data/meta_info/meta_info_DIV2K800sub_GT.txt
  val_2:
    name: Set14
    type: PairedImageDataset
    dataroot_gt: datasets/Set14/GTmod12
    dataroot_lq: datasets/Set14/LRbicx4
    io_backend: {type: disk}
network_g: {type: MSRResNet, num_in_ch: 3, num_out_ch: 3, num_feat: 64, num_block: 16, upscale: 4}
path: {param_key_g: params}
val:
  metrics:
    psnr: {better: higher}
    niqe: {type: calculate_niqe, crop_border: 4, better: lower}
""",
    "EDSR": """
name: 203_EDSR_Mx4_f64b16_DIV2K_300k_B16G1_201pretrain_wandb
model_type: SRModel
manual_seed: 10
datasets: {train: {gt_size: 192}}
network_g:
  type: EDSR
  num_in_ch: 3
  num_out_ch: 3
  num_feat: 64
  num_block: 16
  upscale: 4
  res_scale: 1
  img_range: 255.
  rgb_mean: [0.4488, 0.4371, 0.4040]
path:
  pretrain_network_g: experiments/201_EDSR_Mx2_f64b16_DIV2K_300k_B16G1_wandb/models/net_g_300000.pth
  strict_load_g: false
train:
  optim_g: {lr: !!float 1e-4}
  scheduler: {type: MultiStepLR, milestones: [200000], gamma: 0.5}
  total_iter: 300000
""",
    "RRDBNet": """
name: 051_RRDBNet_PSNR_x4_f64b23_DIV2K_1000k_B16G1_wandb
model_type: SRModel
network_g: {type: RRDBNet, num_in_ch: 3, num_out_ch: 3, num_feat: 64, num_block: 23, num_grow_ch: 32}
""",
    "SwinIR": """
name: train_SwinIR_SRx4_scratch_P48W8_DIV2K_500k_B4G8
model_type: SwinIRModel
num_gpu: auto
datasets:
  train:
    dataroot_gt: datasets/DF2K/DIV2K_train_HR_sub
    dataroot_lq: datasets/DF2K/DIV2K_train_LR_bicubic_X4_sub
    meta_info_file: basicsr/data/meta_info/meta_info_DIV2K800sub_GT.txt
    gt_size: 192
    batch_size_per_gpu: 4
    dataset_enlarge_ratio: 1
network_g:
  type: SwinIR
  upscale: 4
  in_chans: 3
  img_size: 48
  window_size: 8
  img_range: 1.
  depths: [6, 6, 6, 6, 6, 6]
  embed_dim: 180
  num_heads: [6, 6, 6, 6, 6, 6]
  mlp_ratio: 2
  upsampler: 'pixelshuffle'
  resi_connection: '1conv'
train:
  scheduler: {type: MultiStepLR, milestones: [250000, 400000, 450000, 475000], gamma: 0.5}
  total_iter: 500000
""",
    "MSRGAN": """
name: 004_MSRGAN_x4_f64b16_DIV2K_400k_B16G1_wandb
model_type: SRGANModel
datasets:
  val: {name: Set14, dataroot_gt: datasets/Set14/GTmod12, dataroot_lq: datasets/Set14/LRbicx4}
network_g: {type: MSRResNet, num_in_ch: 3, num_out_ch: 3, num_feat: 64, num_block: 16, upscale: 4}
network_d: {type: VGGStyleDiscriminator, num_in_ch: 3, num_feat: 64}
path:
  pretrain_network_g: experiments/001_MSRResNet_x4_f64b16_DIV2K_1000k_B16G1_wandb/models/net_g_1000000.pth
train:
  optim_g: {lr: !!float 1e-4}
  optim_d: {type: Adam, lr: !!float 1e-4, weight_decay: 0, betas: [0.9, 0.99]}
  scheduler: {type: MultiStepLR, milestones: [50000, 100000, 200000, 300000], gamma: 0.5}
  total_iter: 400000
  pixel_opt: {loss_weight: !!float 1e-2}
  perceptual_opt:
    type: PerceptualLoss
    layer_weights: {conv5_4: 1}
    vgg_type: vgg19
    use_input_norm: true
    range_norm: false
    perceptual_weight: 1.0
    style_weight: 0
    criterion: l1
  gan_opt: {type: GANLoss, gan_type: vanilla, real_label_val: 1.0, fake_label_val: 0.0, loss_weight: !!float 5e-3}
  net_d_iters: 1
  net_d_init_iters: 0
val: {save_img: true}
""",
    "BasicVSR": """
name: BasicVSR_REDS
model_type: VideoRecurrentModel
num_gpu: auto
datasets:
  train:
    name: REDS
    type: REDSRecurrentDataset
    dataroot_gt: datasets/REDS/train_sharp
    dataroot_lq: datasets/REDS/train_sharp_bicubic/X4
    meta_info_file: basicsr/data/meta_info/meta_info_REDS_GT.txt
    val_partition: REDS4
    test_mode: False
    io_backend: {type: disk}
    num_frame: 15
    gt_size: 256
    interval_list: [1]
    random_reverse: false
    use_hflip: true
    use_rot: true
    num_worker_per_gpu: 6
    batch_size_per_gpu: 4
    dataset_enlarge_ratio: 200
    prefetch_mode: ~
  val:
    name: REDS4
    type: VideoRecurrentTestDataset
    dataroot_gt: datasets/REDS4/GT
    dataroot_lq: datasets/REDS4/sharp_bicubic
    cache_data: true
    io_backend: {type: disk}
    num_frame: -1
network_g:
  type: BasicVSR
  num_feat: 64
  num_block: 30
  spynet_path: experiments/pretrained_models/flownet/spynet_sintel_final-3d2a1287.pth
train:
  scheduler: {type: CosineAnnealingRestartLR, periods: [300000], restart_weights: [1], eta_min: !!float 1e-7}
  total_iter: 300000
  fix_flow: 5000
  flow_lr_mul: 0.125
  pixel_opt: {type: CharbonnierLoss}
val: {metrics: {psnr: {crop_border: 0}}}
find_unused_parameters: true
""",
}
"""What each file has that the others have not."""

NETWORKS: dict[str, dict[str, Any]] = {
    "MSRResNet": {"num_feat": 8, "num_block": 1},
    "EDSR": {"num_feat": 8, "num_block": 1},
    "RRDBNet": {"num_feat": 8, "num_block": 1, "num_grow_ch": 4},
    # One layer only: from the second on, SwinIR leaves layers out at random (stochastic depth), by torch's generator,
    # which BasicSR does not restore when it resumes.
    "SwinIR": {"img_size": 16, "depths": [1], "embed_dim": 12, "num_heads": [2]},
    "MSRGAN": {"num_feat": 8, "num_block": 1},
    "BasicVSR": {"num_feat": 4, "num_block": 1, "spynet_path": None},  # its weights are a download
}
"""What shrinks each network."""

ITERATIONS, EPOCH = 6, 2
"""Of the shrunk training, and how many of them make an epoch."""
PERIOD = 2 * EPOCH
"""Iterations from one checkpoint and validation to the next."""


def published(name: str) -> dict[str, Any]:
    """The options as published."""
    parts = [COMMON, "" if name == "BasicVSR" else IMAGES, RESTARTS if name in ("MSRResNet", "RRDBNet") else ""]
    options: dict[str, Any] = {}
    for text in (*parts, OWN[name]):
        merge(options, yaml.safe_load(text) or {})
    return options


def shrunk(name: str, folder: Path, pixel: dict[str, Any] | None = None) -> dict[str, Any]:
    """The published options with small sizes and the images of `make_images`; nothing else differs, but for

    - weights and lists that are downloads (``pretrain_network_g``, ``meta_info_file``, SpyNet's, and the GAN's
      ``perceptual_opt``, which needs VGG19's);
    - ``fix_flow``, an iteration count too.

    Args:
        name: one of `OWN`.
        folder: where `make_images` was.
        pixel: keys that change in ``train.pixel_opt``.
    """
    options = published(name)
    options["num_gpu"] = 0
    options["path"]["pretrain_network_g"] = None
    merge(options["network_g"], NETWORKS[name])
    train, loader = options["train"], options["datasets"]["train"]
    train["total_iter"] = ITERATIONS
    train["pixel_opt"].update(pixel or {})
    options["val"]["val_freq"] = options["logger"]["save_checkpoint_freq"] = PERIOD
    options["logger"]["print_freq"] = 1
    size, batch = {"MSRGAN": (128, 2), "BasicVSR": (144, 1)}.get(name, (64, 2))  # SpyNet halves a quarter's six times
    # One image (or clip), so that every epoch has the same order: a resumed run starts the interrupted epoch anew.
    loader.update(gt_size=size, batch_size_per_gpu=batch, num_worker_per_gpu=1, dataset_enlarge_ratio=EPOCH * batch)
    for key, data in options["datasets"].items():
        kind = "video" if name == "BasicVSR" else "val_2" if (name, key) == ("MSRResNet", "val") else key
        data.update(dataroot_gt=str(folder / kind / "gt"), dataroot_lq=str(folder / kind / "lq"))
    if "meta_info_file" in loader:
        loader["meta_info_file"] = str(folder / ("clips.txt" if name == "BasicVSR" else "images.txt"))
    if name == "MSRGAN":
        options["network_d"]["num_feat"] = 4
        del train["perceptual_opt"]
    if name == "BasicVSR":
        train["fix_flow"], loader["num_frame"] = 2, FRAMES
    return options


def write(options: dict[str, Any], path: Path) -> Path:
    """As a YAML file."""
    path.write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")
    return path


def merge(into: dict[str, Any], changes: dict[str, Any]) -> None:
    """Set ``changes`` in ``into``, key by key at every depth."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = copy.deepcopy(value)
