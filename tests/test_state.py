"""One reader for every weight file: which entry it takes, from which formats, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from milo_restore.errors import WeightsError
from milo_restore.files.state import fill, read_state
from milo_restore.models.diffbir.cleaner import load_cleaner
from milo_restore.models.restormer import Restormer

SMALL = {"dim": 8, "num_blocks": (1, 1, 1, 1), "num_refinement_blocks": 1, "heads": (1, 1, 1, 1)}


def state(value):
    return {"conv.weight": torch.full((2, 3), float(value)), "conv.bias": torch.zeros(2)}


def saved(path, content):
    """As a .pth, or as a .safetensors with the entries as prefixes of the keys."""
    if path.suffix != ".safetensors":
        torch.save(content, path)
        return path
    flat = {}
    for name, value in content.items():
        flat |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    save_file(flat, path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors"])
@pytest.mark.parametrize(
    ("entries", "taken"),
    [
        (("params", "params_ema"), "params_ema"),
        (("params_ema",), "params_ema"),
        (("model", "params"), "params"),
        (("state_dict",), "state_dict"),
        (("model", "state_dict"), "state_dict"),
        ((), ""),
    ],
)
def test_averaged_weights_come_first(tmp_path, capsys, suffix, entries, taken):
    content = {name: state(number) for number, name in enumerate(entries)} or state(0)
    found = read_state(saved(tmp_path / f"x{suffix}", content))
    assert found.entry == taken
    assert found.tensors.keys() == {"conv.weight", "conv.bias"}
    assert found.tensors["conv.weight"][0, 0] == (entries.index(taken) if taken else 0)
    said = capsys.readouterr().err
    assert (f"{taken} is taken" in said) == (len(entries) > 1)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_entry_can_be_asked_for(tmp_path, capsys, suffix):
    path = saved(tmp_path / f"x{suffix}", {"params": state(1), "params_ema": state(2), "gan": state(3)})
    for entry, value in (("params", 1), ("params_ema", 2), ("gan", 3)):
        assert read_state(path, entry=entry).tensors["conv.weight"][0, 0] == value
    assert capsys.readouterr().err == ""
    with pytest.raises(WeightsError, match=r"x\.\w+: holds no dictionary of tensors under 'ema'.*params_ema, params"):
        read_state(path, entry="ema")
    with pytest.raises(WeightsError, match="It has no entries: leave the name out"):
        read_state(saved(tmp_path / f"bare{suffix}", state(0)), entry="params")


def test_wrappings_of_training_programs(tmp_path):
    module = {f"module.{key}": value for key, value in state(4).items()}
    lightning = saved(tmp_path / "a.ckpt", {"epoch": 3, "state_dict": module, "callbacks": {}})
    assert read_state(lightning).tensors.keys() == {"conv.weight", "conv.bias"}
    nested = read_state(saved(tmp_path / "b.pt", {"model": {"params": module}, "iter": 1}))
    assert (nested.entry, nested.tensors["conv.weight"][0, 0]) == ("model.params", 4)
    assert read_state(lightning, strip=()).tensors.keys() == module.keys()


def test_a_network_with_a_part_called_model_is_taken_whole(tmp_path):
    content = {"model.conv.weight": torch.zeros(1), "head.weight": torch.zeros(1)}
    assert read_state(saved(tmp_path / "x.safetensors", content)).tensors.keys() == content.keys()


def test_denoiser_and_cleaner_take_the_same(tmp_path):
    from basicsr.archs.rrdbnet_arch import RRDBNet

    def twice(build):
        networks = {"params": build(), "params_ema": build()}
        torch.save({name: network.state_dict() for name, network in networks.items()}, tmp_path / "both.pth")
        return networks

    restormers = twice(lambda: Restormer(**SMALL))
    for entry, taken in ((None, "params_ema"), ("params", "params")):
        found = Restormer.from_checkpoint(tmp_path / "both.pth", entry=entry).state_dict()
        assert all(torch.equal(value, found[key]) for key, value in restormers[taken].state_dict().items())
    cleaners = twice(lambda: RRDBNet(3, 3, num_feat=4, num_block=1, num_grow_ch=4))
    for entry, taken in ((None, "params_ema"), ("params", "params")):
        found = load_cleaner(tmp_path / "both.pth", entry=entry).network
        assert torch.equal(found.conv_last.weight, cleaners[taken].conv_last.weight)


def test_a_strict_load_names_every_fault():
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    wrong = {
        "0.weight": torch.zeros(3, 5),
        "0.bias": torch.zeros(3),
        "1.weight": torch.zeros(1, 3),
        "2.bias": torch.zeros(1),
    }
    before = network[0].bias.clone()
    with pytest.raises(WeightsError) as caught:
        fill(network, wrong, "net.pth", name="the head")
    assert str(caught.value) == (
        "net.pth: does not fit the head: 1 missing: 1.bias; 1 unexpected: 2.bias; "
        "1 of wrong shape: 0.weight (3, 5) instead of (3, 2)"
    )
    assert torch.equal(network[0].bias, before)  # nothing was loaded
    with torch.device("meta"):
        empty = nn.Linear(2, 3)
    given = nn.Linear(2, 3).state_dict()
    assert fill(empty, given, "net.pth", assign=True).weight.data_ptr() == given["weight"].data_ptr()
