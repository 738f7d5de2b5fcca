"""A compiled network and one in channels-last layout train to the same weights, under the same names."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import load_file
from train_tiny import Patches, Tiny, l1, settings

from milo_restore.errors import ConfigError
from milo_restore.train import fit
from milo_restore.train.guard import _compiler_errors

PLAIN = {"learning_rate": 1e-3}
LAST = "checkpoint-000012"


def compiled(model):
    return hasattr(model, "_orig_mod")


def channels_last(model):
    weight = next(p for p in model.parameters() if p.ndim == 4)
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def train(output, seen=None, **changes):
    """Up to step 12, over two patch sizes, or as ``until`` and ``resume`` say."""
    told = {key: changes.pop(key) for key in ("until", "resume") if key in changes}

    def step(model, batch, number):
        if seen is not None:
            seen.append((compiled(model), channels_last(model)))
        return l1(model, batch, number)

    return fit(Tiny(dropout=0.0), step, Patches(), settings(**PLAIN, **changes), output, **told)


def close(one, other, names=("final/model", f"{LAST}/model", f"{LAST}/ema")):
    for name in names:
        first, second = (load_file(folder / f"{name}.safetensors") for folder in (one, other))
        assert set(first) == set(second) == set(Tiny().state_dict())
        for key, value in first.items():
            torch.testing.assert_close(second[key], value, atol=1e-6, rtol=0)  # another order of summation


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("plain")
    train(output)
    return output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"channels_last": True}, {"channels_last": True}),
        ({"channels_last": True}, {}),
        ({}, {"channels_last": True}),
        ({"compile": True, "channels_last": True}, {}),
        ({}, {"compile": True}),
    ],
)
def test_either_goes_on_from_the_other(plain, tmp_path, first, second):
    seen = []
    train(tmp_path, seen, until=4, **first)
    result = train(tmp_path, seen, resume="latest", **second)
    assert result.finished
    expected = [(way.get("compile", False), way.get("channels_last", False)) for way in (first, second)]
    assert seen == [expected[0]] * 4 + [expected[1]] * 8
    close(plain, tmp_path)


def test_moments_have_their_parameters_layout(tmp_path):
    train(tmp_path, until=4)
    layouts = []

    def step(model, batch, number):
        if number == 6:
            layouts.extend(
                value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous()
                for value in map(torch.Tensor.clone, optimizers[-1].state[model.net[0].weight].values())
                if value.ndim == 4
            )
        return l1(model, batch, number)

    optimizers = []
    before = torch.optim.AdamW.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: optimizers.append(self) or before(self, *a, **k))
        run = settings(**PLAIN, channels_last=True)
        fit(Tiny(dropout=0.0), step, Patches(), run, tmp_path, resume="latest", until=6)
    assert layouts == [True, True]


def test_evaluations_see_the_network_itself(tmp_path):
    """Else every size of a test image would be compiled."""
    seen = []
    run = settings(**PLAIN, compile=True, evaluate_every=2)
    fit(Tiny(), l1, Patches(), run, tmp_path, evaluate=lambda m: seen.append(compiled(m)) or {"psnr": 1.0}, until=2)
    assert seen == [False]


def test_without_a_compiler_the_setting_is_named(tmp_path, monkeypatch):
    from torch._inductor import config, cpp_builder

    monkeypatch.setattr(config.cpp, "cxx", (str(tmp_path / "no-such-compiler"),))
    monkeypatch.setattr(config, "force_disable_caches", True)
    cpp_builder.get_cpp_compiler.cache_clear() if hasattr(cpp_builder.get_cpp_compiler, "cache_clear") else None
    torch.compiler.reset()
    with pytest.raises(ConfigError, match=r"training\.compile: .*compile: false") as error:
        train(tmp_path / "run", compile=True)
    assert "\n" not in str(error.value)
    assert not os.path.exists(tmp_path / "run" / "final")


def test_other_errors_are_the_recipes_own():
    with pytest.raises(RuntimeError, match="my own"), _compiler_errors():
        raise RuntimeError("my own")
