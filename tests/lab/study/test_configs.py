"""The studies that come with the project: every form is a valid study of runs that could start."""

import pathlib

import pytest

from rdbcl_jax.lab.study import load_config
from rdbcl_jax.lab.study.declare import Study
from rdbcl_jax.lab.study.plan import make_plan
from rdbcl_jax.methods import make_method

FOLDER = pathlib.Path(__file__).parents[3] / "configs/studies"
OTHERS = {
    "rdb_cl": ("core", "forms", "curve", "orders", "regimes"),
    "neighbours": ("mixtures",),
    "surface": ("coarse", "points"),
    "without_old_data": ("confirm",),
}
FORMS = [
    (path.stem, form)
    for path in sorted(FOLDER.glob("*.py"))
    if not path.stem.startswith("testbed")
    for form in (
        "full",
        "ci",
        *OTHERS.get(path.stem, ()),
    )
]


@pytest.mark.parametrize("name,form", FORMS)
def test_every_run_of_a_study_could_start(name, form):
    study = Study(load_config(FOLDER / f"{name}.py", form))
    runs = {}
    scores = {}
    while True:  # scores decide grids: the first point of each wins here
        plan = make_plan(study, scores, pathlib.Path("/runs"))
        if len(plan.runs) == len(runs):
            break
        runs = plan.runs
        scores = {run: 0.5 for run in runs}
    assert plan.undecided == 0 and len(runs) >= 2 * len(study.arms)
    for run in runs.values():
        if not run.needs:  # what another run leaves is not there yet
            make_method(run.config)
        assert run.config.rollout.prompts * run.config.rollout.samples <= 512
