"""Which job comes next: a base, its gate, then seed by seed what is compiled already."""

import dataclasses
import math
import pathlib

import pytest

from rdbcl_jax.json_files import write_json
from rdbcl_jax.lab.faithfulness.checks import Check
from rdbcl_jax.lab.faithfulness.report import write
from rdbcl_jax.lab.study import load_config
from rdbcl_jax.lab.study.declare import Study, execute
from rdbcl_jax.lab.study.jobs import ASKED, LACK, base_name, gate_name, train_run
from rdbcl_jax.lab.study.schedule import BASE, GATE, LOG, next_job, refused, settle
from rdbcl_jax.lab.study.standing import find_standing
from rdbcl_jax.lab.study.workers import Done, Job
from rdbcl_jax.rewards.verifiers import VERIFIERS, get_verifier

HERE = pathlib.Path(__file__).parent


@pytest.fixture
def standing(tmp_path):
    return find_standing(Study(load_config(HERE / "small_study.py")), tmp_path)


def test_a_base_then_its_gate_then_seed_by_seed_runs_of_the_same_programs(standing):
    plan = standing.plan()
    config = next(iter(plan.runs.values())).config
    base, gate = standing.workdir / base_name(config), standing.workdir / gate_name(config)

    job = next_job(standing, plan, [], None, gate=True)
    assert job.group == BASE and job.workdir == base
    assert next_job(standing, plan, [job], None, gate=True) is None  # all runs wait for it
    base.mkdir(parents=True)

    job = next_job(standing, plan, [], None, gate=True)
    assert job.group == GATE and job.workdir == gate and not refused(standing, plan)
    write({"base": [Check("sum", "last", 0.9, 8, 0.8, 1.0)]}, gate)

    first = next_job(standing, plan, [], None, gate=True)
    assert first.name == "main/grpo/seed0" and not refused(standing, plan)
    second = next_job(standing, plan, [first], None, gate=True)
    assert second.group == ("main", "sft")  # another compiles the programs of grpo
    # no arm gets ahead of the others: what there is of a stopped study compares the same seeds
    running, programs = [], first.group
    while job := next_job(standing, plan, running, programs, gate=True):
        running.append(job)
    assert [job.config.seed for job in running] == [0, 0, 0, 1, 1, 1]
    assert [running[0].group, running[3].group] == [programs] * 2


def test_a_gate_that_fails_ends_the_study_and_only_where_it_is_asked(standing):
    plan = standing.plan()
    config = next(iter(plan.runs.values())).config
    (standing.workdir / base_name(config)).mkdir(parents=True)
    write(
        {"base": [Check("sum", "last", v, 8, 0.8, 1.0) for v in (0.1, 0.9)]},
        standing.workdir / gate_name(config),
    )
    assert "1 of 2 checks failed" in refused(standing, plan)
    assert next_job(standing, plan, [], None, gate=False).name == "main/grpo/seed0"


def test_what_fails_is_noted_and_what_waits_for_it_is_lost(standing):
    job = next_job(standing, standing.plan(), [], None, gate=False)
    settle(standing, Done(job, 1.0, "OSError: full"))
    assert "OSError: full (see bases/" in standing.errors[job.name] and not standing.scores
    assert standing.lose(standing.plan()) and len(standing.scores) == 6
    assert "its base failed" in standing.errors["main/sft/seed1"]
    gate = dataclasses.replace(job, group=GATE, name="gates/x")
    settle(standing, Done(gate, 1.0, "died"))
    assert standing.stopped.startswith("gates/x could not be run: died")


def test_what_lacks_data_is_over_without_an_error_and_so_is_what_waits_for_it(standing):
    plan = standing.plan()
    first, second = plan.runs["main/sft/seed0"], plan.runs["main/sft/seed1"]
    (standing.runs / first.name).mkdir(parents=True)
    write_json(standing.runs / first.name / LACK, {"reason": "no demonstration"})
    settle(standing, Done(_train(standing, first), 1.0, ""))
    assert standing.lacking == {first.name: "no demonstration"}
    plan.runs[second.name] = dataclasses.replace(second, needs=(first.name,))
    assert standing.lose(plan) and not standing.errors
    assert standing.lacking[second.name] == f"needs {first.name}, which had nothing to learn from"
    assert all(math.isnan(standing.scores[run.name]) for run in (first, second))
    # the next call knows it
    write_json(standing.runs / first.name / ASKED, first.config)
    again = find_standing(standing.study, standing.workdir)
    assert again.lacking == {first.name: "no demonstration"} and not again.errors


def _train(standing, run):
    path = standing.runs / run.name
    return Job(run.name, run.group, train_run, run.config, path, path / LOG)


def test_a_config_file_is_run_in_the_form_that_was_asked_for(tmp_path):
    execute("")
    file = tmp_path / "config.py"
    file.write_text(
        "from rdbcl_jax.rewards.verifiers import register\n"
        "def get_config(form='full'):\n"
        "    register(f'verifier_of_{form}', str, lambda answer, gold: 1.0)\n"
    )
    try:
        for asked, name in ((str(file), "verifier_of_full"), (f"{file}:ci", "verifier_of_ci")):
            execute(asked)
            assert get_verifier(name).score("a", "b") == 1.0
    finally:
        VERIFIERS.pop("verifier_of_full", None)
        VERIFIERS.pop("verifier_of_ci", None)
