"""The notebook runs from its first cell to its last, and is committed without outputs."""

import json
import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = pathlib.Path(__file__).parent.parent / "notebooks" / "quickstart.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_outputs_are_cleared(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.slow
def test_every_cell_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # the notebook makes its workdir there
    monkeypatch.delenv("XLA_FLAGS")  # one device, as a reader has
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=600, resources=resources).execute()  # raises where a cell does
    (path,) = tmp_path.glob("rdbcl-*/results.json")
    results = json.loads(path.read_text())
    assert results["status"] == "done"
    tasks = len(results["tasks"])
    assert len(results["splits"]["test"]["accuracy"]) == tasks + 1
    images = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    assert len(images) >= 7  # three of the functions, four of the run
