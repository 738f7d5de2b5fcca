"""recipes/quickstart.ipynb runs from its first cell to its last, shows pictures, and is stored without outputs."""

from __future__ import annotations

import pytest
from conftest import REPOSITORY

NOTEBOOK = REPOSITORY / "recipes" / "quickstart.ipynb"


@pytest.fixture
def notebook():
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_is_stored_without_outputs(notebook):
    assert [cell.source for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")] == []


def test_the_quickstart_runs_and_shows_pictures(notebook, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    first = notebook.cells[1]
    stages = next(line for line in first.source.splitlines() if line.startswith("STAGES = "))
    short = 'STAGES = "[{steps: 2, patch: 32, batch: 2}]"'
    first.source = first.source.replace(stages, short).replace('"../runs/quickstart"', repr(str(tmp_path)))
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    printed = "".join(output.get("text", "") for output in outputs)
    assert "held-out-photographs" in printed
    before, after = printed.rpartition("MILO ")[2].split(" before, ")
    assert float(after.removesuffix(" after\n")) < float(before) / 2
    assert (tmp_path / "report.html").is_file()
