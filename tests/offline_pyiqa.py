"""A pyiqa that knows a few no-reference metrics and cannot download the weights of any."""

from __future__ import annotations

import sys
import types
import urllib.error


def offline(monkeypatch, *names):
    """Put it in pyiqa's place."""

    def create(name, **_):
        raise urllib.error.URLError("no network here")

    pyiqa = types.ModuleType("pyiqa")
    pyiqa.__version__, pyiqa.create_metric = "9.9", create
    configs = types.ModuleType("pyiqa.default_model_configs")
    configs.DEFAULT_CONFIGS = {name: {"metric_mode": "NR"} for name in names}
    monkeypatch.setitem(sys.modules, "pyiqa", pyiqa)
    monkeypatch.setitem(sys.modules, "pyiqa.default_model_configs", configs)
