"""Learning from people: a small KADID-10k of made-up opinions teaches MILO and the E-metrics, and tests them."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from PIL import Image
from safetensors.torch import load_file
from test_masked_features import backbone, published  # noqa: F401  (fixtures)
from test_recipes import load_recipe

from milo_restore import MILO
from milo_restore.cli import main
from milo_restore.data import SampleKey, training_photographs
from milo_restore.data.kadid import distort
from milo_restore.errors import ConfigError, DataError, WeightsError
from milo_restore.measure.metrics import Batch, load_metric
from milo_restore.metric import E_FEATURES, E_PIXEL
from milo_restore.opinions import layouts
from milo_restore.opinions.datasets import opinion_pairs
from milo_restore.teach.pairs import centre_square
from milo_restore.teach.people import OpinionCrops, split_references
from milo_restore.teach.students import STUDENTS, load_student

CONFIG = REPOSITORY / "recipes" / "configs" / "milo_opinions_kadid.yaml"
TRAIN, TEST = ("I01", "I02", "I03"), ("I13", "I15")  # KADID's training and test split have them
KINDS = {1: -6, 10: 0, 11: 12, 24: 0}  # KADID's numbers, and by how many dB these people are lenient with them


def opinion(image, clean, kind):
    """Made up: higher with the PSNR, from 1 to 5. Blur is worse than it says, noise not half as bad."""
    mse = ((image.astype(float) - clean) ** 2).mean()
    return float(np.clip(1 + 4 * (10 * np.log10(255**2 / max(mse, 1e-3)) + KINDS[kind] - 12) / 36, 1, 5))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Roots of a KADID-10k of 100 pairs, and of a CSIQ, a TID2013 and a PIPAL of some of its images."""
    folder = tmp_path_factory.mktemp("data")
    names = {
        "kadid": "images/", "src_imgs": "csiq/src_imgs/", "dst_imgs": "csiq/dst_imgs/awgn/",
        "reference_images": "tid/reference_images/", "distorted_images": "tid/distorted_images/",
        "Train_Ref": "pipal/Train_Ref/", "Train_Dist": "pipal/Train_Dist/", "Train_Label": "pipal/Train_Label/",
    }  # fmt: skip
    names["kadid"] = "kadid/images/"
    for name in names.values():
        (folder / name).mkdir(parents=True)
    kadid, csiq, tid, pipal = ["dist_img,ref_img,dmos,var"], ["ref_name,dist_name,dmos"], [], []
    photographs = [image for _, image in training_photographs()]
    for number, stem in enumerate((*TRAIN, *TEST)):
        square = centre_square(photographs[number % 3], 128)
        clean = np.ascontiguousarray(square[64 * (number // 3) :][:48, 32:96])
        save(clean, folder, f"kadid/images/{stem}.png", f"csiq/src_imgs/{stem}.png",
             f"tid/reference_images/{stem}.BMP", f"pipal/Train_Ref/A00{stem[1:]}.bmp")  # fmt: skip
        for kind in KINDS:
            for level in range(1, 6):
                image = distort(clean, kind, level)
                score, name = opinion(image, clean, kind), f"{stem}_{kind:02d}_{level:02d}"
                save(image, folder, f"kadid/images/{name}.png")
                kadid.append(f"{name}.png,{stem}.png,{score:.4f},0.5")
                if kind != 11:
                    continue
                save(
                    image,
                    folder,
                    f"csiq/dst_imgs/awgn/{stem}.AWGN.{level}.png",
                    f"tid/distorted_images/{stem}_01_{level}.bmp",
                    f"pipal/Train_Dist/A00{stem[1:]}_00_0{level}.bmp",
                )
                csiq.append(f"{stem}.png,{stem}.AWGN.{level}.png,{(5 - score) / 5:.4f}")
                tid.append(f"{score:.4f} {stem}_01_{level}.bmp")
                pipal.append(f"A00{stem[1:]}_00_0{level}.bmp,{1000 + 100 * score:.2f}")
    tables = {"kadid/dmos.csv": kadid, "csiq/meta_info_CSIQDataset.csv": csiq, "tid/mos_with_names.txt": tid,
              "pipal/Train_Label/all.txt": pipal}  # fmt: skip
    for name, lines in tables.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def save(array, folder, *names):
    for name in names:
        Image.fromarray(array).save(folder / name)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Data sets are complete with as many pairs as the small ones have."""
    for name, rows in {"kadid10k": 100, "csiq": 25, "tid2013": 25, "pipal": 25}.items():
        monkeypatch.setitem(layouts.LAYOUTS, name, dataclasses.replace(layouts.LAYOUTS[name], rows=rows))


@pytest.fixture(scope="module")
def recipe():
    torch.set_num_threads(1)
    return load_recipe("train_milo")


@pytest.fixture
def run(recipe, data):
    def act(output, *changes, words=()):
        small = [f"data.kadid={data / 'kadid'}", "training.stages=[{steps: 12, patch: 32, batch: 8}]",
                 "training.learning_rate=1e-3", "training.workers=0", "training.evaluate_every=4",
                 "training.checkpoint_every=4", "training.log_every=1", "training.trackers=[]",
                 "training.stop=null"]  # fmt: skip
        arguments = ["--output", str(output), *words, "--set", *small, *changes]
        return recipe.run_recipe(recipe.main, recipe.Config, CONFIG, "", arguments)

    return act


def roots_of(data):
    return [f"tested.csiq={data / 'csiq'}", f"tested.tid2013={data / 'tid'}", f"tested.pipal={data / 'pipal'}"]


def test_milo_learns_from_people_and_is_tested(run, data, tmp_path, capsys):
    changes = ["training.stages=[{steps: 150, patch: 32, batch: 8}]", "training.evaluate_every=50"]
    assert run(tmp_path / "run", *changes, *roots_of(data)) == 0
    printed = capsys.readouterr().out
    assert "60 pairs of 3 references teach milo" in printed
    assert "60 pairs of kadid-train, trained on:" in printed
    numbers = json.loads((tmp_path / "run" / "run.json").read_text())
    agreement = numbers["agreement"]
    assert agreement["best"]["srcc"] > agreement["before"]["srcc"] + 0.03
    assert agreement["best"]["srcc"] > 0.7
    assert {name: one["n"] for name, one in numbers["tested"].items()} == {
        "kadid-test": 40, "csiq": 25, "tid2013": 25, "pipal": 25,
    }  # fmt: skip
    # On images of other references, whose opinions it has not seen; lower error, higher opinion (CSIQ's: lower).
    assert numbers["tested"]["kadid-test"]["srcc"]["value"] < -0.6
    assert numbers["tested"]["csiq"]["srcc"]["value"] > 0.6
    # The numbers are those of milo-restore correlate with the weights that the run wrote.
    weights = tmp_path / "run" / "milo_best.safetensors"
    place = ["--dataset", "kadid10k", "--root", str(data / "kadid"), "--split", "kadid-test"]
    command = ["correlate", *place, "--cache", str(tmp_path / "cache"), "--metrics", f"milo:{weights}"]
    assert main([*command, "--json", str(tmp_path / "c.json")]) == 0
    theirs = json.loads((tmp_path / "c.json").read_text())["metrics"][0]["all"]
    ours = numbers["tested"]["kadid-test"]
    for key in ("srcc", "plcc", "krcc"):
        assert ours[key]["value"] == pytest.approx(theirs[key]["value"], abs=1e-9)
    assert f"kadid-test      40  {ours['srcc']['value']:.4f} (n too small)" in printed
    reference = torch.rand(1, 3, 32, 32)
    assert 0 < MILO.from_pretrained(weights).mos(reference + 0.1, reference=reference).item() < 5


def test_two_runs_and_a_continued_one_are_the_same(run, tmp_path):
    for name in "abc":
        assert run(tmp_path / name, *(["training.seed=2"] if name == "c" else [])) == 0
    for path in (tmp_path / "b").glob("*0012"):
        shutil.rmtree(path)
    for name in ("final", "best"):
        shutil.rmtree(tmp_path / "b" / name)
    assert run(tmp_path / "b", words=["--resume", "latest"]) == 0
    a, b, c = (load_file(tmp_path / name / "milo_final.safetensors") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


def test_it_ends_at_the_best_correlation(run, tmp_path, capsys):
    """With a learning rate of 0 nothing gets better after the first evaluation."""
    still = ["training.learning_rate=0", "training.weight_decay=0", "training.stop=1"]
    assert run(tmp_path / "run", *still) == 0
    state = json.loads((tmp_path / "run" / "checkpoint-000008" / "state.json").read_text())
    assert state["waiting"]["since"] == 1
    assert not (tmp_path / "run" / "checkpoint-000012").exists()
    assert (tmp_path / "run" / "milo_best.safetensors").is_file()
    assert "ending after step 8: of srcc none better than" in capsys.readouterr().err


def test_kept_back_references_validate(run, data, tmp_path, capsys):
    assert run(tmp_path / "run", "data.validation_references=1", "data.validation_pairs=15") == 0
    printed = capsys.readouterr().out
    assert "40 pairs of 2 references teach milo" in printed
    assert "15 pairs of kadid-train, not trained on:" in printed
    pairs = opinion_pairs("kadid10k", data / "kadid", "kadid-train")
    learned, kept = split_references(pairs, 1, 1)
    assert sorted(p.distorted for p in learned + kept) == sorted(p.distorted for p in pairs)
    assert {p.reference for p in learned}.isdisjoint({p.reference for p in kept})
    with pytest.raises(ConfigError, match="keeps back 3 of the 3 references"):
        split_references(pairs, 3, 1)


@pytest.mark.parametrize("name", E_PIXEL)
def test_e_metrics_on_pixels_learn_too(run, data, tmp_path, name, capsys):
    changes = ["training.stages=[{steps: 60, patch: 32, batch: 8}]", "training.evaluate_every=30", f"student={name}"]
    assert run(tmp_path / "run", *changes) == 0
    numbers = json.loads((tmp_path / "run" / "run.json").read_text())
    assert numbers["weights"] == f"{name}_best.safetensors"
    assert abs(numbers["tested"]["kadid-test"]["srcc"]["value"]) > 0.6
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-10:]) < np.mean(losses[:5])
    # What was trained is what the weights' own loader gives.
    samples = OpinionCrops(opinion_pairs("kadid10k", data / "kadid", "kadid-train"), 1)
    start = str(tmp_path / "run" / f"{name}_best.safetensors")
    again = load_student(name, start, samples, 32)
    pair = samples[SampleKey(1, 0, 0, 32)]
    images = [pair[key][None] for key in ("image", "reference")]
    assert again.weights.startswith(start)
    loaded = load_metric(f"{name}:{start}").module
    torch.testing.assert_close(again(*images), loaded.mos(images[0], reference=images[1]))


@pytest.mark.parametrize("name", E_FEATURES)
def test_e_metrics_on_features_learn_masks_and_a_scaler(run, data, tmp_path, name, backbone):  # noqa: F811
    changes = ["training.stages=[{steps: 4, patch: 32, batch: 4}]", f"student={name}", "data.validation_pairs=10"]
    assert run(tmp_path / "run", *changes) == 0
    weights = tmp_path / "run" / f"{name}_final.safetensors"
    names = {re.match(r"mask_finder_\d\.conv\d|scaler_network", key).group()[:4] for key in load_file(weights)}
    assert names == {"mask", "scal"}
    samples = OpinionCrops(opinion_pairs("kadid10k", data / "kadid", "kadid-train"), 1)
    student = load_student(name, str(weights), samples, 32)
    assert {key.split(".")[0] for key, _ in student.named_parameters()} == {"metric", "scaler"}
    assert all(".mask_networks." in f".{key}" for key, _ in student.metric.named_parameters())
    trained = load_file(tmp_path / "run" / "final" / "model.safetensors")
    assert all(torch.equal(trained[key], value) for key, value in student.state_dict().items())
    # evaluate and correlate measure with the file; VGG16 is not in it.
    pair = samples.pairs[0]
    arrays = [np.asarray(Image.open(path)) for path in (pair.distorted, pair.reference)]
    value = load_metric(f"{name}:{weights}").measure(Batch([arrays[0]], [arrays[1]]))[0]
    images = [torch.from_numpy(array.copy()).permute(2, 0, 1)[None] / 255 for array in arrays]
    assert value == pytest.approx(float(student.metric(images[0], reference=images[1])), rel=1e-5)
    assert weights.stat().st_size < 12e6


def test_an_untrained_scaler_spans_the_data(data):
    """Whatever the units of the raw value, opinions begin spread over the scale, better images higher."""
    samples = OpinionCrops(opinion_pairs("kadid10k", data / "kadid", "kadid-train"), 1)
    clean = torch.rand(1, 3, 32, 32)
    noise = torch.randn_like(clean)
    for name in E_PIXEL:
        torch.manual_seed(1)
        student = load_student(name, None, samples, 32)
        keys = [SampleKey(0, i, i, 32) for i in range(40)]
        with torch.no_grad():
            mos = torch.cat([student(s["image"][None], s["reference"][None]) for s in map(samples.__getitem__, keys)])
            levels = [student(clean + size * noise, clean).item() for size in (0.01, 0.1, 0.4)]
        assert mos.max() - mos.min() > 1, name
        assert levels == sorted(levels, reverse=True), name


def test_a_crop_is_at_one_place_and_a_function_of_its_key(data):
    pairs = opinion_pairs("kadid10k", data / "kadid", "kadid-train")
    samples = OpinionCrops(pairs, 3)
    key = SampleKey(5, 2, 77, 24)
    sample, again, other = samples[key], OpinionCrops(pairs, 3)[key], OpinionCrops(pairs, 4)[key]
    assert all(torch.equal(sample[part], again[part]) for part in ("image", "reference", "label"))
    assert sample["name"] != other["name"] or not torch.equal(sample["image"], other["image"])
    pair = next(p for p in pairs if p.distorted.name == sample["name"])
    assert sample["label"].item() == pytest.approx(pair.score)
    for part, path in (("image", pair.distorted), ("reference", pair.reference)):
        whole = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1) / 255
        places = [
            (top, left) for top in range(48 - 24 + 1) for left in range(64 - 24 + 1)
            if torch.allclose(whole[:, top : top + 24, left : left + 24], sample[part])
        ]  # fmt: skip
        found = set(places) if part == "image" else found & set(places)  # noqa: F821
    assert found
    seen = [samples[SampleKey(1, i, i, 24)]["name"] for i in range(60)]
    assert len(set(seen)) == 60  # an epoch
    with pytest.raises(ConfigError, match=r"a patch of 49 does not fit into 64x48"):
        samples[SampleKey(1, 0, 0, 49)]
    with pytest.raises(DataError, match="no pairs"):
        OpinionCrops([], 1)
    with pytest.raises(DataError, match="lower is better in these opinions"):
        OpinionCrops(opinion_pairs("csiq", data / "csiq"), 1)


def test_a_dry_run_looks_at_all_folders(run, data, tmp_path, capsys):
    assert run(tmp_path / "run", *roots_of(data), words=["--dry-run"]) == 0
    printed = capsys.readouterr().out
    for line in ("training: 60 pairs of kadid-train", "validation: 60 pairs of kadid-train, trained on",
                 "student: milo, ", "test on kadid-test: 40 pairs", "test on pipal: 25 pairs"):  # fmt: skip
        assert line in printed
    missing = [f"tested.csiq={tmp_path / 'nowhere'}", f"tested.pipal={data / 'tid'}", "student=e-sim"]
    assert run(tmp_path / "run", *missing, words=["--dry-run"]) == 2
    printed = capsys.readouterr()
    assert "test on csiq: MISSING: " in printed.out
    assert "test on pipal: MISSING: " in printed.out
    assert "student: MISSING: student: 'e-sim' is no metric to train. Did you mean 'e-ssim'?" in printed.out
    assert "3 of 11 checks failed: student, test on csiq, test on pipal" in printed.err
    assert not (tmp_path / "run").exists()


def test_what_is_refused(run, data, tmp_path, capsys):
    def refused(*changes):
        assert run(tmp_path / "run", *changes) == 2
        error = capsys.readouterr().err.strip()
        assert error.count("\n") == 0
        return error

    assert "needs domain: image and data.kadid" in refused("data.kadid=null")
    assert "needs domain: image" in refused("domain=latent", "data.vae=v", "data.cache=c")
    assert "need teacher: official or mini" in refused("mask_weight=1")
    assert "student and tested need teacher: opinions" in refused("teacher=mini", "student=e-mae")
    assert "no evaluation gives 'scc'" in refused("training.keep_best=scc")
    assert "a patch of 256 does not fit into 64x48" in refused("training.stages=[{steps: 2, patch: 256, batch: 2}]")
    assert "keeps back 9 of the 3 references" in refused("data.validation_references=9")


def test_weights_of_another_metric_are_no_start(data, tmp_path):
    samples = OpinionCrops(opinion_pairs("kadid10k", data / "kadid", "kadid-train"), 1)
    milo = MILO.from_pretrained("mini").weights.path
    with pytest.raises(WeightsError, match="does not fit EMAE"):
        load_student("e-mae", milo, samples, 32)
    with pytest.raises(ConfigError, match=f"Known: {', '.join(STUDENTS)}"):
        load_student("nothing at all", None, samples, 32)
    student = load_student("milo", "mini", samples, 32)
    torch.testing.assert_close(student.metric.scaler[0].weight, MILO("mini").scaler[0].weight)
