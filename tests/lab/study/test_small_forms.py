"""Every study's small form, whole: a long form, of minutes each.

    python -m pytest -n 0 -m long tests/lab/study/test_small_forms.py -k surface

An arm that has nothing to learn from is a result: so hardly taught a base may answer nothing right.
"""

import os
import pathlib
import subprocess
import sys

import pytest

from rdbcl_jax.lab.study.results import read_study

ROOT = pathlib.Path(__file__).parents[3]
FOLDER = ROOT / "configs/studies"
STUDIES = sorted(p.stem for p in FOLDER.glob("*.py") if not p.stem.startswith("testbed"))


@pytest.mark.long
@pytest.mark.parametrize("name", STUDIES)
def test_a_small_form_ends_well_wherever_it_runs(name, tmp_path):
    command = [sys.executable, "-m", "rdbcl_jax.cli", "study", "--ci", f"--workdir={tmp_path}"]
    done = subprocess.run(
        [*command, f"--config={FOLDER / name}.py"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    study = read_study(tmp_path)
    assert not study.failed and not study.stopped
    for cell in study.arms:
        assert len(cell.seeds) + len(cell.lacking) == len(study.report_seeds), cell.arm
        assert all(cell.lacking.values())
    assert {cell.arm for cell in study.arms if cell.seeds} >= {study.baseline}
