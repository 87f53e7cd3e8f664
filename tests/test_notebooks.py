"""Every notebook runs from its first cell to its last, here with small numbers; what is committed
are the outputs of a reader's numbers."""

import json
import os
import pathlib
import re
import sys
import types

import jax
import nbformat
import pytest
from nbclient import NotebookClient

from rdbcl_jax.models import from_config, save_pretrained
from rdbcl_jax.toy.tiny import tiny_of, write_tiny_model
from tests.compiler import QUICK

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
RUN = "BASE_STEPS, RL_STEPS = 2, 1\n"
TINY = "STAND_IN_SIZE = {'depth': 1, 'width': 32, 'mlp_width': 48, 'vision_depth': 1, 'tiles': 1}\n"
FEW = "RECORDS = {'train': 16, 'validation': 8, 'test': 8}\n"
SMALL = {  # what replaces the values of the cell that is tagged `parameters`
    "loss_math": "",
    "quickstart": RUN + "TASKS, EVALUATION_RECORDS = ('sum', 'jigsaw'), 8",
    "own_task": RUN + FEW,
    "colab_tpu_smolvlm": "RL_STEPS, STAND_IN_STEPS = 1, 2\n" + FEW + TINY,
}
notebooks = pytest.mark.parametrize("name", SMALL)


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook, kind):
    found = [output for cell in code(notebook) for output in cell.get("outputs", ())]
    return [output for output in found if kind in output.get("data", {})]


def test_there_are_no_others():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(SMALL)


@notebooks
def test_committed_with_the_outputs_of_one_run(name):
    notebook = read(name)
    nbformat.validate(notebook)
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    text = json.dumps([cell.outputs for cell in cells])
    assert '"output_type": "error"' not in text and "Traceback" not in text
    assert not re.search(r"/(work|root|home)/", text)  # of the machine that it ran on
    assert len(outputs(notebook, "image/png")) >= 2
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 1e6


def execute(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # workdirs are made there
    monkeypatch.setenv("XLA_FLAGS", QUICK)  # and one device, as a reader has
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    root = str(FOLDER.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    notebook = read(name)
    places = [i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", ())]
    assert len(places) == bool(SMALL[name])
    for place in places:
        notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(SMALL[name]))
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}})
    client.execute()  # raises where a cell does
    pictures = len(outputs(notebook, "image/png"))
    assert pictures == len(outputs(read(name), "image/png"))  # as many as a reader sees
    for file in tmp_path.rglob("results.json"):
        assert json.loads(file.read_text())["status"] == "done"


@pytest.mark.slow
@notebooks
def test_every_cell_runs(name, tmp_path, monkeypatch):
    execute(name, tmp_path, monkeypatch)


@pytest.mark.long
def test_smolvlm_runs_where_its_model_is_there(tmp_path, monkeypatch):
    """A tiny one of random weights lies in the hub's cache, where a download would put the real
    one: one tile of 512 × 512 pixels, 64 visual tokens, as there."""
    words = " ".join(cell.source for cell in code(read("colab_tpu_smolvlm"))).split()
    size = tiny_of("smolvlm").size(
        **{"depth": 1, "width": 32, "mlp_width": 48, "vision_depth": 1, "vision_width": 16},
        **{"image_size": 512, "patch_size": 16, "scale": 4, "tiles": 1},
    )
    hub = tmp_path / "hub/models--HuggingFaceTB--SmolVLM-256M-Instruct"
    snapshot = hub / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    write_tiny_model(snapshot, size, sorted(set(words)), "smolvlm")
    model = from_config(snapshot)
    save_pretrained(snapshot, model, model.init(jax.random.key(0)), like=snapshot)
    (hub / "refs").mkdir()
    (hub / "refs/main").write_text(snapshot.name)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    execute("colab_tpu_smolvlm", tmp_path, monkeypatch)
    (results,) = tmp_path.rglob("run/results.json")
    assert json.loads(results.read_text())["config"]["model"]["path"] == str(snapshot)
    exported = results.parents[1] / "exported"
    assert {p.name for p in exported.iterdir()} == {p.name for p in snapshot.iterdir()}


def test_an_older_jax_in_the_session_asks_for_a_restart(monkeypatch, capsys):
    first = code(read("colab_tpu_smolvlm"))[0].source
    exec(first, {})
    assert "accelerator: " in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "jaxlib", types.SimpleNamespace(__version__="0.4.1"))
    with pytest.raises(SystemExit, match=r"Restart the session .* jaxlib came with the runtime"):
        exec(first, {})
