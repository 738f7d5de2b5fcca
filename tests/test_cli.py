"""The command line: real commands through main(), and what a shell sees of it."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from PIL import Image
from safetensors.torch import save_file

from milo_restore import MILO, LatentMILO
from milo_restore.cli import COMMANDS, main
from milo_restore.data import read_image, to_tensor
from milo_restore.metric.weights import SHIPPED
from milo_restore.show.grid import heat_map

NO_NETWORK = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}


@pytest.fixture
def own_weights(tmp_path):
    """A weight file of one's own, random: what --weights PATH takes."""
    torch.manual_seed(3)
    path = tmp_path / "own.safetensors"
    save_file(MILO.untrained().state_dict(), path)
    return path


@pytest.fixture
def folders(tmp_path):
    """Two folders of three pairs, of different formats and sizes."""
    rng = np.random.default_rng(0)
    for folder in ("ref", "dist"):
        (tmp_path / folder).mkdir()
    for name, (height, width) in {"b": (32, 40), "a": (33, 31), "c": (16, 16)}.items():
        clean = rng.integers(0, 200, (height, width, 3), dtype=np.uint8)
        Image.fromarray(clean).save(tmp_path / "ref" / f"{name}.png")
        Image.fromarray(clean + rng.integers(0, 50, clean.shape, dtype=np.uint8)).save(
            tmp_path / "dist" / f"{name}.bmp"
        )
    return tmp_path / "ref", tmp_path / "dist"


def fails(capsys, *arguments, code=2):
    """Run a command that must fail with one line; that line."""
    assert main([str(argument) for argument in arguments]) == code
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("milo-restore: error: ")
    return lines[0]


def shell(*arguments, **options):
    """Start the command line as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "milo_restore.cli", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE, **options)


# --- score


@pytest.mark.golden
def test_score_of_the_sample_pair(shared, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(shared))
    pair = shared / "data" / "iqa" / "milo_pair"
    out = tmp_path / "s.json"
    assert main(["score", str(pair / "ref.png"), str(pair / "dist.png"), "--json", str(out), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "official (MILO.pth, sha256 a1d66a7e0ebe)" in printed
    assert printed.splitlines()[-1].split() == ["dist", "0.0082062", "0.131458", "2.4477"]
    content = json.loads(out.read_text())
    golden = json.loads((shared / "golden" / "milo_pair.json").read_text())["image"]
    assert content["mean"]["raw_error"] == pytest.approx(golden["raw"], abs=1e-6, rel=1e-5)
    assert content["mean"]["quality"] == pytest.approx(golden["quality"], abs=1e-6, rel=1e-5)
    assert content["mean"]["mos"] == pytest.approx(2.44766235, abs=1e-5)
    assert content["weights"]["sha256"].startswith("a1d66a7e0ebe0f83")


def scores_of_the_sample(printed):
    name, raw = printed.splitlines()[-1].split()[:2]
    assert name == "dist"
    assert len(raw) == len("0.6678551")
    return float(raw) == pytest.approx(0.6678551, rel=1e-5)


@pytest.mark.golden
def test_score_of_the_sample_latents(shared, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(shared))
    pair = shared / "data" / "iqa" / "milo_pair"
    assert main(["score", str(pair / "ref.npy"), str(pair / "dist.npy"), "--latent"]) == 0
    printed = capsys.readouterr().out
    assert "LatentMILO, weights: official (MILO_latent.pth" in printed
    assert scores_of_the_sample(printed)
    # The same from the other two formats, with and without a batch dimension.
    reference = torch.from_numpy(np.load(pair / "ref.npy")).reshape(4, 64, 64)
    save_file({"latent": reference}, tmp_path / "ref.safetensors")
    torch.save(torch.from_numpy(np.load(pair / "dist.npy")).reshape(1, 4, 64, 64), tmp_path / "dist.pt")
    assert main(["score", str(tmp_path / "ref.safetensors"), str(tmp_path / "dist.pt"), "--latent"]) == 0
    assert scores_of_the_sample(capsys.readouterr().out)


def test_score_of_folders(folders, own_weights, capsys, tmp_path):
    table, record = tmp_path / "scores.csv", tmp_path / "scores.json"
    arguments = [*folders, "--weights", own_weights, "--csv", table, "--json", record]
    assert main(["score", *map(str, arguments)]) == 0
    milo = MILO.from_pretrained(own_weights)
    rows = list(csv.DictReader(table.open()))
    assert [row["name"] for row in rows] == ["a", "b", "c"]
    for row in rows:
        image, reference = (to_tensor(read_image(row[key]))[None] for key in ("distorted", "reference"))
        assert float(row["raw_error"]) == pytest.approx(milo(image, reference=reference).item(), rel=1e-5)
        assert float(row["quality"]) == pytest.approx(milo.quality(image, reference=reference).item(), rel=1e-4)
        assert float(row["mos"]) == pytest.approx(milo.mos(image, reference=reference).item(), rel=1e-5)
        assert row["reference"].endswith(f"ref/{row['name']}.png")
    content = json.loads(record.read_text())
    assert content["metric"] == "MILO"
    assert content["weights"]["path"] == str(own_weights)
    assert content["mean"]["mos"] == pytest.approx(np.mean([float(row["mos"]) for row in rows]))
    assert [pair["name"] for pair in content["pairs"]] == ["a", "b", "c"]
    printed = capsys.readouterr().out.splitlines()
    assert str(own_weights) in printed[0]
    assert printed[-1].startswith("mean of 3")
    assert printed[-1].split()[3] == f"{content['mean']['raw_error']:.7f}"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dist", "own.safetensors", "ref", "scores.csv", "scores.json"
    ]  # fmt: skip


def test_score_of_latent_folders(tmp_path, capsys):
    save_file(LatentMILO.untrained().state_dict(), tmp_path / "own.safetensors")
    for folder in ("ref", "dist"):
        (tmp_path / folder).mkdir()
    for name in ("x", "y"):
        latent = torch.randn(4, 16, 20)
        np.save(tmp_path / "ref" / f"{name}.npy", latent.numpy())
        save_file({"z": latent}, tmp_path / "dist" / f"{name}.safetensors")
    arguments = [tmp_path / "ref", tmp_path / "dist", "--latent", "--weights", tmp_path / "own.safetensors"]
    assert main(["score", *map(str, arguments)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:4] == ["mean", "of", "2", "0.0000000"]
    assert "--modcrop: cuts images, not latents" in fails(capsys, "score", *arguments, "--modcrop", "4")


def test_score_pairs_latents_with_the_folders_endings(tmp_path, capsys):
    save_file(LatentMILO.untrained().state_dict(), tmp_path / "own.safetensors")
    latents = torch.randn(2, 4, 16, 16)
    for folder in ("ref", "dist"):
        (tmp_path / folder).mkdir()
    for name, latent in zip("xy", latents):
        np.save(tmp_path / "ref" / f"{name}.npy", latent.numpy())
        save_file({"z": latent}, tmp_path / "dist" / f"{name}_SwinIR.safetensors")
    arguments = [tmp_path / "ref", tmp_path / "dist", "--latent", "--weights", tmp_path / "own.safetensors"]
    assert main(["score", *map(str, arguments)]) == 0
    lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[2:4]]
    assert lines == [["x", "0.0000000"], ["y", "0.0000000"]]


def test_score_names_what_has_no_counterpart(folders, capsys, own_weights):
    reference, distorted = folders
    (distorted / "a.bmp").unlink()
    line = fails(capsys, "score", reference, distorted, "--weights", own_weights)
    assert f"{distorted} has no counterpart of a.png. Files are paired by name" in line
    (reference / "b.png").unlink()
    (reference / "a.png").unlink()
    line = fails(capsys, "score", reference, distorted, "--weights", own_weights)
    assert f"{reference} has no counterpart of b.bmp. Files are paired by name" in line


def test_score_refuses_two_files_of_one_stem(folders, capsys, own_weights):
    shutil.copy(folders[0] / "a.png", folders[0] / "a.jpg")
    assert "a.jpg and a.png have one name" in fails(capsys, "score", *folders, "--weights", own_weights)


def test_score_names_both_where_sizes_differ(folders, capsys, own_weights):
    reference, distorted = folders
    line = fails(capsys, "score", reference / "a.png", distorted / "b.bmp", "--weights", own_weights)
    assert f"{reference / 'a.png'} is 31x33" in line
    assert f"{distorted / 'b.bmp'} is 40x32" in line


def test_score_names_the_pair_that_the_metric_refuses(tmp_path, capsys, own_weights):
    Image.new("RGB", (8, 40)).save(tmp_path / "small.png")
    line = fails(capsys, "score", tmp_path / "small.png", tmp_path / "small.png", "--weights", own_weights)
    assert "small.png against" in line
    assert "at least 16, got 40x8" in line
    save_file(LatentMILO.untrained().state_dict(), tmp_path / "latent.safetensors")
    np.save(tmp_path / "nan.npy", np.full((4, 16, 16), np.nan, np.float32))
    arguments = (tmp_path / "nan.npy", tmp_path / "nan.npy", "--latent", "--weights", tmp_path / "latent.safetensors")
    line = fails(capsys, "score", *arguments)
    assert "nan.npy against" in line
    assert "NaN" in line


def test_score_refuses_wrong_paths(folders, tmp_path, capsys, own_weights):
    reference, distorted = folders
    weights = ("--weights", own_weights)
    assert f"{tmp_path / 'none'}: no such file or folder" in fails(capsys, "score", tmp_path / "none", distorted)
    line = fails(capsys, "score", reference, distorted / "a.bmp", *weights)
    assert "is a folder and" in line
    assert "two files or two folders" in line
    (tmp_path / "empty").mkdir()
    assert "holds no images" in fails(capsys, "score", reference, tmp_path / "empty", *weights)
    assert "holds no latents" in fails(capsys, "score", reference, tmp_path / "empty", "--latent", *weights)
    (distorted / "a.bmp").write_bytes((distorted / "a.bmp").read_bytes()[:500])
    assert f"{distorted / 'a.bmp'}: cannot be read" in fails(capsys, "score", *folders, *weights)


def test_score_refuses_wrong_latents(tmp_path, capsys, folders):
    save_file(LatentMILO.untrained().state_dict(), tmp_path / "own.safetensors")
    weights = ("--latent", "--weights", tmp_path / "own.safetensors")
    np.save(tmp_path / "flat.npy", np.zeros((16, 16), np.float32))
    line = fails(capsys, "score", tmp_path / "flat.npy", tmp_path / "flat.npy", *weights)
    assert "flat.npy: expected a float latent (C, h, w), got (16, 16)" in line
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    line = fails(capsys, "score", tmp_path / "objects.npy", tmp_path / "objects.npy", *weights)
    assert "objects.npy: unreadable" in line
    torch.save({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "two.pt")
    assert "no single tensor" in fails(capsys, "score", tmp_path / "two.pt", tmp_path / "two.pt", *weights)
    (tmp_path / "broken.safetensors").write_bytes(b"123")
    broken = tmp_path / "broken.safetensors"
    assert "broken.safetensors: unreadable" in fails(capsys, "score", broken, broken, *weights)
    image = folders[0] / "a.png"
    assert "leave out --latent" in fails(capsys, "score", image, image, *weights)
    latent = tmp_path / "flat.npy"
    assert "For latents use --latent" in fails(capsys, "map", latent, latent, "--out", tmp_path / "m.png")


def test_results_are_refused_before_any_work(folders, tmp_path, capsys):
    """No weights are read: 'nonsense' would fail later."""
    (tmp_path / "file").touch()
    for option in ("--csv", "--json"):
        line = fails(capsys, "score", *folders, "--weights", "nonsense", option, tmp_path / "file" / "scores")
        assert f"{tmp_path / 'file'}: is a file" in line
        assert "is a folder" in fails(capsys, "score", *folders, "--weights", "nonsense", option, tmp_path)


def test_a_full_disk_leaves_the_old_result(folders, own_weights, tmp_path, capsys, monkeypatch):
    target = tmp_path / "scores.csv"
    target.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("milo_restore.files.write.os.replace", full)
    assert main(["score", *map(str, folders), "--weights", str(own_weights), "--csv", str(target)]) == 2
    assert f"{target}: cannot be written (No space left on device)" in capsys.readouterr().err
    assert target.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dist", "own.safetensors", "ref", "scores.csv"]


def test_wrong_weights_and_devices(folders, tmp_path, capsys, own_weights):
    assert f"{tmp_path / 'w.pth'}: no such weight file" in fails(
        capsys, "score", *folders, "--weights", tmp_path / "w.pth"
    )
    gpu = fails(capsys, "score", *folders, "--weights", own_weights, "--device", "gpu")
    assert "type at start of device string: gpu). Use cpu" in gpu  # torch's whole sentence
    assert "--device abacus: cannot be used here" in fails(
        capsys, "score", *folders, "--device", "abacus", "--weights", own_weights
    )


def test_official_never_falls_back_to_mini(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MILO_RESTORE_ASSETS", raising=False)
    monkeypatch.setenv("MILO_RESTORE_CACHE", str(tmp_path / "cache"))
    for name, value in NO_NETWORK.items():
        monkeypatch.setenv(name, value)
    line = fails(capsys, "score", *folders)
    assert "MILO.pth" in line
    assert "cannot be downloaded" in line
    assert "--weights mini" in line


@pytest.mark.skipif(not (SHIPPED / "milo_mini.safetensors").exists(), reason="the mini weights are not made yet")
def test_score_with_the_shipped_weights(folders, capsys, monkeypatch):
    """No network, no folder of assets: these are always there, and said to be what was used."""
    monkeypatch.delenv("MILO_RESTORE_ASSETS", raising=False)
    for name, value in NO_NETWORK.items():
        monkeypatch.setenv(name, value)
    assert main(["score", *map(str, folders), "--weights", "mini"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("metric: MILO, weights: mini (milo_mini.safetensors, sha256 ")
    assert all(0 < float(line.split()[1]) < 4 for line in printed[2:5])
    np.save(folders[0] / "z.npy", np.zeros((4, 16, 16), np.float32))
    latent = str(folders[0] / "z.npy")
    assert main(["score", latent, latent, "--weights", "mini", "--latent"]) == 0
    assert "weights: mini (milo_latent_mini.safetensors, sha256 " in capsys.readouterr().out


# --- map


def shows(picture, values, top):
    """Each pixel has its value's colour, or the next where the value lies within rounding of the border of two."""
    low, high = (heat_map(values + shift * top, top) for shift in (-1e-5, 1e-5))
    return np.logical_or(picture == low, picture == high).all()


def test_map_draws_what_the_metric_says(folders, own_weights, tmp_path, capsys):
    paths = (folders[0] / "b.png", folders[1] / "b.bmp")
    arguments = [*map(str, paths), "--weights", str(own_weights), "--out", str(tmp_path / "m.png")]
    assert main(["map", *arguments, "--no-scale", "--top", "0.5"]) == 0
    milo = MILO.from_pretrained(own_weights)
    reference, image = (to_tensor(read_image(path))[None] for path in paths)
    expected = milo.map(image, reference=reference)[0, 0]
    assert shows(read_image(tmp_path / "m.png"), expected, 0.5)
    largest = float(re.search(r"largest (\d\.\d{6})", capsys.readouterr().out)[1])
    assert largest == pytest.approx(expected.max().item(), abs=2e-6)
    assert main(["map", *arguments, "--mask"]) == 0
    picture = read_image(tmp_path / "m.png")
    assert shows(picture[24:56, :40], milo.mask(image, reference=reference)[0, 0], 4.0)
    assert picture.shape[1] > 80  # the scale beside it
    assert "0 (black) to 4 (pale yellow)" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dist", "m.png", "own.safetensors", "ref"]


def test_map_draws_folders_as_it_draws_files(folders, own_weights, tmp_path):
    """Each pair's picture has the reference's name, in a folder that is made."""
    shown = ["--weights", str(own_weights), "--out"]
    assert main(["map", *map(str, folders), *shown, str(tmp_path / "maps" / "deep")]) == 0
    assert sorted(path.name for path in (tmp_path / "maps" / "deep").iterdir()) == ["a.png", "b.png", "c.png"]
    assert main(["map", str(folders[0] / "b.png"), str(folders[1] / "b.bmp"), *shown, str(tmp_path / "b.png")]) == 0
    assert (tmp_path / "maps" / "deep" / "b.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_map_refuses(folders, own_weights, tmp_path, capsys):
    reference, distorted = folders
    pair = (reference / "b.png", distorted / "b.bmp", "--weights", own_weights)
    out = tmp_path / "m.png"
    assert "b.bmp: is a file" in fails(capsys, "map", *pair, "--out", distorted / "b.bmp" / "m.png")
    assert "ends in .png" in fails(capsys, "map", *pair, "--out", tmp_path / "m.jpg")
    assert "--top: must be a positive number" in fails(capsys, "map", *pair, "--out", out, "--top", "0")
    assert "is a folder" in fails(capsys, "map", reference, distorted, "--weights", own_weights, "--out", out)
    line = fails(capsys, "map", reference / "a.png", distorted / "b.bmp", "--weights", own_weights, "--out", out)
    assert "sizes differ" in line
    assert not out.exists()


# --- assets


def test_assets_tell_missing_from_damaged(tmp_path, capsys):
    root = ["--root", str(tmp_path)]
    assert main(["assets", "list", *root]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("milo ")).split()[:3] == ["milo", "weights", "missing"]
    assert "    Run 'milo-restore assets fetch milo'" in lines
    assert main(["assets", "verify", *root]) == 0  # nothing that is there is wrong
    assert "milo: missing" in capsys.readouterr().out
    assert "milo" in fails(capsys, "assets", "verify", "milo", *root)
    (tmp_path / "MILO.pth").write_bytes(b"not these")
    assert main(["assets", "verify", *root]) == 2
    assert f"milo: damaged: {tmp_path / 'MILO.pth'}" in capsys.readouterr().out
    assert "is damaged or another file" in fails(capsys, "assets", "verify", "milo", *root)


def test_assets_refuse_wrong_names(tmp_path, capsys):
    assert "'Kodak42'" in fails(capsys, "assets", "verify", "Kodak42")
    assert "name what to fetch" in fails(capsys, "assets", "fetch")
    assert "no such folder" in fails(capsys, "assets", "list", "--root", tmp_path / "none")


def test_assets_fetch_offline_names_every_failure(tmp_path, capsys, monkeypatch):
    for name, value in NO_NETWORK.items():
        monkeypatch.setenv(name, value)
    assert main(["assets", "fetch", "milo", "milo-latent", "--root", str(tmp_path)]) == 2
    first, second = [line for line in capsys.readouterr().err.splitlines() if line.startswith("milo-restore: error")]
    assert "MILO.pth" in first
    assert "MILO_latent.pth" in second
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.golden
def test_assets_find_what_is_there(shared, capsys):
    root = ["--root", str(shared)]
    assert main(["assets", "verify", "milo", "milo-latent", "Set12", *root]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"milo: found: {shared / 'weights' / 'milo' / 'MILO.pth'}"
    assert lines[2].startswith("Set12: found: ")
    assert main(["assets", "fetch", "milo", *root]) == 0  # there already: no network is needed
    assert "milo: found" in capsys.readouterr().out


# --- the frame


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"usage: milo-restore {command}" in printed
    assert f"example: milo-restore {command}" in printed


@pytest.mark.parametrize("arguments", [[], ["scroe"], ["score"], ["score", "a", "b", "--nonsense"], ["assets"]])
def test_wrong_arguments(arguments, capsys):
    assert main(arguments) == 2
    assert "usage: milo-restore" in capsys.readouterr().err


def test_version(capsys):
    import milo_restore

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"milo-restore {milo_restore.__version__}\n"


def test_interruption(folders, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("milo_restore.measure.folders.find_pairs", interrupt)
    assert main(["score", *map(str, folders)]) == 130
    assert capsys.readouterr().err == "milo-restore: interrupted\n"


def test_a_shell_sees_exit_codes_and_no_traceback(tmp_path):
    process = shell("score", tmp_path / "a.png", tmp_path / "b.png", stdout=subprocess.PIPE)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert out == ""
    assert err == f"milo-restore: error: {tmp_path / 'a.png'}: no such file or folder\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_is_quiet(tmp_path, unbuffered, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    read, write = os.pipe()
    os.close(read)
    process = shell("assets", "list", "--root", tmp_path, stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 141
    assert err == ""


def test_help_is_fast():
    """None of the heavy packages is loaded for it."""
    code = "import sys; from milo_restore.cli import main; main(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.splitlines()[-1] == "False"
