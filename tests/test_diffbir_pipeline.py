"""DiffBIR's pipeline: sampling against a loop written out, seeds, guidance, sizes, tiles, precision, files."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import assert_near
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image
from skimage.data import astronaut
from test_diffbir_prompts import write_tokenizer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from milo_restore.data import to_tensor
from milo_restore.errors import ConfigError, DataError, NumericsError
from milo_restore.models.diffbir import DiffBIRPipeline, IRControlNet, noise_scheduler, predict, sampling
from milo_restore.models.diffbir.cleaner import load_cleaner
from milo_restore.models.diffbir.colour import low_frequencies, transfer_colour
from milo_restore.models.diffbir.components import load_components
from milo_restore.models.diffbir.prompts import NEGATIVE_PROMPT, PROMPTS_FILE, EncodedPrompts, StoredPrompts
from milo_restore.models.diffbir.sampling import guidance_at
from milo_restore.models.diffbir.schedules import sampler_named
from milo_restore.models.diffbir.tiling import in_tiles, tile_grid


@pytest.fixture(scope="module")
def world():
    """The tiny world, with a control that changes something: nobody trained it."""
    parts = load_components("tiny")
    control = IRControlNet.from_unet(parts.unet)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in control.named_parameters():
            if "controlnet_" in name and name.endswith("weight"):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.02)
    return parts, control.eval().requires_grad_(False)


def pipeline_of(world, scheduler=None, **options):
    parts, control = world
    options = {"unet": parts.unet, "controlnet": control, "prompts": parts.prompts, **options}
    pipeline = DiffBIRPipeline(vae=parts.vae, scheduler=scheduler or noise_scheduler("v2"), **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline(world):
    return pipeline_of(world)


def photograph(height, width, top=0, left=160):
    return to_tensor(astronaut()[top : top + height, left : left + width])[None]


def agreement(a, b):
    """PSNR in dB."""
    return -10 * math.log10((a - b).square().mean())


# --- sampling


def test_sampling_is_the_loop_written_out(world):
    parts, control = world
    image = photograph(64, 96)
    out = pipeline_of(world)(image, steps=3, seed=5, guidance_scale=3, control_scale=0.5, output_type="pt")

    scheduler, generator = noise_scheduler("v2"), torch.Generator().manual_seed(5)
    scheduler.set_timesteps(3)
    assert scheduler.timesteps.tolist() == [999, 500, 0]
    with torch.no_grad():
        condition = parts.vae.encode(image * 2 - 1).latent_dist.mean * parts.vae.config.scaling_factor
        latent = torch.randn((1, 4, 8, 12), generator=generator)
        for time in scheduler.timesteps:
            positive, negative = (
                predict(parts.unet, control, latent, time, parts.prompts.embed(text), condition, 0.5)
                for text in ("", NEGATIVE_PROMPT)
            )
            guided = negative + 3 * (positive - negative)
            latent = scheduler.step(guided, time, latent, generator=generator).prev_sample
        decoded = parts.vae.decode(latent / parts.vae.config.scaling_factor).sample / 2 + 0.5
    expected = (decoded + low_frequencies(image - decoded)).clamp(0, 1)
    assert torch.equal(out.cleaned, image)
    assert torch.allclose(out.images, expected, atol=1e-4)
    assert agreement(out.images, image) < 30  # it did something


def test_an_image_does_not_depend_on_its_batch(pipeline):
    images = torch.cat([photograph(64, 64), photograph(64, 64, top=200)])
    both = pipeline(images, steps=2, seed=[3, 4], output_type="pt").images
    alone = torch.cat([pipeline(images[i : i + 1], steps=2, seed=3 + i, output_type="pt").images for i in range(2)])
    assert torch.allclose(both, alone, atol=1e-4)
    assert (pipeline(images[:1], steps=2, seed=4, output_type="pt").images - alone[:1]).abs().max() > 0.02
    one_seed = pipeline(images, steps=2, seed=3, output_type="pt").images
    assert torch.allclose(one_seed[0], alone[0], atol=1e-4)


def test_no_guidance_never_reads_the_negative_prompt(world):
    prompts = StoredPrompts({"": world[0].prompts.embed("")[0]})
    image = photograph(32, 32)
    out = pipeline_of(world, prompts=prompts)(image, steps=2, guidance_scale=1, output_type="pt")
    assert torch.isfinite(out.images).all()
    with pytest.raises(ConfigError, match="low quality"):
        pipeline_of(world, prompts=prompts)(image, steps=2)
    with pytest.raises(ConfigError, match="neither prompts nor a text encoder"):
        pipeline_of(world, prompts=None)(image, steps=2)


@pytest.mark.parametrize(
    "kind",
    [
        DDIMScheduler,
        EulerDiscreteScheduler,
        EulerAncestralDiscreteScheduler,
        DPMSolverMultistepScheduler,
        UniPCMultistepScheduler,
    ],
)
def test_any_scheduler(world, kind):
    scheduler = kind.from_config(noise_scheduler("v2").config)
    image = photograph(32, 32)
    for start in ("noise", "condition"):
        first, second = (
            pipeline_of(world, scheduler)(
                image, steps=3, guidance_scale=1, start=start, seed=1, output_type="pt"
            ).images
            for _ in range(2)
        )
        assert torch.allclose(first, second, atol=1e-4)  # nothing is drawn from the global generator
        assert 10 < agreement(first, image) < 60


def test_start_from_the_condition(world):
    seen = []
    pipeline, image = pipeline_of(world), photograph(64, 64)
    hook = pipeline.unet.register_forward_pre_hook(lambda unet, arguments: seen.append(arguments[0]))
    pipeline(image, steps=1, seed=2, start="condition", guidance_scale=1, output_type="pt")
    hook.remove()
    scheduler = noise_scheduler("v2")
    scheduler.set_timesteps(1)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(2))
    expected = scheduler.add_noise(pipeline.encode(image), noise, scheduler.timesteps)
    assert torch.allclose(seen[0], expected, atol=1e-5)
    with pytest.raises(ConfigError, match="zero terminal SNR"):
        pipeline_of(world, noise_scheduler("v2.1"))(image, steps=2, start="condition")


def test_each_image_has_its_own_prompt(world):
    images = torch.cat([photograph(32, 32), photograph(32, 32, top=200)])
    pipeline, options = pipeline_of(world), {"steps": 2, "seed": 3, "guidance_scale": 6, "output_type": "pt"}
    both = pipeline(images, prompt=["a face", ""], **options).images
    for number, text in enumerate(("a face", "")):
        assert torch.allclose(
            both[number], pipeline(images[number : number + 1], prompt=text, **options).images[0], atol=1e-4
        )
    assert (pipeline(images[:1], **options).images - both[:1]).abs().max() > 0.01
    with pytest.raises(ConfigError, match="prompt: 2 for 1 images"):
        pipeline(images[:1], prompt=["", ""], **options)


def test_the_condition_is_noised_after_the_first_latent_is_drawn(world):
    """DiffBIR's ``--noise_aug``."""
    seen, image = [], photograph(64, 64)
    pipeline = pipeline_of(world)
    hook = pipeline.controlnet.register_forward_pre_hook(
        lambda module, arguments, options: seen.append(options["controlnet_cond"]), with_kwargs=True
    )
    pipeline(image, steps=1, seed=4, noise_augmentation=120, guidance_scale=1, output_type="pt")
    hook.remove()
    generator = torch.Generator().manual_seed(4)
    noise = [torch.randn((1, 4, 8, 8), generator=generator) for _ in range(2)][1]
    expected = noise_scheduler("v2").add_noise(pipeline.encode(image), noise, torch.tensor([120]))
    assert torch.allclose(seen[0], expected, atol=1e-5)


@pytest.mark.parametrize(("timestep", "expected"), [(1000, 1), (999, 1), (500, 1.0096), (0, 5)])
def test_rescaled_guidance(timestep, expected):
    assert guidance_at(timestep, 4) == pytest.approx(expected, abs=1e-4)
    assert guidance_at(timestep, 0.5) == 0.5


def test_rescaled_guidance_grows_over_the_steps(world, monkeypatch):
    seen = []
    monkeypatch.setattr(sampling, "guidance_at", lambda timestep, scale: seen.append((timestep, scale)) or 1.0)
    image, pipeline = photograph(32, 32), pipeline_of(world)
    options = {"steps": 3, "seed": 1, "output_type": "pt"}
    rescaled = pipeline(image, guidance_scale=4, rescale_guidance=True, **options).images
    assert seen == [(999, 4), (500, 4), (0, 4)]
    assert torch.allclose(rescaled, pipeline(image, guidance_scale=1, **options).images, atol=1e-4)


@pytest.mark.parametrize("version", ["v2", "v2.1"])
def test_ddim_is_diffbirs(version):
    """Its formulas (Song et al., 2021) at DiffBIR's timesteps, on a made-up prediction."""
    scheduler, steps = sampler_named("ddim", version), 10
    scheduler.set_timesteps(steps)
    times = list(range(0, 1000, 1000 // steps))
    assert scheduler.timesteps.tolist() == times[::-1]
    kept = noise_scheduler(version).alphas_cumprod.double()
    before = torch.cat([kept[:1], kept[times[:-1]]])
    ours = theirs = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    for number, time in reversed(list(enumerate(times))):
        a, b = kept[time], before[number]
        made = torch.sin(theirs + time)
        noise = a.sqrt() * made + (1 - a).sqrt() * theirs if version == "v2.1" else made
        theirs = b.sqrt() * (theirs - (1 - a).sqrt() * noise) / a.sqrt() + (1 - b).sqrt() * noise
        ours = scheduler.step(torch.sin(ours + time), time, ours, return_dict=False)[0]
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_samplers_by_name():
    for name in ("dpm++_2m", "dpm++_m2"):
        scheduler = sampler_named(name, "v2.1")
        scheduler.set_timesteps(5)
        assert scheduler.timesteps.tolist() == [999, 799, 599, 400, 200]
        config = scheduler.config
        assert (config.algorithm_type, config.solver_order, config.prediction_type) == (
            "dpmsolver++",
            2,
            "v_prediction",
        )
        assert torch.isfinite(scheduler.sigmas).all()
    orders = [sampler_named("dpm++_2m", "v2", steps).config.lower_order_final for steps in (9, 10, None)]
    assert orders == [True, False, True]
    spaced = sampler_named("spaced", "v2")
    assert dict(spaced.config) == dict(noise_scheduler("v2").config)
    assert type(sampler_named("UniPCMultistepScheduler", "v2")) is UniPCMultistepScheduler


@pytest.mark.parametrize(
    ("name", "version", "words"),
    [
        ("euler", "v2", "no sampler 'euler'"),
        ("UNet2DConditionModel", "v2", "no sampler"),
        ("FlowMatchEulerDiscreteScheduler", "v2", "has no beta_start"),
        ("LMSDiscreteScheduler", "v2.1", "has no rescale_betas_zero_snr, which DiffBIR v2.1 needs"),
    ],
)
def test_samplers_that_cannot_be(name, version, words):
    with pytest.raises(ConfigError, match=words):
        sampler_named(name, version)


# --- images


def test_sizes_and_forms(pipeline):
    array = astronaut()[:45, 200:270]
    tensor = pipeline(to_tensor(array)[None], steps=1, output_type="pt")
    assert tensor.images.shape == tensor.cleaned.shape == (1, 3, 45, 70)
    pictures = pipeline([Image.fromarray(array)] * 2, steps=1)
    assert [picture.size for picture in pictures.images] == [(70, 45)] * 2
    assert np.array_equal(np.asarray(pictures.cleaned[0]), array)
    assert np.abs(np.asarray(pictures.images[1]) / 255 - tensor.images[0].permute(1, 2, 0).numpy()).max() < 0.003
    grey = pipeline(Image.fromarray(array).convert("L"), steps=1, output_type="np")
    assert grey.images.shape == (1, 45, 70, 3)
    assert pipeline(photograph(8, 9), steps=1, output_type="pt").images.shape == (1, 3, 8, 9)


def test_odd_sizes_are_mirrored_or_black(pipeline):
    image = photograph(45, 70)
    black = nn.functional.pad(image, (0, 26, 0, 19))
    assert torch.equal(pipeline.encode(image, padding="zeros"), pipeline.encode(black))
    assert (pipeline.encode(image) - pipeline.encode(black)).abs().max() > 0.1
    options = {"steps": 2, "output_type": "pt"}
    out = pipeline(image, padding="zeros", **options)
    assert out.images.shape == (1, 3, 45, 70)
    assert (out.images - pipeline(image, **options).images).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.rand(3, 32, 32), "N, 3, H, W"),
        (torch.rand(1, 4, 32, 32), "N, 3, H, W"),
        (torch.rand(1, 3, 7, 32), "32x7 pixels"),
        (torch.rand(1, 3, 1, 1), "1x1 pixels"),
        (torch.rand(1, 3, 32, 32) * 255, "Divide them by 255"),
        (torch.full((1, 3, 32, 32), math.nan), "NaN"),
        (Image.new("RGBA", (32, 32)), "RGBA"),
        (Image.new("CMYK", (32, 32)), "CMYK"),
        ([Image.new("RGB", (32, 32)), Image.new("RGB", (40, 32))], "2 sizes"),
        ([], "expected a tensor"),
    ],
)
def test_unusable_images(pipeline, images, words):
    with pytest.raises(DataError, match=words):
        pipeline(images, steps=1)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"steps": 0}, ConfigError, "steps"),
        ({"steps": 5000}, ConfigError, "steps"),
        ({"start": "noisy"}, ConfigError, "start"),
        ({"seed": [1, 2]}, ConfigError, "2 for 1 images"),
        ({"output_type": "latent"}, ConfigError, "output_type"),
        ({"tile": 100}, ConfigError, "tile of the cleaner: tiles of 100 pixels"),
        ({"denoiser_tile": 32}, ConfigError, "tile of the denoiser"),
        ({"upscale": 0.1}, ConfigError, "upscale"),
        ({"noise_augmentation": 1000}, ConfigError, "noise_augmentation: is 1000"),
        ({"padding": "white"}, ConfigError, "padding"),
        ({"latents": torch.zeros(1, 4, 1, 1)}, DataError, "first noise"),  # it would be repeated over the latent
        ({"latents": torch.full((1, 4, 4, 4), math.inf)}, NumericsError, "NaN or infinite"),
    ],
)
def test_unusable_arguments(pipeline, options, error, words):
    with pytest.raises(error, match=words):
        pipeline(photograph(32, 32), **{"steps": 1, "guidance_scale": 1, **options})


def test_a_vae_of_another_size_is_refused(world):
    pipeline = pipeline_of(world)
    pipeline.cell = 16
    with pytest.raises(DataError, match=r"the VAE's latent is \(1, 4, 8, 8\), expected \(1, 4, 4, 4\)"):
        pipeline.encode(photograph(64, 64))


class Enlarging(nn.Module):
    """A cleaner that makes images four times as large, and remembers what it saw."""

    scale = 4

    def forward(self, images):
        self.seen = images.shape
        return images.repeat_interleave(4, 2).repeat_interleave(4, 3)


def test_upscaling(world):
    plain, enlarging = load_cleaner("tiny:sr"), Enlarging()
    image = photograph(32, 24)
    out = pipeline_of(world, cleaner=plain).clean(image, 4)
    assert out.shape == (1, 3, 128, 96)
    enlarged = nn.functional.interpolate(image, (128, 96), mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.allclose(out, plain(enlarged), atol=1e-5)
    for upscale, size in ((None, (128, 96)), (4, (128, 96)), (2, (64, 48))):
        assert pipeline_of(world, cleaner=enlarging).clean(image, upscale).shape[2:] == size
        assert enlarging.seen == (1, 3, 32, 24)


def test_small_images_are_denoised_larger(world):
    image = photograph(40, 48)
    large = nn.functional.interpolate(image, (80, 96), mode="bicubic", antialias=True).clamp(0, 1)
    pipeline = pipeline_of(world)
    out = pipeline(image, steps=2, minimum_side=80, output_type="pt")
    assert out.images.shape == out.cleaned.shape == image.shape
    expected = pipeline(large, steps=2, output_type="pt").images
    expected = nn.functional.interpolate(expected, (40, 48), mode="bicubic", antialias=True)
    assert torch.allclose(out.images, expected.clamp(0, 1), atol=1e-4)


# --- colour


def test_colours_come_from_the_cleaned_image_and_details_stay():
    image = photograph(128, 128)
    shifted = image * 0.8 + torch.tensor([0.1, 0.0, -0.1]).view(1, 3, 1, 1)
    back = transfer_colour(image + torch.tensor([0.1, 0.0, -0.1]).view(1, 3, 1, 1), image)
    assert torch.allclose(back, image, atol=1e-5)
    corrected = transfer_colour(shifted, image)
    assert torch.allclose(
        low_frequencies(corrected), low_frequencies(low_frequencies(image - shifted) + shifted), atol=1e-5
    )
    assert (corrected - image).mean((2, 3)).abs().max() < 0.01 < (shifted - image).mean((2, 3)).abs().max()
    with pytest.raises(DataError, match="colours of"):
        transfer_colour(image, image[..., :64])


@pytest.mark.parametrize(
    ("period", "low", "high"), [(8, -1e-6, 1e-6), (32, -1e-6, 1e-6), (64, 0.1, 0.5), (512, 0.9, 1)]
)
def test_what_five_levels_leave_of_a_wave(period, low, high):
    wave = torch.cos(torch.arange(2048) * 2 * math.pi / period).expand(1, 1, 4, -1)
    middle = slice(512, 1536)
    left = (low_frequencies(wave)[..., middle] * wave[..., middle]).mean() / wave[..., middle].square().mean()
    expected = math.prod(math.cos(math.pi * 2**level / period) ** 2 for level in range(5))
    assert left == pytest.approx(expected, abs=1e-5)
    assert low <= left <= high


# --- tiles


@pytest.mark.parametrize(("height", "width", "tile", "unit"), [(100, 64, 32, 8), (37, 200, 16, 1), (130, 97, 64, 32)])
def test_tiles_make_up_the_image_and_blending_leaves_it(height, width, tile, unit):
    covered = torch.zeros(height, width)
    for part in tile_grid(height, width, tile, unit):
        assert part.rows.start % unit == part.columns.start % unit == 0
        assert part.rows.stop <= height
        assert part.columns.stop <= width
        covered[part.rows, part.columns] += 1
    assert covered.min() >= 1
    values = torch.rand(2, 3, height, width)
    assert torch.allclose(in_tiles(lambda x: x, values, tile=tile, unit=unit), values, atol=1e-6)
    doubled = in_tiles(
        lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3), values, tile=tile, unit=unit, scale=2
    )
    assert torch.allclose(doubled, values.repeat_interleave(2, 2).repeat_interleave(2, 3), atol=1e-6)


def test_tiles_too_small_or_off_their_unit():
    with pytest.raises(ConfigError, match="multiple of 8"):
        tile_grid(64, 64, 8, 8)
    with pytest.raises(ConfigError, match="multiple of 8"):
        tile_grid(64, 64, 20, 8)


def test_tiled_and_whole_restoration_agree(world):
    """Above 40 dB on a photograph: the VAE is exact, the denoiser's tiles know less than the whole."""
    image = (photograph(384, 256, top=20) + 0.06 * torch.randn(1, 3, 384, 256)).clamp(0, 1)
    pipeline = pipeline_of(world, cleaner=load_cleaner("tiny:denoise"))
    options = {"steps": 2, "guidance_scale": 1, "output_type": "pt"}
    whole, tiled = pipeline(image, **options), pipeline(image, tile=256, **options)
    assert agreement(whole.cleaned, tiled.cleaned) > 100
    assert agreement(whole.images, tiled.images) > 40
    assert agreement(whole.images, image) < 35  # they agree on more than the input


class Largest(TorchDispatchMode):
    """Remembers how many elements the largest output of a convolution had."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        out = function(*arguments, **(options or {}))
        if "convolution" in str(function):
            self.elements = max(self.elements, out.numel())
        return out


def test_what_networks_make_at_once_does_not_grow_with_the_image(world):
    """What is on a GPU; the features of the VAE's layers wait for each other in the computer's memory."""
    pipeline, largest = pipeline_of(world), {}
    for height, tile in ((192, None), (384, None), (192, 64), (384, 64)):
        with Largest() as mode:
            pipeline(photograph(height, 64, top=0), steps=1, guidance_scale=1, tile=tile, output_type="pt")
        largest[height, tile] = mode.elements
    assert largest[384, None] == 2 * largest[192, None]
    assert largest[384, 64] == largest[192, 64] < largest[192, None]


# --- precision, files


def test_half_precision_denoiser_beside_a_float32_vae(world):
    parts, control = world
    image = photograph(64, 64)
    halves = {
        "unet": type(parts.unet).from_config(parts.unet.config).to(torch.bfloat16).eval(),
        "controlnet": IRControlNet.from_config(control.config).to(torch.bfloat16).eval(),
    }
    halves["unet"].load_state_dict(parts.unet.state_dict())
    halves["controlnet"].load_state_dict(control.state_dict())
    options = {"steps": 4, "guidance_scale": 2, "output_type": "pt"}
    full = pipeline_of(world)(image, **options).images
    half = pipeline_of(world, **halves)(image, **options).images
    assert half.dtype == torch.float32
    assert 25 < agreement(full, half) < 100


def test_saving_and_loading(world, tmp_path):
    image = photograph(32, 32)
    pipeline = pipeline_of(world, cleaner=load_cleaner("tiny:denoise"))
    pipeline.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / PROMPTS_FILE).is_file()
    loaded = DiffBIRPipeline.from_pretrained(tmp_path / "saved", cleaner=pipeline.cleaner)
    assert type(loaded.controlnet) is IRControlNet
    assert loaded.text_encoder is None
    loaded.set_progress_bar_config(disable=True)
    first, second = (p(image, steps=2, output_type="pt").images for p in (pipeline, loaded))
    assert torch.allclose(first, second, atol=1e-4)  # where weights lie in memory changes a sum's last bit
    loaded.save_pretrained(tmp_path / "again")
    names = [sorted(path.relative_to(f).as_posix() for path in f.rglob("*")) for f in tmp_path.iterdir()]
    assert names[0] == names[1]
    plain = DiffBIRPipeline.from_pretrained(tmp_path / "again")
    assert plain.cleaner is None
    assert torch.equal(plain.embed(""), world[0].prompts.embed(""))
    with pytest.raises(ConfigError, match="another prompt"):
        plain.embed("another prompt")


def test_a_text_encoder_is_saved_and_read_with_the_pipeline(world, tmp_path):
    transformers = pytest.importorskip("transformers")
    size, width = write_tokenizer(tmp_path / "tokenizer"), world[0].prompts.width
    settings = transformers.CLIPTextConfig(
        vocab_size=size, hidden_size=width, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1,
        max_position_embeddings=9, bos_token_id=4, eos_token_id=5, pad_token_id=0,
    )  # fmt: skip
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    prompts = EncodedPrompts(transformers.CLIPTextModel(settings), tokenizer)
    pipeline = pipeline_of(world, prompts=prompts)
    assert pipeline.text_encoder is prompts.encoder
    pipeline.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / PROMPTS_FILE).exists()
    loaded = DiffBIRPipeline.from_pretrained(tmp_path / "saved")
    assert loaded.embed("a face").shape == (1, 9, width)
    assert_near(loaded.embed("a face"), prompts.embed("a face"))


def test_components_make_another_pipeline(pipeline):
    other = DiffBIRPipeline(**pipeline.components, prompts=pipeline.prompts)
    assert other.unet is pipeline.unet
    assert (other.cell, other.multiple) == (8, 32)


def test_the_progress_bar_counts_steps(world, capsys):
    pipeline = pipeline_of(world)
    pipeline.set_progress_bar_config(desc="sampling")
    pipeline(photograph(32, 32), steps=3, guidance_scale=1)
    assert "3/3" in capsys.readouterr().err
    pipeline.set_progress_bar_config(disable=True)
    pipeline(photograph(32, 32), steps=3, guidance_scale=1)
    assert capsys.readouterr().err == ""
