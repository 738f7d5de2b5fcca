"""Networks to the Hugging Face hub and back, by a stand-in of it on this machine; and their cards."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import REPOSITORY
from hub_stand_in import running
from hub_worker import networks, same, weights
from safetensors import safe_open

from milo_restore import MILO, Restormer
from milo_restore.cli import main
from milo_restore.data.images import write_png
from milo_restore.errors import ConfigError, DataError, WeightsError
from milo_restore.files.hub import at_revision, parse_repository, weights_folder
from milo_restore.hub import save_pretrained


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results.json of a real ``milo-restore evaluate``."""
    folder = tmp_path_factory.mktemp("measured")
    for name in ("restored", "MySet"):
        for number in range(10):
            picture = torch.randint(0, 256, (24, 32, 3), dtype=torch.uint8)
            write_png(folder / name / f"{number}.png", picture.numpy())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MILO_RESTORE_CACHE", str(folder / "cache"))
        return measure(folder)


def measure(folder):
    command = ["evaluate", "--pred", folder / "restored", "--ref", folder / "MySet", "--metrics", "psnr", "milo:mini"]
    assert main([str(part) for part in [*command, "--out", folder / "results.json"]]) == 0
    return folder / "results.json"


def card_of(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def worker(task, environment, folder=None):
    line = [sys.executable, str(REPOSITORY / "tests" / "hub_worker.py"), task, *([str(folder)] if folder else [])]
    run = subprocess.run(line, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_there_and_back(results, tmp_path):
    """Pushed by one process, read by another, and by a third that is offline; refusals are one line each."""
    cache = {"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_stand_in", "PYTHONPATH": str(REPOSITORY)}
    with running() as (hub, address):
        there = {**cache, "HF_ENDPOINT": address}
        urls = worker("push", there, results.parent)
        assert all(re.fullmatch(rf"{address}/me/\w+/commit/[0-9a-f]{{40}}", url) for url in urls.values())
        assert [asked.get("visibility") for asked in hub.created] == [None, None, None, None, "private"]
        files = hub.find("me/milo", "main")[1]
        assert set(files) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
        assert b"license: apache-2.0" in files["README.md"]
        assert b"Measured on MySet, 10 images" in files["README.md"]
        control = hub.find("me/control", "main")[1]
        assert set(control) >= {"README.md", "config.json", "diffusion_pytorch_model.safetensors"}
        loaded = worker("load", there)
        assert hub.branches["me/milo", "main"] == loaded.pop("path")
        assert loaded == dict.fromkeys(loaded, True)
        refused = worker("refused", there)
        before = len(hub.requests)
        offline = worker("load", {**there, "HF_HUB_OFFLINE": "1"})
        assert len(hub.requests) == before  # asked nothing
    assert offline == {**loaded, "path": offline["path"]}
    assert refused[0] is None
    expected = [
        r"others/milo: cannot be uploaded \(HfHubHTTPError: .*\)\. Log in with 'hf auth login'.*save_pretrained",
        r"me/none: is no folder here, and cannot be had .*RepositoryNotFoundError.*hf download me/none",
        r"me/milo: is no folder here, and cannot be had .*hf download me/milo --revision v9",
        r"/model.safetensors: not a Restormer's weights",
        r"/model.safetensors: does not fit MILO",
        r"me/milo: of its repository .* no complete diffusion_pytorch_model\*.safetensors could be had",
    ]
    for line, pattern in zip(refused[1:], expected):
        assert line.startswith("WeightsError: ")
        assert "\n" not in line
        assert re.search(pattern, line), (pattern, line)
    away = worker("refused", {**cache, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "1"})
    for line in away[:4]:
        assert re.match(r"WeightsError: .*(cannot be uploaded|cannot be had)", line), line


@pytest.mark.parametrize("name", ["milo", "latent", "restormer", "control"])
def test_a_folder_is_read_again(tmp_path, name):
    from milo_restore.models.diffbir.components import load_control

    network = networks()[name]
    save_pretrained(network, tmp_path / "saved")
    read = load_control if name == "control" else type(network).from_pretrained
    again = read(tmp_path / "saved")
    assert type(again) is type(network)
    assert same(again, network)
    assert not again.training
    front, body = card_of(tmp_path / "saved")
    assert front["library_name"] == "milo-restore"
    assert "license" not in front
    assert "model-index" not in front
    assert f"| parameters | {sum(value.numel() for value in weights(network).values()):,} |" in body


def test_the_card_tells_what_was_measured(results, tmp_path):
    save_pretrained(networks()["restormer"], tmp_path, results=[results, results], license="mit", name="me/net")
    front, body = card_of(tmp_path)
    measured = json.loads(results.read_text())
    assert front["license"] == "mit"
    assert front["pipeline_tag"] == "image-to-image"
    (entry,) = front["model-index"]
    assert entry["name"] == "me/net"
    values = {metric["type"]: metric["value"] for result in entry["results"] for metric in result["metrics"]}
    assert values == measured["means"]
    assert {result["dataset"]["name"] for result in entry["results"]} == {"MySet"}
    assert body.count("## Measured on MySet, 10 images") == 2
    for name, mean in measured["means"].items():
        low, high = measured["intervals"][name]
        assert re.search(rf"\| {name} \| \w+ \| {mean:.5g} \| \[{low:.5g}, {high:.5g}\] \| 10 \|", body)
    assert 'Restormer.from_pretrained("me/net")' in body
    assert "border: 0" in body
    assert str(results.parent) not in body  # nobody's folders
    assert str(results.parent) not in (tmp_path / "README.md").read_text()


def test_what_is_recorded_of_weights_stays(tmp_path):
    milo = MILO("mini")
    save_pretrained(milo, tmp_path)
    with safe_open(milo.weights.path, "pt") as old, safe_open(tmp_path / "model.safetensors", "pt") as new:
        assert new.metadata() == {"format": "pt", **old.metadata()}
    again = MILO(tmp_path)
    assert again.weights.agreement == milo.weights.agreement
    assert f"{milo.weights.agreement.gradient_cosine}" in card_of(tmp_path)[1]
    (tmp_path / "model.safetensors").write_bytes(b"another")  # what was read is gone: the two numbers are known still
    save_pretrained(again, tmp_path / "second")
    assert MILO(tmp_path / "second").weights.agreement == milo.weights.agreement
    image, reference = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    assert torch.equal(MILO(tmp_path / "second")(image, reference), milo(image, reference))


def test_what_cannot_be_saved(results, tmp_path):
    with pytest.raises(ConfigError, match="MILO: holds weights that are not float32. Make it without compute_dtype"):
        save_pretrained(MILO("mini", compute_dtype=torch.bfloat16), tmp_path)
    with pytest.raises(ConfigError, match="Linear: is none of the networks"):
        save_pretrained(torch.nn.Linear(1, 1), tmp_path)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match=r"other.json: is no results file"):
        save_pretrained(MILO("mini"), tmp_path / "saved", results=tmp_path / "other.json")
    assert not (tmp_path / "saved").exists()


def test_names(tmp_path, monkeypatch):
    assert parse_repository("org/name") == ("org/name", None)
    assert parse_repository("org/name@refs/pr/1") == ("org/name", "refs/pr/1")
    assert at_revision("org/name", "v1") == "org/name@v1"
    for name in ("official", "a/b/c", "runs/milo.safetensors", "./name", tmp_path, "org/name@", "/org/name"):
        assert parse_repository(name) is None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert parse_repository("org/name") is None  # what is here comes first
    with pytest.raises(WeightsError, match=r"org/name: holds no model.safetensors"):
        weights_folder("org/name")
    for name, revision in (("official", "v1"), ("org/other@v1", "v2"), (tmp_path, "v1")):
        with pytest.raises(ConfigError, match="revision: .* has no revisions"):
            MILO.from_pretrained(name, revision=revision)
    with pytest.raises(WeightsError, match="official: no such folder"):
        Restormer.from_pretrained("official")
