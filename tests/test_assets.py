"""Weights and data sets by name: where they are found, what is refused, and what is said."""

from __future__ import annotations

import csv
import functools
import hashlib
import http.server
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from milo_restore import files
from milo_restore.cli import main
from milo_restore.errors import DataError, MiloRestoreError, WeightsError
from milo_restore.files import datasets, download, published, registry

COUNTS = {"BSD400": 400, "CBSD68": 68, "Kodak24": 24, "McMaster": 18, "Urban100": 100, "Set12": 12, "Real47": 47}
BROUGHT = {"RealSR": 100, "DIV2K-val": 100, "LFW-Test": 1711, "WIDER-Test": 970}
"""What a user brings: no file of these is known."""
MILO = "a1d66a7e0ebe0f839564ad70160ffdec709708f0b9a7dd03b19c0bee90d31f79"
LATENT = "639448793a4e2a41614cd1ed7fb97234533ba2d02fa2c18f94909ca44fc169b3"


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """Nothing set, an empty cache, and no network. Gives the cache folder."""
    monkeypatch.delenv("MILO_RESTORE_ASSETS", raising=False)
    monkeypatch.setenv("MILO_RESTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(registry, "RAW_HOST", closed_port())
    return tmp_path / "cache"


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server in the place of GitHub; gives the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(_Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as service:
        thread = threading.Thread(target=service.serve_forever, args=(0.02,))
        thread.start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(registry, "RAW_HOST", f"http://127.0.0.1:{service.server_port}")
        yield folder
        service.shutdown()
        thread.join()


def serve(folder: Path, file: registry.RemoteFile, content: bytes) -> None:
    target = folder / file.url.removeprefix(registry.RAW_HOST + "/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)


def set_index(monkeypatch, name: str, contents: dict[str, bytes]) -> None:
    """Let a data set consist of these files."""
    known = {
        file: registry.RemoteFile(file, len(data), hashlib.sha256(data).hexdigest(), f"a/b@c:set/{file}")
        for file, data in contents.items()
    }
    tables = {**registry.upstream(), "datasets": {**registry.upstream()["datasets"]}}
    tables["datasets"][name] = {**tables["datasets"][name], "count": len(contents)}
    index = {**registry.dataset_index(), name: known}
    monkeypatch.setattr(registry, "upstream", lambda: tables)
    monkeypatch.setattr(registry, "dataset_index", lambda: index)


def pictures(folder: Path, count: int, start: int = 0, suffix: str = "png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(start, start + count):
        Image.new("RGB", (4, 4), (number % 256, number // 256, 0)).save(folder / f"{number:04}.{suffix}")


# The registry


def test_registry_is_complete():
    upstream = registry.upstream()
    assert set(upstream["weights"]) == set(files.WEIGHTS)
    assert set(upstream["datasets"]) == set(files.DATASETS) == {*COUNTS, *BROUGHT}
    for table in (*upstream["weights"].values(), *upstream["datasets"].values()):
        assert ("source" in table) != (table.get("repository") in upstream["repositories"])
        assert table["licence"]
        assert table["takes"]
    for name, table in upstream["weights"].items():
        assert registry.weight_file(name).url == table["url"]
    unknown = {name for name in files.WEIGHTS if not files.can_fetch(name)}
    assert unknown == {
        "bsrnet", "swinir-general", "swinir-face", "swinir-realesrgan", "swinir-codeformer", "sd21-zsnr",
        "diffbir-v1-control", "diffbir-v1-face-control", "diffbir-v2-control", "diffbir-v2.1-control",
    }  # fmt: skip
    assert all(upstream["weights"][name]["licence"] == "Apache-2.0" for name in ("milo", "milo-latent"))
    assert [registry.weight_file(name).sha256 for name in ("milo", "milo-latent")] == [MILO, LATENT]


@pytest.mark.parametrize("name", COUNTS)
def test_index_agrees_with_the_registry(name):
    table, index = registry.upstream()["datasets"][name], registry.dataset_index()[name]
    repository = registry.upstream()["repositories"][table["repository"]]
    assert len(index) == table["count"] == COUNTS[name]
    assert sum(file.bytes for file in index.values()) == table["bytes"]
    assert len({file.sha256 for file in index.values()}) == COUNTS[name]
    for file in index.values():
        assert file.source.startswith(f"{repository['name']}@{repository['commit']}:")
        assert file.url.startswith(f"https://raw.githubusercontent.com/{repository['name']}/{repository['commit']}/")


def test_no_training_image_is_a_test_image():
    index = registry.dataset_index()
    training = {file.sha256 for file in index["BSD400"].values()}
    for name in set(COUNTS) - {"BSD400"}:
        assert not training & {file.sha256 for file in index[name].values()}


def test_registry_lies_inside_an_installed_package(tmp_path, monkeypatch):
    shutil.copytree(registry.third_party(), tmp_path / "milo_restore" / "third_party")
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "milo_restore" / "assets" / "registry.py"))
    assert registry.third_party() == (tmp_path / "milo_restore" / "third_party").resolve()
    shutil.rmtree(tmp_path / "milo_restore" / "third_party")
    with pytest.raises(DataError, match=r"upstream\.toml: the registry .* is missing"):
        registry.third_party()


def test_importing_assets_is_light():
    code = "import milo_restore.files, sys; print([m for m in ('torch', 'numpy', 'pooch', 'tqdm') if m in sys.modules])"
    root = Path(files.__file__).parents[2]
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert answer.stdout.strip() == "[]"


# Weights


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "folder", "file"),
    [
        ("milo", "milo", "MILO.pth"),
        ("milo-latent", "milo", "MILO_latent.pth"),
        ("e-mae", "enhanced_iqm", "E_MAE.pth"),
        ("e-ssim", "enhanced_iqm", "E_SSIM.pth"),
    ],
)
def test_weights_in_the_local_folder_and_in_the_cache(shared, empty, monkeypatch, tmp_path, name, folder, file):
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(shared))
    assert files.weights_path(name) == shared / "weights" / folder / file
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(shared / "weights" / folder / file, flat)
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(flat))
    assert files.weights_path(name) == flat / file
    monkeypatch.delenv("MILO_RESTORE_ASSETS")
    shutil.copytree(flat, empty / "weights" / folder)
    assert files.weights_path(name) == empty / "weights" / folder / file


@pytest.mark.golden
def test_a_flipped_bit_is_refused_and_nothing_else_taken(shared, empty, monkeypatch, tmp_path):
    content = bytearray((shared / "weights" / "milo" / "MILO.pth").read_bytes())
    (empty / "weights" / "milo").mkdir(parents=True)
    (empty / "weights" / "milo" / "MILO.pth").write_bytes(content)  # intact, but not the one that comes first
    content[len(content) // 2] ^= 1
    local = tmp_path / "local"
    local.mkdir()
    (local / "MILO.pth").write_bytes(content)
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(local))
    with pytest.raises(WeightsError, match="damaged or another file") as caught:
        files.weights_path("milo")
    assert str(local / "MILO.pth") in str(caught.value)
    assert MILO[:16] in str(caught.value)
    assert files.asset_status("milo").state == "damaged"


def test_a_damaged_cache_is_refused_not_downloaded_again(empty):
    (empty / "weights" / "milo").mkdir(parents=True)
    path = empty / "weights" / "milo" / "MILO_latent.pth"
    path.write_bytes(b"half a file")
    for ask in (files.weights_path, files.verify_asset, files.fetch_asset):
        with pytest.raises(WeightsError, match="MILO_latent.pth: is damaged"):
            ask("milo-latent")
    assert path.read_bytes() == b"half a file"


def test_offline_says_file_url_and_both_places(empty):
    with pytest.raises(WeightsError) as caught:
        files.weights_path("milo")
    text = str(caught.value)
    file = registry.weight_file("milo")
    assert text.startswith("MILO.pth: ")
    for part in (file.url, "no network?", "MILO_RESTORE_ASSETS", str(empty / "weights" / "milo")):
        assert part in text
    assert "\n" not in text
    assert not list(empty.rglob("*.pth"))


def test_unknown_names_and_folders(empty, monkeypatch, tmp_path):
    with pytest.raises(WeightsError, match="milo, milo-latent"):
        files.weights_path("milo2")
    with pytest.raises(DataError, match="Did you mean 'Kodak24'"):
        files.find_dataset("kodak", tmp_path)
    with pytest.raises(DataError, match="Known: milo, milo-latent, e-mae, .*, BSD400"):
        files.asset_status("nothing like it")
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(tmp_path / "absent"))
    with pytest.raises(MiloRestoreError, match="MILO_RESTORE_ASSETS=.*absent: no such folder"):
        files.weights_path("milo")
    with pytest.raises(DataError, match="absent: no such folder"):
        files.list_assets()


def small_weights(monkeypatch, content: bytes) -> registry.RemoteFile:
    file = registry.RemoteFile("MILO.pth", len(content), hashlib.sha256(content).hexdigest(), "a/b@c:w/MI LO.pth")
    monkeypatch.setattr(registry, "weight_file", lambda name: file)
    return file


def test_download(empty, server, monkeypatch):
    file = small_weights(monkeypatch, b"weights")
    serve(server, file, b"weights")  # under its quoted name: the server unquotes it
    (server / "a/b/c/w/MI%20LO.pth").rename(server / "a/b/c/w/MI LO.pth")
    assert files.asset_status("milo").state == "missing"
    path = files.weights_path("milo")
    assert path == empty / "weights" / "milo" / "MILO.pth"
    assert path.read_bytes() == b"weights"
    shutil.rmtree(server / "a")
    assert files.weights_path("milo") == path  # from the cache
    assert [status.state for status in files.list_assets()][:2] == ["found", "found"]


def unchecked(monkeypatch, server, content: bytes, **known) -> None:
    """A cleaner on the server of which no sha256 is known."""
    file = registry.RemoteFile("BSRNet.pth", 0, "", "a/b@c:BSRNet.pth", **known)
    monkeypatch.setattr(registry, "weight_file", lambda name: file)
    serve(server, file, content)


def test_what_nobody_published_a_hash_of_is_recorded_and_held(empty, server, monkeypatch):
    unchecked(monkeypatch, server, b"a cleaner")
    folder = empty / "weights" / "diffbir"
    assert files.asset_status("bsrnet").state == "missing"
    assert "assets fetch bsrnet" in files.asset_status("bsrnet").note
    status = files.fetch_asset("bsrnet")
    assert (status.state, status.where) == ("found", str(folder / "BSRNet.pth"))
    assert sorted(path.name for path in folder.iterdir()) == ["BSRNet.pth", "BSRNet.pth.sha256"]
    digest = hashlib.sha256(b"a cleaner").hexdigest()
    assert (folder / "BSRNet.pth.sha256").read_text() == f"{digest}  BSRNet.pth\n"  # sha256sum -c reads it
    (folder / "BSRNet.pth").write_bytes(b"another")
    assert files.asset_status("bsrnet").state == "damaged"
    with pytest.raises(WeightsError, match=r"BSRNet\.pth: is damaged or another file \(sha256"):
        files.present_weights("bsrnet")


def test_what_a_user_brought_without_a_known_hash_is_not_checked(empty, server, monkeypatch, tmp_path, capsys):
    unchecked(monkeypatch, server, b"a cleaner")
    (tmp_path / "BSRNet.pth").write_bytes(b"mine")
    status = files.asset_status("bsrnet", tmp_path)
    assert (status.state, status.where) == ("not checked", str(tmp_path / "BSRNet.pth"))
    assert files.verify_asset("bsrnet", tmp_path).state == "not checked"
    assert files.fetch_asset("bsrnet", tmp_path).state == "not checked"  # not replaced
    assert main(["assets", "verify", "bsrnet", "--root", str(tmp_path)]) == 0
    assert "bsrnet: not checked: " in capsys.readouterr().out


@pytest.mark.parametrize("right", [True, False])
def test_a_download_is_held_against_gits_hash(empty, server, monkeypatch, right):
    blob = hashlib.sha1(b"blob 9\0a cleaner").hexdigest()
    unchecked(monkeypatch, server, b"a cleaner" if right else b"something else", git_blob=blob)
    folder = empty / "weights" / "enhanced_iqm"
    if right:
        assert files.fetch_asset("e-vgg").state == "found"
        assert [path.name for path in folder.iterdir()] == ["BSRNet.pth"]
    else:
        with pytest.raises(WeightsError, match="gave another content than registered"):
            files.fetch_asset("e-vgg")
        assert [path for path in empty.rglob("*") if path.is_file()] == []


def test_vgg16_lies_where_torchvision_has_it(empty, monkeypatch, tmp_path):
    torch_hub = pytest.importorskip("torch").hub
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    home = Path(torch_hub.get_dir()) / "checkpoints"
    home.mkdir(parents=True)
    (home / "vgg16-397923af.pth").write_bytes(b"cut off")
    status = files.asset_status("vgg16")
    assert (status.state, status.where) == ("damaged", str(home / "vgg16-397923af.pth"))
    assert files.asset_status("vgg16", tmp_path).state == "missing"  # only there, where a root is named


def test_a_wrong_download_leaves_nothing(empty, server, monkeypatch):
    file = small_weights(monkeypatch, b"weights")
    serve(server, file, b"wrong")
    (server / "a/b/c/w/MI%20LO.pth").rename(server / "a/b/c/w/MI LO.pth")
    with pytest.raises(WeightsError, match="gave another content"):
        files.weights_path("milo")
    assert not [path for path in empty.rglob("*") if path.is_file()]


def test_a_cache_that_cannot_be_written(server, monkeypatch, tmp_path, empty):
    file = small_weights(monkeypatch, b"weights")
    serve(server, file, b"weights")
    (server / "a/b/c/w/MI%20LO.pth").rename(server / "a/b/c/w/MI LO.pth")
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("MILO_RESTORE_CACHE", str(tmp_path / "a file"))
    with pytest.raises(WeightsError, match="cannot be written"):
        files.weights_path("milo")


def _download(host: str, cache: str, content: bytes, barrier, answers) -> None:
    os.environ["MILO_RESTORE_CACHE"] = cache
    registry.RAW_HOST = host
    file = registry.RemoteFile("MILO.pth", len(content), hashlib.sha256(content).hexdigest(), "a/b@c:MILO.pth")
    registry.weight_file = lambda name: file
    barrier.wait()
    answers.put(hashlib.sha256(files.weights_path("milo").read_bytes()).hexdigest())


@pytest.fixture
def choose():
    """What ``auto`` takes, decided anew."""
    from milo_restore.metric import MILO, weights

    weights._choose.cache_clear()
    yield lambda: MILO("auto").weights
    weights._choose.cache_clear()


def test_auto_without_a_network_is_mini_and_says_why(empty, choose, capsys):
    found = choose()
    assert (found.name, found.auto, Path(found.path).name) == ("mini", True, "milo_mini.safetensors")
    assert str(found).endswith("chosen by auto)")
    said = capsys.readouterr().err
    assert said.startswith("milo-restore: weights 'auto' are 'mini': official MILO.pth ")
    assert "no network?" in said
    assert choose() == found
    assert capsys.readouterr().err == ""


def test_auto_waits_for_seconds_only(empty, choose, monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(registry, "RAW_HOST", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("milo_restore.metric.weights.AUTO_TIMEOUT", 0.3)
        start = time.monotonic()
        assert choose().name == "mini"
        assert time.monotonic() - start < 5


@pytest.mark.golden
def test_auto_takes_official_where_it_is(shared, empty, server, choose, capsys):
    content = (shared / "weights" / "milo" / "MILO.pth").read_bytes()
    serve(server, registry.weight_file("milo"), content)
    found = choose()
    assert (found.name, found.auto, found.sha256) == ("official", True, MILO)
    assert "weights 'auto' are 'official': downloaded" in capsys.readouterr().err


def test_auto_refuses_a_damaged_file(empty, choose):
    (empty / "weights" / "milo").mkdir(parents=True)
    (empty / "weights" / "milo" / "MILO.pth").write_bytes(b"wrong")
    with pytest.raises(WeightsError, match=r"MILO\.pth: is damaged"):
        choose()


def test_offline_official_names_every_remedy(empty):
    from milo_restore import MILO, LatentMILO

    remedies = [
        "'milo-restore assets fetch milo",
        "MILO_RESTORE_ASSETS",
        str(empty / "weights" / "milo"),
        "4f5b6fc641ca",
    ]
    for metric, others in ((MILO, ["'mini'"]), (LatentMILO, [])):
        with pytest.raises(WeightsError) as caught:
            metric()
        assert all(remedy in str(caught.value) for remedy in remedies + others)
        assert ("mini" in str(caught.value)) == (metric is MILO)  # mini's latents are another world's


def test_two_processes_download_at_once(empty, server):
    content = os.urandom(3 << 20)
    (server / "a/b/c").mkdir(parents=True)
    (server / "a/b/c/MILO.pth").write_bytes(content)
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    arguments = (registry.RAW_HOST, str(empty), content, barrier, answers)
    processes = [context.Process(target=_download, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    hashes = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert hashes == [hashlib.sha256(content).hexdigest()] * 2
    assert [path.name for path in empty.rglob("*") if path.is_file()] == ["MILO.pth"]


# Data sets


@pytest.mark.golden
@pytest.mark.parametrize("name", ["BSD400", "CBSD68", "Kodak24", "Set12"])
def test_shared_data_sets_are_the_known_ones(shared, empty, name):
    found = files.locate_dataset(name, shared)
    assert len(found.paths) == COUNTS[name]
    assert found.state == "found"
    assert [path.name for path in found.paths] == sorted(registry.dataset_index()[name])
    assert files.find_dataset(name.lower(), shared) == found.paths
    assert files.verify_asset(name, shared).state == "found"


@pytest.mark.golden
def test_index_agrees_with_the_shared_lists(shared):
    for name in ("BSD400", "CBSD68"):
        listed = {line.split(".")[0] for line in (shared / "data" / "lists" / f"{name}.txt").read_text().split()}
        assert listed == {Path(file).stem for file in registry.dataset_index()[name]}
    with (shared / "MANIFEST.tsv").open() as file:
        manifest = {row["source"]: row["sha256"] for row in csv.DictReader(file, delimiter="\t", quoting=3)}
    for name in ("BSD400", "CBSD68", "Kodak24", "Set12"):
        for known in registry.dataset_index()[name].values():
            assert manifest[known.source] == known.sha256


@pytest.mark.golden
def test_list_assets(shared, empty, monkeypatch):
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(shared))
    states = {status.name: status.state for status in files.list_assets()}
    for name in ("milo", "milo-latent", "BSD400", "CBSD68", "Kodak24", "Set12"):
        assert states[name] == "found"
    assert set(states) == {*files.WEIGHTS, *published.MODELS, *files.DATASETS}


@pytest.mark.golden
def test_one_exchanged_image_is_named(shared, tmp_path):
    shutil.copytree(shared / "data" / "set12", tmp_path / "Set12")
    victim = tmp_path / "Set12" / "07.png"
    content = bytearray(victim.read_bytes())
    content[-20] ^= 4
    victim.write_bytes(content)
    with pytest.raises(DataError, match=r"07\.png: is damaged or another file: 1 of the 12 images"):
        files.find_dataset("Set12", tmp_path)
    status = files.asset_status("Set12", tmp_path)
    assert status.state == "damaged"
    assert status.where == str(victim)


LAYOUTS = [
    ("Kodak24", {"Kodak24": 24}),
    ("Kodak24", {"data/kodak24": 24}),
    ("Kodak24", {"KODAK": 24}),
    ("McMaster", {"mcmaster": 18}),
    ("Urban100", {"data/Urban100": 100}),
    ("CBSD68", {"CBSD68/original_png": 68}),
    ("BSD400", {"BSD400": 400}),
    ("BSD400", {"bsds500/train": 200, "bsds500/test": 200}),
    ("BSD400", {"BSR/BSDS500/data/images/train": 200, "BSR/BSDS500/data/images/test": 200}),
]


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_layouts_and_other_encodings(tmp_path, name, layout):
    start = 0
    for folder, count in layout.items():
        pictures(tmp_path / folder, count, start)
        (tmp_path / folder / "Thumbs.db").write_text("")
        (tmp_path / folder / ".hidden.png").write_text("")
        start += count
    found = files.locate_dataset(name, tmp_path)
    assert len(found.paths) == COUNTS[name]
    assert found.state == "unverified"
    assert files.asset_status(name, tmp_path).state == "unverified"
    (found.paths[3]).unlink()
    with pytest.raises(DataError, match=f"{name} has {COUNTS[name]} images, found {COUNTS[name] - 1}"):
        files.find_dataset(name, tmp_path)


def test_cbsd68_is_picked_from_the_validation_images(tmp_path):
    val = tmp_path / "BSDS500" / "data" / "images" / "val"
    pictures(val, 32)
    for number, known in enumerate(registry.dataset_index()["CBSD68"]):
        Image.new("RGB", (4, 4), (0, 0, number)).save(val / f"{Path(known).stem}.png")
    assert {path.stem for path in files.find_dataset("CBSD68", tmp_path)} == {
        Path(known).stem for known in registry.dataset_index()["CBSD68"]
    }


@pytest.mark.parametrize("name", COUNTS)
def test_missing_data_set_says_root_layout_and_command(tmp_path, name):
    (tmp_path / name).mkdir()  # an empty folder is none
    with pytest.raises(DataError) as caught:
        files.find_dataset(name, tmp_path)
    text = str(caught.value)
    for part in (f"{tmp_path}: {name} is not there", f"milo-restore assets fetch {name}", f"{tmp_path / name}/"):
        assert part in text
    assert "\n" not in text
    with pytest.raises(DataError, match="absent: no such folder"):
        files.find_dataset(name, tmp_path / "absent")


def test_the_local_folder_comes_before_the_cache(empty, monkeypatch, tmp_path):
    pictures(empty / "Set12", 12)
    assert files.find_dataset("Set12")[0].parent == empty / "Set12"
    pictures(tmp_path / "local" / "Set12", 12)
    monkeypatch.setenv("MILO_RESTORE_ASSETS", str(tmp_path / "local"))
    assert files.find_dataset("Set12")[0].parent == tmp_path / "local" / "Set12"


def test_fetch_a_data_set_and_take_up_an_interrupted_one(empty, server, monkeypatch):
    contents = {f"{number:02}.png": f"image {number}".encode() for number in range(12)}
    set_index(monkeypatch, "Set12", contents)
    index = registry.dataset_index()["Set12"]
    for name in list(contents)[:5]:
        serve(server, index[name], contents[name])
    with pytest.raises(DataError, match="cannot be downloaded .the server says 404.") as caught:
        files.fetch_asset("Set12")
    assert "milo-restore assets fetch Set12" in str(caught.value)
    for name, content in contents.items():
        serve(server, index[name], content)
    status = files.fetch_asset("set12")
    assert (status.state, status.where) == ("found", str(empty / "Set12"))
    shutil.rmtree(server / "a")
    assert files.fetch_asset("Set12").state == "found"  # there already: nothing is asked for
    assert {path.name: path.read_bytes() for path in (empty / "Set12").iterdir()} == contents


def test_fetch_refuses_a_wrong_file_that_is_there(tmp_path, server, monkeypatch):
    contents = {"a.png": b"a", "b.png": b"b"}
    set_index(monkeypatch, "Set12", contents)
    for name, content in contents.items():
        serve(server, registry.dataset_index()["Set12"][name], content)
    (tmp_path / "root" / "Set12").mkdir(parents=True)
    (tmp_path / "root" / "Set12" / "a.png").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"a\.png: is damaged or another file"):
        files.fetch_asset("Set12", tmp_path / "root")
    assert (tmp_path / "root" / "Set12" / "a.png").read_bytes() == b"mine"
    assert files.fetch_asset("Set12", tmp_path / "new").state == "found"  # a root that does not exist yet is made


def test_fetch_offline(empty):
    with pytest.raises(DataError, match="cannot be downloaded") as caught:
        files.fetch_asset("Urban100")
    assert str(empty / "Urban100") in str(caught.value)
    assert files.asset_status("Urban100").state == "missing"


def test_cache_folder(monkeypatch):
    monkeypatch.setenv("MILO_RESTORE_CACHE", "~/elsewhere")
    assert download.cache_folder() == Path.home() / "elsewhere"
    monkeypatch.delenv("MILO_RESTORE_CACHE")
    assert "milo-restore" in str(download.cache_folder())


def test_data_room_gives_the_same_functions():
    from milo_restore import data

    assert data.find_dataset is datasets.find_dataset
    assert data.DATASETS is files.DATASETS


# Data sets that a user brings


@pytest.mark.parametrize("name", BROUGHT)
def test_what_a_user_brings_is_counted_and_said_to_be_unknown(name, empty, tmp_path):
    assert name not in registry.dataset_index()
    assert not files.can_fetch(name)
    status = files.asset_status(name, tmp_path)
    assert status.state == "missing"
    assert status.note.startswith(f"{BROUGHT[name]} images; to be had from ")
    assert status.note.endswith("checksums unknown")
    with pytest.raises(DataError, match=rf"{name} cannot be downloaded by this program\. Get it \(.*and put its"):
        files.fetch_asset(name, tmp_path)


def test_pairs_of_a_named_set(tmp_path, monkeypatch):
    tables = {**registry.upstream(), "datasets": {**registry.upstream()["datasets"]}}
    tables["datasets"]["RealSR"] = {**tables["datasets"]["RealSR"], "count": 3}
    monkeypatch.setattr(registry, "upstream", lambda: tables)
    pictures(tmp_path / "RealSR" / "LR", 3)
    found = files.locate_dataset("RealSR", tmp_path)
    assert (found.state, found.references) == ("unverified", None)
    pictures(tmp_path / "RealSR" / "HR", 3)
    found = files.locate_dataset("realsr", tmp_path)
    assert [path.name for path in found.references] == [path.name for path in found.paths]
    pictures(tmp_path / "pairs" / "StableSR_testsets" / "RealSRVal_crop128" / "test_LR", 3)
    pictures(tmp_path / "pairs" / "StableSR_testsets" / "RealSRVal_crop128" / "test_HR", 3)
    other = files.locate_dataset("RealSR", tmp_path / "pairs")  # as StableSR's archive unpacks
    assert [path.parent.name for path in other.references] == ["test_HR"] * 3
    (tmp_path / "RealSR" / "HR" / "0001.png").unlink()
    with pytest.raises(DataError, match=r"0001\.png: has no reference in .*HR"):
        files.locate_dataset("RealSR", tmp_path)
    (tmp_path / "RealSR" / "LR" / "0002.png").unlink()
    with pytest.raises(DataError, match=r"RealSR has 3 images, found 2\. Complete it, or"):
        files.locate_dataset("RealSR", tmp_path)
