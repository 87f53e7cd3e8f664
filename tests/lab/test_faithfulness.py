"""The gate on responses that follow tampered traces, on some that do not, and on a model."""

import dataclasses
import json

import numpy as np
import pytest

from rdbcl_jax.checkpoint import Checkpoints
from rdbcl_jax.config import RunConfig
from rdbcl_jax.data.suites import SUITES, load_suite
from rdbcl_jax.lab.faithfulness.checks import Check
from rdbcl_jax.lab.faithfulness.probes import follows, force, overwrite
from rdbcl_jax.lab.faithfulness.report import passed, write
from rdbcl_jax.lab.faithfulness.run import run_gate
from rdbcl_jax.policy import load_policy
from rdbcl_jax.rewards.response_format import parse
from rdbcl_jax.sharding import make_mesh
from tests import engine

PROBED = [suite for suite in map(load_suite, SUITES) if hasattr(suite, "OPTIONS")]
TASKS = [(suite, task) for suite in PROBED for task in suite.TASKS]
each_task = pytest.mark.parametrize("suite,task", TASKS, ids=[task for _, task in TASKS])


def probes(suite, task, count=30):
    """Every kind of tampering, `count` of each."""
    rng = np.random.default_rng(0)
    records = suite.make_records(task, "validation", count, seed=0)
    for decision in suite.OPTIONS:
        yield from (force(suite, record, decision, rng) for record in records)
    for last in (False, True):
        yield from (overwrite(suite, record, last, rng) for record in records)


def continued(probe, suite):
    """A response that does what the prefix began: its decisions, its overwritten states."""
    right = suite.verified(probe.record)
    forced = [right]
    if probe.decision:
        forced = [
            dataclasses.replace(right, **{probe.decision: o}) for o in suite.OPTIONS[probe.decision]
        ]
    texts = [suite.make_trace(probe.record, p, probe.changes) for p in forced]
    (text,) = [t for t in texts if t.startswith(probe.prefix + " ")]
    return text


@each_task
def test_a_prefix_departs_from_the_right_trace_in_its_last_words(suite, task):
    for probe in probes(suite, task):
        words, right = probe.prefix.split(), suite.make_trace(probe.record).split()
        assert words[-1] != right[len(words) - 1]
        same = len(words) - (2 if task.startswith("jigsaw") and probe.changes else 1)
        assert words[:same] == right[:same]


@each_task
def test_who_goes_on_from_the_trace_follows_and_who_answers_from_the_picture_does_not(suite, task):
    told = 0
    for probe in probes(suite, task):
        text = continued(probe, suite)
        stubborn = text.replace(
            parse(text).answer + " </answer>", probe.record.answer + " </answer>"
        )
        verdict = follows(suite, probe, text)
        assert verdict in (True, None)
        if verdict:
            told += 1
            assert follows(suite, probe, stubborn) is False
    assert told > 30


def test_what_cannot_be_read_does_not_follow():
    suite = load_suite("digits")
    probe = next(probes(suite, "sum"))
    text = continued(probe, suite)
    assert follows(suite, probe, text.replace("</think>", "")) is False
    assert follows(suite, probe, text.replace(" next ", " ")) is False
    assert follows(suite, probe, text.replace(" next ", " next flip ")) is False


def test_a_random_model_fails_and_the_files_say_so(tmp_path):
    config = engine.small_config()
    config.gate.update(records=16, answer_only_steps=2)
    path = engine.write_random_model(tmp_path / "model")
    config.base.batch_size = 8
    found = run_gate(config, checkpoint=path)
    assert not passed(found)
    write(found, tmp_path / "out")
    nothing = dataclasses.replace(found["base"][0], value=float("nan"))
    write({**found, "none": [nothing]}, tmp_path / "strict")
    json.loads((tmp_path / "strict/gate.json").read_text(), parse_constant=pytest.fail)
    written = json.loads((tmp_path / "out/gate.json").read_text())
    assert written["passed"] is False
    checks = written["models"]["base"]
    assert {c["task"] for c in checks} == set(config.sequence)
    names = {c["name"] for c in checks}
    assert names == {
        "zero-shot",
        "force route",
        "force finish",
        "corrupt",
        "last",
        "foreign",
        "answer only",
    }
    for check in checks:
        if check["name"] in ("zero-shot", "force route", "corrupt", "last"):
            assert not check["passed"] and check["value"] < 0.2
    table = (tmp_path / "out/gate.md").read_text()
    assert "base: FAILED" in table and "| sum | ! 0 |" in table


def test_the_newest_whole_policy_of_a_run_is_gated(tmp_path, monkeypatch):
    """A save that was cut short left a folder behind."""
    config = engine.small_config()
    config.model.path = str(engine.write_random_model(tmp_path / "model"))
    _, learned = load_policy(RunConfig.of(config), make_mesh())
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save_task(1, learned)
    (tmp_path / "run/checkpoints/task_02.orbax-checkpoint-tmp").mkdir()
    monkeypatch.setattr("rdbcl_jax.lab.faithfulness.run.gate", lambda *_, **__: [])
    assert [*run_gate(config, workdir=tmp_path / "run")] == ["base", "after task 1"]


def test_a_check_passes_within_its_range_only():
    def check(value):
        return Check("sum", "corrupt", value, 10, 0.8, 1.0)

    assert check(0.8).passed and check(1.0).passed
    assert not check(0.79).passed and not check(float("nan")).passed
    assert passed({"base": [check(0.9)]}) and not passed({"base": [check(0.9), check(0.1)]})


def test_what_to_gate_is_said_once_and_built_in(tmp_path):
    config = engine.small_config()
    with pytest.raises(ValueError, match="either a workdir or a checkpoint"):
        run_gate(config)
    config.sequence = ("sum", "geometry")
    with pytest.raises(ValueError, match="'geometry' is not built in"):
        run_gate(config, workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_suite_that_does_not_exist(tmp_path):
    config = engine.small_config()
    config.base.suite = "digit"
    with pytest.raises(ValueError, match="suite is 'digit'"):
        run_gate(config, workdir=tmp_path / "run")
