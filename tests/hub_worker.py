"""Run by test_hub in a process that a stand-in of the hub, or none, is configured for; argument: push, load or refused.

Prints, as JSON, what came of it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from milo_restore import MILO, IRControlNet, LatentMILO, MILOLoss, Restormer
from milo_restore.errors import MiloRestoreError
from milo_restore.hub import push_to_hub
from milo_restore.models.diffbir.components import load_control


def networks():
    """The same in every process."""
    torch.manual_seed(1)
    trained = MILO.untrained()
    restormer = Restormer(dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1, heads=(1, 1, 1, 1))
    unet = UNet2DConditionModel(
        sample_size=16, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), layers_per_block=1,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), block_out_channels=(8, 16), norm_num_groups=4,
        cross_attention_dim=8, attention_head_dim=2,
    )  # fmt: skip
    control = IRControlNet.from_unet(unet)
    return {"milo": trained, "latent": LatentMILO("mini"), "restormer": restormer, "control": control}


def weights(network):
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {key: value.detach() for key, value in tensors.items()}


def same(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def push(folder):
    made = networks()
    options = {"results": folder / "results.json", "license": "apache-2.0"}
    urls = {name: push_to_hub(network, f"me/{name}", **options) for name, network in made.items()}
    urls["old"] = push_to_hub(MILO("mini"), "me/milo", revision="v0", private=True)
    return urls


def load():
    made = networks()
    commit = Path(MILO("me/milo").weights.path).parent.name
    return {
        "milo": same(MILO.from_pretrained("me/milo"), made["milo"].freeze()),
        "latent": same(LatentMILO.from_pretrained("me/latent"), made["latent"]),
        "restormer": same(Restormer.from_pretrained("me/restormer"), made["restormer"]),
        "control": same(load_control("me/control"), made["control"]),
        "by diffusers": same(IRControlNet.from_pretrained("me/control"), made["control"]),
        "revision": same(MILO.from_pretrained("me/milo", revision="v0"), MILO("mini")),
        "at": same(MILO("me/milo@v0"), MILO("mini")),
        "a loss": same(MILOLoss("me/milo@v0"), MILOLoss("mini")),
        "commit": same(MILO(f"me/milo@{commit}"), made["milo"]),
        "path": commit,
    }


def refused():
    def line(act):
        try:
            act()
        except MiloRestoreError as error:
            return f"{type(error).__name__}: {error}"
        return None

    return [
        line(lambda: push_to_hub(MILO("mini"), "me/another")),
        line(lambda: push_to_hub(MILO("mini"), "others/milo")),
        line(lambda: MILO("me/none")),
        line(lambda: MILO.from_pretrained("me/milo", revision="v9")),
        line(lambda: Restormer.from_pretrained("me/milo")),
        line(lambda: MILO("me/restormer")),
        line(lambda: load_control("me/milo")),
    ]


if __name__ == "__main__":
    done = {"push": lambda: push(Path(sys.argv[2])), "load": load, "refused": refused}[sys.argv[1]]()
    print(json.dumps(done))
