"""What a study runs and when: from a declaration and the scores so far, nothing else."""

import math
import pathlib

import pytest

from rdbcl_jax.config import default_config
from rdbcl_jax.lab.study import Arm, Curve, study_config
from rdbcl_jax.lab.study.declare import Study
from rdbcl_jax.lab.study.plan import blocked, make_plan, ready

ROOT = pathlib.Path("/runs")
GRID = [{"kl.beta": 0.0}, {"kl.beta": 0.1}]


def study(**changes):
    given = {
        "arms": [
            Arm("grpo", {"method": "grpo"}, GRID),
            Arm("after", {"model.path": "{arm:grpo}/policy"}),
        ],
        "baseline": "grpo",
        "tuning_seeds": (9,),
        "report_seeds": (0, 1),
        "curves": [Curve("beta", "grpo", {0.1: {"kl.beta": 0.1}, 1.0: {"kl.beta": 1}})],
    }
    return Study(study_config(default_config(), **{**given, **changes}))


def test_chosen_points_wait_for_validation_and_declared_curves_do_not():
    plan = make_plan(study(), {}, ROOT)
    names = [f"main/grpo/kl.beta={b}/seed9" for b in ("0", "0.1")]
    curve = [f"main/grpo/kl.beta={b}/seed{s}" for b in ("0.1", "1") for s in (0, 1)]
    assert list(plan.runs) == names + curve and not plan.points.get(("main", "grpo"))
    assert [run.round for run in plan.runs.values()] == [0, 0, 1, 2, 1, 2]
    plan = make_plan(study(), {names[0]: 0.7, names[1]: 0.6}, ROOT)
    assert plan.points["main", "grpo"] == {"kl.beta": 0.0}
    assert "main/grpo/kl.beta=0/seed1" in plan.runs and plan.undecided == 0
    after = plan.runs["main/after/seed1"]
    assert after.config.model.path == "/runs/main/grpo/kl.beta=0/seed1/policy"
    assert after.needs == ("main/grpo/kl.beta=0/seed1",)


@pytest.mark.parametrize(
    "metric,said",
    [
        ("lst", "metric is 'lst'; expected one of .* did you mean 'last'"),
        ("forgetting_max", "'forgetting_max', of which less is better; expected one of"),
        ("held_out_last", "'held_out_last', and no task is held out; .* run.evaluation.tasks"),
    ],
)
def test_points_are_chosen_by_a_metric_that_runs_have_and_of_which_more_is_better(metric, said):
    with pytest.raises(ValueError, match=said):
        study(metric=metric)


def test_a_run_waits_for_the_run_that_it_refers_to_and_is_lost_with_it():
    scores = {"main/grpo/kl.beta=0/seed9": 0.7, "main/grpo/kl.beta=0.1/seed9": 0.6}
    plan = make_plan(study(), scores, ROOT)
    assert "main/after/seed0" not in [run.name for run in ready(plan, scores, ())]
    scores["main/grpo/kl.beta=0/seed0"] = 0.5
    assert "main/after/seed0" in [run.name for run in ready(plan, scores, ())]
    scores["main/grpo/kl.beta=0/seed0"] = math.nan
    assert blocked(plan, scores) == {"main/after/seed0": "main/grpo/kl.beta=0/seed0"}


def test_without_a_choice_a_run_is_lost_with_the_run_that_there_was_to_choose_by():
    scores = {"main/grpo/kl.beta=0/seed9": math.nan, "main/grpo/kl.beta=0.1/seed9": math.nan}
    plan = make_plan(study(curves=()), scores, ROOT)
    assert plan.choices["main", "grpo"] is None and not ready(plan, scores, ())
    lost = {f"main/after/seed{seed}": "main/grpo/kl.beta=0/seed9" for seed in (0, 1)}
    assert blocked(plan, scores) == lost


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"report_seeds": (9,)}, "must not report"),
        ({"baseline": "gpro"}, "names arm 'gpro'"),
        ({"tuning_seeds": ()}, "no tuning_seeds"),
        ({"arms": [Arm("grpo", {"kl.bta": 1.0})], "curves": ()}, "no field 'kl.bta'"),
        ({"arms": [Arm("grpo", {"model.path": "{arm:grpo}"})], "curves": ()}, "wait for its own"),
    ],
)
def test_a_wrong_declaration_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        study(**changes)


def test_a_config_of_a_run_is_no_study():
    with pytest.raises(ValueError, match="declares no study"):
        Study(default_config())
